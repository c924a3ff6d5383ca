"""Time the single-block sweep against the loop that one would write without pathlens.

Run from the repository root, on a machine that does nothing else::

    python -m studies.benchmarks.sweep --out results/benchmarks

Same network, same batches in memory, same process, the methods in turn in every repeat. Four benchmarks:

* ``sweep``: error of the intact network and of each network with one block deleted. The obvious loop puts a forward
  hook that returns zeros on the last module of the branch and runs the whole network over the whole test set, once a
  block, in inference mode. pathlens is timed from a network whose blocks are found, with all its preparation and its
  choice of an engine; finding the blocks is a row of its own. ``prefix sharing`` is pathlens with the model's own
  operations (``engine="plain"``), which shows what the engine adds.
* ``forward``: the intact network over the test set, plainly and as pathlens prepares it (preparation not counted).
* ``start-up``: wall time of ``pathlens --help``, beside that of starting Python and of importing torch.
* ``sweep on a GPU``: the first one on a GPU, where there is one, with 54 blocks and 10,000 images.

Errors of pathlens in float32 must be those of the loop, image for image, but for images of which the two highest
logits differ by rounding alone; such images are counted, and any other difference ends the benchmark with an error.

With ``PATHLENS_MODELS`` and ``PATHLENS_DATA`` set, trained weights and real images are taken where they lie there
(``pytorch_resnet_cifar10/NAME-*.th``, ``cifar10-jpeg/test.parquet``), else seeded random ones; the table says which.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathlens import ResidualView, delete_blocks, find_blocks
from pathlens.models import LoadedModel, PreActResNet
from pathlens.report import provenance
from pathlens.tables import Column, Table
from studies.benchmarks.side_by_side import (
    Batches,
    cpu_abilities,
    heading,
    number,
    open_batches,
    open_network,
    publish,
    ranged,
    say,
    spread,
    threads,
)

LOOP, FORWARD, PATHLENS, FINDING = "obvious loop", "plain forward", "pathlens", "finding the blocks"
SHARING = "prefix sharing"
ROUNDING = 1e-4  # of the largest logit


@dataclass(frozen=True)
class Timing:
    """One measured run."""

    benchmark: str
    method: str
    dtype: str | None
    device: str
    network: str | None
    images: int | None
    networks_evaluated: int | None
    repeat: int
    seconds: float
    largest_error_change: float | None = None
    undecided_images: int | None = None
    engine: str | None = None


@dataclass
class Loop:
    """What the obvious loop found: for each network the images classified wrongly, and those decided by rounding."""

    wrong: list[int]
    undecided: list[int]


def branch_ends(model: nn.Module, view: ResidualView) -> list[nn.Module]:
    """The last module of the branch of each block of a CIFAR network of this package."""
    last = "conv2" if isinstance(model, PreActResNet) else "bn2"
    return [model.get_submodule(f"{block.name}.{last}") for block in view]


def zeros(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """TensorFloat-32 products on GPUs, which torch allows in convolutions unless told not to."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def cast(model: nn.Module, batches: Batches, dtype: str) -> tuple[nn.Module, Batches]:
    """A network and batches of another type; the network itself where the type is its own."""
    if dtype != "bfloat16":
        return model, batches
    return copy.deepcopy(model).bfloat16(), [(images.bfloat16(), labels) for images, labels in batches]


def obvious_loop(model: nn.Module, ends: Sequence[nn.Module], batches: Batches) -> tuple[float, Loop]:
    """Seconds and results of the whole network over the whole test set, once intact and once a block."""
    outputs: list[list[Tensor]] = []
    wrong: list[int] = []
    began = time.perf_counter()
    with torch.inference_mode():
        for end in [None, *ends]:
            handle = None if end is None else end.register_forward_hook(zeros)
            outputs.append([model(images) for images, _ in batches])
            if handle is not None:
                handle.remove()
            mistakes = [
                (logits.argmax(1) != labels).sum() for logits, (_, labels) in zip(outputs[-1], batches, strict=True)
            ]
            wrong.append(int(torch.stack(mistakes).sum()))
    seconds = time.perf_counter() - began
    undecided = []
    for logits in outputs:
        first, second = torch.cat(logits).double().topk(2).values.unbind(1)
        undecided.append(int((first - second <= ROUNDING * first.abs()).sum()))
    return seconds, Loop(wrong, undecided)


