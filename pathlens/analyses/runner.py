"""The batches of one analysis: skipped where a journal has them, divided among processes, gathered on all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathlens.analyses.provenance import Json
from pathlens.analyses.sources import BatchSource, Data, batch_source
from pathlens.models import state_sha256
from pathlens.residual import ResidualView
from pathlens.runtime import processes
from pathlens.runtime.memory import oom_as_error
from pathlens.runtime.precision import precision
from pathlens.runtime.processes import Processes
from pathlens.storage.journal import Journal, code_version, key_of

Progress = Callable[[int, int], None]


class Runner:
    """The images, device and dtype of one analysis, and the loop over its batches.

    Args:
        source: the images.
        device: where to compute.
        dtype: what to compute with.
        folder: of the journals, or None to keep nothing.
        progress: called with (batches done, batches in all) of this process.

    Attributes:
        group: the processes that share the work.
        resumed: batches that were read from journals.
    """

    def __init__(
        self,
        source: BatchSource,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.group: Processes = processes.current()
        self.resumed = 0
        self._began = time.monotonic()
        self._folder = folder
        self._progress = progress
        self._finished = self._planned = 0
        self._depends_on: dict[str, Json] = {}
        self._journals: dict[str, Journal] = {}
        self._left: list[Journal] = []
        self._recorded: dict[str, dict[int, Any]] = {}

    @property
    def keeps(self) -> bool:
        """Whether finished batches are kept."""
        return self._folder is not None

    @property
    def seconds(self) -> float:
        """Since the analysis began."""
        return round(time.monotonic() - self._began, 3)

    def identify(self, verb: str, view: ResidualView, **more: Json) -> None:
        """State what the results depend on beside the data, so that no other analysis reads the journals.

        Args:
            verb: the analysis.
            view: the network, in the train/eval mode that it is measured in.
            **more: all else.
        """
        if self._folder is None:
            return
        # the traced operations and every tensor in them, because a user's own code may change while its weights do not
        trace = view.chain().trace
        names = tuple(trace.tensors)
        self._depends_on = {
            "verb": verb,
            "code": code_version(),
            "torch": torch.__version__,
            "operations": str(trace.graph),
            "tensors": state_sha256(dict(zip(names, trace.fetch(names), strict=True))),
            "blocks": [repr(block) for block in view],
            "output": view.output,
            "data": self.source.fingerprint,
            "device": processes.device_name(self.device),
            **more,
        }

    def start_anew(self, **more: Json) -> None:
        """Leave the journals as they are, and keep others; those of an analysis that is complete are all removed.

        Args:
            **more: what tells the others from these, in the place of what :meth:`identify` was told.
        """
        self._left += self._journals.values()
        self._journals, self._recorded = {}, {}
        self._depends_on |= more

    def recorded(self, phase: str) -> dict[int, Any]:
        """Results of a phase that are in the journals, by number, on every process.

        Raises:
            RunError: the same analysis is running already.
        """
        if phase not in self._recorded:
            with self.group.agreed():
                if self._folder is not None:
                    assert self._depends_on, "identify first"
                    key = key_of({**self._depends_on, "phase": phase})
                    self._journals[phase] = Journal(self._folder, key, self.group.rank)
            journal = self._journals.get(phase)
            parts = self.group.gather(dict(journal.done) if journal else {})
            self._recorded[phase] = {number: result for part in parts for number, result in part.items()}
        return self._recorded[phase]

    def run(
        self, phase: str, compute: Callable[[int, Tensor, Tensor], Any], numbers: Sequence[int] | None = None
    ) -> dict[int, Any]:
        """Results of all batches in their order, the same on every process for any number of processes.

        Args:
            phase: what is computed; each has a journal of its own.
            compute: (number, images, labels) -> what JSON can hold.
            numbers: of the results of each batch (default: those of the batches). A phase may go through the batches
                several times, with new numbers each time.

        Raises:
            ResourceError: a batch does not fit in memory.
            RunError: another process has ended, or the same analysis is running already.
            DataError: an image that cannot be decoded.
        """
        count, group = self.source.count, self.group
        if numbers is None:
            numbers = range(count or 0)
        done, missing = self._due(phase, numbers)
        # batches of an unknown number have no journal, and each process takes every world-th of them
        place = {number: batch for batch, number in enumerate(numbers)}
        mine = None if count is None else [place[number] for number in missing]

        def work() -> Iterator[tuple[int, Callable[[], Any]]]:
            for batch, images, labels in self.source.batches(mine):
                number = batch if count is None else numbers[batch]
                if mine is not None or batch % group.world == group.rank:
                    yield number, partial(compute, number, images, labels)

        return self._carry_out(phase, done, work(), open_ended=mine is None)

    def each(self, phase: str, numbers: Sequence[int], compute: Callable[[int], Any]) -> dict[int, Any]:
        """Results of pieces of work that are no batches, such as the points of a surface.

        Args:
            phase: what is computed.
            numbers: of the pieces.
            compute: number -> what JSON can hold.

        Returns:
            As :meth:`run`, with the same errors.
        """
        done, missing = self._due(phase, numbers)
        return self._carry_out(phase, done, ((number, partial(compute, number)) for number in missing))

    def _due(self, phase: str, numbers: Sequence[int]) -> tuple[dict[int, Any], list[int]]:
        """Results that the journals have, and what this process has to do."""
        recorded = self.recorded(phase)
        done = {number: recorded[number] for number in numbers if number in recorded}
        missing = [number for number in numbers if number not in done][self.group.rank :: self.group.world]
        self.resumed += len(done)
        self._finished += len(done)
        self._planned += len(done) + len(missing)
        return done, missing

    def _carry_out(
        self,
        phase: str,
        done: dict[int, Any],
        work: Iterable[tuple[int, Callable[[], Any]]],
        open_ended: bool = False,
    ) -> dict[int, Any]:
        """Do the work of this process, append it to the journal, and gather that of all."""
        computed: dict[int, Any] = {}
        with self.group.agreed() as look, oom_as_error(self.source.batch_size):
            for number, compute in work:
                look()
                self._tell(more=open_ended)
                computed[number] = compute()
                if phase in self._journals:
                    self._journals[phase].add(number, computed[number])
                self._finished += 1
            self._tell()
        for part in self.group.gather(computed):
            done.update(part)
        return dict(sorted(done.items()))

    def _tell(self, more: bool = False) -> None:
        if self._progress:
            self._progress(self._finished, max(self._planned, self._finished + more))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Remove the journals of an analysis that is complete; keep those of one that failed, to go on from."""
        for journal in (*self._left, *self._journals.values()):
            if kind is None and self.group.is_main:
                journal.finish()
            else:
                journal.close()


@contextlib.contextmanager
def running(
    model: nn.Module,
    data: Data,
    batch_size: int,
    dtype: str,
    device: str | torch.device | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    journal: str | Path | None,
    progress: Progress | None,
) -> Iterator[Runner]:
    """Open data and a device for one analysis; the model is not moved. Arguments as :func:`evaluating`.

    Batches that the caller made have no journal, since nothing tells one such data set from another.

    Raises:
        UsageError: an unknown type or device, or data that can be read only once.
        DataError: a batch size below 1, or a mean or deviation that does not fit the channels.
    """
    with precision(dtype) as kind:
        group = processes.current()
        with group.agreed(), oom_as_error(batch_size):
            where = processes.device_of(model, device)
            source = batch_source(data, batch_size, mean, std, where)
        folder = Path(journal) if journal is not None and source.fingerprint else None
        with Runner(source, where, kind, folder, progress) as runner:
            yield runner
