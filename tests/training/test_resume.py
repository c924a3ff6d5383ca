"""Runs that are killed, damaged, or given other arguments; and those that go on as if nothing had been."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from pathlens.cli import main
from pathlens.errors import CheckpointError, ModelError, NumericsError, PathlensError, ResourceError, RunError
from pathlens.models import state_sha256
from pathlens.models.reading import read_metadata
from pathlens.training import (
    BlocksPerBatch,
    PathLengths,
    Recipe,
    Rule,
    ShakeDrop,
    StochasticDepth,
    Trained,
    hold_out,
    state,
    train,
)
from tests.helpers.processes import forked
from tests.helpers.training_oracle import USER_FILE, digits, network

RECIPE = Recipe(epochs=3, batch_size=20, lr=0.05, warmup=0.5, crop=1, flip=True)
STEPS = 12
SECONDS = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path | None, stop: int | None = None, **options: Any) -> Trained:
    """A run of the same arguments; with ``stop`` it ends like a killed one after so many steps."""

    def progress(done: int, total: int) -> None:
        assert total == STEPS
        if done == stop:
            raise KeyboardInterrupt

    kept, held = hold_out(digits(), 20)
    given: dict[str, Any] = {"recipe": RECIPE, "seed": 4, "checkpoint_seconds": 0.0, "validation": held, **options}
    return train(network().float(), kept, out=folder, progress=progress, **given)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def restate(path: Path, **said: Any) -> None:
    """Write a checkpoint again that says other things of its run; None takes one away."""
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()[state._KEY]) | said
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    record = {name: value for name, value in record.items() if name != "record_sha256" and value is not None}
    record["record_sha256"] = state._digest_of_record(record)
    path.write_bytes(safetensors.torch.save(tensors, {state._KEY: json.dumps(record)}))


def assert_equal(found: Trained, wanted: Trained) -> None:
    """To the last bit."""
    mine, theirs = found.model.state_dict(), wanted.model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    for one, two in ((found.history, wanted.history), (found.result, wanted.result)):
        assert [{k: v for k, v in row.items() if k not in SECONDS} for row in one.rows] == [
            {k: v for k, v in row.items() if k not in SECONDS} for row in two.rows
        ]


@pytest.fixture(scope="module")
def whole() -> Trained:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = run(None)
    torch.set_num_threads(before)
    return trained


@pytest.fixture(scope="module")
def broken_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven of twelve steps are done, and six of them are in the checkpoint."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    with pytest.raises(KeyboardInterrupt):
        run(folder, stop=7)
    torch.set_num_threads(before)
    return folder


@pytest.fixture
def folder(broken_off: Path, tmp_path: Path) -> Path:
    shutil.copytree(broken_off, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [(StochasticDepth("linear", 0.5, "sample"), "adamw"), (PathLengths(1, 2), "sgd"), (ShakeDrop(last=0.2), "sgd")],
)
def test_a_run_goes_on_to_the_last_bit(rule: Rule, optimizer: str, tmp_path: Path) -> None:
    options = {"rule": rule, "recipe": Recipe(epochs=3, batch_size=20, optimizer=optimizer, lr=0.01)}
    for stop in (2, 9):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop, resume=True, **options)
    assert state.peek(tmp_path / state.CHECKPOINT).step == 8
    assert_equal(run(tmp_path, resume=True, **options), run(None, **options))


class Wayward(nn.Module):
    """Drops by the generators of Python and numpy, and keeps a mean that is not among its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = network().float()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x * (1 + random.random() + np.random.rand()) + self.seen
            self.seen.mul_(0.5).add_(0.5 * x.detach().mean())
        return self.inside(x)


def test_a_run_goes_on_to_the_last_bit_whatever_it_draws_from(tmp_path: Path) -> None:
    def trained(folder: Path | None, stop: int | None = None) -> Trained:
        def progress(done: int, _total: int) -> None:
            random.random()  # other work draws too
            if done == stop:
                raise KeyboardInterrupt

        options: dict[str, Any] = {"recipe": RECIPE, "seed": 4, "checkpoint_seconds": 0.0}
        torch.manual_seed(0)
        return train(Wayward(), digits(), out=folder, progress=progress, resume=folder is not None, **options)

    random.seed(5)
    before = random.getstate()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", stop=5)
    random.setstate(before)
    whole = trained(None)
    again = trained(tmp_path / "run")
    assert_equal(again, whole)
    assert torch.equal(again.model.get_buffer("seen"), whole.model.get_buffer("seen"))


