"""One interactive page of an unraveled view: the network as it is, all of its paths, or the lattice."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pathlens.errors import UsageError
from pathlens.pages.encode import binomials
from pathlens.pages.shell import checked_target, rendered
from pathlens.results.text import number, said
from pathlens.storage import atomic_write_bytes

if TYPE_CHECKING:
    import networkx as nx

_SCRIPTS = ("common.js", "viewport.js", "panel.js")
_DRAWN = ("drawn.js", "theme.js", "graph.js")
_CELLS = ("lattice.js", "cells.js", "theme.js", "graph.js")
_PIXELS = 160  # to an inch of a drawing: its 6 points are 13 pixels

_KINDS = {
    "dag": "the network as it is",
    "tree": "every path of its own",
    "lattice": "the lattice of blocks and path lengths",
}
_LABELS = {
    "role": "Role",
    "kind": "Shortcut",
    "block": "Block",
    "stage": "Stage",
    "inside": "Inside of",
    "module": "Module",
    "operations": "Operations",
    "out_shape": "Output shape",
    "parameters": "Parameters",
    "multiply_adds": "Multiply-adds",
    "is_branch": "Adds to the length",
    "skip": "Skip connection",
    "path": "Blocks of its path",
    "length": "Length of its path",
    "later": "Later branches",
    "copy": "Copy",
    "n_paths_in": "Paths to it",
    "n_paths_out": "Paths from it",
    "n_paths": "Paths through it",
    "expression": "Applied as",
}
_UNSAID = {"label", "row"}
_SHAPE = re.compile(r"\d+(x\d+)*")


def graph_page(graph: nx.DiGraph, out: str | os.PathLike[str], layout: str = "auto") -> Path:
    """Write one interactive HTML page of a graph. It needs no network, and the same graph gives the same bytes.

    Hovering a node or edge, or walking to it with the arrow keys, reads out its attributes with exact numbers of paths,
    and shows the paths through it. The page zooms, and finds nodes by name.

    Args:
        graph: what :func:`pathlens.unravel` returns.
        out: the page, an ``.html`` file; replaced if it is there.
        layout: of a dag, as in :func:`pathlens.figures.unraveled`.

    Returns:
        ``out``.

    Raises:
        ResourceError: the disk is full; nothing of the page is visible.
        RunError: ``out`` is a folder or cannot be written.
        UsageError: no such graph or layout, Graphviz is asked for and not installed, or ``out`` does not end with
            ``.html``.
    """
    target = checked_target(out, "graph.html")
    return atomic_write_bytes(target, graph_html(graph, layout))


def graph_html(graph: nx.DiGraph, layout: str = "auto") -> bytes:
    """The page that :func:`graph_page` writes, as UTF-8."""
    about = graph.graph
    kind = about.get("kind")
    if kind not in _KINDS:
        raise UsageError(f"a graph of kind {kind!r} has no page; give one of pathlens.unravel(...)")
    data = _cells(graph) if kind == "lattice" else _drawing(graph, layout)
    window = f", blocks {about['first']} to {about['last']}" if "first" in about else ""
    lengths = [(length, f"{count:,}") for length, count in enumerate(about["n_paths_by_length"]) if count]
    return rendered(
        "graph.html.j2",
        ("page.css", "graph.css"),
        _SCRIPTS + (_CELLS if kind == "lattice" else _DRAWN),
        {"kind": kind, **data},
        title=f"{about['network']}{window}: {_KINDS[kind]}",
        kind=kind,
        by_norm=bool(data.get("norms")),
        direction=data.get("direction", ""),
        tiles=list(_tiles(graph)),
        lengths=lengths,
    )


def _tiles(graph: nx.DiGraph) -> Iterator[tuple[str, str, str]]:
    about = graph.graph
    paths, counts = about["n_paths"], about["n_paths_by_length"]
    if about["n_blocks"]:
        yield "Blocks", f"{about['n_blocks']:,}", ""
    yield "Paths from input to output", f"{paths:,}" if paths < 10**9 else number(paths), ""
    used = [length for length, count in enumerate(counts) if count]
    most = max(range(len(counts)), key=counts.__getitem__, default=0)
    if used:
        span = f"{used[0]} to {used[-1]}" if used[0] < used[-1] else str(used[0])
        yield "Path lengths", span, f"most paths have length {most}"
    yield "Nodes and edges", f"{len(graph):,} and {graph.number_of_edges():,}", ""
    if about["kind"] == "dag":
        # a graph of an earlier version states no total
        total = about.get("parameters", sum(data.get("parameters", 0) for _, data in graph.nodes(data=True)))
        yield "Parameters", f"{total:,}", ""


# Drawings


def _drawing(graph: nx.DiGraph, layout: str) -> dict[str, Any]:
    """Boxes and lines of a dag or a tree in pixels, with what is said of each."""
    from pathlens.graph import place  # not above: it loads torch, and pages of runs need none

    drawing = place(graph, layout)
    ids = {node: place for place, node in enumerate(graph)}
    nodes = []
    for node, data in graph.nodes(data=True):
        box = drawing.nodes[node]
        nodes.append(
            {
                "id": str(node),
                "box": _pixels(box.x, box.y, box.width, box.height),
                "label": data["label"],
                "lines": list(box.lines),
                "tint": box.tint,
                "filled": box.filled,
                "facts": _attributes(data),
                "paths": f"{data['n_paths']:,}",
            }
        )
    edges = []
    for start, end, data in graph.edges(data=True):
        through = graph.nodes[start]["n_paths_in"] * graph.nodes[end]["n_paths_out"]
        line = drawing.edges[start, end]
        edges.append(
            {
                "ends": [ids[start], ids[end]],
                "pieces": list(map(_line, line.pieces)),
                "skip": line.skip,
                "facts": [*_attributes(data), ("Paths through it", f"{through:,}")],
                "paths": f"{through:,}",
            }
        )
    width, height = _pixels(drawing.width, drawing.height)
    return {
        "width": width,
        "height": height,
        "direction": drawing.direction,
        "curved": drawing.curved,
        "nodes": nodes,
        "edges": edges,
        "notes": [[*_pixels(x, y), text] for x, y, text in drawing.notes],
        "dots": [_pixels(*dot) for dot in drawing.dots],
        "stubs": list(map(_line, drawing.stubs)),
        "input": ids[graph.graph["input"]],
        "output": ids[graph.graph["output"]],
    }


def _pixels(*inches: float) -> list[float]:
    return [round(_PIXELS * value, 1) for value in inches]


def _line(piece: list[tuple[float, float]]) -> list[float]:
    return _pixels(*(value for point in piece for value in point))


def _attributes(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Attributes as words, those that are known first and in a fixed order."""
    known = [name for name in _LABELS if name in data]
    others = [name for name in data if name not in _LABELS and name not in _UNSAID]
    return [(_LABELS.get(name, str(name)), _value(name, data[name])) for name in (*known, *others)]


