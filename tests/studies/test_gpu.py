"""The plan for a GPU, rehearsed on the CPU: every slice, what is said, and that a call that was killed goes on."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pathlens
from pathlens.cli import main as command_line
from pathlens.errors import RunError
from pathlens.models import save_weights
from pathlens.models.reading import read_metadata
from pathlens.storage import lock_run
from pathlens.tables import read_table
from pathlens.training import Full, hold_out, recipe_for, state
from studies.gpu import __main__ as run
from tests.helpers.processes import forked
from tests.helpers.study_modules import STUDIES

TINY = f"{STUDIES / 'depth_in_training' / 'nets.py'}:tiny"
CPU = ("--scale", "smoke", "--device", "cpu")
EPOCHS = ("--epochs", "12")
SEEDS = ("tiny-full-seed0", "tiny-full-seed1")


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """One thread, and no data but digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PATHLENS_DATA", raising=False)
        yield
    torch.set_num_threads(threads)


def places(folder: Path) -> tuple[str, ...]:
    return ("--out", str(folder / "out"), "--runs", str(folder / "runs"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """The folder of a call that was killed while two networks were trained side by side, and how far they were."""
    folder = tmp_path_factory.mktemp("gpu")
    arguments = [*CPU, *places(folder), "--slice", "tiny-full", *EPOCHS]
    call = forked(lambda: run.main(arguments), folder / "printed", folder / "said")
    runs = [folder / "runs" / name for name in SEEDS]
    wait_for(lambda: call.exitcode is not None or any(state.find(run) for run in runs))
    call.kill()
    call.join()
    assert call.exitcode == -signal.SIGKILL, (folder / "said").read_text()
    wait_for(lambda: all(free(run) for run in runs))  # its processes end with it
    files = [state.find(run) for run in runs]
    return folder, [[] if file is None else state.peek(file).history for file in files]


@pytest.fixture(scope="module")
def done(killed: tuple[Path, Any]) -> Path:
    """The same folder when another call has done everything."""
    assert run.main([*CPU, *places(killed[0]), "--jobs", "1", *EPOCHS]) == 0
    return killed[0]


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def free(folder: Path) -> bool:
    try:
        with lock_run(folder):
            return True
    except RunError:
        return False


@pytest.fixture
def small(tmp_path: Path) -> Any:
    """A study that has done nothing yet."""
    setting = run.StudySetting("gpu", "smoke", tmp_path / "out", tmp_path / "runs", "cpu", 1)
    return run.Study(setting, None, 480)


def test_every_slice_leaves_its_rows(done: Path) -> None:
    rows = read_table(done / "out" / "timings.parquet").rows
    assert [(row["slice"], row["unit"]) for row in rows] == [
        ("sweep", "tiny, float32"),
        ("profile", "tiny, float32"),
        ("training", "plain loop"),
        ("training", "pathlens, float32"),
        ("training", "pathlens, bfloat16, two cards"),
        ("effective range", "tiny"),
    ]
    sweep, profile, plain, ours, two, effective = rows
    assert {row["device"] for row in rows} == {"cpu"}
    assert {row["torch"] for row in rows} == {torch.__version__}
    assert (sweep["weights"], sweep["blocks"], sweep["images"], sweep["goal"]) == ("random", 3, 40, "below 5 s")
    assert (sweep["met"], profile["met"]) == (sweep["seconds"] < 5, profile["seconds"] < 60)
    assert ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert ours["met"] == (ours["ratio"] >= 4)
    assert (two["seconds"], two["note"]) == (None, "skipped: nccl wants two cards, and there are 0")
    trainings = {row["run"]: row for row in read_table(done / "out" / "trainings.parquet").rows}
    assert list(trainings) == [*SEEDS, "tiny-m1-seed0", "tiny-own-seed0"]
    assert trainings["tiny-m1-seed0"]["rule"] == "blocks-per-batch 1"
    assert trainings["tiny-own-seed0"]["rule"] == f"blocks-per-batch {effective['blocks_per_batch']}"
    page = (done / "out" / "README.md").read_text()
    assert "skipped: nccl wants two cards" in page
    assert str(done) not in page


def test_a_call_that_was_killed_goes_on(killed: tuple[Path, list[list[dict[str, Any]]]], done: Path) -> None:
    assert 0 < max(map(len, killed[1])) < 12
    for name, before in zip(SEEDS, killed[1], strict=True):
        rows = read_table(done / "runs" / name / "history.csv").rows
        assert [dict(row) for row in rows[: len(before)]] == before  # seconds too: they were not trained again
        assert [row["epoch"] for row in rows] == list(range(1, 13))


def test_measured_tables_are_those_of_all_images(done: Path) -> None:
    data = pathlens.open_data("digits", limit=40)
    model = pathlens.load_model(TINY, "random", num_classes=10).model
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(model(data.batch(0, 40).images), data.labels))
    sweep, profile = (read_table(done / "out" / f"{part}-tiny.csv") for part in ("sweep", "profile"))
    assert sweep.rows[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert [row["block"] for row in sweep.rows] == [None, 0, 1, 2]
    assert profile.provenance["images_measured"] == 40
    assert profile.provenance["effective"].keys() == {"exact"}


def test_weights_are_kept_as_float16(done: Path) -> None:
    for name in (*SEEDS, "tiny-m1-seed0", "tiny-own-seed0"):
        half = pathlens.load_model(TINY, done / "out" / "weights" / f"{name}.safetensors")
        whole = pathlens.load_model(TINY, done / "runs" / name / "weights.safetensors").model.state_dict()
        assert "converted float16 to float32" in half.notes
        for key, value in half.model.state_dict().items():
            assert torch.equal(value, whole[key].half().to(value.dtype)), key


@pytest.mark.parametrize("network", ["preresnet110", "resnet110"])
def test_they_are_small_enough_for_a_repository(tmp_path: Path, network: str) -> None:
    model = pathlens.load_model(network, "random").model
    save_weights(tmp_path / "weights.safetensors", model, {"training": json.dumps({"model": network, "command": "x"})})
    file = run.trained.keep_checkpoint(tmp_path, tmp_path, network, dtype=torch.float16)
    assert file.stat().st_size < 4e6
    assert json.loads(read_metadata(file)["training"]) == {"model": network}


def test_nothing_is_done_twice_but_what_a_trained_network_changes(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setting = run.StudySetting("gpu", "smoke", done / "out", done / "runs", "cpu", 1)
    study = run.Study(setting, None, 480)
    slices = [*run.timed.slices(study), *run.trained.slices(study, 12)]
    left = {piece.name: piece.pending() for piece in slices if piece.pending()}
    assert left == {"sweep": ["tiny, float32"], "profile": ["tiny, float32"]}  # measured before it was trained
    study.timings += [{**row, "weights": f"{SEEDS[0]}.safetensors"} for row in study.timings[:2]]
    assert [piece.name for piece in slices if piece.pending()] == []
    assert run.main([*CPU, *places(done), "--slice", "training"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gpu: training (an epoch against the plain loop): was finished before",
        f"gpu: all is done; see {done / 'out'}",
    ]


def test_the_command_line_takes_up_its_runs(done: Path) -> None:
    """So does the paper's study, which trains by it: the same arguments, and nothing is left to train."""
    folder = done / "runs" / SEEDS[0]
    history = (folder / "history.csv").read_bytes()
    sizes = ["--limit", "100", "--validation", "10", *EPOCHS, "--batch-size", "20", "--seed", "0"]
    where = ["--model", TINY, "--data", "digits", "--device", "cpu", "--quiet", "--out", str(folder), "--resume"]
    assert command_line(["train", *where, *sizes]) == 0
    assert (folder / "history.csv").read_bytes() == history


def test_a_call_without_time_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*CPU, *places(tmp_path), "--budget", "1e-6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == ("gpu: left: sweep, profile, training, tiny-full, tiny-m1, tiny-own; the same command goes on")
    assert "1 part is left: wants 45 s, and 0 are left" in lines[0]
    assert not (tmp_path / "out" / "timings.parquet").exists()


def test_a_training_stops_where_the_next_epoch_would_be_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0, 10)  # a step takes ten seconds, and an epoch of five steps fifty
    monkeypatch.setattr(run.trained, "time", SimpleNamespace(time=lambda: next(clock)))
    kept, held = hold_out(pathlens.open_data("digits", split="train", limit=110), 10)
    recipe = recipe_for("digits", epochs=9, batch_size=20)
    options = {"recipe": recipe, "rule": Full(), "seed": 0, "validation": held, "test": held}
    run.trained.train_until(TINY, kept, tmp_path, 125, options)
    file = state.find(tmp_path)
    assert file is not None
    assert len(state.peek(file).history) == 2
    assert not (tmp_path / "result.csv").exists()


def test_a_measurement_that_takes_a_whole_slice_is_given_up(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_view: Any, _data: Any, progress: Any = None, **_options: Any) -> None:
        if progress:
            small.deadline = 0.0
            progress(3, 10)

    loaded = pathlens.load_model(TINY, "random")
    monkeypatch.setattr(run.timed, "opened", lambda *_: (loaded, range(3), 0.0))
    monkeypatch.setitem(run.timed.ANALYSES, "sweep", ("", 0, slow, 5, 20))
    small.deadline = time.time() + 100  # less than a slice: the next call may have more
    with pytest.raises(run.Late, match="stopped after 3 of 10 batches"):
        run.timed.analysis(small, "sweep", "tiny, float32")
    assert small.timings == []
    small.deadline = time.time() + small.limit
    run.timed.analysis(small, "sweep", "tiny, float32")
    (row,) = small.timings
    assert (row["seconds"], row["met"]) == (None, False)
    assert row["note"] == "given up after 480 s: stopped after 3 of 10 batches"


def test_each_card_has_a_plain_loop_of_its_own(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.timed, "plain", lambda *_: (12.0 if small.card == "slow" else 8.0, 1.0))
    monkeypatch.setattr(run.timed, "ours", lambda *_: (2.0, 1.0))
    training = run.timed.slices(small)[-1]
    for card in ("slow", "fast"):
        small.card = card
        training.work("plain loop" if card == "slow" else "pathlens, float32")
    training.work("pathlens, float32")
    found = [(row["device"], row["unit"], row["ratio"], row["met"]) for row in small.timings]
    assert found == [
        ("slow", "plain loop", None, None),
        ("fast", "plain loop", None, None),
        ("fast", "pathlens, float32", 4.0, True),
    ]


def test_two_cards_take_the_command_line(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as one process can show it: the program is the one of torchrun, and what it would run runs."""

    def torchrun(command: list[str], **_options: Any) -> SimpleNamespace:
        assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        here = {"cuda": "cpu", "bfloat16": "float32"}
        assert (
            command_line([here.get(word, word) for word in command[command.index("train") :]] + ["--limit", "60"]) == 0
        )
        return SimpleNamespace(wait=lambda _: 0)

    training = run.timed.slices(small)[-1]
    training.work(run.timed.TWO)  # a machine of one card says so first
    monkeypatch.setattr(run.timed, "cards", lambda _: 2)
    monkeypatch.setattr(run.timed, "subprocess", SimpleNamespace(Popen=torchrun, DEVNULL=-3, TimeoutExpired=OSError))
    assert run.timed.TWO in training.pending()
    training.work(run.timed.TWO)
    assert run.timed.TWO not in training.pending()
    row = small.timings[-1]
    assert (row["processes"], row["batch_size"]) == (2, 20)
    assert row["seconds"] > 0


def test_the_same_number_of_blocks_is_not_trained_twice(small: Any) -> None:
    *_, some, own = run.trained.slices(small, 2)
    assert (some.name, own.name) == ("tiny-m1", "tiny-own")
    with pytest.raises(run.Late, match="waits for tiny-full"):
        own.work("tiny-own-seed0")
    small.record(slice="effective range", unit="tiny", network="tiny", blocks_per_batch=1)
    assert (some.pending(), own.pending()) == (["tiny-m1-seed0"], [])


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--scale", "smoke"], 2, "sees no GPU; run this on a machine with one, or rehearse it here by --scale smoke"),
        (["--device", "cpu"], 2, "weeks on a CPU"),
        ([*CPU, "--budget", "0"], 2, "--budget 0: give a number above 0"),
        ([*CPU, "--slice", "sleep"], 2, "--slice 'sleep' is unknown; there are 'sweep', 'profile', 'training'"),
        ([*CPU, "--data", "nowhere"], 5, "nowhere has no folder cifar10-jpeg"),
        ([*CPU, "--out", __file__], 8, "is a file"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    part: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main([*places(tmp_path), *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("gpu: error: ")
    assert part in line


def test_results_of_another_scale_are_left_alone(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    (tmp_path / "cifar10-jpeg").mkdir()
    before = {path: path.read_bytes() for path in (done / "out").glob("*.*")}
    assert run.main(["--scale", "paper", *places(done)]) == 5
    assert "CIFAR-10 is missing" in capsys.readouterr().err
    assert run.main(["--scale", "paper", "--data", str(tmp_path), *places(done)]) == 8
    assert "is not of this study at --scale paper; give another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (done / "out").glob("*.*")} == before


def test_a_slice_that_fails_leaves_the_others_their_turn(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_unit: str) -> None:
        raise RunError("in use")

    todo = ["part"]
    slices = [run.Slice("first", "x", 1, lambda: ["it"], fails), run.Slice("second", "y", 1, lambda: todo, todo.remove)]
    assert run.work_through(small, slices, time.time() + 60) == RunError.exit_code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gpu: first (x): failed: in use"
    assert lines[1].startswith("gpu: second (y): finished in ")
    assert lines[2] == "gpu: left: first; the same command goes on"
