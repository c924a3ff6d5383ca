"""A lock of readers and tracers among threads: tracing runs alone.

While ``torch.export`` traces a model, its parameters are stand-ins without values and parts of torch are patched, for
all threads. So a trace waits until no other thread reads a model, and readers wait until it has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

_turns = threading.Condition(threading.RLock())
#: how often each thread is inside ``together``
_reading: Counter[int] = Counter()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Read a model beside other threads that do; may be nested, and a trace inside it waits for the others alone."""
    me = threading.get_ident()
    with _turns:
        _reading[me] += 1
    try:
        yield
    finally:
        with _turns:
            _reading[me] -= 1
            if not _reading[me]:
                del _reading[me]
                _turns.notify_all()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Trace while no other thread reads a model."""
    me = threading.get_ident()
    with _turns:
        # a waiting thread does not count as a reader, or two readers that both start a trace would wait forever
        mine = _reading.pop(me, 0)
        _turns.notify_all()
        try:
            _turns.wait_for(lambda: not _reading)
            yield
        finally:
            if mine:
                _reading[me] = mine
