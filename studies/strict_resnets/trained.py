"""What is trained, what the networks cost, and how long each stays on its plateau."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import pathlens
from pathlens.data import ImageData
from pathlens.models import StrictUNet
from pathlens.tables import Table, read_table
from pathlens.training import hold_out
from studies.common import StudySetting, over_seeds
from studies.record import images as about
from studies.record import make_table
from studies.strict_resnets.nets import CLASSES, DOWNS, NETWORKS, UPS, sampled_name

NETS = Path(__file__).resolve().parent / "nets.py"
DATA = "digit-scenes"
#: most by which multiply-adds may differ to be called equal
SAME = 0.05
#: share of the loss of the best constant answer that the training loss has to fall below to have left the plateau
LEFT = 0.9
#: of the recipe, for all parts
RATES: Mapping[str, Any] = {"lr": 0.05, "crop": 0, "flip": False, "warmup": 0, "schedule": "constant"}
PLATEAU, DEPTH, SAMPLING = "plateau", "depth", "sampling"

RUNS = (
    ("run", "", "name of the training run"),
    ("part", "", "plateau, depth (and width), or sampling (ways of up- and downsampling)"),
    ("network", "", "of studies/strict_resnets/nets.py"),
    ("seed", "", "of the run"),
    ("steps", "steps", "of the run"),
    ("train_loss", "nats", "mean loss of the last epoch as trained"),
    ("constant_loss", "nats", "loss of the best answer that is the same for all pixels of the training images"),
    ("plateau_steps", "steps", f"until the end of the first epoch of which the mean training loss is below {LEFT:.0%} "
     "of constant_loss; all steps where there is none"),
    ("plateau_left", "", "whether there is one"),
    ("test_error", "fraction", "share of pixels of the test images classified wrongly at the end; of depth alone"),
    ("test_loss", "nats", "mean cross-entropy of these pixels; of depth alone"),
    ("commit", "", "of the code that trained it"),
)  # fmt: skip
EPOCHS = (
    ("part", "", "as in runs"),
    ("network", "", "of studies/strict_resnets/nets.py"),
    ("seeds", "", "runs"),
    ("step", "steps", "done at the end of the epoch"),
    ("train_loss", "nats", "mean loss of the epoch as trained, mean over seeds"),
    ("train_loss_low", "nats", "lower end of Student's 95 % interval over seeds"),
    ("train_loss_high", "nats", "upper end"),
)
COSTS = (
    ("network", "", "of studies/strict_resnets/nets.py"),
    ("blocks", "", "residual blocks"),
    ("channels", "", "of them"),
    ("parameters", "", "of the network"),
    ("multiply_adds", "", "for one image, by torch.utils.flop_counter"),
    ("ratio", "", "multiply-adds over those of the network in the row before; missing for networks of other cost"),
)


@dataclass(frozen=True)
class Networks:
    """What a scale trains; names of ``nets.py``.

    Attributes:
        plateau: two networks, of three levels and of one, with their norms at each place.
        depths: three depths, in the ratio 1 : 2 : 3.
        deep: one of them.
        wide: the shallower network of its multiply-adds.
    """

    plateau: tuple[str, ...]
    depths: tuple[str, ...]
    deep: str
    wide: str

    @classmethod
    def of(cls, study: StudySetting) -> Networks:
        """Those of the scale that was asked for."""
        counts, channels, deep, wide = study.pick(
            ((5, 10, 20), 2, 20, "1x4"), ((20, 40, 60), 4, 40, "6x8"), ((100, 200, 300), 16, 100, "21x32")
        )
        return cls(
            (
                *(f"bottom{counts[0]}x{channels}_{norms}" for norms in ("each", "end", "block")),
                *(f"row{counts[0]}x{4 * channels}_{norms}" for norms in ("end", "block")),
            ),
            tuple(f"bottom{count}x{channels}_each" for count in counts),
            f"bottom{deep}x{channels}_each",
            f"bottom{wide}_each",
        )


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        part: of the study.
        network: of ``nets.py``.
        seed: of the run.
        arguments: of ``pathlens train``.
    """

    part: str
    network: str
    seed: int
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.part}-{self.network}-seed{self.seed}"


def ways_of(study: StudySetting) -> dict[str, tuple[str, ...]]:
    """Ways of up- and downsampling that are looked at."""
    ups, downs = study.pick((("transposed3", "nearest"), ("strided3",)), (UPS, DOWNS), (UPS, DOWNS))
    return {"up": tuple(ups), "down": tuple(downs)}


def recipe(part: str, study: StudySetting) -> str:
    """Images, epochs and batches; an epoch of the plateau is short, because a loss is known for each epoch alone."""
    if study.scale == "smoke":
        return "--limit 12 --validation 4 --epochs 2 --batch-size 4 --no-test"
    sizes = {
        PLATEAU: ("--limit 144 --validation 16 --epochs 20 --batch-size 16", "--limit 576 --validation 64 --epochs 60"),
        DEPTH: ("--limit 992 --validation 32 --epochs 1 --batch-size 16", "--epochs 100"),
        SAMPLING: ("--limit 672 --validation 32 --epochs 1 --batch-size 16", "--epochs 100"),
    }
    cpu, paper = sizes[part]
    return f"{cpu if study.scale == 'cpu' else paper}{'' if part == DEPTH else ' --no-test'}"


def seeds_of(part: str, study: StudySetting) -> int:
    """Trainings of each network; of those that differ in their sampling one at the cpu scale, which tells nothing."""
    seeds: int = study.pick(1, 1 if part == SAMPLING else 3, 3)
    return seeds


