"""A sweep that was stopped goes on where it stopped, and ends with the same table."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pathlens
from pathlens.analyses import evaluation
from pathlens.analyses.provenance import EngineProvenance
from pathlens.analyses.runner import Runner
from pathlens.cli import main
from pathlens.data import ImageData, open_data
from pathlens.errors import ResourceError, RunError
from pathlens.residual import ResidualView, engines, find_blocks
from pathlens.residual.inference import Inference
from pathlens.storage import journal as journals
from pathlens.storage.journal import results_unsaved
from pathlens.tables import Table
from tests.helpers.cli_files import USER_FILE
from tests.helpers.data_files import noise, png, write
from tests.helpers.lesion_oracle import small_net
from tests.helpers.processes import environment
from tests.helpers.progress import Progress

RGB = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
BATCHES = 8


def images(folder: Path, seed: int = 0, rows: int = 40) -> str:
    labels = [row % 5 for row in range(rows)]
    return write(folder / "test.parquet", [png(image) for image in noise(rows, 8, 8, 3, seed=seed)], labels)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return open_data(images(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def view() -> ResidualView:
    return find_blocks(small_net(torch.float32), torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="module")
def whole(view: ResidualView, data: ImageData) -> Table:
    return pathlens.delete_blocks(view, data, batch_size=5, **RGB)


def stopped(view: ResidualView, data: ImageData, journal: Path, after: int, **options: Any) -> None:
    options = {"batch_size": 5, "journal": journal, **RGB, **options}
    with pytest.raises(KeyboardInterrupt):
        pathlens.delete_blocks(view, data, progress=Progress(after), **options)


def again(view: ResidualView, data: ImageData, journal: Path, **options: Any) -> Table:
    options = {"batch_size": 5, "journal": journal, **RGB, **options}
    return pathlens.delete_blocks(view, data, **options)


def test_interrupted_and_given_again(view: ResidualView, data: ImageData, whole: Table, tmp_path: Path) -> None:
    stopped(view, data, tmp_path / "journal", after=3)
    assert len(list((tmp_path / "journal").iterdir())) == 1
    progress = Progress()
    table = again(view, data, tmp_path / "journal", progress=progress)
    assert table.rows == whole.rows
    assert table.provenance["resumed_batches"] == 3
    assert progress.told == [(done, BATCHES) for done in range(3, BATCHES + 1)]
    assert whole.provenance["resumed_batches"] == 0
    # nothing is left behind, and so nothing is reused by a third run
    assert not (tmp_path / "journal").exists()
    assert again(view, data, tmp_path / "journal").provenance["resumed_batches"] == 0


def test_a_finished_analysis_whose_result_was_lost(
    view: ResidualView, data: ImageData, whole: Table, tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    with results_unsaved():
        again(view, data, folder)  # and what wrote its result failed
    assert folder.exists()
    with results_unsaved() as saved:
        table = again(view, data, folder)
        assert folder.exists()
        saved()
    assert (table.provenance["resumed_batches"], table.rows) == (BATCHES, whole.rows)
    assert not folder.exists()


def test_only_what_is_missing_is_computed(
    view: ResidualView, data: ImageData, whole: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(view, data, tmp_path, after=6)
    read: list[int] = []
    batch = ImageData.batch
    monkeypatch.setattr(
        ImageData,
        "batch",
        lambda self, index, *args, **kwargs: (read.append(index), batch(self, index, *args, **kwargs))[1],
    )
    assert again(view, data, tmp_path).rows == whole.rows
    # the first batch is read twice more: does an image's answer depend on its batch, and is the network the model's own
    assert read == [0, 0, 6, 7]


def test_a_line_that_the_kill_cut_off(view: ResidualView, data: ImageData, whole: Table, tmp_path: Path) -> None:
    stopped(view, data, tmp_path, after=2)
    (journal,) = tmp_path.iterdir()
    lines = journal.read_bytes().splitlines()
    assert [json.loads(line)["batch"] for line in lines] == [0, 1]
    journal.write_bytes(lines[0] + b"\n" + lines[1][: len(lines[1]) // 2])
    stopped(view, data, tmp_path, after=4)
    # the torn line did not take the next one with it
    table = again(view, data, tmp_path)
    assert table.provenance["resumed_batches"] == 4
    assert table.rows == whole.rows


def test_a_journal_of_noise(view: ResidualView, data: ImageData, whole: Table, tmp_path: Path) -> None:
    stopped(view, data, tmp_path, after=2)
    (journal,) = tmp_path.iterdir()
    journal.write_bytes(b'\x00\xff\n[]\n{"batch": 1}\n"text"\n' + journal.read_bytes().splitlines()[1])
    table = again(view, data, tmp_path)
    assert table.provenance["resumed_batches"] == 1
    assert table.rows == whole.rows


def _changed_weight(view: ResidualView) -> ResidualView:
    net = small_net(torch.float32)
    with torch.no_grad():
        net.blocks[2].conv1.weight[0, 0, 0, 0] += 1e-3
    return find_blocks(net, torch.zeros(2, 3, 8, 8))


def _changed_code(view: ResidualView) -> ResidualView:
    """The same weights in a forward pass that was edited meanwhile."""
    net = small_net(torch.float32)
    whole = net.forward
    net.forward = lambda x: whole(x) * 0.5  # type: ignore[method-assign]
    return find_blocks(net, torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("change", [_changed_weight, _changed_code])
def test_another_network_starts_anew(
    change: Callable[[ResidualView], ResidualView], view: ResidualView, data: ImageData, tmp_path: Path
) -> None:
    stopped(view, data, tmp_path, after=3)
    other = change(view)
    table = again(other, data, tmp_path)
    assert table.provenance["resumed_batches"] == 0
    assert table.rows == pathlens.delete_blocks(other, data, batch_size=5, **RGB).rows
    # what belongs to the first network is still there
    assert again(view, data, tmp_path).provenance["resumed_batches"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"},
        {"fast": False},
        {"engine": "folded"},
        {"batch_size": 4},
        {"blocks": [1, 2]},
        {"mean": (0.4, 0.5, 0.5)},
        {"count": 2, "samples": 3, "seed": 1},
    ],
    ids=str,
)
def test_another_request_starts_anew(
    change: dict[str, Any], view: ResidualView, data: ImageData, tmp_path: Path
) -> None:
    first = {"count": 2, "samples": 3, "seed": 0} if "seed" in change else {}
    stopped(view, data, tmp_path, after=2, **first)
    assert again(view, data, tmp_path, **change).provenance["resumed_batches"] == 0
    assert again(view, data, tmp_path, **first).provenance["resumed_batches"] == 2


def test_a_machine_without_the_engine_of_the_journal_starts_anew(
    view: ResidualView, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engines.packs(torch.device("cpu"), torch.float32):
        pytest.skip("this torch has no packed convolutions")

    def choose(view: ResidualView, runner: Runner, _networks: int) -> tuple[Inference, EngineProvenance]:
        network = Inference(view, runner.device, runner.dtype, engines.Engine("packed", 4))
        return network, EngineProvenance(engine="packed-4", engine_chosen="measured")

    with monkeypatch.context() as patched:
        patched.setattr(evaluation.tuning, "choose", choose)
        stopped(view, data, tmp_path / "journal", after=3)
    with monkeypatch.context() as patched:
        patched.setattr(engines, "packs", lambda device, dtype: False)
        stopped(view, data, tmp_path / "journal", after=2)
        table = again(view, data, tmp_path / "journal")
    assert table.provenance["resumed_batches"] == 2
    assert table.provenance["engine"] == "folded-5"
    assert any("of engine packed-4, which this machine does not have" in note for note in table.provenance["notes"])
    assert table.rows == pathlens.delete_blocks(view, data, batch_size=5, engine="folded-5", **RGB).rows
    assert not (tmp_path / "journal").exists()


def test_other_images_start_anew(view: ResidualView, data: ImageData, tmp_path: Path) -> None:
    stopped(view, data, tmp_path / "journal", after=3)
    other = open_data(images(tmp_path / "other", seed=1))
    table = again(view, other, tmp_path / "journal")
    assert table.provenance["resumed_batches"] == 0
    assert table.rows == pathlens.delete_blocks(view, other, batch_size=5, **RGB).rows


def test_the_same_sweep_twice_at_once(view: ResidualView, data: ImageData, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == 2:
            with pytest.raises(RunError, match="running already") as caught:
                again(view, data, tmp_path)
            assert "\n" not in str(caught.value)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again(view, data, tmp_path, progress=progress)
    assert again(view, data, tmp_path).provenance["resumed_batches"] == 2


def test_a_full_disk(
    view: ResidualView, data: ImageData, whole: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(journals.os, "fsync", full)
        with pytest.raises(ResourceError, match="full") as caught:
            again(view, data, tmp_path)
    assert "\n" not in str(caught.value)
    table = again(view, data, tmp_path)
    assert table.provenance["resumed_batches"] >= 3
    assert table.rows == whole.rows


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of journals that nobody asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = journals.default_folder()
    assert folder is not None
    return folder


@pytest.mark.parametrize("writes", [0, 3])
def test_a_full_disk_of_the_cache_ends_nothing(
    writes: int,
    view: ResidualView,
    data: ImageData,
    whole: Table,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    calls = 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(journals.os, "fsync", full)
        assert again(view, data, cache).rows == whole.rows
    (said,) = capfd.readouterr().err.splitlines()
    assert str(cache) in said
    assert "No space left on device" in said
    assert "--out" in said
    assert not cache.exists()


def test_a_cache_that_cannot_be_made_ends_nothing(
    view: ResidualView, data: ImageData, whole: Table, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.parent.parent.mkdir()
    cache.parent.symlink_to("nowhere")
    assert again(view, data, cache).rows == whole.rows
    assert pathlens.path_gradients(view, data, method="all", draws=1, max_samples=2, journal=cache, **RGB).rows
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_old_journals_of_the_cache_are_removed(
    view: ResidualView, data: ImageData, cache: Path, tmp_path: Path
) -> None:
    stopped(view, data, cache, after=3)
    (mine,) = cache.iterdir()
    names = ("old.0.jsonl", "young.0.jsonl", "locked.0.jsonl", "other.txt")
    for name in names:
        (cache / name).write_text("{}\n")
    (tmp_path / "target").write_text("mine")
    (cache / "link.0.jsonl").symlink_to(tmp_path / "target")
    os.mkfifo(cache / "pipe.0.jsonl")
    then = time.time() - (journals.KEEP_DAYS + 1) * 24 * 3600
    for path in [*cache.iterdir(), tmp_path / "target"]:
        if path.name != "young.0.jsonl":
            os.utime(path, (then, then), follow_symlinks=False)
    with (cache / "locked.0.jsonl").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # what is old and taken up again is not lost
        assert again(view, data, cache).provenance["resumed_batches"] == 3
    assert not mine.exists()
    assert {path.name for path in cache.iterdir()} == {*names[1:], "link.0.jsonl", "pipe.0.jsonl"}
    assert (tmp_path / "target").read_text() == "mine"


def test_old_journals_of_a_run_folder_are_kept(
    view: ResidualView, data: ImageData, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.0.jsonl").write_text("{}\n")
    os.utime(tmp_path / "run" / "old.0.jsonl", (0, 0))
    again(view, data, tmp_path / "run")
    assert (tmp_path / "run" / "old.0.jsonl").exists()


def test_a_number_that_changed_on_the_disk(view: ResidualView, data: ImageData, whole: Table, tmp_path: Path) -> None:
    stopped(view, data, tmp_path, after=3)
    (journal,) = tmp_path.iterdir()
    lines = journal.read_text().splitlines()
    assert "[5.0, " in lines[1]
    lines[1] = lines[1].replace("[5.0, ", "[4.0, ", 1)
    journal.write_text("\n".join([*lines, json.dumps({**json.loads(lines[2]), "batch": 7}), "[" * 100_000]) + "\n")
    table = again(view, data, tmp_path)
    assert table.provenance["resumed_batches"] == 2
    assert table.rows == whole.rows


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_journal_that_is_no_file(
    kind: str, part: int, view: ResidualView, data: ImageData, whole: Table, tmp_path: Path
) -> None:
    stopped(view, data, tmp_path / "run", after=3)
    (journal,) = (tmp_path / "run").iterdir()
    (tmp_path / "target").write_text("mine\n")
    odd = journal.with_name(journal.name.replace(".0.", f".{part}."))
    odd.unlink(missing_ok=True)
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to(tmp_path / "target")
    if part == 0:  # the one that would be written to
        with pytest.raises(RunError, match=r"symbolic link|no regular file"):
            again(view, data, tmp_path / "run")
    else:
        assert again(view, data, tmp_path / "run").rows == whole.rows
    assert (tmp_path / "target").read_text() == "mine\n"


def test_a_folder_that_cannot_be_written(view: ResidualView, data: ImageData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError):
        again(view, data, tmp_path / "file")


def test_nothing_is_kept_of_batches_that_cannot_be_hashed(view: ResidualView, tmp_path: Path) -> None:
    batches = [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))]
    pathlens.delete_blocks(view, batches, journal=tmp_path / "journal", blocks=[0])
    assert not (tmp_path / "journal").exists()


def test_buffers_that_are_no_part_of_the_state_dict_count(data: ImageData, tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.net = small_net(torch.float32)
            self.register_buffer("by", torch.tensor(by), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * self.by)

    views = [find_blocks(Scaled(by), torch.zeros(2, 3, 8, 8)) for by in (1.0, 2.0)]
    stopped(views[0], data, tmp_path, after=3)
    assert again(views[1], data, tmp_path).provenance["resumed_batches"] == 0


@pytest.mark.slow
def test_killed_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process is killed for good; this one takes its work up."""
    user = tmp_path / "net.py"
    user.write_text(USER_FILE)
    spec = images(tmp_path / "data", rows=150)
    command = ["delete-blocks", "-m", f"{user}:build", "-d", spec, "--mean", "0,0,0", "--std", "1,1,1", "--json", "-q"]
    command += ["--batch-size", "1"]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "pathlens", *command, "--out", str(out)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while sum(p.read_bytes().count(b"\n") for p in out.glob(".journal/*")) < 5:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir() if path.name != ".lock"] == [".journal"]

    assert main([*command, "--out", str(out)]) == 0
    resumed = json.loads(capsys.readouterr().out)
    assert main([*command, "--out", str(tmp_path / "fresh")]) == 0
    fresh = json.loads(capsys.readouterr().out)
    assert resumed["table"] == fresh["table"]
    assert 5 <= resumed["provenance"]["resumed_batches"] < 150
    assert fresh["provenance"]["resumed_batches"] == 0
    assert not (out / ".journal").exists()
    assert (out / "delete-blocks.csv").read_bytes() == (tmp_path / "fresh" / "delete-blocks.csv").read_bytes()


@pytest.mark.parametrize("where", ["given", "home", "nowhere"])
def test_the_default_folder(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted: Path | None = tmp_path / ".cache" / "pathlens" / "journal"
    if where == "given":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        wanted = tmp_path / "cache" / "pathlens" / "journal"
    if where == "nowhere":
        (tmp_path / ".cache").write_text("a file")
        wanted = None
    assert journals.default_folder() == wanted
