"""The networks on CIFAR-10 that are trained beside this study, for hours: kept as they come, and used where they are.

``python -m studies.veit2016.cifar preresnet110-full-seed0`` (or ``-m23-``, or another number of random blocks, or
``-sd-`` by stochastic depth, or ``vgg15_narrow-plain-seed0``; several names, one after the other) trains a network, or
goes on with it, and keeps it: its weights in half precision, its history without the time of each epoch, and what its
manifests say, with the seconds of each phase, in ``results/cifar10/``, with the SHA-256 of each file in
``record.json``. Without a name it only writes that record again. The study measures those that lie there (``--only
cifar`` no others, and of these what is not measured yet), and names those that do not. ``PATHLENS_DATA`` names the
folder that holds ``cifar10-jpeg/``. On Linux a quarter of a step on the CPU is page faults, which go away where memory
is kept:
``GLIBC_TUNABLES=glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=33000000:glibc.malloc.trim_threshold=8000000000``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pathlens.storage import atomic_write_bytes
from pathlens.tables import Table, read_table
from studies import record
from studies.common import ROOT, StudySetting, keep_checkpoint, say, train_all
from studies.veit2016.trainings import cifar
from studies.veit2016.winograd import NAME as WINOGRAD
from studies.veit2016.winograd import winograd

FOLDER = ROOT / "results" / "cifar10"
#: weights of a run, in bytes: what a repository can carry
LARGEST = 4_000_000
NETWORK, PLAIN = "preresnet110", "vgg15_narrow"
SCHEDULE = (
    f"`{NETWORK}` has 54 pre-activation blocks (18 of each of 16, 32 and 64 channels). It is trained on all 50,000 "
    "images in two phases: 30 epochs at 16x16 (the middle of 18x18), cropped from 1 pixel of zeros around them, at a "
    "constant learning rate after an epoch of warm-up, then 8 epochs at 32x32, cropped from 2, with a cosine to 0; the "
    "same steps for every rule. The schedule was chosen with the whole network of seed 0, for less than 12 % of error: "
    "four with 45,000 images were given up. 10 epochs at 16x16 and 4 at 32x32 ended at 16.5 % of the test images and "
    "as many of the held-out ones; 5 and 10 stood at 16.4 % of the held-out images after 7 of the 10, with a learning "
    "rate of 0.02; 30 and 8 ended at 12.1 % of the test images and 11.7 % of the held-out ones, and cropped from 4 "
    "stood at 12.4 % of the held-out images after 7 of the 8. So the test images were read before for the whole "
    "network of seed 0, and for no other rule or seed: where the choice favours anything, it is the whole network. "
    "Weights are kept and measured in half precision, while test errors in the table of retraining are those of the "
    "training's own, in single precision; the two may differ by a few images. The plain network beside it, trained "
    "alike, has the paper's 15 layers and a third of their channels (32, 48, 96, 176, 176), so that its weights can be "
    "kept."
)
_ALL = ("--validation", "0")
HALF = ("--image-size", "16", "--crop", "1", "--epochs", "30", "--schedule", "constant", "--no-test", *_ALL)
WHOLE = ("--crop", "2", "--epochs", "8", "--schedule", "cosine", "--warmup", "0", *_ALL)
#: rules and seeds that are wanted; own is the number of blocks that the network's own effective lengths ask for
WANTED = tuple(
    f"{one}-seed{seed}"
    for seed in range(3)
    for one in (*(f"{NETWORK}-{rule}" for rule in ("full", "m23", "own", "sd")), f"{PLAIN}-plain")
)


@dataclass(frozen=True)
class Kept:
    """A kept training.

    Attributes:
        name: of its run, such as ``preresnet110-m23-seed0``.
        folder: where it lies.
    """

    name: str
    folder: Path

    @property
    def network(self) -> str:
        """Reference name."""
        return self.name.split("-")[0]

    @property
    def weights(self) -> Path:
        """Its weights."""
        return self.folder / "weights" / f"{self.name}.safetensors"

    @property
    def facts(self) -> dict[str, Any]:
        """What its training said, and its errors."""
        found: dict[str, Any] = json.loads((self.folder / f"{self.name}.json").read_text())
        return found

    @property
    def trained(self) -> str:
        """Rule and number of blocks, short."""
        return self.name.split("-")[1]

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.name.rpartition("seed")[2])


def kept(folder: Path = FOLDER) -> list[Kept]:
    """The trainings that are there, by name."""
    return [Kept(path.stem, folder) for path in sorted((folder / "weights").glob("*.safetensors"))]


def missing(folder: Path = FOLDER) -> list[str]:
    """The trainings that are wanted and not there; any number of blocks other than 23 counts as the network's own."""
    there = {
        one.name.replace(one.trained, "own") if one.trained[1:].isdigit() and one.trained != "m23" else one.name
        for one in kept(folder)
    }
    return [name for name in WANTED if name not in there]


