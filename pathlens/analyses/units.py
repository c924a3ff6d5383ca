"""Numbered pieces of work: skipped where a journal has them, split over processes, gathered on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pathlens.machine.processes import Processes
from pathlens.storage.journal import Journal, key_of

Progress = Callable[[int, int], None]


class Work:
    """Runs units of one analysis.

    Args:
        folder: of the journal, or None to keep nothing.
        facts: everything that the results depend on.
        group: the processes that share the work.
        progress: called with (units done, units in all) of this process.
    """

    def __init__(self, folder: Path | None, facts: dict[str, Any], group: Processes, progress: Progress | None) -> None:
        self._folder = folder
        self._facts = facts
        self._group = group
        self._progress = progress
        self._finished = self._planned = 0
        self._journals: list[Journal] = []
        self.resumed = 0

    def run(self, phase: str, units: Iterable[int], compute: Callable[[int], Any]) -> dict[int, Any]:
        """Results of all units of a phase, in the order of their numbers, on every process.

        A phase may be run in several goes with new units each time.
        """
        wanted = sorted(units)
        journal = self._journal(phase)
        done = {unit: journal.done[unit] for unit in wanted if journal and unit in journal.done}
        self.resumed += len(done)
        mine = [u for u in wanted if u not in done and u % self._group.world == self._group.rank]
        self._planned += len(mine)
        found: dict[int, Any] = {}
        for unit in mine:
            found[unit] = compute(unit)
            if journal:
                journal.add(unit, found[unit])
            self._finished += 1
            if self._progress:
                self._progress(self._finished, self._planned)
        for part in self._group.gather({**done, **found}):
            done.update(part)
        return {unit: done[unit] for unit in wanted}

    def _journal(self, phase: str) -> Journal | None:
        if self._folder is None:
            return None
        key = key_of({**self._facts, "phase": phase})
        for journal in self._journals:
            if journal.key == key:
                return journal
        journal = Journal(self._folder, key, self._group.rank)
        self._journals.append(journal)
        return journal

    def close(self) -> None:
        """Release the journals and keep what they hold."""
        for journal in self._journals:
            journal.close()

    def clear(self) -> None:
        """Remove the journals, because the table is made."""
        for journal in self._journals:
            if self._group.leads:
                journal.clear()
            else:
                journal.close()
