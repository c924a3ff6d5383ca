"""Everything that only a GPU can show, in slices of a few minutes that any number of calls take up one after the other.

Run ``python -m studies.gpu --data FOLDER`` with a folder that holds ``cifar10-jpeg/train.parquet`` and
``test.parquet`` (default: that of the environment's ``PATHLENS_DATA``), as often as it says that something is left. A
call does what fits into ``--budget`` seconds, the most valuable first, prints a line for each slice, and writes what it
measured at once: tables and page into ``--out``, weights as float16 into ``weights/`` there, unfinished trainings into
``--runs``. A call that was killed loses the measurement it was at, or a minute of a training. ``--scale smoke --device
cpu`` rehearses all of it on any machine in a minute; its numbers mean nothing.

Exit codes are those of pathlens (docs/exit-codes.md): 0 also where work is left; 2 arguments, or no GPU; 5 images; 8 a
folder in use, or of another run; 130 interrupted. A slice that fails leaves the others their turn, and the code is that
of the first one that failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from pathlens.errors import DataError, PathlensError, UsageError
from pathlens.storage import lock_run
from studies.common import ROOT, StudySetting
from studies.gpu import timed, trained
from studies.gpu.kept import Late, Slice, Study


def work_through(study: Study, chosen: Sequence[Slice], end: float) -> int:
    """Work at the slices in turn until the time is over, a line for each; the exit code."""
    code, left = 0, []
    for piece in chosen:
        began, said = time.time(), "was finished before"
        study.deadline = min(began + study.limit, end)
        pending = piece.pending()
        try:
            while pending:
                if study.left() < study.setting.pick(0, None, piece.seconds):
                    raise Late(f"wants {piece.seconds:.0f} s, and {max(0, study.left()):.0f} are left")
                piece.work(pending[0])
                said = f"finished in {time.time() - began:.0f} s"
                pending = piece.pending()
        except Late as late:
            said = f"{len(pending)} {'part is' if len(pending) == 1 else 'parts are'} left: {late}"
        except DataError:
            raise  # what one slice cannot read, none can
        except PathlensError as error:
            code, said = code or error.exit_code, f"failed: {error}"
        except Exception as error:
            traceback.print_exc()
            code, said = code or 1, f"failed: {type(error).__name__}"
        left += [piece.name] if pending else []
        print(f"gpu: {piece.name} ({piece.shows}): {said}", flush=True)
    done = f"left: {', '.join(left)}; the same command goes on" if left else f"all is done; see {study.setting.out}"
    print(f"gpu: {done}", flush=True)
    return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", choices=("smoke", "paper"), default="paper", help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="results (default: results/gpu; runs/smoke/gpu at smoke scale)")
    parser.add_argument("--data", help="folder of cifar10-jpeg/; default: that of PATHLENS_DATA, digits at smoke scale")
    parser.add_argument("--budget", type=float, default=540, help="seconds of this call (default: %(default)s)")
    parser.add_argument("--slice-limit", type=float, default=480, help="seconds of a slice (default: %(default)s)")
    parser.add_argument("--slice", help="this one alone")
    parser.add_argument("--epochs", type=int, help="of each training (default: the paper's 200; 2 at smoke scale)")
    parser.add_argument("--runs", type=Path, help="unfinished trainings (default: runs/veit2016-SCALE, as that study)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=3, help="trainings side by side (default: %(default)s)")
    args = parser.parse_args(argv)
    paper = args.scale == "paper"
    args.epochs = args.epochs if args.epochs is not None else 200 if paper else 2
    args.out = args.out or ROOT / ("results/gpu" if paper else "runs/smoke/gpu")
    args.runs = args.runs or ROOT / "runs" / f"veit2016-{args.scale}"
    args.data = args.data or (os.environ.get("PATHLENS_DATA") if paper else None)
    for name in ("budget", "slice_limit", "epochs", "jobs"):
        if not getattr(args, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name):g}: give a number above 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"torch {torch.__version__} (built for CUDA {torch.version.cuda or 'none'}) sees no GPU; run this on a "
            "machine with one, or rehearse it here by --scale smoke --device cpu"
        )
    if paper and args.device == "cpu":
        raise UsageError("--scale paper would take weeks on a CPU; give --scale smoke with --device cpu")
    if paper and not args.data:
        raise DataError("CIFAR-10 is missing: give --data, or set PATHLENS_DATA, the folder that holds cifar10-jpeg/")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Do what fits into the budget."""
    began = time.time()
    try:
        args = parse(argv)
        if args.scale == "smoke":
            torch.set_num_threads(1)
        setting = StudySetting("gpu", args.scale, args.out, args.runs, args.device, args.jobs)
        with lock_run(args.out):
            study = Study(setting, Path(args.data) if args.data else None, args.slice_limit)
            slices = [*timed.slices(study), *trained.slices(study, args.epochs)]
            chosen = [piece for piece in slices if args.slice in (None, piece.name)]
            if not chosen:
                names = ", ".join(repr(piece.name) for piece in slices)
                raise UsageError(f"--slice {args.slice!r} is unknown; there are {names}")
            return work_through(study, chosen, began + args.budget)
    except PathlensError as error:
        print(f"gpu: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("gpu: error: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