def _value(name: str, value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if name == "out_shape" and _SHAPE.fullmatch(str(value)):
        return str(value).replace("x", "×")
    return said(list(value) if isinstance(value, tuple) else value)


# Lattices


def _cells(graph: nx.DiGraph) -> dict[str, Any]:
    """The lattice without its numbers of paths, which the page computes exactly from those of blocks."""
    from pathlens.graph.cells import LENGTH, PLACE, lattice_cells

    about = graph.graph
    first, blocks = about["first"], about["n_blocks"]
    norms = _checked(graph, first, blocks)
    cells = lattice_cells(graph)
    page: dict[str, Any] = {
        "first": first,
        "blocks": blocks,
        "names": about["names"],
        "stages": about["stages"],
        "axes": [PLACE, LENGTH],
        "floor": cells.floor,
        "top": cells.top,
        "cut": cells.is_cut,
        "shown": cells.longest,
        "ridge": [[place - first, length] for place, length in cells.ridge],
        "ridge_label": cells.ridge_label,
        "partings": [last + 0.5 - first for _, _, last in cells.stages[:-1]],
    }
    if cells.by_norm:
        page["norms"] = base64.b64encode(norms.astype("<f8").tobytes()).decode()
    return page


def _checked(graph: nx.DiGraph, first: int, blocks: int) -> np.ndarray:
    """Gradient norms by length and place, NaN where there are none.

    Raises:
        UsageError: the graph is not the lattice of its blocks.
    """
    norms = np.full((blocks + 1, blocks + 1), np.nan)
    for place in range(blocks + 1):
        for length, count in enumerate(binomials(blocks - place)):
            expected = (first + place, length)
            data = graph.nodes.get(expected, {})
            if (data.get("n_paths_in"), data.get("n_paths_out")) != (2**place, count):
                raise UsageError(
                    f"the graph is not the lattice of {blocks} blocks: node {expected} is missing or has other numbers "
                    "of paths; give what pathlens.unravel(..., kind='lattice') returns"
                )
            norms[length, place] = data.get("gradient_norm", np.nan)
    if (len(graph), graph.number_of_edges()) != ((blocks + 1) * (blocks + 2) // 2, blocks * (blocks + 1)):
        raise UsageError(
            f"the graph is not the lattice of {blocks} blocks: it has {len(graph)} nodes and {graph.number_of_edges()} "
            "edges; give what pathlens.unravel(..., kind='lattice') returns"
        )
    return norms
