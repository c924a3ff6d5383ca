"""What a sweep tells of its progress."""

from __future__ import annotations


class Progress:
    """Records what it is told, and stops the sweep when so many batches are done."""

    def __init__(self, stop: int | None = None, error: BaseException | None = None) -> None:
        self.stop, self.error, self.told = stop, error or KeyboardInterrupt(), list[tuple[int, int]]()

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if done == self.stop:
            raise self.error
