"""Time a loss surface against the published script's work, done the obvious way.

Run from the repository root, on a machine that does nothing else::

    python -m studies.benchmarks.surface --out results/benchmarks

Same network, same images, same directions, same process, the methods in turn in every repeat, on a few points:

* ``published``: for each point new weights are made parameter by parameter and put into the network, and the images go
  through a fresh pass of a ``DataLoader`` that normalises each of them, batch after batch through the network, as
  ``plot_surface.py`` of github.com/tomgoldstein/loss-landscape does. Pixels are in memory already and no JPEG is
  decoded, which is to its advantage.
* ``pathlens``: ``pathlens.loss_surface``, with tracing, the choice of an engine and the check against the model.
* ``further point``: what each further point takes, from two lines of different numbers of points.

Of a grid of 51 x 51 points it should take at most 0.6 times the published work; the page says what the few points make
of it. All losses are compared. With ``PATHLENS_DATA`` and ``PATHLENS_MODELS`` set, images and weights are real, else
random (the weights of a network that nobody trained).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
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

GRID = 51 * 51
_SHORT = 3  # points of the shorter line

COLUMNS = (
    Column("method"),
    Column("network"),
    Column("images"),
    Column("batch_size"),
    Column("dtype"),
    Column("points", "", "of the line that was timed"),
    Column("repeats"),
    Column("seconds", "s", "wall time a point, median over the repeats"),
    Column("seconds_min", "s"),
    Column("seconds_max", "s"),
    Column("ratio", "", "seconds over those of the published work in the same repeat, median"),
    Column("ratio_min"),
    Column("ratio_max"),
    Column("largest_difference", "nats", "of a loss from that of the published work; missing for that work itself"),
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


def published(
    network: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    direction: Sequence[Tensor],
    coordinates: Sequence[float],
) -> list[float]:
    """Losses at the points of a line, by ``set_weights`` and ``eval_loss`` of the script."""
    weights = [parameter.detach().clone() for parameter in network.parameters()]
    losses = []
    for coordinate in coordinates:
        changes = [step * coordinate for step in direction]
        for parameter, weight, change in zip(network.parameters(), weights, changes, strict=True):
            parameter.data = weight + change
        network.eval()
        total, correct, images = 0.0, 0, 0
        with torch.no_grad():
            for inputs, targets in loader:
                outputs = network(inputs)
                total += F.cross_entropy(outputs, targets).item() * len(inputs)
                correct += int(outputs.max(1)[1].eq(targets).sum())
                images += len(inputs)
        losses.append(total / images)
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data = weight
    return losses


def seconds_of(method: Callable[[], list[float]]) -> tuple[float, list[float]]:
    """Seconds of one call, and the losses."""
    began = time.perf_counter()
    losses = method()
    return time.perf_counter() - began, losses


def markdown(table: Table) -> str:
    """The page."""
    facts = table.provenance
    lines = [
        *heading(
            "Benchmark of loss surfaces",
            facts,
            f"Weights: {facts['weights']}; data: {facts['data']}; seed {facts['seed']}",
            f"A grid of 51 x 51 points is estimated to take {facts['grid_ratio']:.2f} times the published work.",
        ),
        "| method | network | images | type | points | seconds a point | times published | largest difference |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for r in table.rows:
        difference = "" if r["largest_difference"] is None else f"{r['largest_difference']:.1e}"
        cells = [str(r[name]) for name in ("method", "network", "images", "dtype", "points")]
        lines.append(f"| {' | '.join([*cells, ranged(r, 'seconds'), ranged(r, 'ratio'), difference])} |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet20", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument("--points", type=int, default=9, help="of a line, odd and above 3; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
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
        direction = [part.clone() for part in weights.parts(random(weights, generator))]

    def ours(points: int) -> list[float]:
        table = pathlens.loss_surface(
            network, batches, dimensions=1, points=points, curvature="none", dtype=args.dtype, seed=args.seed
        )
        return [row["loss"] for row in table.rows]

    half = args.points // 2
    coordinates = [step / half for step in range(-half, half + 1)]
    seconds: dict[str, list[float]] = {"published": [], "pathlens": [], "further point": []}
    openings: list[float] = []
    difference = 0.0
    with threads(args.threads):
        for repeat in range(-1, args.repeats):  # the first round warms up
            theirs, expected = seconds_of(lambda: published(network, loader, direction, coordinates))
            long, losses = seconds_of(lambda: ours(args.points))
            short, _ = seconds_of(lambda: ours(_SHORT))
            further = (long - short) / (args.points - _SHORT)
            say(f"repeat {repeat}: published {theirs:.2f} s, pathlens {long:.2f} s for {args.points} points")
            difference = max(difference, *(abs(a - b) for a, b in zip(losses, expected, strict=True)))
            if repeat >= 0:
                for name, value in zip(seconds, (theirs / args.points, long / args.points, further), strict=True):
                    seconds[name].append(value)
                openings.append(short - _SHORT * further)
    rows: list[dict[str, Any]] = []
    for name, taken in seconds.items():
        ratios = [one / other for one, other in zip(taken, seconds["published"], strict=True)]
        about = {"method": name, "network": args.network, "images": args.images, "batch_size": args.batch_size}
        about |= {"dtype": "float32" if name == "published" else args.dtype}
        about |= {"points": args.points, "repeats": args.repeats}
        about |= {"largest_difference": None if name == "published" else difference}
        rows.append({**about, **spread("seconds", taken), **spread("ratio", ratios)})
    whole = [
        (opening + GRID * point) / (GRID * other)
        for opening, point, other in zip(openings, seconds["further point"], seconds["published"], strict=True)
    ]
    options = {name: value for name, value in vars(args).items() if name != "out"}
    facts = {"weights": loaded.weights, "data": words, "cpu_capability": cpu_abilities()}
    ratio = sorted(whole)[len(whole) // 2]
    table = Table(COLUMNS, tuple(rows), provenance(**options, **facts, grid_ratio=ratio))
    publish(args.out, "surface", markdown(table), {"surface": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
