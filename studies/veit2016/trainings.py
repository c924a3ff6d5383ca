"""The networks to train: whole, through random blocks, by stochastic depth; a plain one and a highway network.

The networks on CIFAR-10 take hours, and are trained beside this study; ``studies.veit2016.cifar`` takes their weights
as they come.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from studies.common import StudySetting


@dataclass(frozen=True)
class Training:
    """One network to train.

    Attributes:
        name: of its run.
        network: reference name.
        data: in words.
        rule: ``full``, ``blocks``, ``stochastic depth``, ``plain`` or ``highway``.
        seed: of the run.
        arguments: of ``pathlens train``.
        blocks: random blocks in each batch; None for other rules.
    """

    name: str
    network: str
    data: str
    rule: str
    seed: int
    arguments: tuple[str, ...]
    blocks: int | None = None

    @property
    def tag(self) -> str:
        """Rule and number of blocks, short."""
        return short_name(self.rule, self.blocks)


#: the paper trained 23 of 54 blocks; first plus last effective length of its network (5 to 17) are 22
PAPER_BLOCKS = 23
#: first plus last effective length of digits54 (3 to 12 in ``results/veit2016/effective.csv``)
OWN_BLOCKS = 15
#: numbers of blocks of the curve
CURVE = (7, OWN_BLOCKS, PAPER_BLOCKS, 31, 39)

DIGITS_KEPT = "0,1,2,5,10,20,30,40,50,60"
CIFAR_KEPT = "0,1,2,5,10,20,40,80,100,120,150,160,200"


def trainings(study: StudySetting) -> list[Training]:
    """Everything that is trained at a scale."""
    found: list[Training] = []
    if study.scale == "smoke":
        short = ("--data", "digits", "--epochs", "1", "--limit", "120", "--validation", "20")
        found += _rules("preresnet20", "digits", (4,), (0,), short)
        found += [_other("vgg15", "plain", 0, short), _other("highway19", "highway", 0, short)]
    elif study.scale == "cpu":
        found += _rules("digits54", "digits", CURVE, range(5), ("--keep-epochs", DIGITS_KEPT))
        found += [
            _other(network, rule, seed, ("--data", "digits"))
            for seed in range(3)
            for network, rule in (("vgg15", "plain"), ("highway58", "highway"))
        ]
    else:
        spec = cifar()
        if spec is None:
            raise SystemExit("the paper scale needs CIFAR-10: set PATHLENS_DATA to the folder that holds cifar10-jpeg/")
        long = ("--data", spec, "--dtype", "bfloat16", "--compile")
        found += _rules("preresnet110", "cifar10-jpeg", (PAPER_BLOCKS,), range(3), (*long, "--keep-epochs", CIFAR_KEPT))
        found += [
            _other(network, rule, seed, long, "cifar10-jpeg")
            for seed in range(3)
            for network, rule in (("vgg15", "plain"), ("highway58", "highway"))
        ]
    return found


def short_name(rule: str, blocks: int | None = None) -> str:
    """Rule and number of blocks as a part of file names."""
    return f"m{blocks}" if blocks else {"stochastic depth": "sd"}.get(rule, rule)


def cifar() -> str | None:
    """The training data of CIFAR-10, where there are any."""
    folder = os.environ.get("PATHLENS_DATA")
    path = Path(folder, "cifar10-jpeg").resolve() if folder else None
    return f"parquet:{path}" if path is not None and path.is_dir() else None


def _rules(
    network: str, data: str, numbers: tuple[int, ...], seeds: range | tuple[int, ...], more: tuple[str, ...]
) -> list[Training]:
    rules: list[tuple[str, int | None, tuple[str, ...]]] = [("full", None, ())]
    rules += [("blocks", number, ("--blocks-per-batch", str(number))) for number in numbers]
    rules += [("stochastic depth", None, ("--stochastic-depth", "linear:0.5"))]
    found = []
    for seed in seeds:
        for rule, blocks, options in rules:
            name = f"{network}-{short_name(rule, blocks)}-seed{seed}"
            arguments = ("--model", network, "--seed", str(seed), *options, *more)
            found.append(Training(name, network, data, rule, seed, arguments, blocks))
    return found


def _other(network: str, rule: str, seed: int, more: tuple[str, ...], data: str = "digits") -> Training:
    arguments = ("--model", network, "--seed", str(seed), *more)
    return Training(f"{network}-seed{seed}", network, data, rule, seed, arguments)
