"""A picture of a network as it is: chains of blocks in rows, any other network laid out in layers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path

from pathlens.errors import UsageError
from pathlens.figures.style import COLOURS, DOUBLE, INK, MUTED, SHADE, SINGLE, count_words, new_page, style, text_inches
from pathlens.graph import Layout, graphviz_layout, has_graphviz

LAYOUTS = ("auto", "rows", "graphviz", "layers")
_SIZE = 6  # points of the text in nodes
_HEIGHT = 0.17  # inches of a box
ROW_HEIGHT = 0.72  # inches of a row of blocks
_SMALLEST = 0.5  # of the text in large networks, relative to small ones; beyond it the page grows
_SKIPS = {"add": COLOURS[0], "concat": COLOURS[1]}
_CHAIN = {"input", "stem", "transition", "branch", "shortcut", "add", "post", "head"}
_LONGEST = 26  # characters of a name
_MANY = 100  # skips from which on their lines are thin
_TALL = 40  # nodes, one after the other, beyond which skips are easier to follow as arcs beside a column


def draw_network(graph: nx.DiGraph, width: float | None, layout: str) -> Figure:
    """Draw a dag; see :func:`pathlens.figures.unraveled`."""
    found = layout_of(graph, layout)
    return _in_rows(graph, width) if found is None else _laid_out(graph, found, width)


def layout_of(graph: nx.DiGraph, layout: str) -> Layout | None:
    """The places of a dag by Graphviz or in layers, or None for a chain of blocks that is written in rows.

    Raises:
        UsageError: an unknown layout, rows for something else than a chain, or Graphviz is not installed.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"layout {layout!r} is unknown; give one of {', '.join(LAYOUTS)}")
    in_rows = _is_chain(graph)
    if layout == "rows" and not in_rows:
        raise UsageError(
            f"{graph.graph['network']} is no chain of blocks, which rows could show; give layout graphviz or layers"
        )
    if in_rows and layout in ("auto", "rows"):
        return None
    tall = len(graph) > _TALL and nx.dag_longest_path_length(graph, weight=None) == len(graph) - 1
    if layout == "layers" or (layout == "auto" and (tall or not has_graphviz())):
        return _layers(graph)
    return graphviz_layout(graph, {node: box_of(data) for node, data in graph.nodes(data=True)})


def _is_chain(graph: nx.DiGraph) -> bool:
    """Whether each block is one branch beside one shortcut, and nothing else is added or concatenated."""
    roles = [data["role"] for _, data in graph.nodes(data=True)]
    blocks = graph.graph["n_blocks"]
    return (
        set(roles) <= _CHAIN
        and roles.count("add") == roles.count("branch") == blocks > 0
        and graph.graph["n_paths"] == 2**blocks
    )


# Rows


class Rows:
    """Places in rows, from left to right, as words of a text."""

    def __init__(self, width: float) -> None:
        self.width = width
        self.x = 0.0
        self.row = 0
        self.turns: list[tuple[int, float]] = []

    def place(self, needed: float) -> tuple[float, int]:
        """Left end and row of something; a new row where it does not fit."""
        if self.x and self.x + needed > self.width:
            self.turns.append((self.row, self.x))
            self.x, self.row = 0.0, self.row + 1
        left = self.x
        self.x += needed
        return left, self.row


