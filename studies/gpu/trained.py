"""Trainings that go on from call to call, the seeds of a rule side by side on one card."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import pathlens
from pathlens.errors import PathlensError, RunError
from pathlens.report import provenance
from pathlens.training import BlocksPerBatch, Full, Rule, hold_out, recipe_for, state
from studies.common import keep_checkpoint
from studies.gpu.kept import Late, Slice, Study
from studies.gpu.timed import opened
from studies.veit2016.retraining import runs_table
from studies.veit2016.trainings import CIFAR_KEPT, PAPER_BLOCKS, Training

RANGE = "effective range"


def slices(study: Study, epochs: int) -> list[Slice]:
    """Each network whole, with the paper's number of random blocks, and with the number of its own effective range."""
    some = study.setting.pick(1, None, PAPER_BLOCKS)
    rules: dict[str, tuple[str, Callable[[str], Rule]]] = {
        "full": ("whole", lambda _: Full()),
        f"m{some}": (f"{some} random blocks a batch", lambda _: BlocksPerBatch(some)),
        "own": ("random blocks for its own effective range", lambda net: BlocksPerBatch(effective(study, net))),
    }
    found = []
    for network in study.networks:
        for tag, (words, rule) in rules.items():
            seeds = study.setting.pick((0, 1) if tag == "full" else (0,), None, (0, 1, 2))
            runs = [Training(f"{network}-{tag}-seed{seed}", network, study.data_name, tag, seed, ()) for seed in seeds]

            def left(runs: list[Training] = runs, network: str = network, own: bool = tag == "own") -> list[str]:
                if own and study.rows(slice=RANGE, network=network, blocks_per_batch=some):
                    return []  # the same trainings as those before
                done = {row["run"] for row in study.runs}
                return [run.name for run in runs if run.name not in done]

            def work(_unit: str, runs: list[Training] = runs, rule: Any = rule, left: Any = left) -> None:
                found = rule(runs[0].network)
                go_on(study, [run for run in runs if run.name in left()], found, epochs)

            found.append(Slice(f"{network}-{tag}", f"training {network}, {words}", 150, left, work))
    return found


def effective(study: Study, network: str) -> int:
    """Random blocks that centre on the lengths of 95 % of the trained network's gradient, by the paper's protocol."""
    weights, pick = study.weights(network), study.setting.pick
    if weights == "random":
        raise Late(f"waits for {network}-full")
    if not study.rows(slice=RANGE, network=network):
        loaded, view, _ = opened(study, network, weights)
        # training images: its errors are of the test images
        data = study.train.subset(torch.arange(min(study.train.n, pick(4, 256, 256))), study.train.split)
        options = {"max_samples": pick(2, None, 64), "batch_size": 16, "mean": loaded.mean, "std": loaded.std}
        table = pathlens.path_gradients(view, data, method="sampled", progress=study.watch, **options)
        found = table.provenance["effective"]["sampled"]
        study.record(
            slice=RANGE,
            unit=network,
            network=network,
            weights=weights,
            blocks=len(view),
            data=data.name,
            images=data.n,
            batch_size=16,
            seconds=table.provenance["seconds"],
            blocks_per_batch=found["blocks_per_batch"],
            note=f"95 % in lengths {found['first']} to {found['last']}: {found['blocks_per_batch']} blocks a batch",
        )
    return int(study.rows(slice=RANGE, network=network)[0]["blocks_per_batch"])


def go_on(study: Study, runs: Sequence[Training], rule: Rule, epochs: int) -> None:
    """Train until the end or the deadline, and keep what is finished.

    Raises:
        Late: not all are finished.
        RunError: a process ended without its work done.
    """
    recipe = recipe_for(study.train.name, epochs=epochs)
    if study.setting.scale == "smoke":
        recipe = dataclasses.replace(recipe, batch_size=20)
    # images as `pathlens train` divides them, and its options in the paper's study, which takes these runs up
    kept, held = hold_out(study.train, max(study.train.n // 10, study.train.num_classes))
    options = {
        "recipe": recipe,
        "rule": rule,
        "validation": held,
        "test": study.test.subset(torch.arange(study.test.n), study.test.split),
        "device": study.setting.device,
        "dtype": "bfloat16" if study.cuda else "float32",
        "compiled": study.cuda,
        "keep_epochs": study.setting.pick((), None, [n for n in map(int, CIFAR_KEPT.split(",")) if n <= epochs]),
    }
    folders = {run.name: study.setting.runs / run.name for run in runs}
    tasks = [
        (study.model_spec(run.network), kept, folders[run.name], study.deadline, {**options, "seed": run.seed})
        for run in runs
    ]
    for first in range(0, len(tasks), study.setting.jobs):
        side_by_side(tasks[first : first + study.setting.jobs])
    for run in runs:
        if (folders[run.name] / "result.csv").is_file():
            keep_checkpoint(folders[run.name], study.setting.out, run.name, dtype=torch.float16)
            study.runs += runs_table(folders, [run])
            study.write()
    unfinished = [folders[run.name] for run in runs if not (folders[run.name] / "result.csv").is_file()]
    if unfinished:
        stands = [0 if (file := state.find(folder)) is None else len(state.peek(file).history) for folder in unfinished]
        raise Late(f"{min(stands)} of {epochs} epochs are done")


def train_until(spec: str, data: Any, folder: Path, deadline: float, options: dict[str, Any]) -> None:
    """Train, or go on, until the end or the deadline; what was done since the last checkpoint is given up then."""
    mark = time.time()
    loaded = pathlens.load_model(
        spec, "random", num_classes=data.num_classes, in_channels=data.channels, seed=options["seed"]
    )

    def look(done: int, total: int) -> None:
        nonlocal mark
        now, begins = time.time(), (done - 1) % (total // options["recipe"].epochs) == 0
        # at the first step of an epoch the one before is on the disk: would this one end in time?
        if now > deadline or (begins and 2 * now - mark > deadline):
            raise Late
        mark = now if begins else mark

    test = options["test"].fingerprint
    facts = {"model": spec, "weights_at_start": loaded.weights, "data": data.name, "test_sha256": test}
    saving: dict[str, Any] = {"out": folder, "resume": True, "checkpoint_seconds": 60}
    try:
        pathlens.train(loaded.model, data, progress=look, provenance=provenance(**facts), **saving, **options)
    except Late:
        return


def side_by_side(tasks: Sequence[tuple[Any, ...]]) -> None:
    """Call :func:`train_until` with each task in a process of its own, for which images have been decoded once.

    Raises:
        RunError: a process failed; it has said why.
    """
    if len(tasks) == 1:
        train_until(*tasks[0])
        return
    context = multiprocessing.get_context("spawn")
    # as bytes, since tensors would go by way of shared memory, of which containers have little
    arguments = [(pickle.dumps(task), os.getpid(), torch.get_num_threads()) for task in tasks]
    processes = [context.Process(target=_apart, args=given) for given in arguments]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:  # where this process was interrupted, they are ended, and else they have ended
        for process in processes:
            process.terminate()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RunError(f"processes ended with the codes {codes}; the same command goes on, with --jobs 1 if need be")


def _apart(task: bytes, parent: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sees to it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        train_until(*pickle.loads(task))
    except PathlensError as error:
        print(f"gpu: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _end_with(parent: int) -> None:
    """End this process when the one that started it was killed, since it holds the card and the run's folder."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
