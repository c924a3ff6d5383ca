"""The network as it is: stem, branches, shortcuts, additions, concatenations and head as a directed graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import networkx as nx
from torch import fx

from pathlens.graph.collapse import Part, collapse
from pathlens.graph.counting import count_paths
from pathlens.residual import ResidualView
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain, module_path
from pathlens.residual.describe import (
    common_start,
    count_parameters,
    is_shown,
    multiply_adds,
    nodes_between,
    operation_names,
    shape_of,
)

_LISTED = 4  # modules of a segment up to which all are named


def make_dag(view: ResidualView, whole_blocks: bool) -> nx.DiGraph:
    """The graph of a network; see :func:`pathlens.graph.unravel` for its attributes.

    Args:
        view: the network; it may have no blocks at all.
        whole_blocks: each block's branch is one node, whatever is added or concatenated inside; so are stem,
            transitions and head.
    """
    chain = view.chain()
    if not chain.in_series:
        chain = Chain(chain.trace, chain.discovery, ())
    parts = _whole(chain) if whole_blocks else collapse(chain)
    return _Builder(view, chain, parts, whole_blocks).build()


def _whole(chain: Chain) -> list[Part]:
    """Stem, transitions, branches, shortcuts, additions, post-activations and head."""
    source, main = chain.trace.source, chain.trace.main
    parts = [Part(source, "input", (source,), ())]

    def add(first: fx.Node, last: fx.Node, nodes: tuple[fx.Node, ...] | None = None) -> fx.Node:
        """A segment where anything is computed, and what it gives."""
        inside = nodes_between(chain, first, last) if nodes is None else nodes
        if all(node.target in ops.PRESERVING for node in inside):
            return first
        parts.append(Part(last, "segment", inside, (first,)))
        return last

    here = add(source, chain.boundaries[0])
    for link in chain.links:
        branch_point = add(here, link.branch_point, nodes_between(chain, link.start, link.branch_point))
        if link.addition.is_layer:
            here = add(branch_point, link.end, link.addition.branch_nodes)
            continue
        branch = add(branch_point, link.branch, link.addition.branch_nodes)
        shortcut = (
            branch_point
            if link.addition.kind == "identity"
            else add(branch_point, link.shortcut, link.addition.shortcut_nodes)
        )
        entering = {link.branch: branch, link.addition.shortcut: shortcut}
        parts.append(Part(link.total, "add", (link.total,), (branch, shortcut), entering))
        here = add(link.total, link.end, link.post)
    add(here, main, nodes_between(chain, chain.boundaries[-1], main))
    return parts


class _Builder:
    def __init__(self, view: ResidualView, chain: Chain, parts: list[Part], whole_blocks: bool) -> None:
        self.view = view
        self.chain = chain
        self.parts = parts
        self.whole_blocks = whole_blocks
        self.costs = multiply_adds(chain.trace)
        self.places = self._places()
        self.additions = chain.discovery.additions
        self.shortcuts = {node for a in self.additions.values() for node in a.shortcut_nodes}
        self.weightless = {
            node for a in self.additions.values() if not self._has_weights(a.branch_nodes) for node in a.branch_nodes
        }
        self.dominators = set(chain.discovery.dominators)
        self.used: Counter[str] = Counter()

    def _places(self) -> dict[fx.Node, tuple[str, int | None]]:
        """Role and block of every operation of a chain of blocks."""
        chain = self.chain
        places: dict[fx.Node, tuple[str, int | None]] = {}
        if not chain.links:
            return places

        def put(nodes: tuple[fx.Node, ...], role: str, block: int | None) -> None:
            for node in nodes:
                places.setdefault(node, (role, block))

        for index, link in enumerate(chain.links):
            layer = link.addition.is_layer
            put((link.total,), "layer" if layer else "add", index)
            put((*link.addition.branch_nodes, link.branch), "layer" if layer else "branch", index)
            put(link.addition.shortcut_nodes, "shortcut", index)
            put((link.shortcut,) if link.shortcut is not link.branch_point else (), "shortcut", index)
            put(link.post, "post", index)
            put(nodes_between(chain, link.start, link.branch_point), "transition", index)
        put(nodes_between(chain, chain.trace.source, chain.boundaries[0]), "stem", None)
        put(nodes_between(chain, chain.boundaries[-1], chain.trace.main), "head", None)
        return places

    def build(self) -> nx.DiGraph:
        graph = nx.DiGraph()
        ids: dict[fx.Node, str] = {}
        for part in self.parts:
            attributes = self._attributes(part)
            ids[part.end] = name = self._id(attributes)
            graph.add_node(name, **attributes)
            for source in part.sources:
                graph.add_edge(ids[source], name, role=self._role(part, source))
        _mark_skips(graph)
        output = ids[self.parts[-1].end]
        lengths = count_paths(graph, ids[self.parts[0].end], output)
        skips = Counter(data["skip"] for *_, data in graph.edges(data=True) if "skip" in data)
        graph.graph.update(
            kind="dag",
            network=type(self.view.model).__name__,
            detail="blocks" if self.whole_blocks else "merges",
            input=ids[self.parts[0].end],
            output=output,
            n_blocks=sum(not block.is_layer for block in self.view.blocks),
            n_paths=sum(lengths),
            n_paths_by_length=lengths,
            parameters=count_parameters(self.chain, tuple(node for part in self.parts for node in part.nodes)),
            n_skips_add=skips["add"],
            n_skips_concat=skips["concat"],
        )
        return graph

    def _id(self, attributes: dict[str, Any]) -> str:
        inside = attributes.get("inside")
        role, block = attributes["role"], attributes.get("block", "")
        base = f"{inside}{block}.{role}" if inside else f"{role}{block}"
        number = self.used[base]
        self.used[base] += 1
        return f"{base}.{number}" if number else base

    def _attributes(self, part: Part) -> dict[str, Any]:
        chain = self.chain
        place, block = self.places.get(part.end, ("", None))
        role = part.kind if part.kind != "segment" else place or "segment"
        attributes: dict[str, Any] = {"role": role}
        if block is not None:
            own = self.view.blocks[block]
            attributes.update(block=block, stage=own.stage)
            if role == "add" and place == "add":
                attributes["kind"] = own.kind
        if part.kind not in ("input", "segment") and place not in ("", part.kind):
            attributes["inside"] = place
        addition = self.additions.get(part.end)
        if addition is not None and "kind" not in attributes:
            attributes["kind"] = addition.kind
        if part.kind != "input":
            attributes["module"] = self._name(part, role, block)
            attributes["operations"] = ", ".join(operation_names(part.nodes))
        attributes["out_shape"] = "x".join(map(str, shape_of(chain.trace, part.end)))
        attributes["parameters"] = count_parameters(chain, part.nodes) if part.kind == "segment" else 0
        attributes["multiply_adds"] = sum(self.costs.get(node, 0) for node in part.nodes)
        attributes["is_branch"] = self._is_branch(part, role)
        attributes["label"] = _label(attributes)
        return {name: value for name, value in attributes.items() if value != ""}

    def _is_branch(self, part: Part, role: str) -> bool:
        """Whether passing this part adds one to the length of a path."""
        if self.whole_blocks:
            return role == "branch"
        if part.kind != "segment" or part.end in self.dominators or part.end in self.shortcuts or role == "shortcut":
            return False
        if self._has_weights(part.nodes):
            return True
        # of a block without convolutions and products, norms and scales are all that is learned
        learned = self._has_weights(part.nodes, ops.NORMS) or count_parameters(self.chain, part.nodes) > 0
        return learned and part.end in self.weightless

    def _has_weights(self, nodes: tuple[fx.Node, ...], kinds: frozenset[Any] = ops.WEIGHTED) -> bool:
        """Whether any of some operations that is of these kinds takes something that does not depend on the input."""
        input_dependent = self.chain.discovery.input_dependent
        return any(node.target in kinds and not input_dependent.issuperset(node.all_input_nodes) for node in nodes)

    def _name(self, part: Part, role: str, block: int | None) -> str:
        """The module that holds the part; where none does, the modules that it runs through."""
        own = None if block is None else self.view.blocks[block]
        if own is not None and role in ("branch", "layer") and (self.whole_blocks or not own.nested):
            return own.name
        paths = list(dict.fromkeys(path for node in part.nodes if is_shown(node) and (path := module_path(node))))
        shared = common_start(paths)
        if shared:
            return ".".join(shared)
        by_top = (tuple(path for path in paths if path[0] == top) for top in dict.fromkeys(path[0] for path in paths))
        names = [".".join(common_start(group)) for group in by_top]
        return ", ".join(names) if len(names) <= _LISTED else f"{names[0]}, …, {names[-1]}"

    def _role(self, part: Part, source: fx.Node) -> str:
        """Of the edge from a part's source: whether it is a shortcut, or an ordinary flow."""
        addition = self.additions.get(part.end)
        is_shortcut = addition is not None and part.entering.get(addition.shortcut) is source
        return "shortcut" if is_shortcut else "flow"


def _mark_skips(graph: nx.DiGraph) -> None:
    """Mark shortcuts, and edges past which another way leads: skip connections, by how they end."""
    for node, data in graph.nodes(data=True):
        if data["role"] in ("add", "concat"):
            entering = set(graph.predecessors(node))
            for operand in entering:
                edge, others = graph.edges[operand, node], entering - {operand}
                if edge["role"] == "shortcut" or any(nx.has_path(graph, operand, other) for other in others):
                    edge["skip"] = data["role"]


def _label(attributes: dict[str, Any]) -> str:
    """What a drawing says in the node."""
    role = attributes["role"]
    if role in ("input", "add", "concat"):
        return {"input": "input", "add": "+", "concat": "concat"}[role]
    by_operation = role in ("post", "joint", "shortcut", "transition")
    texts = [attributes.get(key, "") for key in ("operations", "module")]
    first, second = texts if by_operation else reversed(texts)
    return first or second or role
