"""What the studies share: their command line, trained networks, and the page that says what came out.

A study is a package that runs, as in ``python -m studies.veit2016 --scale cpu``. It uses the public
interface of pathlens alone. A scale changes sizes and never the protocol:

* ``smoke``: seconds, for the tests; its numbers mean nothing.
* ``cpu``: two cores, and for most studies under an hour.
* ``paper``: the sizes of the paper, for a GPU.

Each study measures, which writes tables, and states, which makes its page from those tables alone (``--restate`` does
only that). ``studies.rules`` holds what a verdict is, ``studies.record`` where everything comes from.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from pathlens import figures, load_model
from pathlens.cli import main
from pathlens.errors import NumericsError, PathlensError
from pathlens.metrics import sample_interval
from pathlens.models import save_weights
from pathlens.models.reading import read_metadata
from pathlens.storage import atomic_write_bytes
from pathlens.tables import Table
from studies import record
from studies.record import Tables
from studies.rules import claims

ROOT = Path(__file__).resolve().parent.parent
SCALES = ("smoke", "cpu", "paper")
DIVERGED = "diverged.txt"
"""Of a run folder whose training ended because its loss was NaN or infinite: what was said of it."""


@dataclass(frozen=True)
class StudySetting:
    """What a study was asked for.

    Attributes:
        name: of the study and its folder.
        scale: ``smoke``, ``cpu`` or ``paper``.
        out: folder for page, tables and figures.
        runs: folder for trained networks, and for tables that take long, which are taken up again.
        device: ``auto``, ``cpu`` or ``cuda``.
        jobs: trainings side by side.
        restate: write the page again from the tables that are there, and measure nothing.
        draws: whether the page draws its figures again.
    """

    name: str
    scale: str
    out: Path
    runs: Path
    device: str
    jobs: int
    restate: bool = False
    draws: bool = True

    @cached_property
    def tables(self) -> Tables:
        """The tables of the study."""
        return Tables(self.out)

    def pick(self, smoke: Any, cpu: Any, paper: Any) -> Any:
        """The value for this scale."""
        return {"smoke": smoke, "cpu": cpu, "paper": paper}[self.scale]


def setting(name: str, description: str | None, argv: Sequence[str] | None) -> StudySetting:
    """Read the command line of a study."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / name, help="default: results/NAME")
    parser.add_argument(
        "--runs", type=Path, help="trained networks, taken up again; default: runs/NAME-SCALE in the repository"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    jobs = torch.cuda.device_count() or os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=jobs, help="trainings side by side")
    parser.add_argument("--restate", action="store_true", help="only write the page, from the tables in --out")
    args = parser.parse_args(argv)
    runs = args.runs or ROOT / "runs" / f"{name}-{args.scale}"
    return StudySetting(name, args.scale, args.out, runs, args.device, max(1, args.jobs), args.restate)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"study: {text}", file=sys.stderr, flush=True)


def train_all(
    wanted: Mapping[str, Sequence[str]], study: StudySetting, may_diverge: bool = False, here: bool = False
) -> dict[str, Path]:
    """Train networks with ``pathlens train``, some side by side; those that are there already are left as they are.

    Each takes its part of the cores, or ``OMP_NUM_THREADS`` threads where the environment sets it.

    Args:
        wanted: name -> arguments of ``pathlens train``, without ``--out``.
        study: where and with what.
        may_diverge: take a loss that is NaN or infinite for a result, which ``DIVERGED`` in the run folder tells.
        here: one after the other in this process, where a training hardly takes longer than starting another process.

    Returns:
        Name -> run folder.
    """
    study.runs.mkdir(parents=True, exist_ok=True)
    in_process = here or study.scale == "smoke"
    threads = max(1, (os.cpu_count() or 1) // study.jobs)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }

    # trainings side by side share what cards there are
    named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    cards = dict(zip(wanted, cycle(named.split(",")), strict=False))

    def one(name: str, arguments: Sequence[str]) -> Path:
        folder = study.runs / name
        if (folder / "manifest.json").is_file() and (folder / "weights.safetensors").is_file():
            return folder
        if may_diverge and (folder / DIVERGED).is_file():
            return folder
        say(f"training {name}")
        command = ["train", *arguments, "--device", study.device, "--quiet", "--out", name, "--resume"]
        if in_process:
            code, said = _train_here(command, study.runs)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "pathlens", *command],
                cwd=study.runs,
                env={**environment, "CUDA_VISIBLE_DEVICES": cards[name]},
                capture_output=True,
                text=True,
                check=False,
            )
            code, said = done.returncode, done.stderr
        if may_diverge and code == NumericsError.exit_code:
            atomic_write_bytes(folder / DIVERGED, said.encode())
        elif code:
            raise SystemExit(f"training {name} ended with exit code {code}: {said.strip()[-500:]}")
        return folder

    if in_process:
        return {name: one(name, arguments) for name, arguments in wanted.items()}
    with ThreadPoolExecutor(study.jobs) as threads_of_jobs:
        jobs = {name: threads_of_jobs.submit(one, name, arguments) for name, arguments in wanted.items()}
        return {name: job.result() for name, job in jobs.items()}