def phases_of(networks: Sequence[Kept]) -> list[dict[str, Any]]:
    """What the record says of their trainings, phase by phase."""
    return [phase for one in networks for phase in one.facts["phases"]]


def without_times(history: Table) -> Table:
    """A history without how long its epochs took, which other work on the machine has its part in."""
    return record.leave_out(history, ("seconds", "images_per_second"))


def seconds_of(history: Table) -> float:
    """How long the steps of all epochs of a history took, without evaluation and checkpoints."""
    return round(math.fsum(float(row["seconds"] or 0) for row in history.rows), 3)


def took(networks: Sequence[Kept]) -> str:
    """A sentence on how long their trainings took, with a blank before it; nothing where that was not kept.

    Args:
        networks: all that are kept.
    """
    every = [one.facts["phases"] for one in networks]
    timed = [phases for phases in every if all("seconds" in phase for phase in phases)]
    hours: dict[str, float] = {}
    for phase in (phase for phases in timed for phase in phases):
        on = f"{phase['hardware']['cores_allowed']} cores" if phase["device"] == "cpu" else "a GPU"
        hours[on] = hours.get(on, 0.0) + phase["seconds"] / 3600
    if not hours:
        return ""
    which = f"the {len(every)}" if len(timed) == len(every) else f"{len(timed)} of the {len(every)}"
    together = " and ".join(f"{spent:.1f} hours of {on}" for on, spent in hours.items())
    return (
        f" The steps of {which} trainings that are there took {together}, without evaluation, and without the "
        "trainings that were given up."
    )


def run_row(one: Kept) -> dict[str, Any]:
    """The row of a kept training in the table of runs; its epochs are those of all phases."""
    facts = one.facts
    epochs = sum(phase["recipe"]["epochs"] for phase in facts["phases"])
    named = {"run": one.name, "network": one.network, "trained": one.trained, "seed": one.seed}
    return {**facts["row"], **named, "epochs": epochs}


