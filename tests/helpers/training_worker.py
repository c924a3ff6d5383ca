"""What each of two processes does in ``tests/training/test_processes.py``; prints one JSON object for each."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from pathlens.cli import main
from pathlens.errors import DataError, PathlensError
from pathlens.models import state_sha256
from pathlens.runtime import processes
from pathlens.training import (
    BlocksPerBatch,
    Full,
    PathLengths,
    Recipe,
    Rule,
    ShakeDrop,
    StochasticDepth,
    Trained,
    hold_out,
    loop,
    state,
    train,
)
from pathlens.training.batches import TrainingBatches
from pathlens.training.network import Partial
from pathlens.training.synced import SyncedBatchNorm
from tests.helpers.training_oracle import by_hand, digits, network

#: the last batch of an epoch has 5 images: three in one process and two in the other
RECIPE = Recipe(epochs=2, batch_size=25, lr=0.05, warmup=0.5, crop=1, flip=True)
#: of 80 images, the last batch of which has two
UNEVEN = Recipe(epochs=1, batch_size=13, warmup=0)
RULES: dict[str, Rule] = {
    "full": Full(),
    "blocks": BlocksPerBatch(2),
    "per batch": StochasticDepth("linear", 0.5),
    # each pixel of each image has numbers of its own
    "shaken": ShakeDrop(last=0.3),
    # so unlikely that often the images of one process alone keep a block
    "per sample": StochasticDepth("uniform", 0.08, "sample"),
}


def trained(rule: Rule, **options: Any) -> Trained:
    kept, held = hold_out(digits(100), 20)
    if rule == RULES["per sample"]:
        options = {"rescale": "none", **options}
    given: dict[str, Any] = {"recipe": RECIPE, "rule": rule, "seed": 9, "dtype": "float64", "validation": held}
    return train(by_hand() if options.pop("stranger", False) else network(), kept, **{**given, **options})


def curve(run: Trained) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in run.history.rows]


def weights(run: Trained) -> dict[str, list[float]]:
    return {name: value.flatten().tolist() for name, value in run.model.state_dict().items()}


class Normed(nn.Module):
    """A batch norm in each way that they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.bare = nn.BatchNorm2d(3, affine=False, track_running_stats=False)
        self.flat = nn.BatchNorm1d(12, momentum=0.3, eps=1e-3)
        self.average = nn.BatchNorm1d(12, momentum=None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bare(torch.tanh(self.norm(x)) * x)
        return self.average(F.silu(self.flat(x.flatten(1))))


def normed(rows: slice) -> dict[str, Any]:
    """Outputs, gradients and statistics of batch norms over these rows of a fixed batch."""
    torch.manual_seed(5)
    net, images, seeds = Normed().double(), torch.randn(7, 3, 2, 2).double() + 2, torch.randn(7, 12).double()
    nn.init.normal_(net.norm.weight)
    nn.init.normal_(net.norm.bias)
    mine = images[rows].requires_grad_()
    for _ in range(2):
        out = net(mine)
    (out * seeds[rows]).sum().backward()
    assert mine.grad is not None
    return {
        "out": out.tolist(),
        "grad": mine.grad.tolist(),
        "parameters": {name: value.grad.tolist() for name, value in net.named_parameters()},  # type: ignore[union-attr]
        "buffers": {name: value.tolist() for name, value in net.named_buffers()},
    }


class Spare(nn.Module):
    """A network with a layer that its loss does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.spare = nn.Linear(3, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits


def with_a_spare_layer() -> Trained:
    torch.manual_seed(1)
    return train(Spare(), digits(100), recipe=RECIPE, seed=9, dtype="float64")


def scenarios(group: processes.Processes, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"rank": group.rank}
    with SyncedBatchNorm(dist.new_group()):
        found["norms"] = normed(slice(0, 3) if group.rank == 0 else slice(3, 7))
    original, drawn = Partial.forward, list[str]()

    def recorded(self: Partial, images: Any, kept: Any = None, *more: Any) -> Any:
        if kept is not None and kept.dim() == 1:
            drawn.append("".join("01"[bool(keep)] for keep in kept))
        return original(self, images, kept, *more)

    Partial.forward = recorded  # type: ignore[method-assign]
    for name, rule in RULES.items():
        drawn.clear()
        run = trained(rule, stranger=name == "per sample")
        found[name] = {"curve": curve(run), "sha256": state_sha256(run.model), "drawn": list(drawn)}
        found[name]["result"] = [dict(row) for row in run.result.rows]
        if group.is_main:
            found[name]["weights"] = weights(run)
    try:
        trained(PathLengths(1, 2))
    except PathlensError as error:
        found["path lengths"] = [type(error).__name__, str(error)]
    spare = with_a_spare_layer()
    found["spare"] = [state_sha256(spare.model), weights(spare)]
    # statistics of each process by itself: no table of one process to compare with, but all have the same network
    run = trained(PathLengths(1, 2), synced=False)
    found["unsynced"] = [state_sha256(run.model), curve(run)]
    try:
        trained(Full(), recipe=Recipe(epochs=1, batch_size=3, warmup=0))
    except PathlensError as error:
        found["small batch"] = [type(error).__name__, str(error)]
    # the folder of the leading process serves all
    run = trained(Full(), out=folder / "run", recipe=Recipe(epochs=1, batch_size=25, warmup=0))
    again = trained(Full(), out=folder / "run", recipe=Recipe(epochs=1, batch_size=25, warmup=0), resume=True)
    found["resumed"] = [state_sha256(run.model), state_sha256(again.model)]
    try:
        trained(Full(), out=folder / "run", recipe=Recipe(epochs=1, batch_size=25, warmup=0))
    except PathlensError as error:
        found["not resumed"] = [type(error).__name__, str(error)]
    try:
        trained(Full(), recipe=Recipe(epochs=1, batch_size=25, lr=1e300, warmup=0))
    except PathlensError as error:
        found["diverged"] = [type(error).__name__, str(error)]
    found["clocks"] = clocks_that_differ(group, folder / "clocks")
    # the last batch of two images is too small for two processes, so that one process alone would train otherwise
    trained(Full(), out=folder / "uneven", recipe=UNEVEN)
    found["uneven"] = str(folder / "uneven")
    found["digest"] = hashlib.sha256(repr(group.gather("here")).encode()).hexdigest()
    return found


def clocks_that_differ(group: processes.Processes, folder: Path) -> list[int]:
    """Steps after which a run of 4 steps wrote checkpoints, which by the second process's clock are never due."""
    steps, save = list[int](), state.save

    def counted(place: Path, model: nn.Module, optimizer: Any, position: Any) -> None:
        steps.append(position.step)
        save(place, model, optimizer, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_LOOK", 1)
        patch.setattr(state, "save", counted)
        recipe = Recipe(epochs=1, batch_size=20, warmup=0)
        trained(Full(), out=folder, recipe=recipe, checkpoint_seconds=0.0 if group.is_main else 1e9)
    return steps


def fails(folder: Path) -> None:
    """The command, of which the second process alone finds an image that cannot be read."""
    if os.environ["RANK"] == "1":
        original = TrainingBatches.__call__

        def damaged(self: TrainingBatches, step: int) -> Any:
            if step == 1:
                raise DataError("image 7 of the digits is damaged")
            return original(self, step)

        TrainingBatches.__call__ = damaged  # type: ignore[method-assign]
    options = ["--limit", "60", "--validation", "10", "--epochs", "1", "--batch-size", "10", "--quiet"]
    code = main(["train", "-m", "preresnet20", "-d", "digits", *options, "--out", str(folder / "failing")])
    print(code, flush=True)


def work(folder: Path) -> None:
    with processes.joined() as everybody:
        print(json.dumps(scenarios(everybody, folder)), flush=True)
