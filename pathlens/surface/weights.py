"""The parameters of a model as parts of one buffer, for the length of a ``with`` block.

Moving all weights is then one addition for each direction. The model's own tensors are never written to: they are set
aside, and put back when the block ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pathlens.errors import ModelError, NumericsError


class Weights:
    """Parameters in one buffer.

    Args:
        names: of the parameters.
        parameters: of one type, on one device.

    Attributes:
        start: the values that they have at the beginning, shape (P,).
        flat: the buffer that they are parts of, shape (P,).
    """

    def __init__(self, names: Sequence[str], parameters: Sequence[nn.Parameter]) -> None:
        self.names, self.parameters = tuple(names), tuple(parameters)
        self.start = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self.flat = self.start.clone()
        self._sizes = [parameter.numel() for parameter in parameters]

    def parts(self, vector: Tensor) -> list[Tensor]:
        """A vector as one view for each parameter, in its shape.

        Args:
            vector: shape (P,).
        """
        pieces = vector.split(self._sizes)
        return [piece.view(own.shape) for piece, own in zip(pieces, self.parameters, strict=True)]

    def move(self, directions: Sequence[Tensor], coordinates: Sequence[float]) -> None:
        """Put the weights at the start plus the sum of coordinates times directions.

        Args:
            directions: each of shape (P,).
            coordinates: of each direction.
        """
        with torch.no_grad():
            self.flat.copy_(self.start)
            for direction, coordinate in zip(directions, coordinates, strict=True):
                self.flat.add_(direction, alpha=coordinate)

    def at_least(self, dimensions: int) -> Tensor:
        """Positions in the buffer of the parameters of so many dimensions or more, shape (Q,), int64.

        Args:
            dimensions: 0 for all parameters, 2 for all but biases and those of norms.
        """
        chosen = [torch.full((own.numel(),), own.dim() >= dimensions) for own in self.parameters]
        return torch.cat(chosen).nonzero().squeeze(1).to(self.flat.device)


@contextlib.contextmanager
def moving(model: nn.Module) -> Iterator[Weights]:
    """Hold the floating-point parameters of a model in one buffer; afterwards all is as it was, to the bit.

    That holds for parameters, buffers, and whether parameters require gradients (inside the block they do), also when
    the body raises. Parameters keep their identity, so views and traces of the model go on to work.

    Args:
        model: the network.

    Raises:
        ModelError: it has no parameters, or parameters of several types or devices.
        NumericsError: a parameter is NaN or infinite.
    """
    named = {name: own for name, own in model.named_parameters() if own.is_floating_point()}
    kinds = {(str(own.dtype).removeprefix("torch."), str(own.device)) for own in named.values()}
    if len(kinds) != 1:
        spoken = ", ".join(" on ".join(kind) for kind in sorted(kinds)) or "none"
        raise ModelError(
            f"{type(model).__name__} has parameters of {len(kinds)} types or devices ({spoken}), and weights are moved "
            "together; convert it to one with model.to()"
        )
    broken = next((name for name, own in named.items() if not own.isfinite().all()), None)
    if broken is not None:
        raise NumericsError(f"parameter {broken} of {type(model).__name__} is NaN or infinite; give other weights")
    own = [(parameter, parameter.data, parameter.requires_grad) for parameter in named.values()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    weights = Weights(list(named), list(named.values()))
    try:
        for parameter, part in zip(weights.parameters, weights.parts(weights.flat), strict=True):
            parameter.data = part
            parameter.requires_grad_(True)
        yield weights
    finally:
        with torch.no_grad():
            for parameter, data, required in own:
                parameter.data = data
                parameter.requires_grad_(required)
            for buffer, before in buffers:
                buffer.copy_(before)
