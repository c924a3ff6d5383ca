"""Weights files of every kind of malice: they load, or fail in one printable line, in little memory and time."""

from __future__ import annotations

import contextlib
import pickle
import resource
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from json import loads
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathlens.cli import main
from pathlens.errors import LONGEST, CheckpointError, PathlensError, ResourceError, UsageError, printable
from pathlens.models import load_into, load_model, load_state_dict_file, resnet, save_weights
from pathlens.runtime import memory
from tests.helpers.hostile_files import Described, Storage, pickled, write_legacy, write_safetensors, write_zip
from tests.helpers.model_helpers import Small

MARGIN = 2**29  # bytes that loading may take beside the network

NETWORK = "from pathlens.models import resnet\ndef make():\n    return resnet(8, widths=(1, 1, 2))\n"


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Let every larger allocation fail, as it would on a machine that is full."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MARGIN, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hostile")
    (made / "net.py").write_text(NETWORK)
    load_model(f"{made}/net.py:make", "random")  # what is imported once is not counted
    return made


def check(path: Path, read: Callable[[Path], Sequence[str]]) -> str:
    """Read a file that may be anything. Returns the message of the error, or an empty string."""
    message, error, notes = "", None, ()
    with little_memory(), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            notes = tuple(read(path))
        except PathlensError as caught:
            error, message = caught, str(caught)
    assert not isinstance(error, ResourceError), "it tried to take the memory"
    assert message.isprintable()
    assert len(message) <= LONGEST + 5
    assert all(len(note) <= LONGEST for note in notes)
    return message


def as_weights(path: Path) -> tuple[str, ...]:
    """Read a file, and put what it holds into a network."""
    state, notes = load_state_dict_file(path)
    return notes + load_into(Small(), state, str(path))


def by_name(path: Path) -> tuple[str, ...]:
    """Read a file as the command line does."""
    return load_model(f"{path.parent}/net.py:make", path).notes


# --- generated files -------------------------------------------------------------------------------------------------

NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, -1, -4, 2**31, 2**33, 2**62, 2**63, 2**70, 10**400]) | st.integers(0, 20)
NAMES = st.sampled_from(
    ["conv.weight", "bn.weight", "fc.bias", "fc.weight", "state_dict", "module.a", "__metadata__", ""]
) | st.text(max_size=12)


