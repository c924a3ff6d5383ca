"""Graphs as GraphML, DOT and JSON (node-link), and back.

Every reader gives back the graph that was written: the same nodes, edges, attributes and types. Integers that a format
has no room for (64 bits in GraphML, 53 in the JSON of a browser) are written as text, for a whole attribute at once.
Lists are JSON text in GraphML and DOT. Characters that XML forbids are written as ``_x0007_``, the code of the
character, as in Office Open XML.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import ParseError

import networkx as nx

from pathlens.errors import UsageError, one_line

if TYPE_CHECKING:
    import pydot

_INTEGERS = frozenset(
    ("block", "stage", "boundary", "length", "copy", "parameters", "multiply_adds", "first", "last", "n_blocks",
     "n_paths", "n_paths_in", "n_paths_out", "n_skips_add", "n_skips_concat")
)  # fmt: skip
_FLOATS = frozenset(("row", "gradient_norm"))
_TRUTHS = frozenset(("is_branch",))
_LISTS = frozenset(("n_paths_by_length", "names", "stages"))
_TUPLES = frozenset(("path", "later"))
_JSON_BITS, _GRAPHML_BITS = 53, 63

#: what XML 1.0 cannot hold, what parsers change (a carriage return), and what would look like an escape
_ODD = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|_x(?=[0-9A-F]{4,6}_)")
_ESCAPE = re.compile("_x([0-9A-F]{4,6})_")


def to_json(graph: nx.DiGraph) -> bytes:
    """The graph as JSON in networkx' node-link form.

    Args:
        graph: as :func:`unravel` returns it.
    """
    plain = _with_fitting_integers(graph, _JSON_BITS)
    text = json.dumps(nx.node_link_data(plain, edges="edges"), allow_nan=False, ensure_ascii=True)
    return text.encode()


def from_json(data: bytes) -> nx.DiGraph:
    """The graph that :func:`to_json` wrote.

    Args:
        data: what :func:`to_json` returned.

    Raises:
        UsageError: the bytes are no such graph.
    """
    try:
        graph = nx.node_link_graph(json.loads(data), edges="edges")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, nx.NetworkXError) as error:
        raise _unreadable("JSON in node-link form", error) from error
    if not isinstance(graph, nx.DiGraph):
        raise _unreadable("JSON in node-link form", "it is not directed")
    return _typed(graph)


def to_graphml(graph: nx.DiGraph) -> bytes:
    """The graph as GraphML.

    Args:
        graph: as :func:`unravel` returns it.
    """
    plain = _as_texts(_with_fitting_integers(graph, _GRAPHML_BITS), _escaped)
    stream = io.BytesIO()
    nx.write_graphml_xml(plain, stream)
    return stream.getvalue()


def from_graphml(data: bytes) -> nx.DiGraph:
    """The graph that :func:`to_graphml` wrote.

    Args:
        data: what :func:`to_graphml` returned.

    Raises:
        UsageError: the bytes are no such graph.
    """
    try:
        graph = nx.read_graphml(io.BytesIO(data))
    except (ParseError, ValueError, KeyError, nx.NetworkXError) as error:
        raise _unreadable("GraphML", error) from error
    if not isinstance(graph, nx.DiGraph):
        raise _unreadable("GraphML", "it is not directed")
    for defaults in ("node_default", "edge_default"):
        graph.graph.pop(defaults, None)
    return _typed(graph, _unescaped)


def to_dot(graph: nx.DiGraph) -> bytes:
    """The graph in DOT, the language of Graphviz.

    Args:
        graph: as :func:`unravel` returns it.

    Raises:
        UsageError: pydot is not installed.
    """
    pydot = import_pydot()
    plain = _as_texts(graph, _escaped)
    dot = pydot.Dot(graph_type="digraph", strict=True)
    for name, value in plain.graph.items():
        dot.set(name, quoted(value))
    for node, data in plain.nodes(data=True):
        dot_node = pydot.Node(quoted(node))
        for name, value in data.items():
            dot_node.set(name, quoted(value))
        dot.add_node(dot_node)
    for start, end, data in plain.edges(data=True):
        dot_edge = pydot.Edge(quoted(start), quoted(end))
        for name, value in data.items():
            dot_edge.set(name, quoted(value))
        dot.add_edge(dot_edge)
    return dot.to_string().encode()


def from_dot(data: bytes) -> nx.DiGraph:
    """The graph that :func:`to_dot` wrote. Slow for large graphs.

    Args:
        data: what :func:`to_dot` returned.

    Raises:
        UsageError: pydot is not installed, or the bytes are no such graph.
    """
    pydot = import_pydot()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _unreadable("DOT", error) from error
    dot = _parsed_dot(pydot, text)
    graph = nx.DiGraph()
    graph.graph.update(_read_attributes(dot))
    for node in dot.get_nodes():
        graph.add_node(_unquoted(str(node.get_name())), **_read_attributes(node))
    for edge in dot.get_edges():
        graph.add_edge(
            _unquoted(str(edge.get_source())), _unquoted(str(edge.get_destination())), **_read_attributes(edge)
        )
    return _typed(graph, _unescaped)


def import_pydot() -> Any:
    """The binding of Graphviz.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pydot
    except ImportError as error:
        raise UsageError("DOT and layouts by Graphviz need pydot: pip install 'pathlens[graph]'") from error
    return pydot