def _train_here(command: Sequence[str], folder: Path) -> tuple[int, str]:
    """Train in this process, because starting another takes longer than a small training."""
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        return main(list(command)), said.getvalue()


def keep_checkpoint(
    run: Path, out: Path, name: str, file: str = "weights.safetensors", dtype: torch.dtype | None = None
) -> Path:
    """Copy weights that other studies need beside the tables, without the places of the machine they were made on.

    Args:
        run: folder of the training.
        out: folder of the tables.
        name: of the copy, in ``weights/`` there.
        file: which weights of the run.
        dtype: of the copy; None leaves the type.
    """
    metadata = read_metadata(run / file)
    training = json.loads(metadata["training"])
    training.pop("command", None)
    loaded = load_model(training["model"], run / file)
    path = out / "weights" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, loaded.model.to(dtype), {**metadata, "training": json.dumps(training, sort_keys=True)})
    return path


def carry_out(
    study: StudySetting,
    protocol: str,
    measure: Callable[[StudySetting], Any],
    state: Callable[[StudySetting], Page],
    part: str | None = None,
) -> int:
    """Measure, unless only the page is wanted; then write the page from the tables, and the record.

    Args:
        study: what was asked for.
        protocol: in words.
        measure: writes tables into ``study.out``; it may return the trainings (see ``studies.record``).
        state: makes the page from the tables.
        part: of the study, where ``measure`` measures no more than that and leaves the tables of the rest; the record
            keeps where those come from.
    """
    if study.scale == "smoke":
        torch.set_num_threads(1)  # many small computations, which more threads only disturb
    try:
        with contextlib.nullcontext() if study.restate or part else _earlier_kept(study.out):
            if not study.restate:
                trainings = measure(study) or []
                made = {"measured": record.step(), "trainings": trainings}
                if part is None:
                    record.write(study.out, **made, study=study.name, scale=study.scale)
                else:
                    record.write(study.out, apart={**record.read(study.out).get("apart", {}), part: made})
            page = state(study)
            page.write(protocol)
    except PathlensError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return error.exit_code
    say(f"wrote {study.out / 'README.md'}")
    return 0


