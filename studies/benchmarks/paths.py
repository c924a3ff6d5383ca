"""Time the exact path-length profile against one ordinary backward pass, and against sampling paths.

Run from the repository root, on a machine that does nothing else::

    python -m studies.benchmarks.paths --out results/benchmarks

Same network, same batch, same process, the methods in turn in every repeat:

* ``profile``: all path lengths of one batch, in passes of an ordinary forward with the gradient at the input.
* ``sampling``: what sampling single paths would cost to know the summed gradient of the most important length with the
  relative standard error asked for. The number of paths follows from the measured root mean square path norm (random
  signs) and the measured norm of the sum: the standard error of C times a mean of m paths is C rms / sqrt(m).
* ``engines``: the recurrence that is used where blocks are a chain, beside the polynomials that carry out any graph, on
  the same chain.
* ``deep``: a 600-block network on a batch of 4, once.
* ``profile on a GPU``: 54 blocks, all lengths, 10,000 images, where there is a GPU.

With ``PATHLENS_MODELS`` and ``PATHLENS_DATA`` set, trained weights and real images are taken, else seeded random ones.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathlens import find_blocks, load_model, path_gradients
from pathlens.report import provenance
from pathlens.residual import ResidualView
from pathlens.residual.gradients import Linearisation
from pathlens.residual.polynomials import GraphLinearisation
from pathlens.tables import Column, Table
from studies.benchmarks.side_by_side import (
    cpu_abilities,
    heading,
    in_turn,
    number,
    open_batches,
    open_network,
    publish,
    ranged,
    say,
    spread,
    threads,
    timed,
)

COLUMNS = (
    Column("benchmark"),
    Column("method"),
    Column("network"),
    Column("blocks"),
    Column("images"),
    Column("device"),
    Column("repeats"),
    Column("seconds", "s", "wall time, median over the repeats"),
    Column("seconds_min", "s"),
    Column("seconds_max", "s"),
    Column("ratio", "", "seconds over those of the ordinary pass in the same repeat, median"),
    Column("ratio_min"),
    Column("ratio_max"),
    Column("note"),
)

ORDINARY, EXACT = "ordinary forward and input gradient", "exact, all lengths"


def ordinary(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One forward and the gradient at the input."""
    images = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(images), labels, reduction="sum").backward()


def row(benchmark: str, method: str, about: dict[str, Any], seconds: list[float], plain: list[float], note: str) -> Any:
    ratios = [one / other for one, other in zip(seconds, plain, strict=False)]
    return {
        "benchmark": benchmark,
        "method": method,
        **about,
        "repeats": len(seconds),
        **spread("seconds", seconds),
        **spread("ratio", ratios),
        "note": note,
    }


def profile(args: argparse.Namespace, rows: list[Any]) -> dict[str, Any]:
    """The exact profile of one batch beside the ordinary pass, and what sampling would cost."""
    loaded = open_network(args.network, args.seed)
    model = loaded.model
    batches, data = open_batches(args.batch_size, args.batch_size, args.seed)
    images, labels = batches[0]
    view = find_blocks(model, images)
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    methods: dict[str, Callable[[], Any]] = {
        ORDINARY: lambda: ordinary(model, images, labels),
        EXACT: lambda: path_gradients(view, batches, method="exact"),
    }
    seconds, results = in_turn("profile", methods, args.repeats)
    plain, whole, table = seconds[ORDINARY], seconds[EXACT], results[EXACT]
    about = {"network": args.network, "blocks": len(view), "images": len(labels), "device": "cpu"}
    difference = table.provenance["relative_difference_to_autograd"]
    rows.append(row("profile", ORDINARY, about, plain, plain, ""))
    note = f"sum over lengths against autograd: relative difference {difference:.1e}"
    rows.append(row("profile", EXACT, about, whole, plain, note))

    signed = path_gradients(view, batches, method="signed", draws=args.draws, seed=args.seed)
    best = max(table.rows, key=lambda r: float(r["total_norm"] or 0))
    length = int(best["length"] or 0)
    rms, total = float(signed.rows[length]["path_norm_rms"] or 0), float(best["total_norm"] or 1)
    needed = (float(math.comb(len(view), length)) * rms / (args.rel_error * total)) ** 2
    sampled_seconds, sampled = timed(
        lambda: path_gradients(view, batches, method="sampled", max_samples=8, rel_error=1e-9, max_length=length)
    )
    drawn = sum(int(r["samples"] or 0) for r in sampled.rows)
    cost = needed * sampled_seconds / drawn
    note = (
        f"length {length}: {needed:.3g} paths for a relative standard error of {args.rel_error:g}, "
        f"at {1000 * sampled_seconds / drawn:.2g} ms a path (mean over lengths up to it), extrapolated"
    )
    extrapolated = row("sampling", "single paths to equal standard error", about, [cost], [], note)
    extrapolated["ratio"] = cost / statistics.median(whole)
    extrapolated["note"] += "; ratio is to the exact profile"
    rows.append(extrapolated)
    engines(args, rows, view, batches[0], about)
    return {"weights": loaded.weights, "model_sha256": loaded.sha256, "data": data}