def quoted(value: object) -> str:
    """Any text as a quoted identifier of DOT, so that it is never taken for markup or a keyword."""
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return text


def _parsed_dot(pydot: Any, text: str) -> pydot.Dot:
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what is no DOT, and returns None
        graphs = pydot.graph_from_dot_data(text)
    if not graphs:
        raise _unreadable("DOT", "it does not parse")
    if graphs[0].get_type() != "digraph":
        raise _unreadable("DOT", "it is not directed")
    return graphs[0]


def _read_attributes(item: Any) -> dict[str, str]:
    return {name: _unquoted(str(value)) for name, value in item.get_attributes().items()}


def _unreadable(what: str, reason: object) -> UsageError:
    return UsageError(f"the graph is no {what}: {one_line(reason)}; give one that pathlens wrote")


def _all_data(graph: nx.DiGraph) -> Iterator[dict[str, Any]]:
    yield graph.graph
    for _, data in graph.nodes(data=True):
        yield data
    for *_, data in graph.edges(data=True):
        yield data


def _with_fitting_integers(graph: nx.DiGraph, bits: int) -> nx.DiGraph:
    """A copy in which integers of attributes that hold larger ones are text."""
    copy = graph.copy()
    limit = 2**bits

    def too_large(value: object) -> bool:
        if isinstance(value, list):
            return any(map(too_large, value))
        return isinstance(value, int) and abs(value) >= limit

    large = {name for data in _all_data(copy) for name, value in data.items() if too_large(value)}
    for data in _all_data(copy):
        for name in large & data.keys():
            value = data[name]
            data[name] = [str(item) for item in value] if isinstance(value, list) else str(value)
    return copy


def _as_texts(graph: nx.DiGraph, escape: Callable[[str], str]) -> nx.DiGraph:
    """A copy with names of nodes as text, lists as JSON and text escaped."""
    names = {node: _node_text(node) for node in graph}
    copy = nx.relabel_nodes(graph, names, copy=True)
    for data in _all_data(copy):
        for name, value in data.items():
            if isinstance(value, (list, tuple)):
                data[name] = json.dumps(value)
            elif isinstance(value, str):
                data[name] = escape(value)
    return copy


def _node_text(node: Hashable) -> str:
    return f"x{node[0]}k{node[1]}" if isinstance(node, tuple) else str(node)


def _typed(graph: nx.DiGraph, unescape: Callable[[str], str] = str) -> nx.DiGraph:
    """Types that the format has not kept, and places of a lattice by their numbers."""
    try:
        for data in _all_data(graph):
            for name, value in data.items():
                data[name] = _typed_value(name, value, unescape)
        if graph.graph.get("kind") == "lattice":
            places = {node: (data["boundary"], data["length"]) for node, data in graph.nodes(data=True)}
            graph = nx.relabel_nodes(graph, places, copy=True)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise _unreadable("graph of pathlens", error) from error
    return graph


def _typed_value(name: str, value: Any, unescape: Callable[[str], str]) -> Any:
    if name in _INTEGERS:
        return int(value)
    if name in _FLOATS:
        return float(value)
    if name in _TRUTHS:
        return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
    if name in _LISTS | _TUPLES:
        items = json.loads(value) if isinstance(value, str) else value
        if name != "names":
            items = [int(item) for item in items]
        return tuple(items) if name in _TUPLES else items
    return unescape(value) if isinstance(value, str) else value


def _escaped(text: str) -> str:
    return _ODD.sub(lambda match: "_x005F_x" if match[0] == "_x" else f"_x{ord(match[0]):04X}_", text)


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
