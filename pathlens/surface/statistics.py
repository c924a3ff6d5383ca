"""Running statistics of batch norms, estimated anew for the weights that a network has now."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pathlens.errors import ModelError


class Statistics:
    """The running means and variances of a network's batch norms.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self._norms = [norm for norm in norms if norm.running_mean is not None]
        self._buffers = [
            buffer for norm in self._norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None
        ]
        self._before = [buffer.clone() for buffer in self._buffers]

    def __len__(self) -> int:
        return len(self._norms)

    def check(self, model: nn.Module) -> None:
        """Raise where there is nothing to estimate.

        Args:
            model: whose statistics these are.

        Raises:
            ModelError: the network has no batch norm with running statistics.
        """
        if not self._norms:
            raise ModelError(
                f"{type(model).__name__} has no batch norm with running statistics, so none can be re-estimated; "
                "use batch_norm='kept' (--batch-norm kept)"
            )

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Batch norms normalise by their batch, and keep its statistics alone, for the length of the body."""
        before = [(norm, norm.training, norm.momentum) for norm in self._norms]
        for norm in self._norms:
            norm.training, norm.momentum = True, 1.0
        try:
            yield
        finally:
            for norm, training, momentum in before:
                norm.training, norm.momentum = training, momentum

    def restore(self) -> None:
        """Put back what the statistics were at the beginning."""
        with torch.no_grad():
            for buffer, value in zip(self._buffers, self._before, strict=True):
                buffer.copy_(value)

    def estimate(self, run: Callable[[Tensor], object], batches: Iterable[Tensor]) -> None:
        """Set the statistics to the mean, over images, of those of their batches.

        A norm that does not run keeps what it had. With batches of one size this is what
        ``torch.optim.swa_utils.update_bn`` does.

        Args:
            run: the forward pass, in which batch norms write into the model's buffers.
            batches: of images.

        Source: Izmailov et al. 2018, section 3.1.
        """
        self.restore()  # weights further out may have left NaN, and 0 times NaN is NaN
        with torch.no_grad(), self.gathering():
            sums, images = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in self._buffers], 0
            for batch in batches:
                run(batch)
                images += len(batch)
                for total, buffer in zip(sums, self._buffers, strict=True):
                    total.add_(buffer.double(), alpha=len(batch))
            for total, buffer in zip(sums, self._buffers, strict=True):
                buffer.copy_(total / images)