def plain_forward(model: nn.Module, batches: Batches) -> float:
    """Seconds of the whole network over the whole test set."""
    return obvious_loop(model, [], batches)[0]


def pathlens_sweep(
    view: ResidualView, batches: Batches, dtype: str, engine: str = "auto"
) -> tuple[float, list[int], str]:
    """Seconds of ``delete_blocks``, the images classified wrongly by each network, and the engine that ran."""
    began = time.perf_counter()
    table = delete_blocks(view, batches, dtype=dtype, engine=engine)
    seconds = time.perf_counter() - began
    wrong = [round(float(row["error"] or 0) * int(row["n"] or 0)) for row in table.rows]
    return seconds, wrong, table.provenance["engine"]


def pathlens_forward(view: ResidualView, batches: Batches, dtype: str) -> float:
    """Seconds of the prepared intact network over the test set, from the first batch on."""
    marks: list[float] = []
    delete_blocks(view, batches, blocks=[], dtype=dtype, progress=lambda *_: marks.append(time.perf_counter()))
    return marks[-1] - marks[0]


def pays(model: nn.Module, batches: Batches, dtype: str) -> bool:
    """Whether a batch in another type takes no longer, so that the loop in it is a fair rival and worth the wait."""
    if dtype in ("float32", "tf32"):
        return True
    once = batches[:1]
    other = cast(model, once, dtype)
    seconds = [min(plain_forward(*which) for _ in range(3)) for which in ((model, once), other)]
    return seconds[1] <= 1.1 * seconds[0]


def compare(
    benchmark: str, loaded: LoadedModel, batches: Batches, dtypes: Sequence[str], repeats: int, device: str = "cpu"
) -> list[Timing]:
    """The sweep by both methods in every type, in turn, with equal errors in float32.

    Raises:
        SystemExit: the errors in float32 differ by more than rounding explains.
    """
    model = loaded.model.to(device)
    batches = [(images.to(device), labels.to(device)) for images, labels in batches]
    count = sum(len(labels) for _, labels in batches)
    looped = [dtype for dtype in dtypes if pays(model, batches, dtype)]
    truth: Loop | None = None
    timings: list[Timing] = []

    def add(method: str, dtype: str | None, repeat: int, seconds: float, *more: Any) -> None:
        evaluated = None if method == FINDING else len(view) + 1
        timings.append(Timing(benchmark, method, dtype, device, loaded.spec, count, evaluated, repeat, seconds, *more))
        say(f"{benchmark}, repeat {repeat}: {method}{f' in {dtype}' if dtype else ''}: {seconds:.3f} s")

    for repeat in range(repeats):
        began = time.perf_counter()
        view = find_blocks(model, batches[0][0][:2])
        add(FINDING, None, repeat, time.perf_counter() - began)
        for dtype in looped:
            other, converted = cast(model, batches, dtype)
            with tf32(dtype == "tf32"):
                seconds, found = obvious_loop(other, branch_ends(other, view), converted)
            truth = truth or found  # the first type is float32
            add(LOOP, dtype, repeat, seconds, change(found.wrong, truth.wrong, count))
        assert truth is not None
        for method, dtype, engine in ((SHARING, "float32", "plain"), *((PATHLENS, dtype, "auto") for dtype in dtypes)):
            seconds, wrong, ran = pathlens_sweep(view, batches, dtype, engine)
            if dtype == "float32":
                require_equal(wrong, truth)
            undecided = sum(truth.undecided) if dtype == "float32" else None
            add(method, dtype, repeat, seconds, change(wrong, truth.wrong, count), undecided, ran)
    return timings


def change(wrong: list[int], truth: list[int], count: int) -> float:
    """The largest change of any network's error, a fraction."""
    return max(abs(mine - theirs) for mine, theirs in zip(wrong, truth, strict=True)) / count


