"""Where the pictures of unraveled views put their nodes and edges, as plain numbers for other ways of drawing."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import networkx as nx

from pathlens.errors import UsageError
from pathlens.figures import network
from pathlens.figures.unraveled import columns_of
from pathlens.graph import Layout

Point = tuple[float, float]
Piece = list[Point]

_ROWS = 6.0  # inches that rows of blocks have at least
_ASPECT = 1.6  # of the rows of a long network together
_COLUMN, _TREE_ROW = 0.36, 0.19  # inches
_MANY = 64  # paths of a tree from which on its columns widen
_ABOVE = 0.28  # inches from the line of shortcuts up to the branches, as in the figure
_RADIUS = 0.06


@dataclass(frozen=True)
class Box:
    """A node: its centre and size in inches, its lines of text, and the number of its colour, if it has one."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[str, ...]
    tint: int | None = None


@dataclass
class Placed:
    """A drawing in inches from the upper left corner.

    Attributes:
        width: of all together.
        height: of all together.
        direction: which way paths lead: ``right`` or ``down``.
        curved: whether the pieces of edges are cubic Bezier splines, else straight lines.
        nodes: boxes; one without lines of text but ``+`` is an addition.
        edges: pieces of the line of each edge, from its start to its end.
        notes: left end, base line and text of what is written beside.
    """

    width: float
    height: float
    direction: str
    curved: bool
    nodes: dict[Hashable, Box] = field(default_factory=dict)
    edges: dict[tuple[Hashable, Hashable], list[Piece]] = field(default_factory=dict)
    notes: list[tuple[float, float, str]] = field(default_factory=list)


def placed(graph: nx.DiGraph, layout: str = "auto") -> Placed:
    """Where :func:`pathlens.figures.unraveled` puts what it draws.

    Args:
        graph: a dag or a tree, as :func:`pathlens.unravel` returns them.
        layout: of a dag: ``auto``, ``rows``, ``graphviz`` or ``layers``.

    Raises:
        UsageError: another graph, an unknown layout, or Graphviz is asked for and not installed.
    """
    kind = graph.graph.get("kind")
    if kind == "tree":
        return _tree(graph)
    if kind != "dag":
        raise UsageError(f"a graph of kind {kind!r} has no places; give a dag or a tree of pathlens.unravel(...)")
    found = network.layout_of(graph, layout)
    return _Rows(graph).placed if found is None else _laid_out(graph, found)


class _Rows:
    """A chain of blocks as words of a text."""

    def __init__(self, graph: nx.DiGraph) -> None:
        self.graph = graph
        self.names = network.NodeNames(graph)
        items = network.block_items(graph)
        needed = [network.width_needed(graph, item, self.names) for item in items]
        width = max(_ROWS, math.sqrt(sum(needed) * network.ROW_HEIGHT * _ASPECT), *needed)
        rows = network.Rows(width)
        self.forks: dict[str, float] = {}
        self.rows: dict[str, int] = {}
        self.placed = Placed(width + 0.3, 0.0, "right", False)
        for item, wide in zip(items, needed, strict=True):
            left, row = rows.place(wide)
            self._item(item, left + 0.15, wide, row)
        self.placed.height = network.ROW_HEIGHT * (rows.row + 1) + 0.1
        self.turns = {row: x + 0.15 for row, x in rows.turns}
        for start, end in graph.edges:
            self.placed.edges[start, end] = self._line(start, end)

    def _box(self, node: str, x: float, y: float, row: int, tint: int | None = None) -> None:
        self.rows[node] = row
        self.placed.nodes[node] = Box(x, y, self.names.width(node), 0.17, (self.names.texts[node],), tint)

    def _item(self, item: tuple[str, ...], left: float, wide: float, row: int) -> None:
        graph, names = self.graph, self.names
        parts = network.parts_of(graph, item)
        y = network.ROW_HEIGHT * (row + 0.78)
        if "add" not in parts:
            self._box(item[0], left + wide / 2, y, row)
            return
        x = left
        if "transition" in parts:
            own = names.width(parts["transition"])
            self._box(parts["transition"], x + 0.05 + own / 2, y, row)
            x += own + 0.06
        inner = max(names.width(parts[role]) for role in ("branch", "shortcut") if role in parts)
        fork, total = x + 0.08, x + 0.08 + inner + 0.2
        stage = graph.nodes[parts["branch"]].get("stage", 0)
        self._box(parts["branch"], (fork + total) / 2 - 0.02, y - _ABOVE, row, stage)
        if "shortcut" in parts:
            self._box(parts["shortcut"], (fork + total) / 2 - 0.02, y, row, stage)
        self.placed.nodes[parts["add"]] = Box(total, y, 2 * _RADIUS, 2 * _RADIUS, ("+",))
        self.rows[parts["add"]] = row
        if "post" in parts:
            self._box(parts["post"], total + 0.1 + names.width(parts["post"]) / 2, y, row)
        self.forks[parts["branch"]] = fork
        self._stage(parts["branch"], left, y, row)

    def _stage(self, branch: str, left: float, y: float, row: int) -> None:
        """The stage above its first block, and above the first block of every row."""
        data = self.graph.nodes[branch]
        begins = (data.get("stage"), row)
        if data.get("stage") is not None and begins != getattr(self, "begun", None):
            text = f"stage {data['stage']}, {network.shape_of(data)}"
            self.placed.notes.append((left + 0.03, y - 0.42, text))
            self.begun = begins

    def _line(self, start: str, end: str) -> list[Piece]:
        one, two = self.placed.nodes[start], self.placed.nodes[end]
        leaves, enters = (one.x + one.width / 2, one.y), (two.x - two.width / 2, two.y)
        if start in self.forks:  # from a branch down to its addition
            return [[leaves, (two.x, one.y), (two.x, two.y - two.height / 2)]]
        if end in self.forks:
            fork, level = self.forks[end], two.y + _ABOVE
            tail = [(fork, level), (fork, two.y), enters]
        else:
            tail = [enters]
        if self.rows[start] == self.rows[end]:
            return [[leaves, *tail]]
        level = tail[0][1]
        return [[leaves, (self.turns[self.rows[start]] + 0.1, one.y)], [(0.0, level), *tail]]