def keep(run: Path, folder: Path = FOLDER, convolutions: str | None = None) -> Path:
    """Keep a finished training; its folder names network, rule and seed.

    Args:
        run: folder of ``pathlens train``.
        folder: of the kept ones; its record is written again.
        convolutions: how those in float32 on a CPU were computed by the call that finished it, where not by torch's own
            kernels.

    Raises:
        SystemExit: it is not finished, or too large.
    """
    if not (run / "result.csv").is_file():
        raise SystemExit(f"{run} has no result.csv: the training has not finished; run it again to take it up")
    result, history = read_table(run / "result.csv"), read_table(run / "history.csv")
    (test,) = [row for row in result.rows if row["split"] == "test"]
    facts = result.provenance
    row = {
        "data": "cifar10-jpeg",
        "rule": "plain" if run.name.startswith(f"{PLAIN}-") else facts["rule"],
        "epochs": facts["recipe"]["epochs"],
        "dtype": facts["dtype"],
        "blocks": sum(float(one["blocks"] or 0) for one in history.rows) / len(history.rows),
        **{f"test_{name}": test[name] for name in ("error", "error_low", "error_high")},
        "test_images": test["n"],
        "train_loss": history.rows[-1]["train_loss"],
        "commit": facts["commit"],
    }
    on_cpu = (facts["device"], facts["dtype"]) == ("cpu", "float32")
    half = run.with_name(f"{run.name}-half")
    phases = [phase for phase in (half, run) if (phase / "manifest.json").is_file()]
    histories = {phase.name: read_table(phase / "history.csv") for phase in phases}
    said = {
        "row": row,
        "convolutions": convolutions if on_cpu else None,
        "phases": [
            {**record.training(phase.name, phase), "seconds": seconds_of(histories[phase.name])} for phase in phases
        ],
    }
    with tempfile.TemporaryDirectory() as apart:
        weights = keep_checkpoint(run, Path(apart), run.name, dtype=torch.float16).read_bytes()
    if len(weights) > LARGEST:
        raise SystemExit(f"the weights of {run} take more than {LARGEST:,} bytes; nothing was kept")
    for name, phase_history in histories.items():
        without_times(phase_history).write(folder, f"history-{name}")
    atomic_write_bytes(folder / f"{run.name}.json", (json.dumps(said, indent=2) + "\n").encode())
    # last, because a network is kept where its weights are
    (folder / "weights").mkdir(exist_ok=True)
    path = atomic_write_bytes(folder / "weights" / f"{run.name}.safetensors", weights)
    record.write(folder)
    return path


def phases(name: str, data: str) -> dict[str, tuple[str, ...]]:
    """The two trainings of a run, in their order: name -> arguments of ``pathlens train``.

    Args:
        name: network, rule and seed, such as ``preresnet110-m23-seed0``.
        data: in the words of ``--data``.

    Raises:
        SystemExit: it is no such name.
    """
    found = re.fullmatch(rf"(?:{NETWORK}-(?:full|(sd)|m(\d+))|{PLAIN}-plain)-seed(\d+)", name)
    if found is None:
        raise SystemExit(
            f"{name} names no run; write {NETWORK}-full-seedS, {PLAIN}-plain-seedS, {NETWORK}-sd-seedS for stochastic "
            f"depth, or {NETWORK}-mN-seedS with N random blocks a batch"
        )
    dropped, blocks, seed = found.groups()
    rule = ("--blocks-per-batch", blocks) if blocks else ("--stochastic-depth", "linear:0.5") if dropped else ()
    common = ("--model", name.partition("-")[0], "--data", data, "--seed", seed, *rule)
    # branches are multiplied by their probabilities once, after the second phase
    half = (*common, *HALF, *(("--rescale", "none") if rule else ()))
    return {
        f"{name}-half": half,
        name: (*common, *WHOLE, "--weights", str(Path(f"{name}-half", "weights.safetensors"))),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train the networks that are named, and keep them; without names, write the record of the kept ones again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"such as {WANTED[0]}; without any, only write {record.NAME} again"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="default: results/cifar10")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "cifar10", help="default: runs/cifar10")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.names:
        _train(args.names, args.device, args.runs, args.out)
    elif kept(args.out):
        say(f"wrote {record.write(args.out)}")
    else:
        raise SystemExit(f"--out {args.out}: no training is kept there; name one to train, such as {WANTED[0]}")
    say(f"missing: {', '.join(missing(args.out)) or 'none'}")
    return 0


def _train(names: Sequence[str], device: str, runs: Path, out: Path) -> None:
    data = cifar()
    if data is None:
        raise SystemExit("set PATHLENS_DATA to the folder that holds cifar10-jpeg/")
    wanted = {name: phases(name, data) for name in names}
    study = StudySetting("veit2016", "cpu", out, runs, device, jobs=1)
    with winograd() as fast:
        for name, both in wanted.items():
            train_all(both, study, here=True)
            # the plain network's convolutions have biases, which the kernel does not take
            computed = WINOGRAD if fast and name.startswith(f"{NETWORK}-") else None
            say(f"kept {keep(runs / name, out, computed)}")


if __name__ == "__main__":
    sys.exit(main())