def require_equal(wrong: list[int], truth: Loop) -> None:
    """End the benchmark where two methods disagree on an image that rounding does not explain."""
    for network, (mine, theirs, spare) in enumerate(zip(wrong, truth.wrong, truth.undecided, strict=True)):
        if abs(mine - theirs) > spare:
            what = "the intact network" if network == 0 else f"the network without block {network - 1}"
            sys.exit(f"{what}: pathlens finds {mine} wrong and the loop {theirs}, with {spare} undecided; report this")


def compare_forward(loaded: LoadedModel, batches: Batches, dtypes: Sequence[str], repeats: int) -> list[Timing]:
    """The intact network, plainly and prepared, in turn."""
    view = find_blocks(loaded.model, batches[0][0][:2])
    looped = [dtype for dtype in dtypes if pays(loaded.model, batches, dtype)]
    count = sum(len(labels) for _, labels in batches)
    timings = []
    for repeat in range(repeats):
        runs: list[tuple[str, str, Callable[[str], float]]] = [
            *((FORWARD, dtype, lambda dtype: plain_forward(*cast(loaded.model, batches, dtype))) for dtype in looped),
            *((PATHLENS, dtype, lambda dtype: pathlens_forward(view, batches, dtype)) for dtype in dtypes),
        ]
        for method, dtype, run in runs:
            seconds = run(dtype)
            say(f"forward, repeat {repeat}: {method} in {dtype}: {seconds:.3f} s")
            timings.append(Timing("forward", method, dtype, "cpu", loaded.spec, count, 1, repeat, seconds))
    return timings


def start_up(repeats: int) -> list[Timing]:
    """Wall time of three fresh processes, in turn."""
    commands = {
        "import torch": ["-c", "import torch"],
        "python": ["-c", "pass"],
        "pathlens --help": ["-m", "pathlens", "--help"],
    }
    timings = []
    for repeat in range(repeats):
        for method, arguments in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
            seconds = time.perf_counter() - began
            say(f"start-up, repeat {repeat}: {method}: {seconds:.3f} s")
            timings.append(Timing("start-up", method, None, "cpu", None, None, None, repeat, seconds))
    return timings


BASELINES = {"sweep": LOOP, "sweep on a GPU": LOOP, "forward": FORWARD}


def summary(timings: list[Timing], facts: dict[str, Any]) -> Table:
    """Medians and ranges over the repeats, and how many times faster than the plain way in float32."""
    keys = list(dict.fromkeys((t.benchmark, t.method, t.dtype) for t in timings))
    rows = []
    for benchmark, method, dtype in keys:
        mine = [t for t in timings if (t.benchmark, t.method, t.dtype) == (benchmark, method, dtype)]
        plain = {
            t.repeat: t.seconds
            for t in timings
            if (t.benchmark, t.method, t.dtype) == (benchmark, BASELINES.get(benchmark), "float32")
        }
        finding = {t.repeat: t.seconds for t in timings if (t.benchmark, t.method) == (benchmark, FINDING)}
        ratios = [plain[t.repeat] / t.seconds for t in mine if plain and method != FINDING]
        whole = [plain[t.repeat] / (t.seconds + finding[t.repeat]) for t in mine if finding and method == PATHLENS]
        seconds = [t.seconds for t in mine]
        rows.append(
            {
                **{k: v for k, v in asdict(mine[0]).items() if k not in ("repeat", "seconds")},
                "repeats": len(mine),
                **spread("seconds", seconds),
                **spread("speedup", ratios),
                "speedup_with_finding": statistics.median(whole) if whole else None,
                "largest_error_change": max(
                    (t.largest_error_change for t in mine if t.largest_error_change is not None), default=None
                ),
                "engine": ", ".join(sorted({t.engine for t in mine if t.engine})) or None,
            }
        )
    return Table(tuple(Column(name, *ABOUT.get(name, ("", ""))) for name in rows[0]), tuple(rows), facts)