def _tree(graph: nx.DiGraph) -> Placed:
    columns = columns_of(graph)
    source = graph.graph["input"]
    last, rows = max(columns.values()), graph.graph["n_paths"]
    growth = 1.1 if rows > _MANY else 1.0  # later blocks join what is farther apart
    across = [0.6 * _COLUMN]
    for column in range(last + 1):
        across.append(across[-1] + _COLUMN * growth**column)
    found = Placed(across[last + 1], _TREE_ROW * rows + 0.1, "right", False)
    for node, data in graph.nodes(data=True):
        x, y = across[columns[node]], _TREE_ROW * (data["row"] + 0.5) + 0.05
        if data["role"] == "input":
            found.nodes[node] = Box(0.12, y, 0.2, 0.13, (data["label"],))
        elif data["role"] == "add":
            found.nodes[node] = Box(x, y, 0.11, 0.11, ("+",))
        else:
            found.nodes[node] = Box(x, y, 0.27, 0.13, (data["label"],), _block_of_branch(data))
    for start, end, data in graph.edges(data=True):
        one, two = found.nodes[start], found.nodes[end]
        level = one.y if start != source else _TREE_ROW * (data["row"] + 0.5) + 0.05
        begins = [(one.x + one.width / 2, one.y), (one.x + one.width / 2, level)]
        turns = abs(level - two.y) > 1e-9
        edge = two.height / 2 if level < two.y else -two.height / 2
        ends = [(two.x, level), (two.x, two.y - edge)] if turns else [(two.x - two.width / 2, level)]
        found.edges[start, end] = [[*begins[level == one.y :], *ends]]
    return found


def _block_of_branch(data: dict[str, object]) -> int | None:
    block = data.get("block")
    return block if data["role"] == "branch" and isinstance(block, int) else None


def _laid_out(graph: nx.DiGraph, layout: Layout) -> Placed:
    found = Placed(layout.width + 0.1, layout.height + 0.1, "down", True)

    def turned(point: Point) -> Point:
        return point[0] + 0.05, layout.height - point[1] + 0.05

    for node, place in layout.nodes.items():
        data = graph.nodes[node]
        lines = ("+",) if data["role"] == "add" else tuple(network.lines_of(data))
        tint = 2 if data["is_branch"] else 1 if data["role"] == "concat" else None
        found.nodes[node] = Box(*turned(place), *network.box_of(data), lines, tint)
    for edge, points in layout.edges.items():
        found.edges[edge] = [[turned(point) for point in points]]
    return found