class Extra(Wayward):
    """Keeps state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"calls": 1}


def test_state_that_is_no_tensor_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Extra keeps _extra_state, which is no tensor and which a checkpoint cannot"):
        train(Extra(), digits(), recipe=RECIPE, out=tmp_path / "run")
    assert not (tmp_path / "run" / state.CHECKPOINT).exists()


def test_a_finished_run_is_left_as_it_is(folder: Path, whole: Trained) -> None:
    assert_equal(run(folder, resume=True), whole)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert_equal(run(folder, resume=True), whole)
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before
    with pytest.raises(RunError, match="holds a run of 3 epochs; give --resume to go on with it, or another folder"):
        run(folder)


SAID = ("date", "commit", "versions", "hardware")


def test_a_run_states_the_calls_that_made_it(tmp_path: Path) -> None:
    told = [{name: f"{name} of call {number}" for name in SAID} for number in range(4)]
    for stop, said in ((2, told[0]), (7, told[1])):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, stop, resume=True, provenance=said)
    trained = run(tmp_path, resume=True, provenance=told[2])
    # from the checkpoints of the steps before those in which they were ended
    steps = zip((0, 1, 6), told[:3], strict=True)
    calls = [{"from_step": step, **said, "device": "cpu", "processes": 1} for step, said in steps]
    again = run(tmp_path, resume=True, provenance=told[3])  # which has nothing left to do
    for found in (trained, again):
        assert found.history.provenance["calls"] == found.result.provenance["calls"] == calls
    assert json.loads(read_metadata(tmp_path / "weights.safetensors")["training"])["calls"] == calls
    assert [found.result.provenance["date"] for found in (trained, again)] == [told[2]["date"], told[3]["date"]]


def test_a_checkpoint_that_does_not_name_its_calls_is_taken_up(folder: Path, whole: Trained) -> None:
    restate(folder / state.CHECKPOINT, calls=None)  # as it was written before
    found = run(folder, resume=True, provenance={"date": "today"})
    assert_equal(found, whole)
    unknown = dict.fromkeys((*SAID, "device", "processes"))
    assert found.result.provenance["calls"] == [
        {"from_step": 0, **unknown},
        {"from_step": 6, **unknown, "date": "today", "device": "cpu", "processes": 1},
    ]
    assert run(folder, resume=True).result.provenance["calls"] == found.result.provenance["calls"]


def test_a_run_is_not_overwritten(folder: Path) -> None:
    before = (folder / state.CHECKPOINT).read_bytes()
    with pytest.raises(RunError, match="holds a run of 1 epochs; give --resume"):
        run(folder)
    assert (folder / state.CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 5}, ["seed was 4 and is 5"]),
        ({"rule": BlocksPerBatch(2)}, ['rule was "full" and is "blocks-per-batch 2"']),
        (
            {"recipe": Recipe(epochs=3, batch_size=20, lr=0.06, warmup=0.5, crop=1, momentum=0.8)},
            ["recipe", '"lr": 0.05', '"lr": 0.06', '"momentum": 0.8'],
        ),
        ({"rescale": "none", "dtype": "float64"}, ['rescale was "test" and is "none"', 'dtype was "float32"']),
        ({"validation": None}, ["validation_images was 20 and is 0"]),
        ({"keep_epochs": [1]}, ["keep_epochs was [] and is [1]"]),
        ({"mean": [0.5], "std": [0.5]}, ["mean was", "std was"]),
        ({"synced": False}, ["synced was null and is false"]),
    ],
)
def test_other_arguments_are_named(options: dict[str, Any], words: list[str], folder: Path) -> None:
    before = (folder / state.CHECKPOINT).read_bytes()
    with pytest.raises(RunError) as caught:
        run(folder, resume=True, **options)
    message = str(caught.value)
    assert "was started with other arguments" in message
    assert "start another run in another folder" in message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert (folder / state.CHECKPOINT).read_bytes() == before


def test_other_images_or_weights_are_named(folder: Path) -> None:
    (kept, held), fewer = hold_out(digits(), 20), hold_out(digits(90), 20)[0]
    options: dict[str, Any] = {"validation": held, "recipe": RECIPE, "seed": 4, "out": folder, "resume": True}
    with pytest.raises(RunError, match=r"other arguments \(start_sha256 was \S+ and is [^;]*\)"):
        train(network(14).float(), kept, **options)
    with pytest.raises(RunError, match=r"train_sha256 was .*; train_images was 80 and is 70"):
        train(network().float(), fewer, **options)
    others = kept.subset(torch.arange(20), "validation")
    with pytest.raises(RunError, match=r"arguments \(validation_sha256 was \S+ and is [^;]*\)"):
        train(network().float(), kept, **{**options, "validation": others})


def test_epochs_that_cannot_be_kept_end_the_run_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "epochs").write_text("in the way")
    with pytest.raises(RunError, match=r"^\S+epochs is a file, not a folder; choose another folder$"):
        run(tmp_path, keep_epochs=[0])


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) * 2 // 3]
    if how == "empty":
        return b""
    if how == "a weight":
        return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    place = content.index(b'\\"step\\"')  # the record says where the run stands
    return content[: place + 10] + bytes([content[place + 10] ^ 1]) + content[place + 11 :]


@pytest.mark.parametrize("how", ["truncated", "empty", "a weight", "the step"])
def test_a_damaged_checkpoint(how: str, folder: Path, whole: Trained) -> None:
    path = folder / state.CHECKPOINT
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(CheckpointError) as caught:
        run(folder, resume=True)
    assert caught.value.exit_code == 4
    assert f"{path} is damaged" in str(caught.value)
    assert "move it away, and --resume goes on from checkpoint-previous.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    path.rename(folder / "moved away")
    assert_equal(run(folder, resume=True), whole)
    # and with both gone, there is one remedy left
    shutil.copy(folder / "moved away", path)
    (folder / state.PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match="start the run anew in another folder"):
        run(folder, resume=True)


def test_no_flipped_bit_goes_unnoticed(folder: Path, tmp_path: Path) -> None:
    content = (folder / state.CHECKPOINT).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, header, 150), *rng.integers(header, len(content), 20)]
    model = network().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    path = tmp_path / state.CHECKPOINT
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            state.load(path, model, optimizer)


@pytest.mark.parametrize("name", ["stranger/x", "optimizer/x/momentum_buffer", "optimizer/999/momentum_buffer"])
def test_a_forged_checkpoint_is_refused_before_the_model_is_touched(name: str, folder: Path, tmp_path: Path) -> None:
    source, path = folder / state.CHECKPOINT, tmp_path / state.CHECKPOINT
    with safe_open(source, "pt") as file:
        record = json.loads(file.metadata()[state._KEY])
        tensors = {key: file.get_tensor(key) for key in file.keys()} | {name: torch.zeros(1)}  # noqa: SIM118
    record["sha256"] = state_sha256(tensors)
    del record["record_sha256"]
    record["record_sha256"] = state._digest_of_record(record)
    path.write_bytes(safetensors.torch.save(tensors, {state._KEY: json.dumps(record)}))
    model = network().float()
    before = state_sha256(model)
    with pytest.raises(CheckpointError, match="holds what no training run keeps"):
        state.load(path, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert state_sha256(model) == before


@pytest.mark.parametrize("gone", ["step", "history", "scalars", "sha256"])
def test_a_record_that_lacks_what_a_run_has_to_know(gone: str, folder: Path, tmp_path: Path) -> None:
    with safe_open(folder / state.CHECKPOINT, "pt") as file:
        record = json.loads(file.metadata()[state._KEY])
    del record["record_sha256"], record[gone]
    record["record_sha256"] = state._digest_of_record(record)
    path = tmp_path / state.CHECKPOINT
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, {state._KEY: json.dumps(record)}))
    with pytest.raises(CheckpointError, match="does not say all that a run has to know"):
        state.peek(path)


@pytest.mark.parametrize(
    ("field", "value"), [("sums", []), ("sums", ["a"] * 5), ("sums", [float("nan")] * 5), ("sums", [10**400] * 5),
                         ("step", -1), ("step", 10**9), ("history", [1]), ("calls", {}), ("calls", [1])],
)  # fmt: skip
def test_a_record_of_a_position_that_no_run_has(field: str, value: Any, folder: Path) -> None:
    restate(folder / state.CHECKPOINT, **{field: value})
    with pytest.raises(CheckpointError, match="is damaged"):
        run(folder, resume=True)


def test_a_record_that_is_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / state.CHECKPOINT
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, {state._KEY: "[" * 10**5}))
    with pytest.raises(CheckpointError, match="does not say where the run stands"):
        state.peek(path)


def test_a_checkpoint_of_another_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_VERSION", state._VERSION + 1)
    with pytest.raises(CheckpointError, match=r"go on with the version that wrote it$"):
        state.peek(folder / state.CHECKPOINT)


def test_a_folder_in_use(folder: Path) -> None:
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="in use") as caught:
            run(folder, resume=True)
    assert caught.value.exit_code == 8


def loadable(path: Path) -> int:
    """The checkpoint holds a network of finite numbers; the steps done."""
    model = network().float()
    state.load(path, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    return state.peek(path).step


@pytest.mark.usefixtures("rng_untouched")
def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    explodes = Recipe(epochs=3, batch_size=20, lr=0.05, warmup=0, milestones=(0.5,), gamma=1e36, crop=0)
    with pytest.raises(NumericsError) as caught:
        run(tmp_path, recipe=explodes)
    message = str(caught.value)
    assert "NaN or infinite in step" in message
    assert "(epoch 2, learning rate 5e+34)" in message
    assert "give a smaller --lr or a longer --warmup; the last checkpoint is from before" in message
    assert 6 <= loadable(tmp_path / state.CHECKPOINT) < 8
    assert not (tmp_path / "weights.safetensors").exists()
    with pytest.raises(NumericsError, match=r"in step \d+ \(epoch 1, "):
        run(None, recipe=Recipe(epochs=3, batch_size=20, lr=1e36, warmup=0))


@pytest.mark.parametrize("moment", ["synced", "staged", "kept", "named"])
def test_a_full_disk(moment: str, folder: Path, whole: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it happens while the checkpoint is written, one is there that can be gone on from."""
    full = OSError(errno.ENOSPC, "No space left on device")
    replaced = os.replace
    count = {"staged": 1, "kept": 2, "named": 3}.get(moment)
    calls = [0]

    def replace(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == count:
            raise full
        replaced(*args)

    def sync(handle: int) -> None:
        raise full

    with monkeypatch.context() as patch:
        if moment == "synced":
            patch.setattr(os, "fsync", sync)
        else:
            patch.setattr(os, "replace", replace)
        with pytest.raises(ResourceError, match="No space left on device; free some space") as caught:
            run(folder, resume=True)
    assert caught.value.exit_code == 7
    assert "checkpoint.safetensors" in str(caught.value)
    found = state.find(folder)
    assert found is not None
    assert loadable(found) == 6
    assert not [path for path in folder.iterdir() if "tmp" in path.name or path.name == ".checkpoint.safetensors"]
    assert_equal(run(folder, resume=True), whole)


def command(user: Path, out: Path) -> list[str]:
    return [
        "train", "-m", f"{user}:build", "-d", "digits", "--limit", "100", "--validation", "10", "--no-test",
        "--epochs", "4", "--batch-size", "10", "--lr", "0.02", "--stochastic-depth", "linear:0.5", "--seed", "3",
        "--checkpoint-seconds", "0", "--device", "cpu", "--quiet", "--resume", "--out", str(out),
    ]  # fmt: skip


def killed_at(step: int, arguments: list[str], out: Path, folder: Path) -> None:
    """Run the command until its checkpoint has so many steps, and kill it."""
    worker = forked(lambda: main(arguments), folder / "printed", folder / "said")
    try:
        until = time.monotonic() + 240
        while worker.exitcode is None and time.monotonic() < until:
            try:
                found = state.find(out)
                if found is not None and state.peek(found).step >= step:
                    break
            except PathlensError:  # renamed in between
                continue
            time.sleep(0.01)  # to look is to read the whole file, which takes time from the run
    finally:
        worker.kill()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL, (folder / "said").read_text()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    user = tmp_path / "net.py"
    user.write_text(USER_FILE)
    once, often, stands = tmp_path / "once", tmp_path / "often", [0]
    for step in sorted(np.random.default_rng(5).integers(1, 9 * 4 - 10, 2).tolist()):
        killed_at(step, command(user, often), often, tmp_path)
        found = state.find(often)
        assert found is not None
        stands.append(state.peek(found).step)
        assert step <= stands[-1] < 9 * 4
        assert not (often / "weights.safetensors").exists()
    assert main(command(user, often)) == 0
    assert main(command(user, once)) == 0
    one, two = tensors(once / "weights.safetensors"), tensors(often / "weights.safetensors")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = (pd.read_csv(out / "history.csv").drop(columns=list(SECONDS)) for out in (once, often))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert len(first) == 4
    manifest = json.loads((often / "manifest.json").read_text())
    assert manifest["verb"] == "train"
    assert [call["from_step"] for call in manifest["calls"]] == list(dict.fromkeys(stands))
    assert all(call["date"] and call["versions"]["torch"] and call["hardware"]["cpu"] for call in manifest["calls"])