def trainings(study: StudySetting) -> list[Training]:
    """Every part, network and seed."""
    networks, ways = Networks.of(study), ways_of(study)
    plans = [
        *((PLATEAU, name) for name in networks.plateau),
        *((DEPTH, name) for name in (*networks.depths, networks.wide)),
        *((SAMPLING, name) for name in dict.fromkeys(sampled_name(up, way) for up, of in ways.items() for way in of)),
    ]
    place = os.path.relpath(NETS, study.runs.resolve())
    rates = " ".join(f"--{name} {value}" for name, value in RATES.items() if name != "flip")
    common = f"--data {DATA} --no-flip {rates}"
    return [
        Training(
            part,
            name,
            seed,
            ("--model", f"{place}:{name}", "--seed", str(seed), *common.split(), *recipe(part, study).split()),
        )
        for part, name in plans
        for seed in range(seeds_of(part, study))
    ]


def trained_on(part: str, study: StudySetting) -> ImageData:
    """The images that the trainings of a part see."""
    words = recipe(part, study).split()
    said = dict(pairwise(words))
    limit, held = (int(said[name]) if name in said else None for name in ("--limit", "--validation"))
    data = pathlens.open_data(DATA, split="train", limit=limit)
    return data if held is None else hold_out(data, held)[0]


def constant_loss(data: ImageData) -> float:
    """Entropy of the classes of all pixels, in nats: the loss of the best answer that is the same everywhere."""
    shares = torch.bincount(data.rows(torch.arange(data.n))[1].flatten(), minlength=CLASSES).double()
    return float(torch.special.entr(shares / shares.sum()).sum())


def plateau(history: Table, constant: float) -> tuple[int, bool]:
    """Steps until the loss has left the plateau, and whether it has."""
    for row in history.rows:
        if row["train_loss"] is not None and row["train_loss"] < LEFT * constant:
            return row["step"], True
    return history.rows[-1]["step"], False


def costs(study: StudySetting) -> list[dict[str, Any]]:
    """Rows of ``costs``.

    Raises:
        SystemExit: the wide network's multiply-adds are not those of the deep one.
    """
    networks = Networks.of(study)
    rows = []
    for name in (*(one for one in networks.depths if one != networks.deep), networks.deep, networks.wide):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:  # shapes alone
            net = NETWORKS[name]()
            assert isinstance(net, StrictUNet)
            net(torch.zeros(1, 3, 48, 48))
        blocks = net.down[-1]
        rows.append(
            {
                "network": name,
                "blocks": len(blocks),
                "channels": blocks[0].convs[0].in_channels,
                "parameters": sum(parameter.numel() for parameter in net.parameters()),
                "multiply_adds": counter.get_total_flops() // 2,
                "ratio": None,
            }
        )
    ratio = rows[-1]["multiply_adds"] / rows[-2]["multiply_adds"]
    if abs(ratio - 1) > SAME:
        raise SystemExit(f"{networks.wide} has {ratio:.2f} times the multiply-adds of {networks.deep}")
    rows[-1]["ratio"] = ratio
    return rows


def measure(study: StudySetting, done: Mapping[str, Path], cost: list[dict[str, Any]]) -> dict[str, Table]:
    """The tables of this part by stem.

    Args:
        study: what was asked for.
        done: run folders by name.
        cost: rows of ``costs``.
    """
    split = study.pick("validation", "test", "test")
    test = pathlens.open_data(DATA, split=split)
    constants = {part: constant_loss(trained_on(part, study)) for part in (PLATEAU, DEPTH, SAMPLING)}
    runs: list[dict[str, Any]] = []
    histories: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for training in trainings(study):
        folder = done[training.name]
        result, history = read_table(folder / "result.csv"), read_table(folder / "history.csv")
        constant = constants[training.part]
        steps, left = plateau(history, constant)
        tested = {"error": None, "loss": None}
        if training.part == DEPTH:
            (tested,) = [row for row in result.rows if row["split"] == split]
        for row in history.rows:
            histories.setdefault((training.part, training.network, row["step"]), []).append(row)
        runs.append(
            {
                "run": training.name,
                "part": training.part,
                "network": training.network,
                "seed": training.seed,
                "steps": history.rows[-1]["step"],
                "train_loss": history.rows[-1]["train_loss"],
                "constant_loss": constant,
                "plateau_steps": steps,
                "plateau_left": left,
                "test_error": tested["error"],
                "test_loss": tested["loss"],
                "commit": result.provenance["commit"],
            }
        )
    epochs = [
        {"part": part, "network": network, "seeds": len(rows), "step": step}
        | over_seeds(rows, "train_loss", (0, float("inf")))
        for (part, network, step), rows in histories.items()
    ]
    facts = {"study": study.name, "scale": study.scale, **about(test)}
    return {
        "costs": make_table(COSTS, cost, **facts),
        "runs": make_table(RUNS, runs, **facts),
        "epochs": make_table(EPOCHS, epochs, **facts),
    }


def paired_values(runs: Any, part: str, one: str, other: str, column: str) -> list[float]:
    """A column of a network minus that of another, for each seed that both have."""
    by_name = {
        name: {row["seed"]: row[column] for row in runs if (row["part"], row["network"]) == (part, name)}
        for name in (one, other)
    }
    return [by_name[one][seed] - by_name[other][seed] for seed in sorted(by_name[one].keys() & by_name[other].keys())]


def means(runs: Any, part: str, column: str) -> dict[str, float]:
    """Mean of a column over seeds, by network."""
    names = dict.fromkeys(row["network"] for row in runs if row["part"] == part)
    return {
        name: statistics.fmean(row[column] for row in runs if (row["part"], row["network"]) == (part, name))
        for name in names
    }
