"""The import arrows between the rooms of the package, read from the source of every module.

Imports inside functions, under ``TYPE_CHECKING`` and by ``importlib.import_module("...")`` count like any other.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = "pathlens"

# Room (module or folder of the package) -> the rooms that it may import, beside `errors`, which all may.
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "models": {"machine"},
    "data": set(),
    "paths": set(),
    "tables": set(),
    "machine": set(),
    "measure": set(),
    "estimators": {"paths", "tables", "residual"},
    "results": {"tables", "estimators"},
    "residual": set(),
    "plans": {"paths", "residual"},
    "intervene": {"plans", "residual"},
    "training": {
        "models",
        "data",
        "intervene",
        "plans",
        "paths",
        "residual",
        "measure",
        "tables",
        "results",
        "machine",
    },
    "analyses": {
        "models",
        "data",
        "paths",
        "tables",
        "estimators",
        "results",
        "measure",
        "residual",
        "plans",
        "intervene",
        "machine",
    },
    "graph": {"residual", "paths"},
    "figures": {"tables", "results", "graph"},
    "report": {"figures", "tables"},
    "pages": {"figures", "report", "tables", "results"},
}
ARROWS["cli"] = set(ARROWS)
ARROWS["__init__"] = set(ARROWS)  # the public names; tests/test_light_import.py sees to it that they load late
ARROWS["__main__"] = {"cli"}

# Third-party module -> the only rooms that may import it.
ONLY_IN: dict[str, set[str]] = {"matplotlib": {"figures"}, "seaborn": {"figures"}}

# Room -> third-party modules that it must do without.
WITHOUT: dict[str, set[str]] = {
    room: {"torch", "torchvision"} for room in ("errors", "paths", "tables", "results", "__main__")
}

LONGEST_FILE = 500  # lines


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every import as (line, dotted name); ``package`` is the one that relative imports start from.

    ``from a.b import c`` gives ``a.b.c``, since c may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: None if node.level < 2 else 1 - node.level] if node.level else []
            start = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                target = node.args[0].value
                yield node.lineno, f"{package}{target}" if target.startswith(".") else target


def wrong_arrow(room: str, name: str) -> str | None:
    """What is wrong with ``room`` importing the dotted ``name``, or None."""
    parts = name.split(".")
    top = parts[0]
    if top == "studies":
        return "the package never imports studies"
    if room not in ONLY_IN.get(top, {room}):
        return f"only {', '.join(sorted(ONLY_IN[top]))} may import {top}"
    if top in WITHOUT.get(room, set()):
        return f"{room} does without {top}"
    if top != PACKAGE or (len(parts) > 1 and parts[1] in (room, "__version__")):
        return None
    if len(parts) == 1 or parts[1] not in ARROWS:
        # A name of the package itself, `from pathlens import find_blocks`, hides which room is meant.
        return None if room in ("cli", "__init__") else "import from the room, not from the package"
    if parts[1] not in {*ARROWS[room], "errors"}:
        return f"{room} may import {', '.join(sorted({*ARROWS[room], 'errors'}))}"
    return None


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the package that lies in ``root``."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        relative = path.relative_to(root)
        room = relative.parts[1].removesuffix(".py")
        if room not in ARROWS:
            found.append(f"{relative}: room '{room}' is not in the table of tests/test_architecture.py")
            continue
        for line, name in imported(ast.parse(path.read_text()), ".".join(relative.parts[:-1])):
            wrong = wrong_arrow(room, name)
            if wrong:
                found.append(f"{relative}:{line}: imports {name}: {wrong}")
    for path in sorted((root / "studies").rglob("*.py")):
        for line, name in imported(ast.parse(path.read_text()), "studies"):
            private = [part for part in name.split(".")[1:] if part.startswith("_") and not part.endswith("__")]
            if name.split(".")[0] == PACKAGE and private:
                found.append(f"{path.relative_to(root)}:{line}: imports {name}: studies use the public API only")
    for folder in (PACKAGE, "studies", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            lines = len(path.read_text().splitlines())
            if lines > LONGEST_FILE:
                found.append(f"{path.relative_to(root)}: {lines} lines, more than {LONGEST_FILE}")
    return found


def test_the_package_keeps_to_the_arrows():
    assert (REPOSITORY / PACKAGE / "errors.py").is_file()
    assert violations(REPOSITORY) == []


def test_the_table_has_no_cycle():
    graph = {room: set() if room == "errors" else {*allowed, "errors"} - {room} for room, allowed in ARROWS.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(ARROWS)


GOOD = {
    "pathlens/__init__.py": "from pathlens.residual import find_blocks\n",
    "pathlens/errors.py": "class PathlensError(Exception): ...\n",
    "pathlens/data/__init__.py": "from pathlens.data.images import Batch\nfrom . import images\n",
    "pathlens/data/images.py": "import torch\nfrom ..errors import PathlensError\nfrom .images import Batch\n",
    "pathlens/plans.py": "from pathlens import paths, __version__\nimport pathlens.residual\n",
    "pathlens/figures/bars.py": "import matplotlib.pyplot as plt\nimport seaborn\n",
    "pathlens/cli/app.py": "def run():\n    from pathlens.report import write\n    import pathlens\n",
    "studies/benchmarks/sweep.py": "from pathlens import open_data, __version__\nfrom pathlens.models import build\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in GOOD.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_tree_that_keeps_to_the_arrows_passes(tree):
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("pathlens/errors.py", "from pathlens.data import Batch", "errors may import"),
        ("pathlens/data/images.py", "from pathlens.models import build", "data may import errors"),
        ("pathlens/data/images.py", "from ..models import build", "data may import errors"),
        ("pathlens/data/images.py", "from .. import models", "data may import errors"),
        ("pathlens/data/images.py", "import pathlens.tables.write", "data may import errors"),
        ("pathlens/data/images.py", "from pathlens import measure", "data may import errors"),
        ("pathlens/data/images.py", "from pathlens import find_blocks", "not from the package"),
        ("pathlens/data/images.py", "import pathlens", "not from the package"),
        ("pathlens/data/__init__.py", "from .. import models", "data may import errors"),
        ("pathlens/plans.py", "def f():\n    from pathlens.intervene import deleted", "plans.py:2"),
        ("pathlens/plans.py", "if TYPE_CHECKING:\n    from pathlens.cli import app", "plans may import"),
        ("pathlens/plans.py", "importlib.import_module('pathlens.training')", "plans may import"),
        ("pathlens/plans.py", "__import__('pathlens.training')", "plans may import"),
        ("pathlens/analyses/verbs.py", "from pathlens.training import fit", "analyses may import"),
        ("pathlens/__main__.py", "from pathlens.data import open_data", "__main__ may import cli"),
        ("pathlens/report/run.py", "import matplotlib", "only figures may import matplotlib"),
        ("pathlens/cli/app.py", "def f():\n    from seaborn import lineplot", "only figures may import seaborn"),
        ("pathlens/paths.py", "from torch import nn", "paths does without torch"),
        ("pathlens/tables/write.py", "def f():\n    import torch.nn", "tables does without torch"),
        ("pathlens/cli/app.py", "from studies.benchmarks import sweep", "never imports studies"),
        ("pathlens/helpers.py", "x = 1", "room 'helpers' is not in the table"),
        ("studies/one.py", "from pathlens.data import _hidden", "public API"),
        ("studies/one.py", "from pathlens._inner import thing", "public API"),
        ("pathlens/data/images.py", "x = 1\n" * 501, "501 lines"),
        ("tests/test_long.py", "x = 1\n" * 501, "501 lines"),
    ],
)
def test_a_planted_breach_is_found(tree, name, text, part):
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(text)
    found = violations(tree)
    assert len(found) == 1
    assert found[0].startswith(name)
    assert part in found[0]
