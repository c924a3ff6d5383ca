"""Set the weights of a network by a scheme, and say in a table what was set where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pathlens.errors import ModelError, UsageError
from pathlens.initialisation.places import (
    BranchEnd,
    Place,
    find_biases,
    find_embedded,
    find_ends,
    find_places,
    find_undrawn,
    find_used,
    holders,
    norms_of,
    other_parameters,
)
from pathlens.initialisation.reparametrised import Factor, ScaledStandardisation, attach, detached
from pathlens.initialisation.schemes import SCHEMES, Draw, Scheme, check_name
from pathlens.residual import ResidualView, view_of
from pathlens.results.initialisation import INITIALISATION
from pathlens.tables import Provenance, Table
from pathlens.tables.declared import MutableRow

#: where normal distributions are cut off, in standard deviations, and the deviation that is left (as Keras has them)
_CUT = 2.0
_TRUNCATED_STD = 0.87962566103423978


def initialise(
    model: nn.Module | ResidualView,
    scheme: str,
    *,
    example: Tensor | None = None,
    standardise: bool = False,
    generator: torch.Generator | None = None,
) -> Table:
    """Give a network fresh weights by a published scheme, in place.

    Weights of convolutions and linear maps are drawn, biases of these become 0, and norms start anew. All other
    parameters (embeddings, transposed convolutions, layer scales, weights that the output does not use) are kept.
    ``skipinit``, ``rezero``, ``fixup`` and ``stable`` put a factor at the end of each branch: on the weight and bias of
    the layer that ends it, as a parametrization of torch, so that the class of the network is not changed and the
    factor trains as if it stood in the forward pass. Layers that share a weight share its factor.

    Args:
        model: the network or its view.
        scheme: a name of ``SCHEMES``.
        example: an input, shape (N, ...), by which the blocks of a network are found; a view has its own.
        standardise: bring each output channel of what is drawn to mean zero and the variance that is due, exactly.
        generator: of the draws, on the CPU (default: one of seed 0). The global random state is not touched.

    Returns:
        A row for each parameter.

    Raises:
        UsageError: an unknown scheme, or a network without an example.
        ModelError: the scheme does not fit: there are no weights, or some in another form than convolutions and linear
            maps; a branch does not end in what it needs; the embedding would become 0. The network stays as it was.

    Example:
        >>> import torch, pathlens
        >>> net = pathlens.load_model("nfresnet18:plain", "random").model
        >>> table = pathlens.initialise(net, "stable", example=torch.zeros(2, 3, 32, 32))
        >>> [round(row["factor"], 4) for row in table.rows if row["factor"] is not None]
        [0.3536, 0.3536, 0.3536, 0.3536, 0.3536, 0.3536, 0.3536, 0.3536]
    """
    check_name(scheme)
    chosen = SCHEMES[scheme]
    with _bare(model, example) as view:
        places = find_places(view)
        ends = _checked(scheme, chosen, view, places)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    network = view.model
    rows: dict[str, MutableRow] = {}
    with torch.no_grad():
        for place in places:
            draw = chosen.draw(place)
            standardised = _set(network.get_parameter(place.parameter), draw, standardise, generator)
            rows[place.parameter] = {
                "role": place.role,
                "block": place.block,
                "layer": place.layer,
                "distribution": draw.distribution,
                "gain": draw.gain if draw.fan else None,
                "fan": draw.fan,
                "std_due": draw.std,
                "standardised": standardised,
            }
        norms = norms_of(network, find_used(view))
        for name, role in other_parameters(network, places, find_biases(view), norms).items():
            rows[name] = {"role": role, "distribution": "kept" if role == "other" else "constant"}
            if role != "other":
                network.get_parameter(name).fill_(1.0 if role == "norm" and name.endswith("weight") else 0.0)
        for norm in norms:
            if isinstance(norm, nn.modules.batchnorm._NormBase):
                norm.reset_running_stats()
    table = [{**_EMPTY, **rows[name], **_values(name, p)} for name, p in network.named_parameters()]
    factors = _reparametrise(view, chosen, places, ends)
    for row in table:
        row["factor"] = factors.get(row["parameter"])
    provenance: Provenance = {
        "verb": "initialise",
        "network": type(network).__name__,
        "scheme": scheme,
        "standardised": standardise,
        "notes": [chosen.note] if chosen.note else [],
    }
    return INITIALISATION.table(table, provenance)


_EMPTY: MutableRow = {
    "parameter": "",
    **dict.fromkeys(("block", "layer", "gain", "fan", "std_due", "factor")),
    "standardised": False,
}


@contextlib.contextmanager
def _bare(model: nn.Module | ResidualView, example: Tensor | None) -> Iterator[ResidualView]:
    """A view of the network without what an earlier initialisation attached, which an error puts back."""
    if isinstance(model, ResidualView):
        like = torch.zeros(2, *model.input_shape, dtype=model.input_dtype)
        if model.concat:
            raise UsageError("schemes are for branches that are added; give a view without concatenations")
        with detached(model.model) as was_attached:
            yield view_of(model.model, like, model.output, model.additions) if was_attached else model
        return
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(model).__name__}")
    if example is None:
        raise UsageError("give example=, an input of shape (N, ...), by which the blocks are found, or a view")
    with detached(model):
        yield view_of(model, example)


def _checked(name: str, scheme: Scheme, view: ResidualView, places: tuple[Place, ...]) -> tuple[BranchEnd, ...]:
    """The ends of the branches, if the scheme concerns them and fits all of them."""
    network = type(view.model).__name__
    if not places:
        raise ModelError(f"{name} does not fit {network}: it has no weight of a convolution or linear map to draw")
    if undrawn := find_undrawn(view, places):
        more = f" and {len(undrawn) - 1} more" if len(undrawn) > 1 else ""
        raise ModelError(
            f"{name} does not fit {network}: {undrawn[0]}{more} would stay as it is: it is multiplied with in another "
            "form than that of nn.Linear, so that its fans are not known; write it as nn.Linear, or leave --init out"
        )
    embedded = find_embedded(view)
    for place in places:
        if place.parameter in embedded and scheme.draw(place).distribution == "constant":
            raise ModelError(
                f"{name} does not fit {network}: its last weight, which becomes 0, is also its embedding "
                f"({place.parameter}), so that nothing would ever be learned; untie them, or take another scheme"
            )
    if not scheme.ends:
        return ()
    if view.is_plain:
        raise ModelError(f"{name} does not fit {network}: it has no residual branches; take a scheme such as he-fan-in")
    ends = find_ends(view)
    for end in ends:
        if end.kind not in scheme.ends or not end.parameters:
            expected = " or a ".join("weight layer" if kind == "weight" else kind for kind in scheme.ends)
            raise ModelError(
                f"{name} does not fit {network}: the branch of block {end.block} ({end.name}) ends in {end.kind} and "
                f"not in a {expected} of its own; take a scheme that does not concern the ends, such as he-fan-in"
            )
    return ends


def _set(weight: nn.Parameter, draw: Draw, standardise: bool, generator: torch.Generator) -> bool:
    """Draw a weight, in float64 so that every dtype gets the same values; whether its channels were standardised."""
    values = torch.zeros(weight.shape, dtype=torch.float64)
    if draw.distribution == "normal":
        values.normal_(0.0, draw.std, generator=generator)
    elif draw.distribution == "uniform":
        limit = draw.std * 3**0.5
        values.uniform_(-limit, limit, generator=generator)
    elif draw.distribution == "truncated normal":
        wide = draw.std / _TRUNCATED_STD
        nn.init.trunc_normal_(values, 0.0, wide, -_CUT * wide, _CUT * wide, generator=generator)
    channels = values.flatten(1)
    to_standardise = standardise and draw.std > 0 and channels.shape[1] > 1
    if to_standardise:
        deviation, mean = torch.std_mean(channels, 1, correction=0, keepdim=True)
        channels.sub_(mean).mul_(draw.std / deviation)
    weight.copy_(values)
    return to_standardise


def _values(name: str, parameter: Tensor) -> MutableRow:
    values = parameter.detach().double()
    return {
        "parameter": name,
        "shape": "x".join(map(str, parameter.shape)),
        "mean": float(values.mean()),
        "std": float(values.std(correction=0)) if values.numel() > 1 else None,
    }


def _reparametrise(
    view: ResidualView, scheme: Scheme, places: tuple[Place, ...], ends: tuple[BranchEnd, ...]
) -> dict[str, float]:
    """Attach the factors and standardisations of the scheme; the factor at each parameter that has one."""
    network = view.model
    factors: dict[str, float] = {}
    if scheme.standardises:
        done: set[str] = set()
        for place in places:
            if place.parameter in done:  # a module that runs several times
                continue
            done.add(place.parameter)
            weight = network.get_parameter(place.parameter)
            if weight.dim() > 2 and weight[0].numel() > 1:
                standardisation = ScaledStandardisation(scheme.draw(place).gain, weight)
                for name in holders(network, place.parameter).values():
                    attach(network, name, standardisation)
    if scheme.factor is None:
        return factors
    made: dict[Tensor, Factor] = {}
    for end in ends:
        value = scheme.factor(len(view))
        # a module that several blocks share has its factor
        parts = {name: network.get_parameter(name) for name in end.parameters if name not in factors}
        if not parts:
            continue
        # and modules that share a weight have one
        shared = [made[parameter] for parameter in parts.values() if parameter in made]
        factor = shared[0] if shared else Factor(value, scheme.learned, next(iter(parts.values())))
        for name, parameter in parts.items():
            attach(network, name, factor)
            factors[name] = value
            made[parameter] = factor
    return factors
