"""``pathlens unravel``: a network as a graph, a picture, a page or an equation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pathlens.cli import options as o
from pathlens.cli.progress import say, waiting
from pathlens.cli.setting import foreign_output
from pathlens.cli.structure import InputShape, loaded_network, parse_shape
from pathlens.errors import RunError, UsageError, printable

if TYPE_CHECKING:
    import networkx as nx
    import torch
    from torch import nn

    from pathlens.models import LoadedModel
    from pathlens.tables import Table

_LATTICE = "lattice.parquet"

Kind = StrEnum("Kind", "dag tree lattice equation")
Format = StrEnum("Format", "text json graphml dot svg png pdf html latex")
Detail = StrEnum("Detail", "merges blocks")
Arrange = StrEnum("Arrange", "auto rows graphviz layers")

_ENDINGS = {".txt": "text", ".tex": "latex", ".gv": "dot", ".htm": "html"} | {f".{f.value}": f.value for f in Format}
_OF_EQUATIONS = (Format.text, Format.latex)


@o.takes_objects
def unravel(
    kind: Annotated[
        Kind,
        o.option(
            "dag: the network as it is; tree: each path of its own; lattice: block by path length; equation.", "--kind"
        ),
    ] = Kind.dag,
    blocks: Annotated[
        str | None,
        o.option(
            "Window of a tree, lattice or equation, both ends included, unlike Python's range. Default: all.",
            metavar="FIRST:LAST",
        ),
    ] = None,
    form: Annotated[
        Format | None,
        o.option(
            "text (a summary, or the equation), latex (equations only), html (an interactive page), or a file. "
            "Default: what --out ends with.",
            "--format",
            "-f",
        ),
    ] = None,
    out: Annotated[
        Path | None, o.option("Write there. Default: standard output, for texts.", "--out", metavar="FILE")
    ] = None,
    gradients: Annotated[
        Path | None,
        o.option("Weight a lattice: a run folder of path-gradients --lattice, or a table of a lattice.", metavar="RUN"),
    ] = None,
    detail: Annotated[
        Detail, o.option("Of a dag: all that is added or concatenated, or blocks as wholes.", "--detail")
    ] = Detail.merges,
    layout: Annotated[
        Arrange,
        o.option("Of a picture or page of a dag. auto: rows for chains of blocks, else Graphviz.", "--layout"),
    ] = Arrange.auto,
    *,
    network: o.Network,
    input_shape: InputShape = None,
    seed: o.Seed = 0,
    quiet: o.Quiet = False,
) -> None:
    """Unraveled views of a network: as it is, all of its paths, the lattice of block and length, or an equation.

    Any network has a dag, with concatenations and nested additions; the other views are of chains of residual blocks.
    """
    shape, window = parse_shape(input_shape), _window(blocks)
    target = _format(form, out, kind)
    if gradients is not None and kind != Kind.lattice:
        raise UsageError(f"--gradients belong to --kind lattice, not to {kind.value}")
    if window is not None and kind == Kind.dag:
        raise UsageError("--blocks is a window of a tree, lattice or equation; a dag shows the whole network")
    norms = None if gradients is None else _norms(gradients)
    loaded, example = loaded_network(network, seed, shape, None if norms is None else norms.provenance)
    if norms is not None:
        _check_network(norms, loaded, gradients)
    data = _content(
        loaded.model.eval(), example, kind, target, window, norms, detail, layout, network.output, not quiet
    )
    if not quiet:
        for note in loaded.notes:
            say(note)
    if out is None:
        text = data.decode()
        if target in _OF_EQUATIONS:
            text = "\n".join(map(printable, text.split("\n")))
        if hasattr(sys.stdout, "buffer"):  # which is not of a stream in another encoding than a page says of itself
            sys.stdout.flush()
            sys.stdout.buffer.write(text.encode())
        else:
            sys.stdout.write(text)
        return
    from pathlens.storage import atomic_write_bytes

    atomic_write_bytes(out, data)
    if not quiet:
        say(f"wrote {out}")


def _content(
    model: nn.Module,
    example: torch.Tensor,
    kind: Kind,
    target: Format,
    window: tuple[int, int] | None,
    norms: Table | None,
    detail: Detail,
    layout: Arrange,
    output: str | None,
    shows: bool,
) -> bytes:
    """The bytes to be written in the target format."""
    from pathlens import graph as graphs

    with waiting(f"tracing {type(model).__name__}", shows), foreign_output():
        view = graphs.as_view(model, example, output)
    if kind == Kind.equation:
        return graphs.equation(view, "latex" if target == Format.latex else "text", window).encode()
    graph = graphs.unravel(
        view, kind=cast(Any, kind.value), blocks=window, detail=cast(Any, detail.value), gradients=norms
    )
    writers: dict[Format, Callable[[nx.DiGraph], bytes]] = {
        Format.json: graphs.to_json,
        Format.graphml: graphs.to_graphml,
        Format.dot: graphs.to_dot,
        Format.text: lambda graph: _summary(graph).encode(),
    }
    if target in writers:
        return writers[target](graph)
    if target == Format.html:
        from pathlens.pages import graph_html

        return graph_html(graph, layout.value)
    from pathlens import figures

    figure = figures.unraveled(graph, layout=layout.value)
    return figures.files(figure, "graph", (target.value,))[f"graph.{target.value}"]


def _format(form: Format | None, out: Path | None, kind: Kind) -> Format:
    """The format asked for, which the kind has and which can go where it should."""
    ending = None if out is None else _ENDINGS.get(out.suffix.lower())
    if form is None and out is not None and ending is None:
        known = ", ".join(sorted(_ENDINGS))
        raise UsageError(f"--out {out}: the ending {out.suffix or '(none)'} says no format; give --format or {known}")
    target = form or Format(ending or "text")
    if ending is not None and target != ending:
        raise UsageError(f"--format {target.value} and --out {out} do not agree; give one of them, or the same")
    if (kind == Kind.equation) != (target in _OF_EQUATIONS) and target != Format.text:
        fitting = ", ".join(f.value for f in Format if (f in _OF_EQUATIONS) == (kind == Kind.equation) or f == "text")
        raise UsageError(f"--format {target.value} is not for --kind {kind.value}; give one of {fitting}")
    if out is None and target in (Format.png, Format.pdf):
        raise UsageError(f"--format {target.value} is no text; give --out FILE")
    return target


def _window(text: str | None) -> tuple[int, int] | None:
    numbers = o.parse_range(text, "blocks")
    if numbers is None:
        return None
    if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
        raise UsageError(f"--blocks {text!r} has gaps; a window is one run of blocks, such as 0:4")
    return numbers[0], numbers[-1]


def _norms(place: Path) -> Table:
    """The table of a lattice, or that of a run folder."""
    from pathlens.tables import read_table

    path = place / _LATTICE if os.path.isdir(place) else place
    if path is not place and not os.path.isfile(path):
        raise RunError(f"{place} has no {_LATTICE}; make one with pathlens path-gradients --lattice --out {place}")
    table = read_table(path)
    missing = [name for name in ("boundary", "length", "norm") if name not in table.types]
    if missing:
        raise RunError(
            f"{path} has no column {missing[0]!r}, so it is no lattice; give one of path-gradients --lattice"
        )
    return table


def _check_network(norms: Table, loaded: LoadedModel, place: Path | None) -> None:
    """Refuse norms of another network than the one that is drawn."""
    measured = norms.provenance.get("model_sha256")
    if measured is not None and loaded.sha256 is not None and measured != loaded.sha256:
        remedy = "give the same --model, --weights, --init and --seed"
        if norms.provenance.get("trained") is False and norms.provenance.get("num_classes") is None:
            remedy += ", or measure it again: it states no classes and channels of its data, which shape random weights"
        raise UsageError(
            f"{place} was measured on {norms.provenance.get('model', 'another network')} with other weights than "
            f"{loaded.spec} has here; {remedy}"
        )


def _summary(graph: nx.DiGraph) -> str:
    """What a reader wants to know of a graph without drawing it."""
    about = graph.graph
    parts = [f"{about['network']}, {about['kind']}: {len(graph)} nodes, {graph.number_of_edges()} edges"]
    if about["kind"] != "dag":
        parts[0] += f", blocks {about['first']} to {about['last']}"
    elif about["n_skips_add"] or about["n_skips_concat"]:
        parts.append(f"skips: {about['n_skips_add']} added, {about['n_skips_concat']} concatenated")
    parts.append(f"paths from input to output: {about['n_paths']}")
    lengths = about["n_paths_by_length"]
    width = max(len(str(count)) for count in lengths)
    parts += ["", f"length  {'paths':>{max(5, width)}}"]
    parts += [f"{length:>6}  {count:>{max(5, width)}}" for length, count in enumerate(lengths) if count]
    return "\n".join(parts) + "\n"
