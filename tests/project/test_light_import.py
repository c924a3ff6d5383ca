"""What must stay light: a bare import of the package, and its help."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "torchvision", "timm", "pandas", "pyarrow", "matplotlib", "seaborn", "scipy", "sklearn", "networkx")


def loaded(*code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after ``code``."""
    lines = [*code, "import json, sys", "sys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


def run_as_main(*arguments: str) -> tuple[str, ...]:
    """Code that does what ``python -m pathlens ARGUMENTS`` does, and goes on afterwards."""
    return (
        "import runpy, sys",
        f"sys.argv[1:] = {list(arguments)!r}",
        "try: runpy.run_module('pathlens', run_name='__main__', alter_sys=True)",
        "except SystemExit as leaving: assert not leaving.code",
    )


def test_a_bare_import_loads_nothing_heavy():
    modules = loaded("import pathlens")
    assert "pathlens" in modules
    assert modules.isdisjoint(HEAVY)


def test_the_check_sees_a_heavy_import():
    assert "pandas" in loaded("import pandas")


def test_errors_load_nothing_heavy():
    assert loaded("from pathlens.errors import PathlensError").isdisjoint(HEAVY)


def test_the_verbs_load_no_statistics_that_take_as_long_as_a_short_sweep():
    modules = loaded("import pathlens.analyses, pathlens.cli.lesions")
    assert "scipy.stats" not in modules
    assert "torch" in modules


@pytest.mark.parametrize("arguments", [("--help",), ("delete-blocks", "--help")])
def test_help_answers_before_anything_heavy_is_loaded(arguments):
    modules = loaded(*run_as_main(*arguments))
    assert "pathlens.cli" in modules
    assert modules.isdisjoint(HEAVY)


def test_help_names_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "pathlens", "--help"], capture_output=True, text=True, check=True, timeout=120
    )
    for command in ("delete-blocks", "delete-skips", "reorder-blocks", "blocks"):
        assert command in done.stdout
    assert done.stderr == ""
