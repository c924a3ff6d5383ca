"""Studies run in the process of the tests: their modules have names of their own only for the length of a test."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

STUDIES = Path(__file__).resolve().parents[1] / "studies"


@contextlib.contextmanager
def study(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module ``run`` of a study; it and everything that it imports from ``studies/`` is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(STUDIES))
    monkeypatch.syspath_prepend(str(STUDIES / name))
    _forget()
    # tests have modules of the same names
    own = {path.stem for folder in (STUDIES, STUDIES / name) for path in folder.glob("*.py")}
    others = {module: sys.modules.pop(module) for module in own if module in sys.modules}
    try:
        yield importlib.import_module("run")
    finally:
        _forget()
        sys.modules.update(others)


def _forget() -> None:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and STUDIES in Path(file).parents and name != "__main__":
            del sys.modules[name]
