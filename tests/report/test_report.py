"""Run folders: what is written is complete and described, and only one run at a time may write it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from pathlens.errors import NumericsError, ResourceError, RunError, UsageError
from pathlens.report import MANIFEST, check_run_folder, provenance, write_run
from pathlens.storage import lock_run
from pathlens.tables import Column, Table, read_table
from tests.helpers import ROOT

TABLE = Table(
    (Column("block"), Column("error", "fraction")), ({"block": None, "error": 0.1}, {"block": 0, "error": 0.2})
)
FACTS = {"verb": "delete-blocks", "arguments": {"limit": 10}, "seed": 3, "model_hash": "ab", "wall_time_s": 1.5}


def python(code: str, *arguments: object, root: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root)} | more
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)


def figure():
    from pathlens import figures

    rows = ({"block": 0, "stage": 0, "kind": "identity", "count": 1, "sample": None},)
    columns = ("block", "stage", "kind", "count", "sample", "error", "error_low", "error_high")
    numbers = {"error": 0.2, "error_low": 0.1, "error_high": 0.3}
    return figures.deletion(Table(tuple(map(Column, columns)), tuple(row | numbers for row in rows)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_run_folder_is_complete_and_described(tmp_path):
    out = tmp_path / "deep" / "run"
    written = write_run(out, {"errors": TABLE}, {"errors": figure()}, FACTS)
    names = ["errors.parquet", "errors.meta.json", "errors.csv", "errors.png", "errors.pdf", MANIFEST]
    assert [path.name for path in written] == names
    assert sorted(contents(out)) == sorted(names)
    assert read_table(out / "errors.csv") == read_table(out / "errors.parquet") == TABLE
    manifest = json.loads((out / MANIFEST).read_text())
    assert {name: manifest[name] for name in FACTS} == FACTS
    assert {"versions", "hardware", "commit", "date", "command"} <= set(manifest)
    assert set(manifest["files"]) == set(names) - {MANIFEST}
    for name, facts in manifest["files"].items():
        data = (out / name).read_bytes()
        assert facts == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_manifest_gets_its_name_last(tmp_path, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(Path(new).name), replace(old, new)))
    write_run(tmp_path, {"a": TABLE, "b": TABLE}, {}, FACTS)
    assert order[-1] == MANIFEST
    assert len(order) == 7


def test_same_verb_replaces_its_own_files_and_no_others(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write_run(tmp_path, {"old": TABLE, "errors": TABLE, "edited": TABLE}, {"old": figure()}, FACTS)
    (tmp_path / "edited.csv").write_text("changed by hand")
    write_run(tmp_path, {"errors": TABLE}, {}, FACTS | {"seed": 4})
    found = contents(tmp_path)
    assert sorted(found) == sorted(
        ["errors.parquet", "errors.meta.json", "errors.csv", MANIFEST, "notes.txt", "edited.csv"]
    )
    assert found["notes.txt"] == b"mine"
    assert found["edited.csv"] == b"changed by hand"
    assert json.loads(found[MANIFEST])["seed"] == 4


def test_manifest_cannot_have_files_outside_removed(tmp_path):
    out, outside = tmp_path / "run", tmp_path / "outside.txt"
    outside.write_text("mine")
    write_run(out, {"a": TABLE}, {}, FACTS)
    manifest = json.loads((out / MANIFEST).read_text())
    digest = hashlib.sha256(b"mine").hexdigest()
    manifest["files"] |= {"../outside.txt": {"sha256": digest}, str(outside): {"sha256": digest}, "x": None}
    (out / MANIFEST).write_text(json.dumps(manifest))
    write_run(out, {"a": TABLE}, {}, FACTS)
    assert outside.read_text() == "mine"


def test_folder_of_another_verb_is_refused_and_untouched(tmp_path):
    write_run(tmp_path, {"a": TABLE}, {}, FACTS)
    before = contents(tmp_path)
    assert check_run_folder(tmp_path, "delete-blocks")["seed"] == 3
    with pytest.raises(RunError, match="holds results of delete-blocks, not of reorder-blocks; give"):
        write_run(tmp_path, {"b": TABLE}, {}, FACTS | {"verb": "reorder-blocks"})
    with pytest.raises(RunError, match="holds results of delete-blocks"):
        check_run_folder(tmp_path, "blocks")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"text"'])
def test_manifest_that_is_not_one_is_refused_and_kept(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(RunError, match="damaged or not of pathlens"):
        write_run(tmp_path, {"a": TABLE}, {}, FACTS)
    assert contents(tmp_path) == {MANIFEST: content.encode()}


def test_out_that_is_no_folder_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    for call in (
        lambda out: write_run(out, {"a": TABLE}, {}, FACTS),
        lambda out: check_run_folder(out, "blocks"),
        lambda out: lock_run(out).__enter__(),
    ):
        with pytest.raises(RunError, match=r"is a file, not a folder"):
            call(path)
        with pytest.raises(RunError, match=r"cannot write .*file/below"):
            call(path / "below")
    assert path.read_text() == "mine"


def test_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions do not bind root, who may run the tests
    with pytest.raises(RunError, match=f"cannot write to {tmp_path}: permission denied"):
        check_run_folder(tmp_path, "blocks")


def test_full_disk_leaves_the_old_run(tmp_path, monkeypatch):
    write_run(tmp_path, {"a": TABLE}, {}, FACTS)
    before = contents(tmp_path)
    calls = []

    def fourth_fails(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fourth_fails)
    with pytest.raises(ResourceError, match="No space left"):
        write_run(tmp_path, {"a": TABLE, "b": TABLE}, {}, FACTS | {"seed": 9})
    assert contents(tmp_path) == before


def test_bad_manifests_and_stems_are_refused_before_anything_is_written(tmp_path):
    for facts, stem, error in (
        ({"seed": 1}, "a", UsageError),
        (FACTS | {"loss": float("nan")}, "a", NumericsError),
        (FACTS | {"device": object()}, "a", UsageError),
        (FACTS, "../a", UsageError),
    ):
        with pytest.raises(error):
            write_run(tmp_path / "run", {stem: TABLE}, {}, facts)
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from pathlens.storage import lock_run
with lock_run(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_folder_in_use_by_another_process_is_refused_until_it_dies(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(RunError, match=f"in use by process {other.pid}; wait"), lock_run(tmp_path):
                pass
            with pytest.raises(RunError, match="in use"):
                write_run(tmp_path, {"a": TABLE}, {}, FACTS)
            assert contents(tmp_path) == {}
        finally:
            other.send_signal(signal.SIGKILL)
    write_run(tmp_path, {"a": TABLE}, {}, FACTS)
    assert MANIFEST in contents(tmp_path)


def test_what_a_killed_process_left_is_cleared_away_once_nobody_else_writes(tmp_path: Path) -> None:
    for name in (".pathlens-0123456789abcdef.tmp", "kept.tmp"):
        (tmp_path / name).write_text("half")
    with lock_run(tmp_path):
        assert not (tmp_path / ".pathlens-0123456789abcdef.tmp").exists()
        (tmp_path / ".pathlens-1.tmp").write_text("of this process")
        with lock_run(tmp_path):
            assert (tmp_path / ".pathlens-1.tmp").exists()
    assert (tmp_path / "kept.tmp").exists()


def test_a_full_disk_while_locking_is_said_and_leaves_no_lock(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ResourceError, match="No space left on device; free some space"), lock_run(tmp_path):
            pass
    found = []
    thread = threading.Thread(target=lambda: found.append(lock_run(tmp_path).__enter__()))
    thread.start()
    thread.join()
    assert found == [tmp_path]


def test_lock_is_the_threads_own_and_ends_with_the_body(tmp_path):
    refused = []

    def other() -> None:
        try:
            with lock_run(tmp_path):
                pass
        except RunError as error:
            refused.append(error)

    def in_thread() -> int:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return len(refused)

    def body() -> None:
        with lock_run(tmp_path):
            with lock_run(tmp_path / "." / ".." / tmp_path.name):  # the holder may take it again
                write_run(tmp_path, {"a": TABLE}, {}, FACTS)
            assert in_thread() == 1  # and still holds it
            raise KeyError

    with pytest.raises(KeyError):
        body()
    assert in_thread() == 1  # free again: not refused a second time


def test_provenance_states_versions_machine_and_time():
    before = datetime.now(UTC).replace(microsecond=0)
    found = provenance(seed=7, model=Path("net.pt"), lengths=(1, 2), note=None)
    assert before <= datetime.fromisoformat(found["date"]) <= datetime.now(UTC)
    assert {name: found[name] for name in ("seed", "model", "lengths", "note")} == {
        "seed": 7,
        "model": "net.pt",
        "lengths": [1, 2],
        "note": None,
    }
    assert found["versions"]["python"] == sys.version.split()[0]
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["hardware"]["cores"] == os.cpu_count()
    if Path("/proc/meminfo").exists():
        total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        assert found["hardware"]["memory_bytes"] == pytest.approx(total, rel=0.01)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert provenance(command=["x"])["command"] == ["x"]  # the caller wins


def test_provenance_names_threads_and_gpus_only_of_a_loaded_torch():
    code = "import json, sys\n{}from pathlens.report import provenance\nprint(json.dumps(provenance()['hardware']))"
    without, loaded = (json.loads(python(code.format(line)).stdout) for line in ("", "import torch\n"))
    assert "threads" not in without
    assert without["gpus"] == []
    import torch

    assert loaded["threads"] >= 1
    assert len(loaded["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_is_that_of_the_packages_own_checkout(tmp_path):
    package = tmp_path / "pathlens"
    package.mkdir()
    for name in ("__init__.py", "errors.py", "version.py"):
        shutil.copy(ROOT / "pathlens" / name, package)
    for room in ("storage", "tables", "report"):
        shutil.copytree(ROOT / "pathlens" / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from pathlens.report import provenance; print(provenance()['commit'])"

    def stated(**more: str) -> str:
        return python(code, root=tmp_path, PYTHONDONTWRITEBYTECODE="1", **more).stdout.strip()

    outside = stated()
    git(tmp_path, "init", "--quiet")
    (tmp_path / "other").write_text("x")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "--quiet", "-m", "another project")
    assert stated() == outside  # a checkout of something else around the package does not count
    git(tmp_path, "add", "pathlens")
    git(tmp_path, "commit", "--quiet", "-m", "the package")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert len(head) == 40
    assert stated() == head
    assert stated(GIT_DIR="/nonexistent", GIT_WORK_TREE="/") == head
    assert stated(PATH="") == outside  # no git
    with (package / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert stated() == f"{head}-dirty"


def test_import_is_light(tmp_path):
    code = """
import sys, pathlens.report
heavy = ("torch", "pandas", "pyarrow", "numpy", "scipy", "matplotlib", "seaborn", "pathlens.figures")
print([name for name in heavy if name in sys.modules])
from pathlens.tables import Table, Column
pathlens.report.write_run(sys.argv[1], {"a": Table((Column("a"),), ({"a": 1},))}, {}, {"verb": "blocks"})
print([name for name in ("torch", "matplotlib", "pathlens.figures") if name in sys.modules])
"""
    done = python(code, tmp_path)
    assert done.stdout == "[]\n[]\n", done.stderr


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("pathlens.__main__", ["pathlens"]),
        ("studies.benchmarks.sweep", ["python", "-m", "studies.benchmarks.sweep"]),
        ("studies.critics.__main__", ["python", "-m", "studies.critics"]),
        (None, ["pathlens"]),
    ],
)
def test_the_command_is_what_a_reader_would_type(module, said, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module and SimpleNamespace(name=module))
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/pathlens", "--seed", "3"])
    assert provenance()["command"] == [*said, "--seed", "3"]
