"""Time a loss surface against the published script's work, done the obvious way.

Run from the repository root, on a machine that does nothing else::

    python -m studies.benchmarks.surface --out results/benchmarks

Same network, same images, same directions, same process, in turn:

* ``pathlens``: ``pathlens.loss_surface`` of the whole grid, with tracing, the choice of an engine and the check against
  the model.
* ``published``: after every Nth point, while the former waits, at one of the same grid: at its corners, then at points
  drawn at random. New weights are made parameter by parameter and put into a copy of the network, and the images go
  through a fresh pass of a ``DataLoader`` that normalises each of them, batch after batch through the network, as
  ``plot_surface.py`` of github.com/tomgoldstein/loss-landscape does at every point. Pixels are in memory already and no
  JPEG is decoded, which is to its advantage.

A grid of 51 x 51 points should take at most 0.6 times the published work. Losses are compared wherever both measure a
finite one; the table says at how many points. With ``PATHLENS_DATA`` and ``PATHLENS_MODELS`` set, images and weights
are real, else random (the weights of a network that nobody trained).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import pathlens
from pathlens.report import provenance
from pathlens.surface import moving, random
from pathlens.tables import Column, Table
from studies.benchmarks.side_by_side import (
    MEAN,
    STD,
    Batches,
    cpu_abilities,
    heading,
    open_batches,
    open_network,
    publish,
    ranged,
    say,
    spread,
    threads,
)

COLUMNS = (
    Column("method"),
    Column("network"),
    Column("images"),
    Column("batch_size"),
    Column("dtype"),
    Column("points", "", "of the grid that it measured"),
    Column("seconds", "s", "wall time a point: median of the published work, mean of the whole surface"),
    Column("seconds_min", "s", "of a point, or of the mean between two points of the published work"),
    Column("seconds_max", "s"),
    Column("ratio", "", "seconds over those of the published work"),
    Column("ratio_min", "", "of the points between two of the published work, over the second of these"),
    Column("ratio_max"),
    Column("largest_difference", "nats", "of a loss from that of the published work; missing for that work itself"),
    Column("compared", "", "points of which both losses are finite, and were compared"),
)


class Pixels(Dataset[tuple[Tensor, int]]):
    """Images in [0, 1] that are normalised one by one when they are asked for."""

    def __init__(self, batches: Batches) -> None:
        self._mean, self._std = (torch.tensor(values).reshape(-1, 1, 1) for values in (MEAN, STD))
        self._pixels = torch.cat([images for images, _ in batches]) * self._std + self._mean
        self._labels = torch.cat([labels for _, labels in batches]).tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return (self._pixels[index] - self._mean) / self._std, self._labels[index]


class Published:
    """The script's work at one point, by its ``set_weights`` and ``eval_loss``.

    Args:
        network: is given other weights.
        loader: of the images.
        axes: the directions, parameter by parameter.
    """

    def __init__(
        self, network: nn.Module, loader: DataLoader[tuple[Tensor, int]], axes: Sequence[Sequence[Tensor]]
    ) -> None:
        self._network, self._loader, self._axes = network.eval(), loader, axes
        self._weights = [parameter.detach().clone() for parameter in network.parameters()]

    def loss(self, place: Sequence[float]) -> float:
        """Mean loss at coordinates along the axes."""
        changes = [
            sum(x * part for x, part in zip(place, parts, strict=True)) for parts in zip(*self._axes, strict=True)
        ]
        for parameter, weight, change in zip(self._network.parameters(), self._weights, changes, strict=True):
            parameter.data = weight + change
        total, correct, images = 0.0, 0, 0
        with torch.no_grad():
            for inputs, targets in self._loader:
                outputs = self._network(inputs)
                total += F.cross_entropy(outputs, targets).item() * len(inputs)
                correct += int(outputs.max(1)[1].eq(targets).sum())
                images += len(inputs)
        return total / images


class Turns:
    """Progress of a surface that lets the published work measure a point after every Nth, and takes the time of both.

    Args:
        published: the work.
        places: number of a point of the surface -> its coordinates, of those that the work measures, in its order.
        every: N.

    Attributes:
        losses: number of a point -> loss by the published work.
        theirs: seconds of the published work at each of its points.
        ours: seconds of the surface between two of these.
    """

    def __init__(self, published: Published, places: Mapping[int, tuple[float, ...]], every: int) -> None:
        self._published, self._places, self._every = published, iter(places.items()), every
        self.losses: dict[int, float] = {}
        self.theirs: list[float] = []
        self.ours: list[float] = []
        self._began = time.perf_counter()

    @property
    def rest(self) -> float:
        """Seconds of the surface since the last point of the published work."""
        return time.perf_counter() - self._began

    def __call__(self, done: int, total: int) -> None:
        """Called before each point, with the number of those done, and at the end."""
        if not done or done % self._every:
            return
        self.ours.append(self.rest)
        number, place = next(self._places)
        began = time.perf_counter()
        self.losses[number] = self._published.loss(place)
        self._began = time.perf_counter()
        self.theirs.append(self._began - began)
        mean = self.ours[-1] / self._every
        say(f"{done} of {total} points: published {self.theirs[-1]:.2f} s, pathlens {mean:.2f} s a point")


def chosen(side: int, count: int, seed: int) -> list[int]:
    """Numbers of some points of a square grid: its corners, then others drawn at random.

    Args:
        side: points of it.
        count: how many.
        seed: of the draw.
    """
    last = side**2 - 1
    drawn = torch.randperm(side**2, generator=torch.Generator().manual_seed(seed)).tolist()
    return list(dict.fromkeys([0, side - 1, last - side + 1, last, *drawn]))[:count]


def markdown(table: Table) -> str:
    """The page."""
    facts = table.provenance
    lines = [
        *heading(
            "Benchmark of loss surfaces",
            facts,
            f"Weights: {facts['weights']}; data: {facts['data']}; seed {facts['seed']}",
            f"Grid: {facts['points']} x {facts['points']} points; the published work at 1 in {facts['every']} of them, "
            "the corners and others drawn at random",
        ),
        "| method | network | images | type | points | seconds a point | times published "
        "| largest difference (points compared) |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for r in table.rows:
        difference = "" if r["largest_difference"] is None else f"{r['largest_difference']:.1e} ({r['compared']})"
        cells = [str(r[name]) for name in ("method", "network", "images", "dtype", "points")]
        lines.append(f"| {' | '.join([*cells, ranged(r, 'seconds'), ranged(r, 'ratio'), difference])} |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet20", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--points", type=int, default=51, help="a side of the grid, odd; default: %(default)s")
    parser.add_argument(
        "--every", type=int, default=17, help="points of ours for each of the published work; default: %(default)s"
    )
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader; default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, write ``surface`` as table and page, print the page."""
    args = parse(argv)
    loaded = open_network(args.network, args.seed)
    network = loaded.model.eval()
    batches, words = open_batches(args.images, args.batch_size, args.seed)
    loader = DataLoader(Pixels(batches), args.batch_size, num_workers=args.workers)
    with moving(network) as weights:
        generator = torch.Generator().manual_seed(args.seed)
        axes = [[part.clone() for part in weights.parts(random(weights, generator))] for _ in range(2)]
    half = args.points // 2
    side = [step / half for step in range(-half, half + 1)]
    places = [(x, y) for y, x in itertools.product(side, repeat=2)]
    with threads(args.threads):
        work = Published(copy.deepcopy(network), loader, axes)
        work.loss((0, 0))  # warms up; the surface is not warmed up
        numbers = chosen(args.points, len(places) // args.every, args.seed)
        turns = Turns(work, {number: places[number] for number in numbers}, args.every)
        surface = pathlens.loss_surface(
            network, batches, points=args.points, curvature="none", dtype=args.dtype, seed=args.seed, progress=turns
        )
        seconds = sum(turns.ours) + turns.rest
    assert [(row["x"], row["y"]) for row in surface.rows] == places
    pairs: list[tuple[Any, float]] = [(surface.rows[number]["loss"], loss) for number, loss in turns.losses.items()]
    differences = [abs(own - loss) for own, loss in pairs if own is not None and math.isfinite(loss)]
    between = [taken / args.every for taken in turns.ours]
    ratios = [one / other for one, other in zip(between, turns.theirs, strict=True)]
    about = {"network": args.network, "images": args.images, "batch_size": args.batch_size}
    plain = statistics.median(turns.theirs)
    mean = seconds / len(places)
    rows: list[dict[str, Any]] = [
        {
            "method": "published",
            **about,
            "dtype": "float32",
            "points": len(turns.theirs),
            **spread("seconds", turns.theirs),
            **spread("ratio", [1.0]),
            "largest_difference": None,
            "compared": None,
        },
        {
            "method": "pathlens",
            **about,
            "dtype": args.dtype,
            "points": len(places),
            **spread("seconds", between),
            "seconds": mean,
            **spread("ratio", ratios),
            "ratio": mean / plain,
            "largest_difference": max(differences, default=None),
            "compared": len(differences),
        },
    ]
    options = {name: value for name, value in vars(args).items() if name != "out"}
    facts = {"weights": loaded.weights, "data": words, "cpu_capability": cpu_abilities()}
    table = Table(COLUMNS, tuple(rows), provenance(**options, **facts))
    publish(args.out, "surface", markdown(table), {"surface": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