def _in_rows(graph: nx.DiGraph, width: float | None) -> Figure:
    width = width or (SINGLE if graph.graph["n_blocks"] <= 4 else DOUBLE)
    names = NodeNames(graph)
    rows = Rows(width - 0.3)
    items = block_items(graph)
    placed = [(item, *rows.place(width_needed(graph, item, names))) for item in items]
    height = ROW_HEIGHT * (rows.row + 1) + 0.3
    with style():
        figure, axes = new_page(width, height)
        axes.set_xlim(-0.15, width - 0.15)
        axes.set_ylim(0, height)

        def level(row: int) -> float:
            return height - 0.3 - ROW_HEIGHT * (row + 0.78)

        stage = None
        for item, left, row in placed:
            _draw_item(axes, graph, item, left, level(row), names)
            own = graph.nodes[item[-1]].get("stage")
            if len(item) > 1 and own is not None and (own != stage or left == 0):
                shape = shape_of(graph.nodes[item[-1]])
                axes.text(left + 0.03, level(row) + 0.42, f"stage {own}, {shape}", size=_SIZE, color=MUTED, va="bottom")
                stage = own
        for row, x in rows.turns:
            axes.annotate("", (x + 0.1, level(row)), (x, level(row)), arrowprops=_ARROW)
            axes.annotate("", (0, level(row + 1)), (-0.1, level(row + 1)), arrowprops={**_ARROW, "arrowstyle": "-"})
        axes.text(-0.1, height - 0.06, _title(graph), va="top", size=7, color=MUTED)
    return figure


_ARROW: dict[str, Any] = {"arrowstyle": "-|>,head_width=0.12,head_length=0.25", "lw": 0.6, "color": INK, "shrinkA": 0,
                          "shrinkB": 0}  # fmt: skip


def block_items(graph: nx.DiGraph) -> list[tuple[str, ...]]:
    """Nodes in the order of a chain, those of one block together."""
    items: list[tuple[str, ...]] = []
    blocks: dict[int, list[str]] = {}
    for node, data in graph.nodes(data=True):
        block = data.get("block")
        if block is None:
            items.append((node,))
        elif block in blocks:
            blocks[block].append(node)
        else:
            blocks[block] = [node]
            items.append((f"block {block}",))
    return [tuple(blocks[int(item[0].split()[1])]) if item[0].startswith("block ") else item for item in items]


class NodeNames:
    """Texts of boxes and their widths."""

    def __init__(self, graph: nx.DiGraph) -> None:
        self.texts = {node: _cut(data["label"]) for node, data in graph.nodes(data=True)}
        source = graph.graph["input"]
        self.texts[source] = f"input {shape_of(graph.nodes[source])}".strip()

    def width(self, node: str) -> float:
        """Of the box of a node, in inches."""
        return text_inches(self.texts[node], _SIZE) + 0.1


def _cut(text: object, most: int = _LONGEST) -> str:
    text = str(text)
    if len(text) <= most:
        return text
    # of a list its beginning says most, of a module its end
    return f"{text[: most - 1].rpartition(',')[0]}, …" if ", " in text[: most - 1] else f"…{text[1 - most :]}"


def parts_of(graph: nx.DiGraph, item: tuple[str, ...]) -> dict[str, str]:
    """Nodes of an item by their role."""
    return {graph.nodes[node]["role"]: node for node in item}


def width_needed(graph: nx.DiGraph, item: tuple[str, ...], names: NodeNames) -> float:
    """Inches that an item takes of its row."""
    parts = parts_of(graph, item)
    if "add" not in parts:
        return sum(names.width(node) for node in item) + 0.12
    inner = max(names.width(parts[role]) for role in ("branch", "shortcut") if role in parts)
    extra = sum(names.width(parts[role]) + 0.06 for role in ("transition", "post") if role in parts)
    return inner + 0.42 + extra


