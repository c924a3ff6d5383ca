"""Exact numbers of paths through a directed graph, by dynamic programming."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import networkx as nx


def count_paths(graph: nx.DiGraph, source: Hashable, sink: Hashable) -> list[int]:
    """Count the paths from source to sink, and write on every node how many lead to and from it.

    Sets the node attributes ``n_paths_in`` (paths from the source), ``n_paths_out`` (paths to the sink) and ``n_paths``
    (paths through the node: their product), exact integers of any size. The length of a path is the number of its
    nodes with ``is_branch``.

    Args:
        graph: without cycles.
        source: where paths begin.
        sink: where they end.

    Returns:
        The number of paths of length 0, 1, ...; all lengths up to the longest.
    """
    order = list(nx.topological_sort(graph))
    before = lengths_from(graph, source)
    after: dict[Hashable, int] = {}
    for node in reversed(order):
        after[node] = 1 if node == sink else sum(after[below] for below in graph.successors(node))
    for node in order:
        into = sum(before[node])
        graph.nodes[node].update(n_paths_in=into, n_paths_out=after[node], n_paths=into * after[node])
    return before[sink]


def lengths_from(graph: nx.DiGraph, source: Hashable) -> dict[Hashable, list[int]]:
    """Numbers of paths of length 0, 1, ... from a node to every node, exact integers of any size.

    Args:
        graph: without cycles; the length of a path is the number of its nodes with ``is_branch``.
        source: where paths begin.
    """
    lengths: dict[Hashable, list[int]] = {}
    for node in nx.topological_sort(graph):
        own = [1] if node == source else add_lengths([lengths[above] for above in graph.predecessors(node)])
        lengths[node] = [0, *own] if graph.nodes[node].get("is_branch") and own else own
    return lengths


def add_lengths(distributions: Sequence[Sequence[int]]) -> list[int]:
    """The sum of distributions over lengths, as long as the longest."""
    total = [0] * max(map(len, distributions), default=0)
    for distribution in distributions:
        for length, count in enumerate(distribution):
            total[length] += count
    return total
