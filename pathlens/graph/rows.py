"""Places of a chain of blocks, which is written as the words of a text: from left to right, in rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import networkx as nx

from pathlens.graph.drawing import Box, Drawing, Line, Piece, shape_of, shortened, text_width

_CHAIN = {"input", "stem", "transition", "branch", "shortcut", "add", "post", "head"}
_SHADED = {"input", "stem", "transition", "head"}
_HEIGHT = 0.17  # inches of a box
_ROW = 0.72  # of a row
_LEAST = 6.0  # of all rows, where nothing says how wide they may be
_ASPECT = 1.6  # of the rows of a long network together
_ABOVE = 0.28  # from the line of shortcuts up to the branches
_RADIUS = 0.06  # of an addition
_MARGIN = 0.15
_HEAD = (0.05, 0.025)  # length and half width of the arrow where a row goes on in the next


def is_chain(graph: nx.DiGraph) -> bool:
    """Whether each block is one branch beside one shortcut, and nothing else is added or concatenated."""
    roles = [data["role"] for _, data in graph.nodes(data=True)]
    blocks = graph.graph["n_blocks"]
    return (
        set(roles) <= _CHAIN
        and roles.count("add") == roles.count("branch") == blocks > 0
        and graph.graph["n_paths"] == 2**blocks
    )


def place_rows(graph: nx.DiGraph, widths: Sequence[float] = ()) -> Drawing:
    """A drawing as wide as the first of ``widths`` that holds the whole chain, else as the last one."""
    return _Rows(graph, widths).drawing


class _Rows:
    def __init__(self, graph: nx.DiGraph, widths: Sequence[float]) -> None:
        self.graph = graph
        self.texts = {node: shortened(data["label"]) for node, data in graph.nodes(data=True)}
        source = graph.graph["input"]
        self.texts[source] = f"input {shape_of(graph.nodes[source])}".strip()
        self.drawing = Drawing("right")
        self.forks: dict[str, float] = {}
        self.rows: dict[str, int] = {}
        self.ends: list[float] = []  # of the rows
        # neighbours of one block are placed together
        items = [
            {graph.nodes[node]["role"]: node for node in nodes}
            for _, nodes in groupby(graph, lambda node: graph.nodes[node].get("block", node))
        ]
        needed = [self._needed(item) for item in items]
        width = self._page(needed, widths)
        x, begun = 0.0, None
        for item, own in zip(items, needed, strict=True):
            if x and x + own > width:
                self.ends.append(x + _MARGIN)
                x, begun = 0.0, None
            begun = self._item(item, x + _MARGIN, own, begun)
            x += own
        self.drawing.width = max([*self.ends, x + _MARGIN]) + _MARGIN
        self.drawing.height = _ROW * (len(self.ends) + 1) + 0.1
        for start, end in graph.edges:
            self.drawing.edges[start, end] = Line(self._pieces(start, end))

    def _width(self, node: str) -> float:
        return text_width(self.texts[node]) + 0.1

    def _inner(self, item: dict[str, str]) -> float:
        """Of the wider one of branch and shortcut."""
        return max(self._width(item[role]) for role in ("branch", "shortcut") if role in item)

    def _needed(self, item: dict[str, str]) -> float:
        """Inches that an item takes of its row."""
        if "add" not in item:
            return self._width(*item.values()) + 0.12
        return (
            self._inner(item) + 0.42 + sum(self._width(item[at]) + 0.06 for at in ("transition", "post") if at in item)
        )

    @staticmethod
    def _page(needed: Sequence[float], widths: Sequence[float]) -> float:
        if not widths:
            return max(_LEAST, math.sqrt(sum(needed) * _ROW * _ASPECT), *needed)
        rooms = [width - 2 * _MARGIN for width in widths]
        return max(next((room for room in rooms if sum(needed) <= room), rooms[-1]), *needed)

    def _box(self, node: str, x: float, y: float, tint: int | None = None, filled: bool = False) -> None:
        self.rows[node] = len(self.ends)
        self.drawing.nodes[node] = Box(x, y, self._width(node), _HEIGHT, (self.texts[node],), tint, filled)

    def _item(self, item: dict[str, str], left: float, wide: float, begun: object) -> object:
        """Place a block or a single node.

        Args:
            item: nodes by role.
            left: where it begins.
            wide: inches that it takes.
            begun: the stage that is written above its row.

        Returns:
            The stage that is written above its row now.
        """
        y = _ROW * (len(self.ends) + 0.78)
        if "add" not in item:
            ((role, node),) = item.items()
            self._box(node, left + wide / 2, y, filled=role in _SHADED)
            return begun
        x = left
        if "transition" in item:
            own = self._width(item["transition"])
            self._box(item["transition"], x + 0.05 + own / 2, y, filled=True)
            x += own + 0.06
        fork, total = x + 0.08, x + 0.08 + self._inner(item) + 0.2
        data = self.graph.nodes[item["branch"]]
        stage = data.get("stage")
        self._box(item["branch"], (fork + total) / 2 - 0.02, y - _ABOVE, stage or 0, filled=True)
        if "shortcut" in item:
            self._box(item["shortcut"], (fork + total) / 2 - 0.02, y, stage or 0)
        self.drawing.nodes[item["add"]] = Box(total, y, 2 * _RADIUS, 2 * _RADIUS, ("+",))
        self.rows[item["add"]] = len(self.ends)
        if "post" in item:
            self._box(item["post"], total + 0.1 + self._width(item["post"]) / 2, y)
        self.forks[item["branch"]] = fork
        self.drawing.dots.append((fork, y))
        if stage is not None and stage != begun:
            self.drawing.notes.append((left + 0.03, y - 0.42, f"stage {stage}, {shape_of(data)}"))
        return stage

    def _pieces(self, start: str, end: str) -> list[Piece]:
        one, two = self.drawing.nodes[start], self.drawing.nodes[end]
        leaves, enters = (one.x + one.width / 2, one.y), (two.x - two.width / 2, two.y)
        if start in self.forks:  # from a branch down to its addition
            return [[leaves, (two.x, one.y), (two.x, two.y - two.height / 2)]]
        tail = [enters]
        if end in self.forks:
            fork, level = self.forks[end], two.y + _ABOVE
            tail = [(fork, level), (fork, two.y), enters]
        if self.rows[start] == self.rows[end]:
            return [[leaves, *tail]]
        tip = self.ends[self.rows[start]] + 0.1
        head = [(tip - _HEAD[0], one.y - _HEAD[1]), (tip, one.y), (tip - _HEAD[0], one.y + _HEAD[1])]
        return [[leaves, head[1], *head], [(0.05, tail[0][1]), *tail]]
