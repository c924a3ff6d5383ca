"""The networks to train: whole, through random blocks, by stochastic depth; a plain one and a highway network."""

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
    """

    name: str
    network: str
    data: str
    rule: str
    seed: int
    arguments: tuple[str, ...]

    @property
    def residual(self) -> bool:
        """Whether it is one of the networks whose trainings are compared."""
        return self.rule not in ("plain", "highway")


#: the paper trained 23 of 54 blocks
SHARE = 23 / 54

DIGITS_KEPT = "0,1,2,5,10,20,30,40,50,60"
CIFAR_KEPT = "0,1,2,5,10,20,40,80,100,120,150,160,200"


def trainings(study: StudySetting) -> list[Training]:
    """Everything that is trained at a scale."""
    found: list[Training] = []
    if study.scale == "smoke":
        short = ("--data", "digits", "--epochs", "1", "--limit", "120", "--validation", "20")
        found += _three("preresnet20", "digits", 4, (0,), short)
        found += [_other("vgg15", "plain", "digits", short), _other("highway19", "highway", "digits", short)]
    elif study.scale == "cpu":
        found += _three("digits54", "digits", 23, range(5), ("--keep-epochs", DIGITS_KEPT))
        found += [_other("vgg15", "plain", "digits", ()), _other("highway58", "highway", "digits", ())]
        if (spec := cifar()) is not None:
            short = ("--data", spec, "--epochs", "5", "--schedule", "cosine", "--dtype", "bfloat16")
            found += _three("preresnet20", "cifar10-jpeg", 4, range(2), short)
    else:
        spec = cifar()
        if spec is None:
            raise SystemExit("the paper scale needs CIFAR-10: set PATHLENS_DATA to the folder that holds cifar10-jpeg/")
        long = ("--data", spec, "--dtype", "bfloat16", "--compile")
        kept = ("--keep-epochs", CIFAR_KEPT)
        found += _three("preresnet110", "cifar10-jpeg", 23, range(3), (*long, *kept))
        found += [_other("vgg15", "plain", "cifar10-jpeg", long), _other("highway58", "highway", "cifar10-jpeg", long)]
    return found


def cifar() -> str | None:
    """The training data of CIFAR-10, where there are any."""
    folder = os.environ.get("PATHLENS_DATA")
    path = Path(folder, "cifar10-jpeg").resolve() if folder else None
    return f"parquet:{path}" if path is not None and path.is_dir() else None


def _three(
    network: str, data: str, blocks: int, seeds: range | tuple[int, ...], more: tuple[str, ...]
) -> list[Training]:
    rules = {
        "full": ("full", ()),
        f"m{blocks}": ("blocks", ("--blocks-per-batch", str(blocks))),
        "sd": ("stochastic depth", ("--stochastic-depth", "linear:0.5")),
    }
    return [
        Training(
            f"{network}-{tag}-seed{seed}",
            network,
            data,
            rule,
            seed,
            ("--model", network, "--seed", str(seed), *options, *more),
        )
        for seed in seeds
        for tag, (rule, options) in rules.items()
    ]


def _other(network: str, rule: str, data: str, more: tuple[str, ...]) -> Training:
    spec = () if "--data" in more else ("--data", "digits")
    return Training(f"{network}-seed0", network, data, rule, 0, ("--model", network, "--seed", "0", *spec, *more))