def _draw_item(axes: Axes, graph: nx.DiGraph, item: tuple[str, ...], left: float, y: float, names: NodeNames) -> None:
    parts = parts_of(graph, item)
    right = left + width_needed(graph, item, names)
    start = 0.12 if parts.keys() == {"input"} else 0
    axes.plot([left + start, right], [y, y], color=INK, lw=0.6, zorder=1, solid_capstyle="butt")
    if "add" not in parts:
        _box_at(axes, (left + right) / 2, y, names.width(item[0]), names.texts[item[0]], SHADE)
        return
    x = left
    if "transition" in parts:
        wide = names.width(parts["transition"])
        _box_at(axes, x + 0.05 + wide / 2, y, wide, names.texts[parts["transition"]], SHADE)
        x += wide + 0.06
    inner = max(names.width(parts[role]) for role in ("branch", "shortcut") if role in parts)
    fork, total = x + 0.08, x + 0.08 + inner + 0.2
    middle, above = (fork + total) / 2 - 0.02, y + 0.28
    branch = graph.nodes[parts["branch"]]
    axes.plot([fork, fork, total, total], [y, above, above, y + 0.06], color=INK, lw=0.6, zorder=1)
    axes.plot([fork], [y], "o", ms=1.8, color=INK, mew=0, zorder=2)
    colour = COLOURS[branch.get("stage", 0) % len(COLOURS)]
    _box_at(axes, middle, above, names.width(parts["branch"]), names.texts[parts["branch"]], _pale(colour), colour)
    if "shortcut" in parts:
        _box_at(axes, middle, y, names.width(parts["shortcut"]), names.texts[parts["shortcut"]], "white", colour)
    _plus(axes, total, y, 0.055)
    if "post" in parts:
        wide = names.width(parts["post"])
        _box_at(axes, total + 0.1 + wide / 2, y, wide, names.texts[parts["post"]], "white")


# Layers


def box_of(data: dict[str, Any]) -> tuple[float, float]:
    """Width and height of a node."""
    if data["role"] == "add":
        return 0.13, 0.13
    lines = lines_of(data)
    return max(text_inches(line, _SIZE) for line in lines) + 0.1, 0.09 * len(lines) + 0.07


def lines_of(data: dict[str, Any]) -> list[str]:
    """What is written in the box of a node."""
    return [line for line in (_cut(data["label"]), shape_of(data)) if line]


def _layers(graph: nx.DiGraph) -> Layout:
    """The longest way from the input as the layer, and neighbours side by side."""
    sizes = {node: box_of(data) for node, data in graph.nodes(data=True)}
    nodes: dict[Hashable, tuple[float, float]] = {}
    wide = [sum(sizes[node][0] + 0.12 for node in layer) for layer in nx.topological_generations(graph)]
    y, total = 0.0, max(wide)
    for layer, needed in zip(nx.topological_generations(graph), wide, strict=True):
        x = (total - needed) / 2
        for node in layer:
            nodes[node] = (x + 0.06 + sizes[node][0] / 2, y)
            x += sizes[node][0] + 0.12
        y -= 0.42
    lowest = y + 0.25
    nodes = {node: (x, at - lowest) for node, (x, at) in nodes.items()}
    edges: dict[tuple[Hashable, Hashable], list[tuple[float, float]]] = {}
    farthest = total
    for start, end in graph.edges:
        (x0, y0), (x1, y1) = nodes[start], nodes[end]
        bend = 0.0
        if y0 - y1 > 0.5:  # long edges go around what lies between
            bend = 0.3 * (y0 - y1) ** 0.8
            x0, x1 = x0 + sizes[start][0] / 2, x1 + sizes[end][0] / 2
        farthest = max(farthest, max(x0, x1) + 0.8 * bend)
        edges[start, end] = [(x0, y0), (x0 + bend, y0 - (y0 - y1) / 3), (x1 + bend, y1 + (y0 - y1) / 3), (x1, y1)]
    return Layout(farthest, max(y for _, y in nodes.values()) + 0.2, nodes, edges)