ABOUT = {
    "images": ("images", "size of the test set"),
    "networks_evaluated": ("", "the intact network and the lesioned ones"),
    "seconds": ("s", "wall time; in the summary the median over the repeats"),
    "seconds_min": ("s", "of the fastest repeat"),
    "seconds_max": ("s", "of the slowest repeat"),
    "speedup": ("", "seconds of the plain way in float32 over seconds, repeat by repeat; the median"),
    "speedup_min": ("", "smallest of these ratios"),
    "speedup_max": ("", "largest of these ratios"),
    "speedup_with_finding": ("", "the same with the time to find the blocks added to the sweep"),
    "largest_error_change": ("fraction", "largest change of any network's error against the loop in float32"),
    "engine": ("", "how the network was run, as pathlens chose it in each repeat"),
    "undecided_images": ("images", "whose two highest logits differ by rounding alone, over all networks"),
}


def markdown(table: Table) -> str:
    """The summary for people."""
    facts = table.provenance
    lines = [
        *heading(
            "Benchmark of the single-block sweep",
            facts,
            f"Network and data on the CPU: {facts['network']} with weights {facts['weights']}; {facts['data']}; "
            f"batches of {facts['batch_size']}; seed {facts['seed']}",
            f"Whole benchmark: {facts['wall_time_seconds']:.0f} s",
        ),
        "Seconds and speedups are medians over the repeats, with the smallest and largest in brackets. Speedups are "
        "against the plain way in float32, in the same repeat.",
    ]
    heads = ("method", "dtype", "images", "networks", "seconds", "speedup", "with finding", "largest error change")
    for benchmark in dict.fromkeys(table.values("benchmark")):
        lines += ["", f"## {benchmark}", "", f"| {' | '.join(heads)} | engine |", "|---|---" + "|---:" * 6 + "|---|"]
        for row in table.rows:
            if row["benchmark"] == benchmark:
                cells = [
                    row["method"], row["dtype"], row["images"], row["networks_evaluated"],
                    ranged(row, "seconds"), ranged(row, "speedup"),
                    number(row["speedup_with_finding"]), number(row["largest_error_change"]), row["engine"],
                ]  # fmt: skip
                lines.append(f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="resnet56", help="a CIFAR network of the package (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and images (default: %(default)s)")
    parser.add_argument("--gpu-network", default="preresnet110", help="default: %(default)s")
    parser.add_argument("--gpu-rows", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--gpu-batch-size", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="default: %(default)s")
    args = parser.parse_args(argv)
    if min(args.rows, args.batch_size, args.repeats, args.threads, args.gpu_rows, args.gpu_batch_size) < 1:
        parser.error("rows, batch sizes, repeats and threads must be 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks, write ``sweep`` (the summary) and ``sweep-runs`` (every run), print the summary."""
    args = parse(argv)
    began = time.perf_counter()
    with threads(args.threads):
        loaded = open_network(args.network, args.seed)
        batches, data = open_batches(args.rows, args.batch_size, args.seed)
        timings = start_up(args.repeats)
        timings += compare_forward(loaded, batches, ("float32", "bfloat16"), args.repeats)
        timings += compare("sweep", loaded, batches, ("float32", "bfloat16"), args.repeats)
        gpu_data = None
        if torch.cuda.is_available():
            large = open_network(args.gpu_network, args.seed)
            batches, gpu_data = open_batches(args.gpu_rows, args.gpu_batch_size, args.seed)
            timings += compare(
                "sweep on a GPU", large, batches, ("float32", "tf32", "bfloat16"), args.repeats, device="cuda"
            )
        facts = provenance(
            **{name: value for name, value in vars(args).items() if name != "out"},
            weights=loaded.weights,
            model_sha256=loaded.sha256,
            data=data,
            gpu_data=gpu_data,
            cpu_capability=cpu_abilities(),
            wall_time_seconds=round(time.perf_counter() - began, 1),
        )
    columns = tuple(Column(field.name, *ABOUT.get(field.name, ("", ""))) for field in fields(Timing))
    runs = Table(columns, tuple(asdict(timing) for timing in timings), facts)
    table = summary(timings, facts)
    publish(args.out, "sweep", markdown(table), {"sweep-runs": runs, "sweep": table})
    return 0


if __name__ == "__main__":
    sys.exit(main())
