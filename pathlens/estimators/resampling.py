"""Bootstrap samples of examples, the same for all estimators and lengths, so that their results vary together.

Lengths are measured on the same examples: where one has a large gradient, so has its neighbour. What compares lengths,
such as the effective range or the decay, is therefore resampled as a whole.
"""

from __future__ import annotations

import numpy as np

from pathlens.tables import Json

RESAMPLES = 999
_EXAMPLES = 4  # part of the random seed, different from those of estimators


def example_weights(seed: int, examples: int) -> np.ndarray:
    """How often each bootstrap sample has each example, shape (samples, examples)."""
    rng = np.random.default_rng([seed % 2**64, _EXAMPLES, examples])
    return rng.multinomial(examples, np.full(examples, 1 / examples), RESAMPLES).astype(float)


def interval(values: np.ndarray, estimate: float) -> tuple[float, float]:
    """95 % percentile interval.

    Args:
        values: of the bootstrap samples; NaN where a sample has none.
        estimate: of the data themselves; both ends where nothing varies but by rounding.
    """
    if not len(values) or np.isnan(values).all() or np.nanmax(values) - np.nanmin(values) <= 1e-12 * abs(estimate):
        return estimate, estimate
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def whole_interval(name: str, values: np.ndarray) -> dict[str, Json]:
    """95 % percentile interval of values that the bootstrap samples have, without interpolation, as two entries."""
    low, high = np.quantile(values, (0.025, 0.975), method="nearest")
    return {f"{name}_low": low.item(), f"{name}_high": high.item()}