def odd(more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of all kinds where a number or a tensor belongs."""
    return st.recursive(
        st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=6) | more,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    )


ODD = odd(st.binary(max_size=6) | st.tuples(NUMBERS, st.text(max_size=6)))
ODD_JSON = odd(st.nothing())
SHAPES = st.lists(NUMBERS, max_size=4).map(tuple) | ODD
STORAGES = st.builds(
    Storage,
    key=st.sampled_from(["0", "1", "2", "../x", "\x1b[2J"]),
    count=NUMBERS,
    kind=st.sampled_from([torch.FloatStorage, torch.LongStorage, torch.ComplexFloatStorage, torch.BoolStorage, 3]),
)
TENSORS = st.builds(Described, storage=STORAGES, offset=NUMBERS | ODD, size=SHAPES, stride=SHAPES)
KEYS = NAMES | NUMBERS | st.binary(max_size=4) | st.tuples(st.integers(), st.text(max_size=3)) | st.none()
CONTENTS = st.recursive(
    st.dictionaries(KEYS, TENSORS | ODD, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(["state_dict", "model", "module.", "\r"]), inner | ODD, max_size=2),
    max_leaves=3,
)
STORED = st.lists(st.tuples(st.sampled_from(["0", "0", "1", "2"]), st.binary(max_size=64)), max_size=3)
OPCODES = st.sampled_from(
    [value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes) and len(value) == 1]
)
SOUP = st.lists(
    OPCODES | st.binary(max_size=5) | st.sampled_from([b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor\n"]),
    max_size=25,
).map(b"".join)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F64", "I8", "F8_E4M3", "BOOL", "Q9", "F4"]) | ODD_JSON,
        "shape": st.lists(NUMBERS, max_size=4) | ODD_JSON,
        "data_offsets": st.lists(NUMBERS, max_size=3),
    },
)
METADATA = st.dictionaries(
    st.sampled_from(["mean", "std", "input_shape", "test_error", "\x1b]0;x\x07"]) | st.text(max_size=4),
    st.text(max_size=12)
    | st.lists(NUMBERS | st.floats(), max_size=3).map(lambda values: str(values).replace("'", '"')),
    max_size=4,
)


fuzzed = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@fuzzed
@given(content=CONTENTS, stored=STORED)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_archive(folder: Path, content: Any, stored: list[tuple[str, bytes]]) -> None:
    check(write_zip(folder / "fuzzed.pt", pickled(content), stored), as_weights)


@fuzzed
@given(content=CONTENTS, stored=STORED, stated=NUMBERS.filter(lambda n: n < 2**63))
def test_any_legacy_file(folder: Path, content: Any, stored: list[tuple[str, bytes]], stated: int) -> None:
    parts = [(key, len(data) // 4 if stated == 1 else stated, data) for key, data in stored]
    check(write_legacy(folder / "fuzzed.pt", pickled(content, legacy=True), parts), as_weights)


@fuzzed
@given(soup=SOUP)
def test_any_pickle(folder: Path, soup: bytes) -> None:
    check(write_zip(folder / "fuzzed.pt", b"\x80\x02" + soup + b"."), as_weights)
    check(write_legacy(folder / "fuzzed.pt", b"\x80\x02" + soup + b"."), as_weights)


@fuzzed
@given(entries=st.dictionaries(NAMES, ENTRIES, max_size=3), metadata=METADATA, content=st.binary(max_size=64))
def test_any_safetensors(folder: Path, entries: dict[str, Any], metadata: dict[str, str], content: bytes) -> None:
    check(write_safetensors(folder / "fuzzed.pt", {**entries, "__metadata__": metadata}, content), as_weights)


@settings(fuzzed, max_examples=20)
@given(metadata=METADATA)
def test_any_metadata_of_good_weights(folder: Path, metadata: dict[str, str]) -> None:
    with contextlib.suppress(UnicodeEncodeError):  # safetensors writes no half of a character
        save_weights(folder / "fuzzed.pt", resnet(8, widths=(1, 1, 2)), metadata)
        assert check(folder / "fuzzed.pt", by_name) == ""


# --- attacks that are known ------------------------------------------------------------------------------------------


def test_more_values_than_are_stored(folder: Path) -> None:
    """A classifier of 2^33 rows by a stride of zero: the network would be built with as many."""
    rows = Described(Storage(count=4), 0, (2**33, 2), (0, 1))
    for path in (
        write_zip(folder / "rows.pt", pickled({"linear.weight": rows})),
        write_legacy(folder / "rows.pth", pickled({"linear.weight": rows}, legacy=True)),
    ):
        assert "17179869184 values do not lie in the 16 bytes" in check(path, by_name)


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (Described(Storage(), 1), "do not lie"),
        (Described(Storage(), -1), "no such thing"),
        (Described(Storage(), 3, (4,), (-1,)), "no such thing"),
        (Described(Storage(), 0, (2, 2), (3, 1)), "do not lie"),
        (Described(Storage(), 0, (2, 2), (1,)), "no such thing"),
        (Described(Storage(), 0, (4.0,), (1,)), "no such thing"),
        (Described(Storage(), 0, (True,), (1,)), "no such thing"),
        (Described(Storage(), 0, (2**40,), (0,)), "do not lie"),
        (Described(Storage(count=2**40), 0, (2**40,), (1,)), "4398046511104 bytes are stated for it"),
        (Described(Storage(key="7")), "tensor a"),
        (Described(3), "no storage"),
    ],
)
def test_descriptions_that_do_not_fit_what_is_stored(folder: Path, described: Described, words: str) -> None:
    good = {"b": Described(Storage(), 1, (2,), (2,))}
    assert words in check(write_zip(folder / "w.pt", pickled({**good, "a": described})), as_weights)
    legacy = check(write_legacy(folder / "w.pt", pickled({**good, "a": described}, legacy=True)), as_weights)
    assert words in legacy or "damaged" in legacy


def test_storages_that_lie_over_each_other(folder: Path) -> None:
    """A central directory may name the same bytes any number of times."""
    size, times = 2**20, 600
    described = {f"t{i}": Described(Storage(str(i), size // 4), 0, (size // 4,)) for i in range(times)}
    write_zip(folder / "over.pt", pickled(described), [("0", bytes(size)), *((str(i), b"") for i in range(1, times))])
    content = bytearray((folder / "over.pt").read_bytes())
    first = content.rindex(b"archive/data/0") - 46  # its entry in the central directory
    sizes, offset = bytes(content[first + 20 : first + 28]), bytes(content[first + 42 : first + 46])
    for i in range(1, times):
        entry = content.index(b"archive/data/%d" % i, first) - 46
        content[entry + 20 : entry + 28], content[entry + 42 : entry + 46] = sizes, offset
    (folder / "over.pt").write_bytes(content)
    assert "shares its bytes in the file with others" in check(folder / "over.pt", as_weights)


def test_two_entries_of_one_name(folder: Path) -> None:
    """One reader takes the first and another the last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = [("0", bytes(16)), ("0", b"x" * 16)]
        path = write_zip(folder / "twice.pt", pickled({"a": Described(Storage())}), stored)
    assert "two entries of one name" in check(path, as_weights)


@pytest.mark.parametrize("zip64", [True, False])
def test_more_entries_than_any_archive_has(folder: Path, zip64: bool) -> None:
    """Each is 47 bytes in the file, and an object of twenty times as many in memory."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, *[0] * 8, 1, *[0] * 6) + b"a"
    start, directory, end = b"PK\x03\x04" + bytes(26), entry * (17 * 2**20 // len(entry)), b""
    where = (len(directory), len(start))
    if zip64:
        end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, *where)
        end += struct.pack("<4sLQL", b"PK\x06\x07", 0, len(start) + len(directory), 1)
        where = (2**32 - 1, 2**32 - 1)
    end += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, *where, 0)
    (folder / "entries.pt").write_bytes(start + directory + end)
    assert "its list of entries takes more than 16 MiB" in check(folder / "entries.pt", as_weights)


def test_a_header_of_more_layers_than_there_are(folder: Path) -> None:
    (folder / "layers.bin").write_bytes(struct.pack("<7i", 2, 4, 2**24, 1, 1, 5, 3))
    message = check(folder / "layers.bin", lambda path: load_model("llama2", path).notes)
    layer = 2 + 4 * 2 * 2 + 2 + 3 * 4 * 2
    wanted = 28 + 4 * (2 * 5 + layer * 2**24 + 2 + 2 * 3)
    assert f"it has 28 bytes, and its header says {wanted:,}" in message


@pytest.mark.parametrize(
    "call", [b"c__builtin__\nbytearray\n", b"ctorch\nFloatTensor\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n"]
)
def test_calls_that_would_allocate(folder: Path, call: bytes) -> None:
    huge = b"\x8a\x06" + (2**44).to_bytes(6, "little")
    for soup in (call + huge + b"\x85R", call + huge + b"\x85\x81", b"\x96" + (2**40).to_bytes(8, "little")):
        assert check(write_zip(folder / "call.pt", b"\x80\x02" + soup + b"."), as_weights)


def test_an_index_that_would_allocate(folder: Path) -> None:
    assert check(write_zip(folder / "memo.pt", b"\x80\x02}r\xff\xff\xff\xff."), as_weights)


def test_keys_that_collide(folder: Path) -> None:
    """Numbers of equal hash make a dict quadratic; those are dropped, and so is everything that is no name."""
    modulus = 2**61 - 1
    keys: dict[Any, Any] = {i * modulus: 0 for i in range(1, 2000)}
    state, notes = load_state_dict_file(
        write_zip(folder / "keys.pt", pickled({**keys, (1, 2): 0, 5: 1, "a": Described(Storage())}))
    )
    assert list(state) == ["a"]
    assert notes == ("left aside what is no tensor: 5",)


@pytest.mark.parametrize("where", ["storage", "keys"])
def test_names_of_storages_that_have_no_end_as_text(folder: Path, where: str) -> None:
    """Fifty pairs of a pair: 200 bytes, and 2^50 characters."""
    endless = b"K\x01" + b"2\x86" * 50
    if where == "storage":
        named = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + endless + b"X\x03\x00\x00\x00cpuK\x01tQ."
        path = write_zip(folder / "endless.pt", named)
    else:
        path = folder / "endless.pt"
        parts = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}, {})
        path.write_bytes(b"".join(map(pickled_plain, parts)) + b"\x80\x02](" + endless + b"e.")
    assert check(path, as_weights)


def pickled_plain(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def test_more_names_than_any_network_has(folder: Path) -> None:
    tensor = Described(Storage())
    few = {f"name{i}": tensor for i in range(3000)}
    assert "3000 unexpected: name0, name1, name2 and 2997 more" in check(
        write_zip(folder / "many.pt", pickled(few)), as_weights
    )
    many = pickled({f"{i:0{2**20}}": 0 for i in range(17)})
    for path in (write_zip(folder / "many.pt", many), write_legacy(folder / "many.pt", many)):
        assert "more than 16 MiB" in check(path, as_weights)
    header = b'{"a":' + b" " * (17 * 2**20) + b"1}"
    assert "more than 16 MiB" in check(write_safetensors(folder / "many.pt", header), as_weights)


def test_prefixes_and_nesting_without_end(folder: Path) -> None:
    name = "module." * 20_000 + "a"
    assert "unexpected: a" in check(write_zip(folder / "deep.pt", pickled({name: Described(Storage())})), as_weights)
    nested = b"\x80\x02" + b"}X\x05\x00\x00\x00model" * 20_000 + b"}" + b"s" * 20_000 + b"."
    assert "nested without end" in check(write_zip(folder / "deep.pt", nested), as_weights)
    assert check(write_zip(folder / "deep.pt", b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."), as_weights)


@pytest.mark.parametrize("legacy", [True, False])
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64]
    content = {
        "whole": base, "view": base[1:3, ::2], "turned": base.t(), "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3), "parameter": torch.nn.Parameter(base), "buffer": torch.nn.Buffer(base + 1),
        **{str(kind): base.to(kind) for kind in kinds},
    }  # fmt: skip
    if not legacy:  # which torch itself does not read again
        content["without a storage of its own"] = base.to(torch.uint16)
    torch.save({"net": content}, tmp_path / "w.bin", _use_new_zipfile_serialization=not legacy)
    state, _ = load_state_dict_file(tmp_path / "w.bin")
    expected = torch.load(tmp_path / "w.bin", weights_only=True)["net"]
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert state[name].stride() == value.stride()
        assert torch.equal(state[name], value)
    assert state["whole"].untyped_storage().data_ptr() == state["turned"].untyped_storage().data_ptr()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_protocols(tmp_path: Path, protocol: int) -> None:
    torch.save({"a": torch.ones(3), "set": {1}, "bytes": b"x"}, tmp_path / "w.pt", pickle_protocol=protocol)
    assert torch.equal(load_state_dict_file(tmp_path / "w.pt")[0]["a"], torch.ones(3))


def test_tensors_without_plain_values(tmp_path: Path) -> None:
    sparse = torch.eye(2).to_sparse()
    for value, word in (
        (sparse, "sparse"), (torch.ones(2, device="meta"), "meta"), (torch.ones(2, dtype=torch.cfloat).conj(), "conj"),
    ):  # fmt: skip
        torch.save({"x": value}, tmp_path / "w.pt")
        with pytest.raises(CheckpointError, match=rf"x is a tensor without plain values \({word}"):
            load_state_dict_file(tmp_path / "w.pt")


# --- what reaches the terminal ---------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J\x1b]0;x\x07\rpathlens: forged\npathlens: too\x9b\u202e\u2028\u200b\udc80"


@pytest.mark.parametrize("text", ["plain", "Stra\u00dfe \u4e2d", "back\\slash", "a" * 5000])
def test_printable_texts_stay(text: str) -> None:
    assert printable(text) == text
    assert len(printable(text, 100)) < max(len(text), 101)


def test_everything_else_is_escaped_once() -> None:
    line = printable(HOSTILE)
    assert line.isprintable()
    assert printable(line) == line
    assert line.startswith("\\x1b[2J\\x1b]0;x\\x07\\rpathlens: forged\\npathlens: too\\x9b\\u202e")
    assert str(UsageError(HOSTILE)) == line


def test_names_and_metadata_do_not_steer_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = HOSTILE.replace("\udc80", "")
    state = resnet(8, widths=(1, 1, 2)).state_dict()
    torch.save({"state_dict": state, name: 1}, folder / "names.pt")
    torch.save({**state, name: torch.ones(1)}, folder / "more.pt")
    save_weights(folder / "metadata.bin", resnet(8, widths=(1, 1, 2)), {"test_error": name, name: name})
    (folder / f"file {name.replace('/', '')}.bin").write_bytes((folder / "names.pt").read_bytes())
    spec = f"{folder}/net.py:make"
    cases = [("more.pt", 4), (f"none {name}", 4), (f"file {name}.bin", 0), ("metadata.bin", 0)]
    for file, expected in cases:
        json = ["--json"] if file == "metadata.bin" else []
        assert main(["blocks", "-m", spec, "-w", str(folder / file), "--input-shape", "3,8,8", *json]) == expected
        printed = capfd.readouterr()
        assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))
        assert all(line.startswith("pathlens: ") for line in printed.err.splitlines())
        assert not any(line.startswith("pathlens: forged") for line in printed.err.splitlines())
        assert "\\x1b[2J" in printed.err
        if json:
            assert any(name[:9] in note for note in loads(printed.out)["provenance"]["notes"])


# --- sizes that are asked for ----------------------------------------------------------------------------------------


def test_inputs_larger_than_the_memory(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_weights(folder / "wide.bin", resnet(8, widths=(1, 1, 2)), {"input_shape": "[3, 99999, 99999]"})
    good, spec = str(folder / "wide.bin"), f"{folder}/net.py:make"
    for verb in ("blocks", "unravel"):
        for more in (["--input-shape", "3,99999,99999"], ["-w", good]):
            with little_memory():
                assert main([verb, "-m", spec, *more]) == ResourceError.exit_code
            (line,) = capfd.readouterr().err.splitlines()
            assert "3,99999,99999: 2 examples take 224 GiB" in line


def test_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_LIMITS", ())
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert memory.total_memory() == 4096000
    (tmp_path / "max").write_text("8192\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "max"), str(tmp_path / "none"), str(tmp_path / "missing")))
    assert memory.total_memory() == 8192
    memory.check_input_fits((256,), 1, "")
    with pytest.raises(ResourceError, match="input of shape 257: 1 examples take"):
        memory.check_input_fits((257,), 1, "")
    monkeypatch.setattr(memory, "_LIMITS", ())

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert memory.total_memory() == memory.UNKNOWN_MEMORY


def test_a_file_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.bin", Small(), {})
    monkeypatch.setattr("pathlens.models.reading.total_memory", lambda: 100)
    with pytest.raises(ResourceError, match="do not fit in memory"):
        load_state_dict_file(tmp_path / "w.bin")


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/stdin", "/dev/null"])
def test_devices_are_not_read(place: str) -> None:
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_state_dict_file(place)
