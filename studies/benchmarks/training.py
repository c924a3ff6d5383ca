"""Time training against the loop that everybody writes.

Run from the repository root, on a machine that does nothing else::

    python -m studies.benchmarks.training --out results/benchmarks

Same network, same images, same recipe, same process, the methods in turn in every repeat; of each, the second of two
epochs is timed, so that starting workers, tracing and warming up count for none of them.

* ``plain loop``: a ``DataLoader`` with workers, torchvision's transforms on one PIL image after the other, the network
  as it is in float32, ``torch.optim.SGD``. The images are decoded beforehand for it too.
* ``pathlens``: ``pathlens.train`` in each type asked for, and with compiled blocks where asked for.
* ``blocks``: a random part of the blocks in each batch, against all of them; the share is that of Veit et al. 2016, 23
  of 54.

With ``PATHLENS_DATA`` set, the images are real, else seeded random ones.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import pathlens
from pathlens.data import ImageData
from pathlens.report import provenance
from pathlens.tables import Column, Table
from pathlens.training import BlocksPerBatch, Full, Recipe, Rule, train
from studies.benchmarks.side_by_side import cpu_abilities, heading, publish, ranged, say, spread, threads

COLUMNS = (
    Column("benchmark"),
    Column("method"),
    Column("network"),
    Column("images"),
    Column("batch_size"),
    Column("device"),
    Column("repeats"),
    Column("seconds", "s", "wall time of the second epoch, median over the repeats"),
    Column("seconds_min", "s"),
    Column("seconds_max", "s"),
    Column("ratio", "", "seconds of the first method of the benchmark over these, in the same repeat, median"),
    Column("ratio_min"),
    Column("ratio_max"),
    Column("train_loss", "nats", "mean loss of the timed epoch, last repeat"),
)

SHARE = 23 / 54


class Pictures(Dataset):
    """Decoded images as PIL pictures, transformed one by one."""

    def __init__(self, data: ImageData) -> None:
        zeros, ones = (0.0,) * data.channels, (1.0,) * data.channels
        pixels = data.batch(0, data.n, mean=zeros, std=ones).images.mul(255).round().byte()
        self._pixels = pixels.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()
        self._labels = data.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(data.height, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def plain(model: nn.Module, data: ImageData, recipe: Recipe, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds and mean loss of the second epoch of the loop that everybody writes."""
    device = torch.device(args.device)
    model = model.to(device).train()
    loader = DataLoader(
        Pictures(data),
        recipe.batch_size,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
    )
    seconds = total = 0.0
    for _epoch in range(2):
        total, began = 0.0, time.perf_counter()
        for images, labels in loader:
            here, targets = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = nn.functional.cross_entropy(model(here), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        seconds = time.perf_counter() - began
    return seconds, total / data.n


def ours(
    model: nn.Module, data: ImageData, recipe: Recipe, args: argparse.Namespace, dtype: str, rule: Rule, compiled: bool
) -> tuple[float, float]:
    """Seconds and mean loss of the second epoch of ``pathlens.train``, at the constant rate of the plain loop."""
    rows: list[dict[str, Any]] = []
    train(
        model, data, recipe=recipe, rule=rule, dtype=dtype, device=args.device, compiled=compiled, on_epoch=rows.append
    )
    return rows[-1]["seconds"], rows[-1]["train_loss"]


def measure(
    benchmark: str,
    methods: dict[str, Callable[[], tuple[float, float]]],
    about: dict[str, Any],
    repeats: int,
    rows: list[dict[str, Any]],
) -> None:
    """The methods in turn, and a row for each."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    losses: dict[str, float] = {}
    for repeat in range(repeats):
        for name, method in methods.items():
            took, losses[name] = method()
            seconds[name].append(took)
            say(f"{benchmark}, repeat {repeat}: {name} {took:.2f} s, loss {losses[name]:.3f}")
    first = seconds[next(iter(methods))]
    for name, taken in seconds.items():
        ratios = [plain_one / one for plain_one, one in zip(first, taken, strict=True)]
        rows.append(
            {
                "benchmark": benchmark,
                "method": name,
                **about,
                "repeats": repeats,
                **spread("seconds", taken),
                **spread("ratio", ratios),
                "train_loss": losses[name],
            }
        )


def open_images(rows: int) -> tuple[ImageData, str]:
    """Training images: real ones where there are any."""
    folder = os.environ.get("PATHLENS_DATA")
    path = Path(folder, "cifar10-jpeg", "train.parquet") if folder else None
    if path is not None and path.is_file():
        return pathlens.open_data(f"parquet:{path}", split="train", limit=rows), f"first {rows} rows of cifar10-jpeg"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (rows,), generator=generator)
    from pathlens.data.sources import ArraySource

    data = ImageData("noise", "train", rows, rows, 10, None, labels, ArraySource(pixels, 255), None)
    return data, f"{rows} images of seeded noise"


def markdown(table: Table) -> str:
    facts = table.provenance
    lines = [
        *heading(
            "Benchmark of training",
            facts,
            f"Data: {facts['data']}; seed {facts['seed']}; {facts['workers']} workers for the plain loop",
        ),
        "| benchmark | method | network | images | seconds an epoch | times faster | loss |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for r in table.rows:
        texts = [str(r["benchmark"]), str(r["method"]), str(r["network"]), str(r["images"])]
        cells = [*texts, ranged(r, "seconds"), ranged(r, "ratio"), f"{r['train_loss']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="preresnet110" if cuda else "preresnet20", help="default: %(default)s")
    parser.add_argument("--part-network", default="preresnet110", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=50_000 if cuda else 2560, help="default: %(default)s")
    parser.add_argument("--part-images", type=int, default=50_000 if cuda else 640, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="also with compiled blocks")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if cuda else "cpu", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, write ``training`` as table and page, print the page."""
    args = parse(argv)
    rows: list[dict[str, Any]] = []
    with threads(args.threads):
        recipe = Recipe(epochs=2, batch_size=args.batch_size, lr=0.05, schedule="constant", warmup=0)

        def fresh(name: str) -> nn.Module:
            return copy.deepcopy(pathlens.load_model(name, "random", seed=args.seed).model)

        data, words = open_images(args.images)
        methods: dict[str, Callable[[], tuple[float, float]]] = {
            "plain loop, float32": lambda: plain(fresh(args.network), data, recipe, args)
        }
        for compiled in (False, True) if args.compile else (False,):
            for dtype in args.dtypes:
                methods[f"pathlens, {dtype}{', compiled' if compiled else ''}"] = (
                    lambda dtype=dtype, compiled=compiled: ours(
                        fresh(args.network), data, recipe, args, dtype, Full(), compiled
                    )
                )
        about = {"network": args.network, "images": args.images, "batch_size": args.batch_size, "device": args.device}
        measure("training", methods, about, args.repeats, rows)

        part, _ = open_images(args.part_images)
        blocks = len(pathlens.find_blocks(fresh(args.part_network).eval(), part.batch(0, 2).images))
        some = BlocksPerBatch(max(1, round(SHARE * blocks)))
        kind = args.dtypes[-1]
        parts: dict[str, Callable[[], tuple[float, float]]] = {
            f"all {blocks} blocks": lambda: ours(fresh(args.part_network), part, recipe, args, kind, Full(), False),
            f"{some.count} random blocks": lambda: ours(
                fresh(args.part_network), part, recipe, args, kind, some, False
            ),
        }
        about |= {"network": args.part_network, "images": args.part_images}
        measure(f"blocks per batch, {kind}", parts, about, args.repeats, rows)
        options = {name: value for name, value in vars(args).items() if name != "out"}
        table = Table(COLUMNS, tuple(rows), provenance(**options, data=words, cpu_capability=cpu_abilities()))
    publish(args.out, "training", markdown(table), {"training": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
