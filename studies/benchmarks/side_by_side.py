"""What the benchmarks share: networks and images in memory, and how times are summarised and written."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathlens import load_model, open_data
from pathlens.models import LoadedModel
from pathlens.storage import write_together
from pathlens.tables import Table

Batches = list[tuple[Tensor, Tensor]]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the published CIFAR weights expect


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def open_network(name: str, seed: int) -> LoadedModel:
    """The network with trained weights where there are any, else with seeded random ones."""
    folder = os.environ.get("PATHLENS_MODELS")
    files = sorted(Path(folder, "pytorch_resnet_cifar10").glob(f"{name}-*.th")) if folder else []
    return load_model(name, files[0] if files else "random", seed=seed)


def open_batches(rows: int, batch_size: int, seed: int) -> tuple[Batches, str]:
    """Normalised 32x32 colour images in memory, and what they are."""
    folder = os.environ.get("PATHLENS_DATA")
    path = Path(folder, "cifar10-jpeg", "test.parquet") if folder else None
    if path is not None and path.is_file():
        data = open_data(f"parquet:{path}", limit=rows)
        batches = [(batch.images, batch.labels) for batch in data.batches(batch_size, mean=MEAN, std=STD)]
        return batches, f"first {data.n} rows of {data.name}, split {data.split}"
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (rows,), generator=generator)
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True)), f"random (seed {seed})"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That many threads for torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def in_turn(
    benchmark: str, methods: Mapping[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each method in every repeat, after a round that warms up, and what each gave last."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    results: dict[str, Any] = {}
    for repeat in range(-1, repeats):
        for name, method in methods.items():
            taken, results[name] = timed(method)
            if repeat >= 0:
                seconds[name].append(taken)
                say(f"{benchmark}, repeat {repeat}: {name} {taken:.3f} s")
    return seconds, results


def spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Median, smallest and largest of values, as the columns NAME, NAME_min and NAME_max; None where there are none."""
    return {
        name: statistics.median(values) if values else None,
        f"{name}_min": min(values, default=None),
        f"{name}_max": max(values, default=None),
    }


def cpu_abilities() -> str:
    """The instructions that decide how fast each type is."""
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text().split()) if information.is_file() else set()
    named = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{torch.backends.cpu.get_cpu_capability()}; flags: {' '.join(named) or 'none of those that matter'}"


def number(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


def ranged(row: dict[str, Any], name: str) -> str:
    value = row[name]
    return "" if value is None else f"{value:.3g} ({row[f'{name}_min']:.3g}-{row[f'{name}_max']:.3g})"


def heading(title: str, facts: Mapping[str, Any], *lines: str) -> list[str]:
    """The first lines of a page: which command made it, of which commit, on which machine."""
    hardware = facts["hardware"]
    return [
        f"# {title}",
        "",
        f"`{' '.join(facts['command'])}` of commit {facts['commit']} on {facts['date']}.",
        "",
        f"- Machine: {hardware['cpu']} ({facts['cpu_capability']}), {hardware['cores_allowed']} cores, "
        f"{facts['threads']} threads; GPUs: {', '.join(hardware['gpus']) or 'none'}",
        f"- Versions: Python {facts['versions']['python']}, torch {facts['versions']['torch']}, "
        f"pathlens {facts['versions']['pathlens'] or '(not installed)'}",
        *(f"- {line}" for line in lines),
        "",
    ]


def publish(out: Path, stem: str, page: str, tables: Mapping[str, Table]) -> None:
    """Write a page ``STEM.md`` and tables by the stems of their files, all or none, and print the page."""
    files = {f"{stem}.md": page.encode()}
    for name, table in tables.items():
        files |= table.files(name)
    write_together({out / name: content for name, content in files.items()})
    print(page)
