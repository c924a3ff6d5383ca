"""Figure 11.3: the gradient of one output by one input along a line of inputs, and how alike it is at two of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pathlens.metrics import sample_interval
from studies.udl11.nets import DTYPE, Scalar, seeded

Array = NDArray[np.float64]

WIDTH = 200
POINTS = 256
#: inputs are [-2, 2)
ENDS = 2.0
SPACING = 2 * ENDS / POINTS
LAGS = (1, 4, 16)
#: seeds from here on are those of the tables; smaller ones served to choose networks and rules
FIRST_SEED = 1000

PLAIN = [Scalar(f"plain, {depth} layer{'s' * (depth > 1)}", depth) for depth in (1, 24, 50)]
NORMED = [Scalar(f"plain with batch norm, {depth} layers", depth, norm=True) for depth in (24, 50)]
RESIDUAL = [
    Scalar(f"residual with batch norm, 50 blocks, scale {share:g}", 50, norm=True, residual=True, share=share)
    for share in (1.0, 0.1)
]
#: the same with gradients that also run through the statistics of the batch
THROUGH = [
    replace(spec, name=f"{spec.name}, through the statistics", constant=False) for spec in (NORMED[0], *RESIDUAL)
]

#: variance 1/D for every weight and bias, also of the first layer, as in the textbook's notebook 11.1
NOTEBOOK = Scalar("notebook", 24, gain=1.0, first=1 / WIDTH, bias=1 / WIDTH, biases=1 / WIDTH)
VARIANTS = (
    NOTEBOOK,
    replace(NOTEBOOK, name="variance of the weights times two", gain=2.0),
    replace(NOTEBOOK, name="biases in the first layer alone", biases=0.0),
    replace(NOTEBOOK, name="both", gain=2.0, biases=0.0),
)
NOTEBOOK_DEPTHS = (1, 24, 50)
NOTEBOOKS = [
    replace(NOTEBOOK, name=f"notebook, {depth} layer{'s' * (depth > 1)}", depth=depth) for depth in NOTEBOOK_DEPTHS
]

AUTOCORRELATION = (
    ("network", "", "which"),
    ("networks", "", "networks drawn whose gradient varies at all"),
    ("lag", "points", "distance of two inputs in steps of the grid"),
    ("distance", "", "the same in units of the input"),
    ("autocorrelation", "", "of the gradient, mean over networks"),
    ("autocorrelation_low", "", "lower end of Student's 95 % interval over networks"),
    ("autocorrelation_high", "", "upper end"),
)
EACH = (
    ("network", "", "which"),
    ("seed", "", "of the weights"),
    *(
        (f"lag_{lag}", "", f"autocorrelation of the gradient at lag {lag}; missing where it does not vary")
        for lag in LAGS
    ),
)
CURVES = (
    ("network", "", "which, of the first seed"),
    ("x", "", "input"),
    ("gradient", "", "of the output by the input, over its root mean square"),
)
VARIANT_NETWORKS = (
    ("variant", "", "how weights and biases are drawn"),
    ("depth", "", "hidden layers"),
    ("seed", "", "of the weights"),
    ("pieces", "", "stretches of inputs with one gradient"),
    ("lag_4", "", "autocorrelation of the gradient at lag 4; missing where it does not vary"),
)
QUESTION = (
    ("variant", "", "how weights and biases are drawn"),
    ("depth", "", "hidden layers"),
    ("networks", "", "networks drawn"),
    ("constant", "", "networks among them whose gradient is one number"),
    ("pieces", "", "stretches of inputs with one gradient, mean over networks"),
    ("pieces_low", "", "lower end of Student's 95 % interval"),
    ("pieces_high", "", "upper end"),
    ("gradient", "", "root mean square of the gradient over inputs and networks"),
    *((f"lag_{lag}", "", f"autocorrelation at lag {lag}, mean over networks that are not constant") for lag in LAGS),
    ("raw_lag_16", "", "autocorrelation at lag 16 of the gradient with its mean, mean over all networks"),
)
LAYERS = (
    ("variant", "", "how weights and biases are drawn"),
    ("layer", "", "hidden layer, from 1"),
    ("signal", "", "variance of what enters the ReLU over the inputs, mean over units and networks"),
    ("rest", "", "square of its mean over the inputs, mean over units and networks: what biases make of it"),
    ("switching", "fraction", "units whose ReLU switches somewhere between the first and the last input"),
)
HALVING = (
    ("seed", "", "of the weights"),
    ("signal_ratio", "", "variance of one layer over that of the layer before it, geometric mean over the layers"),
)


def inputs() -> Tensor:
    """The grid, shape ``(points, 1)``."""
    return torch.arange(POINTS, dtype=DTYPE)[:, None] * SPACING - ENDS


def seeds(networks: int) -> range:
    """Those of so many networks."""
    return range(FIRST_SEED, FIRST_SEED + networks)


def drawn(spec: Scalar, seed: int, width: int = WIDTH) -> nn.Sequential:
    """A network of a seed."""
    seeded(seed)
    return spec.build(width)


@cache
def _gradients(spec: Scalar, networks: int, width: int) -> tuple[Array, ...]:
    return tuple(gradient(drawn(spec, seed, width), inputs()) for seed in seeds(networks))


def gradients(spec: Scalar, networks: int, width: int) -> tuple[Array, ...]:
    """Of one network a seed; networks that only the name of their description tells apart are drawn once."""
    return _gradients(replace(spec, name=""), networks, width)


def gradient(model: nn.Module, x: Tensor) -> Array:
    """The gradient of each output by its input; of the sum of the outputs where batch statistics pass gradients on."""
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).sum(), x)
    return np.asarray(found[:, 0].numpy())


def autocorrelation(values: Array, centred: bool = True) -> Array | None:
    """Of a series at lags 0 to half its length, as a share of that at lag 0.

    Args:
        values: the series.
        centred: without its mean.

    Returns:
        One number for each lag; None where nothing varies.
    """
    if centred:
        if np.ptp(values) <= 1e-9 * np.abs(values).max():
            return None
        values = values - values.mean()
    whole = np.correlate(values, values, "full")[len(values) - 1 :]
    return np.asarray(whole[: len(values) // 2 + 1] / whole[0])


def pieces(values: Array) -> int:
    """Stretches of the series with one value."""
    return 1 + int((np.abs(np.diff(values)) > 1e-9 * np.abs(values).max()).sum())


def curves(specs: Iterable[Scalar], networks: int, width: int = WIDTH) -> tuple[list[dict[str, Any]], ...]:
    """Rows of ``autocorrelation``, ``autocorrelation-networks`` and ``gradients``."""
    correlations: list[dict[str, Any]] = []
    every: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for spec in specs:
        series = dict(zip(seeds(networks), gradients(spec, networks, width), strict=True))
        first = series[FIRST_SEED] / np.sqrt((series[FIRST_SEED] ** 2).mean())
        examples += [
            {"network": spec.name, "x": float(place), "gradient": float(value)}
            for place, value in zip(inputs()[:, 0], first, strict=True)
        ]
        found = {seed: autocorrelation(values) for seed, values in series.items()}
        every += [
            {
                "network": spec.name,
                "seed": seed,
                **{f"lag_{lag}": None if one is None else float(one[lag]) for lag in LAGS},
            }
            for seed, one in found.items()
        ]
        each = [one for one in found.values() if one is not None]
        for lag, over_networks in enumerate(np.array(each).T):
            low, high = sample_interval(over_networks.tolist())
            correlations.append(
                {
                    "network": spec.name,
                    "networks": len(each),
                    "lag": lag,
                    "distance": lag * SPACING,
                    "autocorrelation": float(over_networks.mean()),
                    "autocorrelation_low": low,
                    "autocorrelation_high": high,
                }
            )
    return correlations, every, examples


def question(networks: int, width: int = WIDTH) -> tuple[list[dict[str, Any]], ...]:
    """Rows of ``notebook`` and ``notebook-networks``: which of its choices keeps gradients from shattering."""
    rows: list[dict[str, Any]] = []
    each: list[dict[str, Any]] = []
    for variant in VARIANTS:
        for depth in NOTEBOOK_DEPTHS:
            spec = replace(variant, depth=depth)
            series = gradients(spec, networks, width)
            correlations = [autocorrelation(one) for one in series]
            centred = [one for one in correlations if one is not None]
            counts = [pieces(one) for one in series]
            each += [
                {
                    "variant": variant.name,
                    "depth": depth,
                    "seed": seed,
                    "pieces": count,
                    "lag_4": None if one is None else float(one[4]),
                }
                for seed, count, one in zip(seeds(networks), counts, correlations, strict=True)
            ]
            low, high = sample_interval(counts)
            raw = [one for values in series if (one := autocorrelation(values, centred=False)) is not None]
            rows.append(
                {
                    "variant": variant.name,
                    "depth": depth,
                    "networks": networks,
                    "constant": networks - len(centred),
                    "pieces": float(np.mean(counts)),
                    "pieces_low": low,
                    "pieces_high": high,
                    "gradient": math.sqrt(np.mean(np.square(series))),
                    **{
                        f"lag_{lag}": float(np.mean([one[lag] for one in centred])) if centred else None for lag in LAGS
                    },
                    "raw_lag_16": float(np.mean([one[16] for one in raw])),
                }
            )
    return rows, each


def layer_profile(model: Sequence[nn.Module] | nn.Sequential, x: Tensor) -> list[tuple[float, float, float]]:
    """Signal, rest and switching share (see ``LAYERS``) of what enters each ReLU."""
    found = []
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.ReLU):
                signal, rest = x.var(0, correction=0).mean(), x.mean(0).square().mean()
                found.append((float(signal), float(rest), float(((x > 0).any(0) & (x <= 0).any(0)).double().mean())))
            x = module(x)
    return found


def layers(networks: int, depth: int = 24, width: int = WIDTH) -> tuple[list[dict[str, Any]], ...]:
    """Rows of ``notebook-layers``, and of ``notebook-halving`` for the notebook's own choices."""
    x, rows = inputs(), []
    halving: list[dict[str, Any]] = []
    for variant in VARIANTS:
        spec = replace(variant, depth=depth)
        profiles = np.array([layer_profile(drawn(spec, seed, width), x) for seed in seeds(networks)])
        for layer, (signal, rest, switching) in enumerate(profiles.mean(0).tolist(), 1):
            rows.append({"variant": spec.name, "layer": layer, "signal": signal, "rest": rest, "switching": switching})
        if variant is NOTEBOOK:
            signals = profiles[:, :, 0]
            ratios = (signals[:, -1] / signals[:, 0]) ** (1 / (depth - 1))
            halving = [
                {"seed": seed, "signal_ratio": float(ratio)}
                for seed, ratio in zip(seeds(networks), ratios, strict=True)
            ]
    return rows, halving