def engines(
    args: argparse.Namespace, rows: list[Any], view: ResidualView, batch: tuple[Tensor, Tensor], about: dict[str, Any]
) -> None:
    """What a chain would cost if it were carried out as any other graph."""
    kinds = {"recurrence of a chain": Linearisation, "polynomials of any graph": GraphLinearisation}
    methods = {name: partial(_exact, kind, view, batch) for name, kind in kinds.items()}
    taken, profiles = in_turn("engines", methods, args.repeats)
    chain, graph = (profile.norms() for profile in profiles.values())
    difference = float(((chain - graph).abs() / chain.abs().clamp_min(torch.finfo(chain.dtype).tiny)).max())
    for name, seconds_of in taken.items():
        note = (
            ""
            if name == next(iter(kinds))
            else f"ratio is to the chain's; largest relative difference {difference:.1e}"
        )
        rows.append(row("engines", name, about, seconds_of, next(iter(taken.values())), note))


def _exact(kind: Callable[..., Any], view: ResidualView, batch: tuple[Tensor, Tensor]) -> Any:
    return kind(view, *batch).exact()


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of a batch: those of a fresh network let 600 blocks overflow."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def deep(args: argparse.Namespace, rows: list[Any]) -> None:
    """600 blocks on a batch of 4."""
    model = load_model(args.deep_network, "random", seed=args.seed).model
    batches, _ = open_batches(4, 4, args.seed)
    calibrate(model, batches[0][0])
    found, view = timed(lambda: find_blocks(model, batches[0][0]))
    seconds, table = timed(lambda: path_gradients(view, batches, method="exact"))
    say(f"deep: finding {found:.1f} s, exact {seconds:.1f} s")
    about = {"network": args.deep_network, "blocks": len(view), "images": 4, "device": "cpu"}
    rows.append(row("deep", "finding the blocks", about, [found], [], "random weights, calibrated"))
    difference = table.provenance["relative_difference_to_autograd"]
    rows.append(
        row(
            "deep",
            EXACT,
            about,
            [seconds],
            [],
            f"random weights, calibrated; difference {difference:.1e}",
        )
    )


def gpu(args: argparse.Namespace, rows: list[Any]) -> None:
    """54 blocks and all lengths over many images."""
    model = load_model(args.gpu_network, "random", seed=args.seed).model.cuda()
    batches, _ = open_batches(args.gpu_rows, args.gpu_batch_size, args.seed)
    moved = [(images.cuda(), labels.cuda()) for images, labels in batches]
    view = find_blocks(model, moved[0][0])
    path_gradients(view, moved[:1], method="exact")
    seconds, _ = timed(lambda: path_gradients(view, moved, method="exact"))
    about = {"network": args.gpu_network, "blocks": len(view), "images": args.gpu_rows, "device": "cuda"}
    rows.append(row("profile on a GPU", EXACT, about, [seconds], [], torch.cuda.get_device_name()))


def markdown(table: Table) -> str:
    facts = table.provenance
    lines = [
        *heading(
            "Benchmark of path gradients",
            facts,
            f"Profile: {facts['network']} with weights {facts['weights']}; {facts['data']}; seed {facts['seed']}",
        ),
        "| benchmark | method | network | blocks | images | device | seconds | ratio | note |",
        "|---|---|---|---:|---:|---|---:|---:|---|",
    ]
    for r in table.rows:
        texts = [r["benchmark"], r["method"], r["network"], r["blocks"], r["images"], r["device"]]
        cells = [*map(str, texts), ranged(r, "seconds"), _ratio(r), str(r["note"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(r: dict[str, Any]) -> str:
    return number(r["ratio"]) if r["ratio_min"] is None else ranged(r, "ratio")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet56", help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--draws", type=int, default=8, help="random sign vectors (default: %(default)s)")
    parser.add_argument("--rel-error", type=float, default=0.1, help="for sampling (default: %(default)s)")
    parser.add_argument("--deep-network", default="resnet1202", help="default: %(default)s")
    parser.add_argument("--gpu-network", default="preresnet110", help="default: %(default)s")
    parser.add_argument("--gpu-rows", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--gpu-batch-size", type=int, default=250, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, write ``paths`` as table and page, print the page."""
    args = parse(argv)
    rows: list[Any] = []
    with threads(args.threads):
        facts = profile(args, rows)
        deep(args, rows)
        if torch.cuda.is_available():
            gpu(args, rows)
        options = {name: value for name, value in vars(args).items() if name != "out"}
        table = Table(COLUMNS, tuple(rows), provenance(**options, **facts, cpu_capability=cpu_abilities()))
    publish(args.out, "paths", markdown(table), {"paths": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
