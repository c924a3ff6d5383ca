r"""The schemes: each a function that says what a weight is drawn from, and a line in ``SCHEMES``.

What a scheme is told of a weight is a :class:`Place`: where it stands, its fans, and whether a ReLU stands before it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

from pathlens.errors import UsageError
from pathlens.initialisation.places import Place

#: variance that a standard normal variable has left after a ReLU, 1/2 (1 - 1/pi); twice that
_RECTIFIED = 1 - 1 / math.pi


@dataclass(frozen=True)
class Draw:
    """What a weight is drawn from: zero mean, and variance gain / size.

    Attributes:
        distribution: ``normal``, ``truncated normal`` (at two standard deviations of the normal that is cut off),
            ``uniform``, or ``constant`` for zeros.
        gain: variance times fan.
        fan: what ``size`` is, in words.
        size: of the fan.
    """

    distribution: str
    gain: float = 0.0
    fan: str | None = None
    size: float = 1.0

    @property
    def std(self) -> float:
        """Standard deviation."""
        return math.sqrt(self.gain / self.size)


@dataclass(frozen=True)
class Scheme:
    """One way to start.

    Attributes:
        draw: what a weight is drawn from.
        factor: of the number of blocks: what stands at the end of every branch as a factor; None for none.
        learned: whether that factor is a parameter.
        ends: what a branch may end in, for a scheme that concerns its end.
        standardises: whether weights of convolutions stay standardised while the network trains.
        note: what a reader of gradients must know.
    """

    draw: Callable[[Place], Draw]
    factor: Callable[[int], float] | None = None
    learned: bool = False
    ends: tuple[str, ...] = ()
    standardises: bool = False
    note: str = ""


def _over_fan_in(gain: float, place: Place, distribution: str = "normal") -> Draw:
    return Draw(distribution, gain, "fan-in", place.fan_in)


def _over_fan_out(gain: float, place: Place) -> Draw:
    return Draw("normal", gain, "fan-out", place.fan_out)


def _he_gain(place: Place) -> float:
    """2 behind a rectifier, which halves the second moment, and else 1."""
    return 2.0 if place.rectified else 1.0


def he_fan_in(place: Place) -> Draw:
    """Keep the second moment forward (He, Zhang, Ren, Sun 2015, equations 7 and 10).

    The factor 2 makes up for a ReLU. Where there is none before a weight, as in the projection of a raw input, the
    derivation gives 1.
    """
    return _over_fan_in(_he_gain(place), place)


def he_fan_out(place: Place) -> Draw:
    """Keep the second moment of the gradient (He, Zhang, Ren, Sun 2015, equation 14); gains as :func:`he_fan_in`."""
    return _over_fan_out(_he_gain(place), place)


def _glorot(place: Place, distribution: str) -> Draw:
    # Keras counts the outputs of all groups
    return Draw(distribution, 1.0, "fan-average", (place.fan_in + place.fan_out * place.groups) / 2)


def glorot_normal(place: Place) -> Draw:
    """``GlorotNormal`` of Keras: truncated normal of variance 2 / (fan-in + fan-out), wherever the weight stands."""
    return _glorot(place, "truncated normal")


def glorot_uniform(place: Place) -> Draw:
    """``GlorotUniform`` of Keras: within the root of 6 / (fan-in + fan-out), wherever the weight stands."""
    return _glorot(place, "uniform")


def he_normal(place: Place) -> Draw:
    """``HeNormal`` of Keras: truncated normal of variance 2 / fan-in, wherever the weight stands."""
    return _over_fan_in(2.0, place, "truncated normal")


def he_uniform(place: Place) -> Draw:
    """``HeUniform`` of Keras: within the root of 6 / fan-in, wherever the weight stands."""
    return _over_fan_in(2.0, place, "uniform")


def brock(place: Place) -> Draw:
    """Keep the *variance* behind a ReLU, for weights whose channels have mean zero (Brock, De, Smith 2021, 4.2).

    A ReLU leaves 1/2 (1 - 1/pi) of the variance, so the gain is 2 / (1 - 1/pi); without a ReLU it is 1. Where weights
    are not standardised, the mean of the signal adds to it.
    """
    return _over_fan_in(2 / _RECTIFIED if place.rectified else 1.0, place)


def fixup(place: Place) -> Draw:
    """Fixup (Zhang, Dauphin, Ma 2019, section 3): He by fan-out, in branches times L^(-1/(2m-2)), last weights zero.

    L is the number of blocks and m that of weights in a branch: L^(-1/2) for two. The last weight of every branch and
    of the network start at zero. A branch also gets a learned factor of 1 at its end; Fixup's scalar biases, which
    start at 0, are not added.
    """
    if place.ends_branch or (place.role == "head" and place.last):
        return Draw("constant")
    if place.role != "branch":
        return he_fan_out(place)
    return _over_fan_out(2.0 * place.blocks ** (-1 / (place.layers - 1)), place)


_ZERO_FACTOR = (
    "every branch ends in a factor of 0: at step 0 all gradients inside the branches are exactly zero; "
    "--steps 1 shows the network one step later"
)
_FIXUP = (
    "the last weight of every branch and of the network is 0: at step 0 all gradients below it are exactly zero; "
    "--steps 2 shows the network after two steps, when gradients reach into the branches (its factors need a tenth of "
    "the learning rate in training)"
)

SCHEMES: dict[str, Scheme] = {
    "he-fan-in": Scheme(he_fan_in),
    "he-fan-out": Scheme(he_fan_out),
    "glorot-normal": Scheme(glorot_normal),
    "glorot-uniform": Scheme(glorot_uniform),
    "he-normal": Scheme(he_normal),
    "he-uniform": Scheme(he_uniform),
    "brock": Scheme(brock),
    "scaled-ws": Scheme(brock, standardises=True),
    "fixup": Scheme(fixup, lambda blocks: 1.0, learned=True, ends=("weight",), note=_FIXUP),
    "skipinit": Scheme(he_fan_in, lambda blocks: 0.0, learned=True, ends=("weight", "norm"), note=_ZERO_FACTOR),
    "rezero": Scheme(he_fan_in, lambda blocks: 0.0, learned=True, ends=("weight", "norm"), note=_ZERO_FACTOR),
    "stable": Scheme(he_fan_in, lambda blocks: blocks**-0.5, ends=("weight", "norm")),
}
"""By name. ``skipinit`` is De and Smith 2020 (section 3.1), ``rezero`` Bachlechner et al. 2021 (equation 2), which is
the same; ``stable`` is Hayou et al. 2021, "Stable ResNet" (section 2); ``scaled-ws`` is Brock, De, Smith 2021."""


def check_name(name: str, *others: str) -> None:
    """Refuse a name that is no scheme.

    Args:
        name: of a scheme.
        *others: names that are taken as well.

    Raises:
        UsageError: with the names that come close, and all that there are.
    """
    names = (*SCHEMES, *others)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=2)
        give = f"did you mean {' or '.join(close)}? Give" if close else "give"
        raise UsageError(f"unknown initialisation {name!r}: {give} one of {', '.join(names)}")
