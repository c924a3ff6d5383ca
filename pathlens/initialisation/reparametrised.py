"""Weights that stay functions of others while a network trains: a factor at the end of a branch, and standardisation.

Both are parametrizations of torch (``torch.nn.utils.parametrize``): every network can have them without a change of its
class, they train as they should, and :func:`pathlens.models.save_weights` writes the weights that come out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Factor(nn.Module):
    """A tensor times one number.

    Args:
        value: of the number.
        learned: a parameter, and not a constant.
        like: tensor whose type and device the number has.
    """

    is_written_out = True  # into files of weights, as what comes out

    def __init__(self, value: float, learned: bool, like: Tensor) -> None:
        super().__init__()
        number = torch.full((), value, dtype=like.dtype, device=like.device)
        if learned:
            self.factor: Tensor = nn.Parameter(number)
        else:
            self.register_buffer("factor", number)

    def forward(self, tensor: Tensor) -> Tensor:
        """Scale."""
        return self.factor * tensor


class ScaledStandardisation(nn.Module):
    r"""Scaled weight standardisation of a weight with output channels first.

    .. math:: \hat W_{ij} = g_i\, \gamma \frac{W_{ij} - \mu_i}{\sigma_i \sqrt N}

    with mean and standard deviation over the N values of an output channel, a learned gain g that starts at 1, and
    :math:`\gamma^2` the variance times fan-in that is due.

    Args:
        gain: :math:`\gamma^2`.
        weight: whose channels, type and device it has.

    Source: Brock, De, Smith 2021, "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets", section 4.2, equation 2.
    """

    is_written_out = True
    _EPS = 1e-12  # of the variance, for channels of equal weights

    def __init__(self, gain: float, weight: Tensor) -> None:
        super().__init__()
        self.scale = math.sqrt(gain / weight[0].numel())
        channels = (len(weight), *[1] * (weight.dim() - 1))
        self.gain = nn.Parameter(torch.ones(channels, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Standardise, and scale."""
        axes = list(range(1, weight.dim()))
        variance, mean = torch.var_mean(weight, axes, correction=0, keepdim=True)
        return (weight - mean) * torch.rsqrt(variance + self._EPS) * (self.scale * self.gain)


def attach(model: nn.Module, parameter: str, parametrization: nn.Module) -> None:
    """Make a parameter a function of what it is now.

    Args:
        model: the network.
        parameter: qualified name.
        parametrization: tensor to tensor of the same shape.
    """
    owner, _, leaf = parameter.rpartition(".")
    parametrize.register_parametrization(model.get_submodule(owner), leaf, parametrization)


@contextlib.contextmanager
def detached(model: nn.Module) -> Iterator[bool]:
    """Take off what an earlier initialisation attached, for good unless an error comes out of the ``with`` block.

    Args:
        model: the network.

    Yields:
        Whether there was any.
    """
    taken: list[tuple[nn.Module, str, list[nn.Module]]] = []
    try:
        for module in model.modules():
            lists: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
            for leaf, parts in list(lists.items()):
                if any(isinstance(part, Factor | ScaledStandardisation) for part in parts):
                    kept = list(parts)
                    _give_own_class(module)
                    parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
                    taken.append((module, leaf, kept))
        yield bool(taken)
    except BaseException:
        for module, leaf, kept in taken:
            for part in kept:
                parametrize.register_parametrization(module, leaf, part)
        raise


def _give_own_class(module: nn.Module) -> None:
    """Let a parametrized module share no class with its copies, of which torch would take the tensor's name as well."""
    shared = type(module)
    own: Any = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    module.__class__ = own
