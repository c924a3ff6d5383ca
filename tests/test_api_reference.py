"""The reference is that of the docstrings, and the docstrings say what everything public takes."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pathlens

DOCS = Path(pathlens.__file__).resolve().parents[1] / "docs"


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("make_api_reference", DOCS / "make_api_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def public(maker: ModuleType) -> dict[str, Any]:
    """Everything of the package that the page describes, with the members of classes, by full name."""
    entries = [entry for room in maker.rooms().values() for entry in room if maker.ours(entry.thing)]
    found = {entry.name: entry.thing for entry in entries}
    found |= {f"{entry.name}.{name}": member for entry in entries for name, member in entry.members.items()}
    return {
        name: thing
        for name, thing in found.items()
        if inspect.isclass(thing) or callable(thing) or isinstance(thing, property)
    }


def described(maker: ModuleType, thing: Any) -> set[str]:
    """The arguments that a docstring describes: by name, in a section."""
    parts = maker.sections(thing)
    items = [item for heading in ("Args", "Attributes") for item in maker.items(parts.get(heading, ""))]
    return {name.strip("* ") for item in items for name in item.split(",")}


def referred(maker: ModuleType, public: dict[str, Any], name: str) -> Any:
    """The function whose arguments this one takes too, where its docstring says so."""
    text = inspect.getdoc(public[name]) or ""
    overridden = re.fullmatch(r"See :meth:`(\w+\.\w+)`\.", text)
    if overridden:
        return public[f"{name.rsplit('.', 2)[0]}.{overridden[1]}"]
    match = re.search(r"[Aa]rguments(?: and errors)? as (?:of )?:\w+:`(\w+)`", text)
    return public[f"{name.rpartition('.')[0]}.{match[1]}"] if match else None


def test_api_reference_is_not_stale(maker):
    assert (DOCS / "api-reference.md").read_text() == maker.page(), "run python docs/make_api_reference.py"


def test_api_reference_does_not_depend_on_the_machine(maker):
    text = maker.page()
    assert not re.search(r"0x[0-9a-f]{6}|<(function|class|object|factory|built-in)|torch\.[\w.]*_\.", text)
    assert "= cross_entropy" in text


def test_everything_public_is_in_the_reference(maker, public):
    headings = re.findall(r"^#{2,4} (.+)$", (DOCS / "api-reference.md").read_text(), re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert {f"pathlens.{name}" for name in pathlens.__all__} <= set(headings)
    for room in maker.ROOMS[1:]:
        module = maker.module_of(room)
        homes = {id(thing): name for name, thing in public.items()}
        for name in maker.public_names(module):
            thing = getattr(module, name)
            assert homes.get(id(thing), f"{module.__name__}.{name}") in headings, name


def test_everything_public_has_a_docstring(public):
    assert len(public) > 150
    for name, thing in public.items():
        assert len((thing.__doc__ or "").strip()) > 10, name
        assert not str(thing.__doc__).startswith(f"{thing}("), name  # what dataclasses make themselves


def test_arguments_of_everything_public_are_described(maker, public):
    lacking = {}
    for name, thing in public.items():
        taken, said = set(maker.parameters(thing)), described(maker, thing)
        if not inspect.isclass(thing):
            assert said <= taken, f"{name} describes what it does not take"
        elif len(taken) == 1:  # a sentence says it
            said |= set(re.findall(r"``(\w+)``", inspect.getdoc(thing) or ""))
        other = referred(maker, public, name)
        if other is not None:
            said |= described(maker, other)
        rule = name.startswith("pathlens.training.") and name.endswith((".check", ".survival", ".draw"))
        if not taken <= said and not rule:  # the loop calls a rule's methods, users do not
            lacking[name] = sorted(taken - said)
    assert not lacking


def test_links_inside_the_reference_lead_to_headings():
    text = (DOCS / "api-reference.md").read_text()
    seen: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#{1,4} (.+)$", text, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower()
        anchors.add(f"{anchor}-{seen[anchor]}" if anchor in seen else anchor)
        seen[anchor] = seen.get(anchor, 0) + 1
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert len(links) > 100
    assert links <= anchors
