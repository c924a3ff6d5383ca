"""The documentation builds without a warning, and the docstrings say what everything public takes."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from pathlens.cli import app
from tests.helpers import ROOT

DOCS = ROOT / "docs"
DIRECTIVES = re.findall(r"^\.\. auto(\w+):: ([\w.]+)$", (DOCS / "api-reference.md").read_text(), re.MULTILINE)
MODULES = [importlib.import_module(name) for kind, name in DIRECTIVES if kind == "module"]
_WITHOUT_SPHINX = "Sphinx of the extra 'docs' is not installed"


def public_names(module: ModuleType) -> list[str]:
    """``__all__`` or, where a module has none, the functions and classes defined in it."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and callable(thing) and thing.__module__ == module.__name__
    ]


def members(kind: type) -> dict[str, Any]:
    """Public methods and properties that a class defines itself."""
    return {
        name: getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
        for name, thing in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(thing) or isinstance(thing, property | classmethod))
    }


def public() -> dict[str, Any]:
    """Functions, classes and methods of the package that the reference describes, by full name."""
    found = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in public_names(module)}
    for kind, path in DIRECTIVES:
        if kind == "function":
            module, _, name = path.rpartition(".")
            found[path] = getattr(importlib.import_module(module), name)
    ours = {name: thing for name, thing in found.items() if getattr(thing, "__module__", "").startswith("pathlens")}
    methods = {
        f"{name}.{member}": function
        for name, thing in ours.items()
        if inspect.isclass(thing)
        for member, function in members(thing).items()
    }
    return ours | methods


PUBLIC = public()


def described(thing: Any) -> set[str]:
    """The arguments and attributes that the reference lists, by the parser of docstrings that makes it."""
    napoleon = pytest.importorskip("sphinx.ext.napoleon", reason=_WITHOUT_SPHINX)
    markup = str(napoleon.GoogleDocstring(inspect.getdoc(thing) or "", napoleon.Config(napoleon_use_ivar=True)))
    fields = re.findall(r"^:(?:param|ivar) ([^:]+):", markup, re.MULTILINE)
    return {name.strip("*\\ ") for field in fields for name in field.split(",")}


def referred(name: str) -> Any:
    """The function whose arguments this one takes too, where its docstring says so."""
    text = inspect.getdoc(PUBLIC[name]) or ""
    match = re.search(r"(?:[Aa]rguments(?: and errors)? as (?:of )?|See ):\w+:`([\w.]+)`", text)
    home = name.rpartition(".")[0]
    named = [f"{place}.{match[1]}" for place in (home, home.rpartition(".")[0]) if match]
    return next((PUBLIC[other] for other in named if other in PUBLIC), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as `make docs` builds it."""
    for package in ("sphinx", "myst_parser"):
        pytest.importorskip(package, reason=_WITHOUT_SPHINX)
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", str(DOCS), str(built)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return built


@pytest.mark.slow
def test_the_documentation_has_every_page_and_everything_public(site):
    assert {page.stem for page in DOCS.glob("*.md")} <= {page.stem for page in site.glob("*.html")}
    text = (site / "api-reference.html").read_text()
    documented = set(re.findall(r'id="(?:module-)?(pathlens[\w.]*)"', text))
    data = {path.rpartition(".")[2] for kind, path in DIRECTIVES if kind == "data"}
    for module in MODULES:
        for name in public_names(module):
            if getattr(getattr(module, name), "__module__", "pathlens").startswith("pathlens") and name not in data:
                assert f"{module.__name__}.{name}" in documented
    assert {path for _, path in DIRECTIVES} <= documented
    assert not re.search(r"0x[0-9a-f]{6}|&lt;(function|class|object|built-in)", text)  # of one machine


@pytest.mark.slow
def test_the_documentation_has_every_option(site):
    text = (site / "cli-reference.html").read_text()
    for verb, command in get_command(app).commands.items():
        section = text.partition(f'id="pathlens-{verb}"')[2].partition("<section")[0]
        for option in command.params:
            assert all(name in section for name in option.opts if name.startswith("--")), (verb, option.name)


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_described_with_its_arguments(name):
    thing = PUBLIC[name]
    text = inspect.getdoc(thing) or ""
    assert len(text) > 10
    assert not text.startswith(f"{name.rpartition('.')[2]}(")  # what dataclasses make themselves
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return
    called = (".at", ".check", ".check_view", ".draw", ".expectation", ".scale")
    if name.startswith("pathlens.training.") and name.endswith(called):
        return  # the loop calls a rule's methods, users do not
    taken = {one for one in inspect.signature(thing).parameters if one not in ("self", "cls") and one[0] != "_"}
    said = described(thing)
    other = referred(name)
    if other is not None:
        said |= described(other)
    if inspect.isclass(thing) and len(taken) == 1:  # a sentence says it
        said |= set(re.findall(r"``(\w+)``", text))
    assert taken <= said