@dataclass
class Page:
    """A study's page: question, protocol, scale, results, and what they mean beside the paper's.

    Args:
        study: what was asked for.
        title: of the page.
        question: what the study asks.
    """

    study: StudySetting
    title: str
    question: str
    _parts: list[str] = field(default_factory=list)
    _answer: str = ""

    @property
    def tables(self) -> Tables:
        """What the page is made from."""
        return self.study.tables

    def section(self, title: str, text: str = "") -> None:
        """Begin a section."""
        self._parts.append(f"## {title}\n\n{text}".rstrip())

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(text)

    def table(
        self,
        stem: str,
        shown: Mapping[str, str] | None = None,
        rows: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        """Link a table, and show some of its columns.

        Args:
            stem: of the files.
            shown: column -> format of its values, such as ``.2f`` or ``.1%``; None shows nothing but the link.
            rows: which rows to show (default: all).
        """
        if shown:
            lines = [f"| {' | '.join(name.replace('_', ' ') for name in shown)} |", "|" + "---|" * len(shown)]
            for row in self.tables[stem].rows:
                if rows is None or rows(row):
                    cells = (_cell(name, row[name], look) for name, look in shown.items())
                    lines.append(f"| {' | '.join(cells)} |")
            self._parts.append("\n".join(lines))
        self._parts.append(f"Table: [{stem}.csv]({stem}.csv), with columns and provenance in `{stem}.meta.json`.")

    def measured(self, stem: str) -> None:
        """Say with which images, batches, paths and mode a table was measured, and what it was taken over from."""
        facts = self.tables[stem].provenance
        text = f"`{stem}`: {record.protocol_of(self.tables[stem])}"
        if "taken_from" in facts:
            measured = f"measured {facts['date'][:10]} with commit {facts['commit'][:12]}"
            text += f" Taken over from `{facts['taken_from']}`, {measured}."
        self._parts.append(text)

    def figure(self, stem: str, draw: Callable[[], Any] | None, caption: str) -> None:
        """Write a figure's files and show it.

        Args:
            stem: of the files.
            draw: makes the figure; None where it was drawn while measuring and is there already.
            caption: below it.
        """
        if draw is not None and self.study.draws:
            figures.save(draw(), self.study.out, stem)
        self._parts.append(f"![{caption}]({stem}.png)\n\n*{caption}*")

    def claims(self, rows: Sequence[Mapping[str, Any]], data: Callable[[str], str]) -> None:
        """Write the table of claims, and say what it holds.

        Args:
            rows: of the table.
            data: which images a network of the table was judged on.
        """
        whole = [{**row, "data": data(row["network"])} for row in rows]
        self.tables.put("claims", claims.table(whole, study=self.study.name, scale=self.study.scale))
        kept = self.tables["claims"].rows
        self.section("What was claimed, and what the numbers say", claims.tally(kept))
        self.text(claims.listing(kept))
        self.table("claims")
        self._answer = claims.in_short(kept)

    def text_of(self, protocol: str, known: Mapping[str, Any]) -> str:
        """The page, with what the record says of its making.

        Args:
            protocol: in words.
            known: the record.
        """
        page = known["page"]
        apart = "".join(f" Its part `{part}`: last {_made(step)}" for part, step in known.get("apart", {}).items())
        head = [
            f"# {self.title}",
            "",
            f"**Question.** {self.question}",
            "",
            *((f"**In short.** {self._answer}", "") if self._answer else ()),
            f"**Protocol.** {protocol}",
            "",
            f"**Scale and hardware.** `--scale {known['scale']}`; {_made(known)}{apart} This page: commit "
            f"{page['commit']}, {page['date'][:10]}. All of it is in `{record.NAME}`.",
        ]
        return "\n\n".join(["\n".join(head), *self._parts]) + "\n"

    def write(self, protocol: str) -> Path:
        """Write the page as ``README.md``, and the record."""
        record.write(self.study.out, protocol=protocol, page=record.step())
        text = self.text_of(protocol, record.read(self.study.out))
        return atomic_write_bytes(self.study.out / "README.md", text.encode())


def _made(known: Mapping[str, Any]) -> str:
    """When, by which code and on what a study or a part of it was measured and trained, and what is not known of it."""
    measured = known["measured"]
    hardware = measured["hardware"] or {}
    trained = sorted({str(one["commit"])[:12] for one in known.get("trainings", []) if "commit" in one})
    # a table that was kept is of the commit and machine that measured it; what is made of others says no images
    earlier: dict[str, set[str]] = {}
    for one in known.get("tables", {}).values():
        cpu = one.get("cpu") or hardware.get("cpu")
        if "images" in one and one.get("commit") and (one["commit"], cpu) != (measured["commit"], hardware.get("cpu")):
            earlier.setdefault(str(cpu), set()).add(str(one["commit"])[:12])
    single = [f"{', '.join(sorted(commits))} on {cpu}" for cpu, commits in sorted(earlier.items())]
    return (
        f"measured {measured['date'][:10]} with commit {measured['commit']} and torch {measured['versions']['torch']} "
        f"on {hardware.get('cpu')}, {hardware.get('cores_allowed')} cores, GPUs: "
        f"{', '.join(hardware.get('gpus') or ()) or 'none'}"
        + (f"; single tables with {' and '.join(single)}" if single else "")
        + (f"; networks trained with commit {', '.join(trained)}." if trained else ".")
        + record.gaps(known.get("trainings", []))
    )


def _cell(name: str, value: Any, look: str) -> str:
    """A value as a page shows it; a p value that is too small for a float is no zero."""
    if value is None:
        return ""
    if value == 0 and (name == "p" or name.startswith("p_")):
        return "<1e-300"
    return str(value) if not look or isinstance(value, str) else format(value, look)


def over_seeds(rows: Sequence[Mapping[str, Any]], name: str, bounds: tuple[float, float]) -> dict[str, Any]:
    """Mean of a column over runs that differ in their seed, with Student's 95 % interval.

    Args:
        rows: one of each run.
        name: of the column; its ends are ``NAME_low`` and ``NAME_high``.
        bounds: that the interval keeps to.
    """
    values = [float(row[name]) for row in rows]
    low, high = sample_interval(values, bounds=bounds)
    return {name: statistics.fmean(values), f"{name}_low": low, f"{name}_high": high}


class Known(TypedDict, total=False):
    """Which tables may be taken up in the place of a measurement.

    Attributes:
        same: study and stem of the same measurement of the same network at the same scale, which is taken where it was
            made before in the default folder of that study's runs beside this one's.
        about: what the provenance of a table that is taken up has to say; one that says something else is of another
            network or of other data, and measured again.
    """

    same: tuple[str, str] | None
    about: Mapping[str, Any]


def once(study: StudySetting, stem: str, measure: Callable[[], Table], **known: Unpack[Known]) -> Table:
    """A table that takes long to measure, kept beside the trained networks and taken up again.

    Args:
        study: where.
        stem: of its files.
        measure: makes it.
        **known: see :class:`Known`.
    """
    kept, same = Tables(study.runs / "measured"), known.get("same")
    if stem not in kept and same is not None:
        other = Tables(study.runs.with_name(f"{same[0]}-{study.scale}") / "measured")
        if same[1] in other:
            table = other[same[1]]
            kept.put(stem, Table(table.columns, table.rows, {**table.provenance, "taken_from": "/".join(same)}))
    said = kept[stem].provenance if stem in kept else {}
    if stem not in kept or any(said.get(name) != value for name, value in known.get("about", {}).items()):
        kept.put(stem, measure())
    return kept[stem]


def keep(study: StudySetting, stem: str, measure: Callable[[], Table], **known: Unpack[Known]) -> Table:
    """Put a table among the tables of the study; it is measured :func:`once`, whose arguments these are.

    The journal of a sweep takes one up again that was ended in its middle, and goes when it is complete.
    """
    table = once(study, stem, measure, **known)
    study.tables.put(stem, table)
    return table


def start_fresh(study: StudySetting) -> None:
    """Empty the folder of a study's results, so that nothing of an earlier run stays in it.

    What was in it lies beside it until :func:`carry_out` has made the new ones, and comes back where that fails.

    Raises:
        SystemExit: what is in the folder is not this study's.
    """
    if study.out.exists():
        if any(study.out.iterdir()) and record.read(study.out).get("study") != study.name:
            raise SystemExit(
                f"--out {study.out}: what is in it are no results of the study {study.name}, and would be deleted; "
                "give another folder"
            )
        if _earlier(study.out).exists():  # by a run that was killed, so that these are parts of results
            shutil.rmtree(study.out)
        else:
            study.out.rename(_earlier(study.out))
    study.out.mkdir(parents=True)
    record.write(study.out, study=study.name)


def _earlier(out: Path) -> Path:
    out = out.resolve()
    return out.with_name(f".{out.name}.earlier")


@contextlib.contextmanager
def _earlier_kept(out: Path) -> Iterator[None]:
    """Put results that :func:`start_fresh` took away back where no new ones come of it, and delete them otherwise."""
    earlier = _earlier(out)
    try:
        yield
    except BaseException:
        if earlier.exists():
            shutil.rmtree(out, ignore_errors=True)
            earlier.rename(out)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def check_rest(study: StudySetting, part: str) -> None:
    """Raise unless there are tables that a part, measured alone, belongs to.

    Args:
        study: what was asked for.
        part: that is to be measured.

    Raises:
        SystemExit: ``--out`` has no tables of this scale.
    """
    if record.read(study.out).get("scale") != study.scale:
        raise SystemExit(
            f"--only {part}: {study.out} has no tables of --scale {study.scale} to add to; measure the rest first, "
            "without --only"
        )
