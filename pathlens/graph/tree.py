"""The unraveled network: every path is visible, at the price of copies (Veit, Wilber, Belongie 2016, figure 1b)."""

from __future__ import annotations

from typing import Any

import networkx as nx

from pathlens.graph.counting import count_paths
from pathlens.graph.symbols import Symbols
from pathlens.graph.window import check_size
from pathlens.residual import ResidualView
from pathlens.residual.describe import shape_of


def make_tree(view: ResidualView, first: int, last: int) -> nx.DiGraph:
    """The unraveled network of blocks ``first`` to ``last``; see :func:`pathlens.graph.unravel` for its attributes.

    Raises:
        UsageError: it has more than 1024 paths.
    """
    check_size(first, last, "tree")
    return _Tree(view, first, last).build()


class _Tree:
    def __init__(self, view: ResidualView, first: int, last: int) -> None:
        self.view = view
        self.first = first
        self.last = last
        self.symbols = Symbols(view, first)
        self.graph = nx.DiGraph()
        self.copies: dict[str, int] = {}
        self.leaves = 0

    def build(self) -> nx.DiGraph:
        graph, view = self.graph, self.view
        source = f"x{self.first}"
        chain = view.chain()
        shape = shape_of(chain.trace, chain.boundaries[self.first])
        text = "x".join(map(str, shape))
        graph.add_node(source, role="input", label=self.symbols.input, out_shape=text, is_branch=False)
        top = self._grow(self.last, ())
        graph.nodes[source]["row"] = (self.leaves - 1) / 2
        lengths = count_paths(graph, source, top)
        graph.graph.update(
            kind="tree",
            network=type(view.model).__name__,
            first=self.first,
            last=self.last,
            input=source,
            output=top,
            n_blocks=self.last - self.first + 1,
            n_paths=sum(lengths),
            n_paths_by_length=lengths,
        )
        return graph

    def _grow(self, block: int, later: tuple[int, ...]) -> str:
        """A copy of everything up to the output of ``block``, for the paths that take the branches ``later`` after it.

        Returns:
            The last node of the copy.
        """
        shown = self.view.blocks[block]
        # upper rows are the longer paths, as in the paper's figure
        branch = self._unary("branch", block, later, self._fork(block, (block, *later)), (block, *later))
        shortcut = self._fork(block, later)
        if self.symbols.has_shortcut(block):
            shortcut = self._unary("shortcut", block, later, shortcut, later)
        total = self._node("add", block, later, self.symbols.total(block), kind=shown.kind)
        self._join(branch, total, (block, *later))
        self._join(shortcut, total, later)
        above = [self._row(branch), self._row(shortcut, total)]
        self.graph.nodes[total]["row"] = sum(above) / 2
        if not self.symbols.has_post(block):
            return total
        return self._unary("post", block, later, total, None)

    def _fork(self, block: int, later: tuple[int, ...]) -> str:
        """A copy of t_i, what branch and shortcut start from."""
        below = f"x{self.first}" if block == self.first else self._grow(block - 1, later)
        if not self.symbols.has_transition(block):
            return below
        return self._unary("transition", block, later, below, later)

    def _unary(self, role: str, block: int, later: tuple[int, ...], below: str, path: tuple[int, ...] | None) -> str:
        node = self._node(role, block, later, self.symbols.applied(role, block))
        self._join(below, node, path)
        self.graph.nodes[node]["row"] = self._row(below, node)
        return node

    def _node(self, role: str, block: int, later: tuple[int, ...], expression: str, **more: Any) -> str:
        shown = self.view.blocks[block]
        base = f"{role}{block}"
        copy = self.copies[base] = self.copies.get(base, -1) + 1
        name = f"{base}#{copy}"
        label = "+" if role == "add" else self.symbols.symbol(role, block)
        shape = shown.in_shape if role == "transition" else shown.out_shape
        self.graph.add_node(name, role=role, block=block, stage=shown.stage, module=shown.name, copy=copy, label=label,
                            later=later, expression=expression, is_branch=role == "branch",
                            out_shape="x".join(map(str, shape)), **more)  # fmt: skip
        return name

    def _join(self, below: str, node: str, path: tuple[int, ...] | None) -> None:
        """An edge; one that leaves the input begins exactly one path, and says which."""
        self.graph.add_edge(below, node)
        if below == f"x{self.first}" and path is not None:
            self.graph.edges[below, node].update(path=path, length=len(path), row=float(self.leaves))
            self.leaves += 1

    def _row(self, node: str, user: str | None = None) -> float:
        """Where a node is drawn, in units of paths; the input is everywhere, so its edge counts instead."""
        if node == f"x{self.first}" and user is not None:
            return self.graph.edges[node, user]["row"]
        return self.graph.nodes[node]["row"]
