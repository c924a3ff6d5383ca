"""What a call works with, and the two tables that are both the results of a folder and the record of what is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import pathlens
from pathlens.data import ImageData
from pathlens.errors import DataError, RunError
from pathlens.report import provenance
from pathlens.tables import read_table
from studies import record
from studies.common import ROOT, Page, StudySetting
from studies.record import make_table
from studies.veit2016.retraining import RUNS

TIMINGS = (
    ("slice", "", "what was measured"),
    ("unit", "", "which part of it"),
    ("network", "", "reference name"),
    ("weights", "", "file of trained weights, or random: how long it takes does not depend on the values"),
    ("blocks", "blocks", "residual blocks of the network"),
    ("data", "", "data set"),
    ("images", "", "images"),
    ("batch_size", "images", "images at a time"),
    ("precision", "", "numbers that were computed with"),
    ("compiled", "", "whether blocks went through torch.compile"),
    ("processes", "", "processes that shared the work"),
    ("device", "", "the card"),
    ("torch", "", "version of torch"),
    ("cuda", "", "version of CUDA that torch was built for"),
    ("commit", "", "of the code"),
    ("startup_seconds", "s", "finding the blocks and a first batch, which the measured time leaves out"),
    ("seconds", "s", "wall time with the device synchronised; missing where nothing was measured"),
    ("ratio", "", "seconds of the plain loop on the same card over these"),
    ("goal", "", "what was hoped for"),
    ("met", "", "whether it was reached"),
    ("blocks_per_batch", "blocks", "random blocks that centre a sub-network on the measured effective path lengths"),
    ("note", "", "what else there is to say"),
)
QUESTION = "How fast is pathlens on a GPU, and are networks that are trained through some of their paths as good there?"
PROTOCOL = (
    "Times are wall times of one run after a first batch, with the device synchronised; an epoch's is that of the "
    "second. The plain loop is that of `studies/benchmarks/training.py`. Networks are trained by the recipe of the "
    "paper's study (`studies/veit2016`, which compares them), the seeds of one rule side by side on one card: whole, "
    "with 23 of 54 random blocks a batch, and with the number that centres on the lengths of 95 % of the whole "
    "network's own gradient (sampled paths, as in the paper)."
)


class Late(Exception):  # noqa: N818 - no error: there is work left for the next call
    """The time of a slice is over, or something that it needs is not there yet."""


@dataclass(frozen=True)
class Slice:
    """Some of the work: its name, what it shows, what a part takes on one H100, the parts left, and doing one of them.

    Doing a part raises :class:`Late` where there is no time for all of it.
    """

    name: str
    shows: str
    seconds: float
    pending: Callable[[], list[str]]
    work: Callable[[str], None]


class Study:
    """What one call works with.

    Args:
        setting: scale, folders, device and processes side by side.
        folder: holds ``cifar10-jpeg/``; None takes digits.
        limit: seconds of a slice.

    Raises:
        DataError: no such images.
        RunError: the results in the folder are of another scale, or damaged.
    """

    def __init__(self, setting: StudySetting, folder: Path | None, limit: float) -> None:
        self.setting, self.limit, self.deadline = setting, limit, float("inf")
        self.spec = "digits" if folder is None else f"parquet:{Path(folder, 'cifar10-jpeg').resolve()}"
        if folder is not None and not Path(folder, "cifar10-jpeg").is_dir():
            raise DataError(f"{folder} has no folder cifar10-jpeg; give the folder that holds cifar10-jpeg/*.parquet")
        self.data_name = "digits" if folder is None else "cifar10-jpeg"
        self.cuda = setting.device == "cuda"
        self.card = torch.cuda.get_device_name() if self.cuda else "cpu"
        #: the paper's network first, then the one with a ReLU after each sum; ``tiny`` is another study's
        small = "tiny" if folder is None else "preresnet20"
        self.networks: list[str] = setting.pick([small], None, ["preresnet110", "resnet110"])
        self.timings, self.runs = self._read("timings", TIMINGS), self._read("trainings", RUNS)

    def left(self) -> float:
        """Seconds until the slice must end."""
        return self.deadline - time.time()

    def watch(self, done: int, total: int) -> None:
        """End a measurement whose time is over; called with the batches done and in all."""
        if self.left() < 0:
            raise Late(f"stopped after {done} of {total} batches")

    @cached_property
    def train(self) -> ImageData:
        """Training images, decoded once and kept in memory."""
        return pathlens.open_data(self.spec, split="train", limit=self.setting.pick(100, None, None))

    @cached_property
    def test(self) -> ImageData:
        """Test images, likewise."""
        return pathlens.open_data(self.spec, limit=self.setting.pick(40, None, None))

    def model_spec(self, name: str) -> str:
        """How ``load_model`` calls a network."""
        return f"{ROOT / 'studies' / 'depth_in_training' / 'nets.py'}:tiny" if name == "tiny" else name

    def weights(self, name: str) -> str:
        """File of trained weights of the whole network, or ``random``."""
        path = self.setting.out / "weights" / f"{name}-full-seed0.safetensors"
        return path.name if path.is_file() else "random"

    def rows(self, **cells: Any) -> list[Mapping[str, Any]]:
        """The measurements with these cells."""
        return [row for row in self.timings if all(row[name] == value for name, value in cells.items())]

    def record(self, **cells: Any) -> None:
        """Add a measurement and write everything."""
        about = {"device": self.card, "torch": str(torch.__version__), "cuda": torch.version.cuda}
        self.timings.append({**dict.fromkeys(name for name, *_ in TIMINGS), **about, "commit": self._commit, **cells})
        self.write()

    def write(self) -> None:
        """Write tables and page; each file appears whole."""
        page, scale = Page(self.setting, "What only a GPU can show", QUESTION), self.setting.scale
        page.tables.put("timings", make_table(TIMINGS, self.timings, scale=scale))
        page.tables.put("trainings", make_table(RUNS, self.runs, scale=scale))
        page.section("Times")
        shown = dict.fromkeys(("slice", "unit", "network", "weights", "images", "device"), "")
        shown |= {"seconds": ".2f", "ratio": ".2f", "goal": "", "met": "", "note": ""}
        page.table("timings", shown)
        page.section("Trainings")
        page.table("trainings", dict.fromkeys(("run", "rule", "epochs"), "") | {"test_error": ".2%"})
        record.write(self.setting.out, study="gpu", scale=scale, measured=record.step())
        page.write(PROTOCOL)

    @cached_property
    def _commit(self) -> str | None:
        return provenance()["commit"]

    def _read(self, stem: str, columns: tuple[tuple[str, str, str], ...]) -> list[Mapping[str, Any]]:
        path = self.setting.out / f"{stem}.parquet"
        if not path.exists():
            return []
        table = read_table(path)
        if table.names != tuple(name for name, *_ in columns) or table.provenance.get("scale") != self.setting.scale:
            raise RunError(f"{path} is not of this study at --scale {self.setting.scale}; give another --out")
        return list(table.rows)
