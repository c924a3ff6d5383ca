"""``pathlens blocks``: the residual blocks of a network as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pathlens.cli import options as o
from pathlens.cli.initialised import check_init, initialised
from pathlens.cli.progress import say, waiting
from pathlens.cli.setting import foreign_output
from pathlens.errors import UsageError

if TYPE_CHECKING:
    import torch

    from pathlens.models import LoadedModel
    from pathlens.tables import Provenance, Table

_DEFAULT_INPUT = (3, 224, 224)
_LARGEST = {"num_classes": 50_000, "in_channels": 1_000}  # that a table may state

InputShape = Annotated[
    str | None, o.option("Shape of one input. Default: what the network states, else 3,224,224.", metavar="C,H,W")
]


@o.takes_objects
def blocks(
    network: o.Network,
    input_shape: InputShape = None,
    picture: Annotated[
        Path | None, o.option("Draw the block structure into a .png or .pdf file.", metavar="FILE")
    ] = None,
    additions: o.Additions = None,
    concat: o.Concat = False,
    seed: o.Seed = 0,
    out: o.Out = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """The residual blocks of a network: module, stage, shortcut, shapes, parameters, multiply-adds of one example."""
    shape = parse_shape(input_shape)
    if picture is not None and picture.suffix not in (".png", ".pdf"):
        raise UsageError(f"--picture {picture}: the ending is {picture.suffix or 'none'}; give a .png or .pdf file")
    from pathlens.analyses import view_of
    from pathlens.cli.show import show
    from pathlens.report import provenance
    from pathlens.results.structure import BLOCKS

    loaded, example = loaded_network(network, seed, shape)
    with waiting(f"tracing {loaded.spec}", not quiet), foreign_output():
        view = view_of(loaded.model, example, network.output, additions and str(additions), concat=concat)
    table = BLOCKS.table(
        view.rows(),
        provenance(
            verb="blocks",
            model=loaded.spec,
            weights=loaded.weights,
            model_sha256=loaded.sha256,
            input_shape=list(example.shape[1:]),
            output=view.output,
            additions=view.additions,
            concatenations_are_blocks=view.concat,
            **vars(view.totals),
            notes=[*loaded.notes, *view.notes],
        ),
    )
    _write(table, picture, out)
    if not quiet:
        for note in (*loaded.notes, *view.notes):
            say(note)
    show(table, "blocks", json)


def _write(table: Table, picture: Path | None, out: Path | None) -> None:
    if picture is None and out is None:
        return
    from pathlens import figures
    from pathlens.report import write_run

    figure = figures.draw("blocks", table)
    if picture is not None:
        from pathlens.storage import atomic_write_bytes

        atomic_write_bytes(picture, figures.files(figure, "blocks")[f"blocks{picture.suffix}"])
    if out is not None:
        write_run(out, {"blocks": table}, {"blocks": figure}, table.provenance)


def loaded_network(
    network: o.Network, seed: int, shape: tuple[int, ...] | None, measured: Provenance | None = None
) -> tuple[LoadedModel, torch.Tensor]:
    """A network of which the structure matters, so that weights may be random where it has none; and an input to it.

    Args:
        network: the options.
        seed: of random weights.
        shape: of one input, or None.
        measured: what a table states of the network that it was measured on, so that random weights are those again.

    Raises:
        PathlensError: whatever is wrong with the options, the network or the weights.
    """
    from pathlens.models import load_model
    from pathlens.models.registry import DEFAULT_NAME, REFERENCES

    name = DEFAULT_NAME if network.model is None else network.model
    packaged = name in REFERENCES and REFERENCES[name].packaged is not None
    has_own = packaged or ".py:" in name or name.startswith("hf:")
    weights = network.weights if network.weights or has_own else "random"
    check_init(network, weights)
    stated = {name: (measured or {}).get(name) for name in ("num_classes", "in_channels")}
    ends = {name: size for name, size in stated.items() if type(size) is int and 1 <= size <= _LARGEST[name]}
    loaded = load_model(network.model, weights, **ends, seed=seed)
    example = loaded.example
    if example is None or shape is not None:
        example = _zeros(shape or loaded.input_shape or _DEFAULT_INPUT)
    with foreign_output():
        loaded, _ = initialised(loaded, network, example, seed, network.output)
    return loaded, example


def _zeros(shape: tuple[int, ...]) -> torch.Tensor:
    """An input of two examples."""
    import torch

    from pathlens.runtime.memory import check_input_fits

    check_input_fits(shape, 2, "give a smaller --input-shape")
    return torch.zeros(2, *shape)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """``3,224,224`` or ``3x224x224``.

    Raises:
        UsageError: something else.
    """
    if text is None:
        return None
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or max(shape) > 100_000:
        raise UsageError(f"--input-shape {text!r} is no shape; give numbers such as 3,224,224")
    return shape
