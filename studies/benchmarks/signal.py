"""Time signal propagation against an ordinary step of training.

Run from the repository root, on a machine that does nothing else::

    python -m studies.benchmarks.signal --out results/benchmarks

Same network, same images, same process, the methods in turn in every repeat, after one pass of each that is not timed:

* ``training step``: forward, backward and an update by SGD with momentum, as everybody writes it.
* ``measured``: one pass forward and backward in which every block is reduced to its moments, and what theory expects.
* ``whole``: ``pathlens.signal_propagation`` of one initialisation, with tracing and the draws.

A pass should take no more than 1.5 times a step. With ``PATHLENS_DATA`` set, the images are real, else seeded random
ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import pathlens
from pathlens.propagation import expect, measure
from pathlens.report import provenance
from pathlens.residual.losses import cross_entropy
from pathlens.tables import Column, Table
from studies.benchmarks.side_by_side import (
    Batches,
    cpu_abilities,
    heading,
    in_turn,
    open_batches,
    publish,
    ranged,
    spread,
    threads,
)

COLUMNS = (
    Column("method"),
    Column("network"),
    Column("batch_size"),
    Column("repeats"),
    Column("seconds", "s", "wall time, median over the repeats"),
    Column("seconds_min", "s"),
    Column("seconds_max", "s"),
    Column("ratio", "", "seconds over those of the training step in the same repeat, median"),
    Column("ratio_min"),
    Column("ratio_max"),
)


def methods(network: nn.Module, batches: Batches, device: str) -> dict[str, Callable[[], object]]:
    """What is timed."""
    images, labels = (part.to(device) for part in batches[0])
    network.train().to(device)
    view = pathlens.find_blocks(network, images[:2])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-9, momentum=0.9)  # weights stay what they are

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    def measured() -> None:
        network.requires_grad_(False)
        chain = view.chain(images)
        expect(chain, measure(chain, images, labels, cross_entropy))
        network.requires_grad_(True)

    def whole() -> None:
        pathlens.signal_propagation(network, [(images, labels)], init="he-fan-in", seeds=1)

    return {"training step": step, "measured": measured, "whole": whole}


def finished(method: Callable[[], object], device: str) -> None:
    """Call a method, and wait until the device is through."""
    method()
    if device == "cuda":
        torch.cuda.synchronize()


def markdown(table: Table) -> str:
    facts = table.provenance
    lines = [
        *heading("Benchmark of signal propagation", facts, f"Data: {facts['data']}; seed {facts['seed']}"),
        "| method | network | images in a batch | seconds | times a training step |",
        "|---|---|---:|---:|---:|",
    ]
    for r in table.rows:
        cells = [str(r["method"]), str(r["network"]), str(r["batch_size"]), ranged(r, "seconds"), ranged(r, "ratio")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="nfresnet101:batchnorm", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, write ``signal`` as table and page, print the page."""
    args = parse(argv)
    with threads(args.threads):
        batches, words = open_batches(args.batch_size, args.batch_size, args.seed)
        network = pathlens.load_model(args.network, "random", seed=args.seed).model
        tried = methods(network, batches, args.device)
        runs = {name: partial(finished, method, args.device) for name, method in tried.items()}
        seconds, _ = in_turn("signal", runs, args.repeats)
    rows: list[dict[str, Any]] = []
    for name, taken in seconds.items():
        ratios = [one / step for one, step in zip(taken, seconds["training step"], strict=True)]
        about = {"method": name, "network": args.network, "batch_size": args.batch_size, "repeats": args.repeats}
        rows.append({**about, **spread("seconds", taken), **spread("ratio", ratios)})
    options = {name: value for name, value in vars(args).items() if name != "out"}
    table = Table(COLUMNS, tuple(rows), provenance(**options, data=words, cpu_capability=cpu_abilities()))
    publish(args.out, "signal", markdown(table), {"signal": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
