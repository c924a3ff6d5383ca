"""Time to the first table: whole commands in fresh processes, beside an earlier version of pathlens.

Run from the repository root, on a machine that does nothing else, with a checkout of the earlier version::

    git worktree add ../before COMMIT
    python -m studies.benchmarks.first_table --before ../before --out results/benchmarks

Both versions run in the same Python environment, one after the other in every repeat, each with an empty cache of its
own and after one run that is not counted, which leaves compiled bytecode behind. Three benchmarks:

* ``delete-blocks``: ``pathlens delete-blocks`` without arguments, wall time of the whole process. Both versions must
  give the same errors.
* ``find_blocks``: the embedded network of 54 blocks, in a process that has imported pathlens already.
* ``find_blocks, 600 blocks``: ResNet-1202 with random weights, likewise.

Without ``--before`` there are no ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from pathlens.report import provenance
from pathlens.tables import Column, Table
from studies.benchmarks.side_by_side import cpu_abilities, heading, number, publish, ranged, say, spread

NOW, BEFORE = "now", "before"
WHOLE = "delete-blocks"

FIND = """
import sys, time
import torch
import pathlens
model = pathlens.load_model({spec}).model.eval()
x = torch.zeros(2, {shape})
began = time.perf_counter()
view = pathlens.find_blocks(model, x)
print(len(view), time.perf_counter() - began)
"""
NETWORKS = {
    "find_blocks": {"spec": "", "shape": "1, 8, 8"},
    "find_blocks, 600 blocks": {"spec": "'resnet1202', 'random'", "shape": "3, 32, 32"},
}


@dataclass(frozen=True)
class Timing:
    """One measured run."""

    benchmark: str
    version: str
    repeat: int
    seconds: float
    blocks: int


def run(tree: Path, *arguments: str) -> str:
    """Standard output of Python with the pathlens of a checkout, and with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "XDG_CACHE_HOME": folder}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    if done.returncode:
        sys.exit(f"{tree}: {' '.join(arguments)[:80]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def whole_command(tree: Path) -> tuple[float, list[Any]]:
    """Seconds of ``pathlens delete-blocks``, and the errors of its table."""
    began = time.perf_counter()
    printed = run(tree, "-m", "pathlens", "delete-blocks", "--json", "--quiet")
    seconds = time.perf_counter() - began
    return seconds, [row["error"] for row in json.loads(printed)["table"]]


def finding(tree: Path, network: str) -> tuple[float, int]:
    """Seconds of ``find_blocks``, and the number of blocks."""
    blocks, seconds = run(tree, "-c", FIND.format(**NETWORKS[network])).split()
    return float(seconds), int(blocks)


def measure(trees: dict[str, Path], repeats: int, networks: Sequence[str]) -> list[Timing]:
    """All benchmarks in all versions, in turn.

    Raises:
        SystemExit: a command fails, or two versions disagree on an error or on the number of blocks.
    """
    timings: list[Timing] = []

    def add(benchmark: str, version: str, repeat: int, seconds: float, blocks: int) -> None:
        timings.append(Timing(benchmark, version, repeat, seconds, blocks))
        say(f"{benchmark}, repeat {repeat}: {version}: {seconds:.2f} s")

    expected = {version: whole_command(tree)[1] for version, tree in trees.items()}
    if any(errors != expected[NOW] for errors in expected.values()):
        sys.exit("the two versions give different errors; they cannot be compared")
    for repeat in range(repeats):
        for version, tree in trees.items():
            add(WHOLE, version, repeat, whole_command(tree)[0], len(expected[NOW]) - 1)
        for network in networks:
            found = {version: finding(tree, network) for version, tree in trees.items()}
            if len({blocks for _, blocks in found.values()}) > 1:
                sys.exit(f"{network}: the two versions find different numbers of blocks; they cannot be compared")
            for version, (seconds, blocks) in found.items():
                add(network, version, repeat, seconds, blocks)
    return timings


def summary(timings: Sequence[Timing], facts: dict[str, Any]) -> Table:
    """Medians and ranges over the repeats, and the share of the earlier version's time, repeat by repeat."""
    rows: list[dict[str, Any]] = []
    for benchmark, version in dict.fromkeys((t.benchmark, t.version) for t in timings):
        mine = [t for t in timings if (t.benchmark, t.version) == (benchmark, version)]
        before = {t.repeat: t.seconds for t in timings if (t.benchmark, t.version) == (benchmark, BEFORE)}
        shares = [t.seconds / before[t.repeat] for t in mine if before and version == NOW]
        rows.append(
            {
                "benchmark": benchmark,
                "version": version,
                "blocks": mine[0].blocks,
                "repeats": len(mine),
                **spread("seconds", [t.seconds for t in mine]),
                **spread("share", shares),
            }
        )
    return Table(tuple(Column(name, *ABOUT.get(name, ("", ""))) for name in rows[0]), tuple(rows), facts)


ABOUT = {
    "benchmark": ("", "what was timed"),
    "version": ("", "now, or the earlier one of --before"),
    "blocks": ("blocks", "of the network"),
    "seconds": ("s", "wall time; in the summary the median over the repeats"),
    "seconds_min": ("s", "of the fastest repeat"),
    "seconds_max": ("s", "of the slowest repeat"),
    "share": ("fraction", "seconds over those of the earlier version, repeat by repeat; the median"),
    "share_min": ("fraction", "smallest of these shares"),
    "share_max": ("fraction", "largest of these shares"),
}


def markdown(table: Table) -> str:
    """The summary for people."""
    facts = table.provenance
    lines = [
        *heading("Time to the first table", facts, f"Before: commit {facts['before_commit'] or '(none given)'}"),
        "Fresh processes with empty caches. Medians over the repeats, with the smallest and largest in brackets.",
        "",
        "| what | blocks | version | repeats | seconds | share of before |",
        "|---|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['benchmark']} | {row['blocks']} | {row['version']} | {number(row['repeats'])} "
        f"| {ranged(row, 'seconds')} | {ranged(row, 'share')} |"
        for row in table.rows
    ]
    return "\n".join(lines) + "\n"


def commit_of(tree: Path | None) -> str | None:
    if tree is None:
        return None
    done = subprocess.run(["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, write ``first_table`` (the summary) and ``first_table-runs``, print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS), help="default: both")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="default: %(default)s")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if args.before and not (args.before / "pathlens" / "__init__.py").is_file():
        parser.error(f"--before {args.before}: no pathlens/ there; give the root of a checkout")
    trees = {NOW: Path(__file__).parents[2], **({BEFORE: args.before} if args.before else {})}
    timings = measure(trees, args.repeats, args.networks)
    facts = provenance(
        before_commit=commit_of(args.before),
        repeats=args.repeats,
        threads=torch.get_num_threads(),
        cpu_capability=cpu_abilities(),
    )
    columns = tuple(Column(field.name, *ABOUT.get(field.name, ("", ""))) for field in fields(Timing))
    runs = Table(columns, tuple(asdict(timing) for timing in timings), facts)
    table = summary(timings, facts)
    publish(args.out, "first_table", markdown(table), {"first_table-runs": runs, "first_table": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
