"""What is timed: the sweep of figure 3, the exact profile of path lengths, and an epoch of training."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

import pathlens
from pathlens import ResidualView
from pathlens.models import LoadedModel
from pathlens.tables import Table, read_table
from pathlens.training import Full, Recipe
from studies.benchmarks.training import ours, plain
from studies.common import ROOT
from studies.gpu.kept import Late, Slice, Study

#: analysis -> what it shows, seconds on one H100 with start-up, what runs, the goal in seconds, and images at a time
ANALYSES: dict[str, tuple[str, float, Callable[..., Table], float, int]] = {
    "sweep": ("figure 3: each block deleted in turn", 45, pathlens.delete_blocks, 5, 1000),
    "profile": ("exact gradients by length", 100, partial(pathlens.path_gradients, method="exact"), 60, 250),
}
PLAIN, TWO, TRAINING_GOAL = "plain loop", "pathlens, bfloat16, two cards", 4.0
#: way to train -> numbers to compute with, and whether blocks are compiled
METHODS = {
    PLAIN: ("float32, convolutions in tf32", False),  # as torch has it where nobody asks
    "pathlens, bfloat16, compiled": ("bfloat16", True),
    "pathlens, bfloat16": ("bfloat16", False),
    "pathlens, tf32": ("tf32", False),
    "pathlens, float32": ("float32", False),
    TWO: ("bfloat16", False),
}


def slices(study: Study) -> list[Slice]:
    """The timings, the most valuable first."""

    def untimed(part: str) -> list[str]:
        """Networks and types without a row; again where a network has been trained since."""
        kinds = ("float32", "tf32", "bfloat16") if study.cuda and part == "sweep" else ("float32",)
        units = [(net, f"{net}, {kind}") for net in study.networks for kind in kinds]
        return [unit for net, unit in units if not study.rows(slice=part, unit=unit, weights=study.weights(net))]

    def untrained() -> list[str]:
        """Ways to train without a row; that there is one card too few is said once."""
        ways = [way for way in METHODS if study.cuda or way == TWO or "float32" in METHODS[way][0]]
        rows = {way: study.rows(slice="training", unit=way) for way in ways}
        return [way for way in ways if not rows[way] or (cards(study) > 1 and rows[way][-1]["seconds"] is None)]

    timed = [
        Slice(part, shows, seconds, partial(untimed, part), partial(analysis, study, part))
        for part, (shows, seconds, *_) in ANALYSES.items()
    ]
    return [*timed, Slice("training", "an epoch against the plain loop", 120, untrained, partial(epoch, study))]


def cards(study: Study) -> int:
    """GPUs to compute on."""
    return torch.cuda.device_count() if study.cuda else 0


@cache
def opened(study: Study, network: str, weights: str) -> tuple[LoadedModel, ResidualView, float]:
    """A network on the device with its blocks, found once, and the seconds that it took."""
    data, began = study.test, time.perf_counter()
    loaded = pathlens.load_model(
        study.model_spec(network),
        weights if weights == "random" else study.setting.out / "weights" / weights,
        num_classes=data.num_classes,
        in_channels=data.channels,
    )
    images = data.batch(0, 2, mean=loaded.mean, std=loaded.std, device=study.setting.device).images
    view = pathlens.find_blocks(loaded.model.to(study.setting.device), images)
    return loaded, view, time.perf_counter() - began


def analysis(study: Study, part: str, unit: str) -> None:
    """Run an analysis on a first batch and then, timed, on all test images; give up what takes a whole slice."""
    _, _, verb, goal, size = ANALYSES[part]
    limit, (network, dtype), test = study.left(), unit.split(", "), study.test
    batch_size = study.setting.pick(20, None, size)
    loaded, view, finding = opened(study, network, study.weights(network))
    options: dict[str, Any] = {"mean": loaded.mean, "std": loaded.std, "batch_size": batch_size, "dtype": dtype}
    began = _synchronised()
    verb(view, test.subset(torch.arange(min(batch_size, test.n)), test.split), **options)
    started = _synchronised()
    about = {
        "slice": part,
        "unit": unit,
        "network": network,
        "weights": study.weights(network),
        "blocks": len(view),
        "data": test.name,
        "images": test.n,
        "batch_size": batch_size,
        "precision": dtype,
        "processes": 1,
        "startup_seconds": finding + started - began,
        "goal": f"below {goal:g} s",
    }
    try:
        table = verb(view, test, progress=study.watch, **options)
    except Late as late:
        if limit < 0.9 * study.limit:
            raise  # it may do better with a whole slice
        study.record(**about, met=False, note=f"given up after {limit:.0f} s: {late}")
        return
    seconds = _synchronised() - started
    if dtype == "float32":
        said = {**table.provenance, "weights": about["weights"]}
        study.setting.tables.put(f"{part}-{network}", Table(table.columns, table.rows, said))
    study.record(**about, seconds=seconds, met=seconds < goal)


def _synchronised() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def epoch(study: Study, unit: str) -> None:
    """Seconds of the second epoch of two; every card has a plain loop of its own to compare with."""
    unit = unit if study.rows(unit=PLAIN, device=study.card) else PLAIN
    data, (dtype, compiled), network = study.train, METHODS[unit], study.networks[0]
    recipe = Recipe(epochs=2, batch_size=study.setting.pick(20, None, 128), lr=0.05)
    about = {"slice": "training", "unit": unit, "network": network, "weights": "random", "data": data.name}
    if unit == TWO and cards(study) < 2:
        study.record(**about, note=f"skipped: nccl wants two cards, and there are {cards(study)}")
        return
    channels = {"num_classes": data.num_classes, "in_channels": data.channels}
    model = pathlens.load_model(study.model_spec(network), "random", **channels).model
    args = Namespace(device=study.setting.device, workers=study.setting.pick(0, None, min(8, os.cpu_count() or 1)))
    if unit == PLAIN:
        seconds, _ = plain(model, data, recipe, args)
    elif unit == TWO:
        seconds = two_processes(study, recipe, dtype)
    else:
        seconds, _ = ours(model, data, recipe, args, dtype, Full(), compiled)
    base = study.rows(unit=PLAIN, device=study.card)
    ratio = base[-1]["seconds"] / seconds if base else None
    study.record(
        **about,
        images=data.n,
        batch_size=recipe.batch_size,
        precision=dtype,
        compiled=compiled,
        processes=2 if unit == TWO else 1,
        seconds=seconds,
        ratio=ratio,
        goal=None if unit == PLAIN else f"at least {TRAINING_GOAL:g} times the plain loop",
        met=None if ratio is None else ratio >= TRAINING_GOAL,
        note="second epoch of two" + (", batch norms by themselves" if unit == TWO else ""),
    )


def two_processes(study: Study, recipe: Recipe, dtype: str) -> float:
    """Seconds of the second epoch of ``pathlens train`` under torchrun, which takes nccl where each has a card."""
    with tempfile.TemporaryDirectory() as folder:
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node 2 -m pathlens train --out {folder}/run"
        what = f"--epochs 2 --lr {recipe.lr} --batch-size {recipe.batch_size} --dtype {dtype} --device cuda"
        more = ["--validation", "0", "--no-test", "--no-sync-batch-norm", "--quiet", "--data", study.spec]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [
            sys.executable,
            *torchrun.split(),
            *what.split(),
            "--model",
            study.model_spec(study.networks[0]),
            *more,
        ]
        started = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.DEVNULL)
        try:
            code = started.wait(max(1, study.left()))
        except subprocess.TimeoutExpired:
            started.terminate()  # which torchrun passes on to its workers, as being killed would not
            started.wait()
            raise Late("two processes had no time left") from None
        if code:
            raise subprocess.CalledProcessError(code, command)
        return float(read_table(f"{folder}/run/history.csv").rows[-1]["seconds"] or 0)