def _laid_out(graph: nx.DiGraph, layout: Layout, width: float | None) -> Figure:
    width = width or (SINGLE if layout.width <= SINGLE - 0.1 else DOUBLE)
    scale = max(_SMALLEST, min(1.0, (width - 0.1) / layout.width, 8.5 / layout.height))
    width = max(width, scale * layout.width + 0.1)
    height = scale * layout.height + 0.55
    with style():
        figure, axes = new_page(width, height)
        axes.set_xlim(-(width / scale - layout.width) / 2, (width / scale + layout.width) / 2)
        axes.set_ylim(-0.05 / scale, (height - 0.05) / scale)
        thin = 0.9 if sum("skip" in data for *_, data in graph.edges(data=True)) <= _MANY else 0.4
        for (start, end), points in layout.edges.items():
            skip = graph.edges[start, end].get("skip")
            codes = [Path.MOVETO, *[Path.CURVE4] * (len(points) - 1)]
            look: dict[str, Any] = {"lw": (thin if skip else 0.6) * scale, "edgecolor": _SKIPS.get(skip or "", INK)}
            axes.add_patch(PathPatch(Path(points, codes), facecolor="none", zorder=2 if skip else 1, **look))
        for node, (x, y) in layout.nodes.items():
            data = graph.nodes[node]
            if data["role"] == "add":
                _plus(axes, x, y, 0.06, scale)
                continue
            wide, tall = box_of(data)
            colour = {"concat": _pale(_SKIPS["concat"]), "joint": SHADE, "input": SHADE}.get(data["role"], "white")
            if data["is_branch"]:
                colour = _pale(COLOURS[2])
            _box_at(axes, x, y, wide, "\n".join(lines_of(data)), colour, INK, tall, scale)
        top = (height - 0.05) / scale
        axes.text(axes.get_xlim()[0] + 0.05 / scale, top - 0.06 / scale, _title(graph), va="top", size=7, color=MUTED)
        _skip_legend(axes, graph, top - 0.2 / scale, scale)
    return figure


def _skip_legend(axes: Axes, graph: nx.DiGraph, y: float, scale: float) -> None:
    x = axes.get_xlim()[0] + 0.05 / scale
    for skip, words in (("add", "skip that is added"), ("concat", "skip that is concatenated")):
        if graph.graph[f"n_skips_{skip}"]:
            axes.plot([x, x + 0.2 / scale], [y - 0.06 / scale] * 2, color=_SKIPS[skip], lw=0.9)
            axes.text(x + 0.25 / scale, y - 0.06 / scale, words, va="center", size=_SIZE)
            x += (0.4 + text_inches(words, _SIZE)) / scale
    if any(data["is_branch"] for _, data in graph.nodes(data=True)):
        _box_at(axes, x + 0.06 / scale, y - 0.06 / scale, 0.12 / scale, "", _pale(COLOURS[2]), INK, 0.09 / scale)
        axes.text(x + 0.17 / scale, y - 0.06 / scale, "adds 1 to a path's length", va="center", size=_SIZE)


# What both share


def _box_at(
    axes: Axes, x: float, y: float, width: float, text: str, face: str, edge: str = INK, height: float = _HEIGHT,
    scale: float = 1.0,
) -> None:  # fmt: skip
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, facecolor=face, edgecolor=edge,
                                  boxstyle="round,pad=0,rounding_size=0.03", lw=0.6 * scale, zorder=3))  # fmt: skip
    axes.text(x, y - 0.003, text, ha="center", va="center", size=_SIZE * scale, linespacing=1.05, zorder=4)


def _plus(axes: Axes, x: float, y: float, radius: float, scale: float = 1.0) -> None:
    axes.add_patch(Circle((x, y), radius, facecolor="white", edgecolor=INK, lw=0.6 * scale, zorder=3))
    arm = 0.6 * radius
    axes.plot([x - arm, x + arm], [y, y], color=INK, lw=0.6 * scale, zorder=4)
    axes.plot([x, x], [y - arm, y + arm], color=INK, lw=0.6 * scale, zorder=4)


def shape_of(data: dict[str, Any]) -> str:
    """``64×8×8``, or nothing."""
    return str(data.get("out_shape", "")).replace("x", "×")


def _pale(colour: str) -> str:
    """Nearly white, so that black text on it is read with ease."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.35 * (255 - part)):02x}" for part in parts)


def _title(graph: nx.DiGraph) -> str:
    facts = graph.graph
    blocks = f"{facts['n_blocks']} blocks, " if facts["n_blocks"] else ""
    return f"{facts['network']}: {blocks}{count_words(facts['n_paths'])}"
