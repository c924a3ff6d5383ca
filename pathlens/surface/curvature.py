"""The Hessian of the loss with respect to the weights, through its products with vectors alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pathlens.errors import NumericsError, UsageError
from pathlens.surface.weights import Weights

_TOLERANCE = 1e-3  # of an eigenvalue, relative to the largest one
_RESTARTS = 60
_BASIS = 24  # vectors that Lanczos keeps


@dataclass(frozen=True)
class Spectrum:
    """The ends of a Hessian's spectrum.

    Attributes:
        largest: eigenvalues from the largest one down, in nats per squared unit of weight.
        vectors: their eigenvectors, of length 1, shape (k, P) over the buffer of weights.
        smallest: the smallest eigenvalue; negative where the loss curves down.
        products: with vectors, that were computed.
    """

    largest: list[float]
    vectors: Tensor
    smallest: float
    products: int


class Hessian:
    """Of the mean loss over some images, in the place where the weights are when a product is asked for.

    Args:
        loss: (images, labels) -> the sum of the losses of a batch, differentiable in the parameters.
        weights: of the network.
        positions: which weights count, as :meth:`Weights.at_least` gives them; the others are constants.
        batches: of images and labels.

    Attributes:
        images: how many there are.
        products: with vectors, computed so far.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        weights: Weights,
        positions: Tensor,
        batches: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        self._loss, self._weights, self._positions, self._batches = loss, weights, positions, batches
        self.images = sum(len(images) for images, _ in batches)
        self.products = 0

    def product(self, vector: Tensor) -> Tensor:
        """The Hessian times a vector.

        Args:
            vector: shape (Q,), over the weights that count.

        Returns:
            Shape (Q,), in the type of the weights.

        Source: Pearlmutter 1994.
        """
        parameters = self._weights.parameters
        whole = torch.zeros_like(self._weights.flat)
        whole[self._positions] = vector.to(whole)
        parts = self._weights.parts(whole)
        total = torch.zeros_like(whole)
        for images, labels in self._batches:
            # fused attention cannot be differentiated twice
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                value = self._loss(images, labels) / self.images
                gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
                # the gradient of what a lesion left out is a constant
                pairs = [(g, part) for g, part in zip(gradients, parts, strict=True) if g.requires_grad]
                products = torch.autograd.grad(
                    [g for g, _ in pairs], parameters, [part for _, part in pairs], materialize_grads=True
                )
            total += torch.cat([item.detach().reshape(-1) for item in products])
        self.products += 1
        return total[self._positions]

    def spectrum(self, seed: int, leading: int = 1) -> Spectrum:
        """The largest eigenvalues and the smallest one, by implicitly restarted Lanczos.

        The smallest is found as the largest in magnitude once the largest is subtracted from all, so that both are as
        exact as the largest one allows.

        Args:
            seed: of the vector to start from.
            leading: how many of the largest.

        Raises:
            UsageError: fewer weights than that count.
            NumericsError: the Hessian is not finite, or its ends do not settle.

        Source: Li et al. 2018, section 6.
        """
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        size = len(self._positions)
        if size < leading + 2:
            raise UsageError(f"{size} weights are too few for {leading} leading directions of the Hessian")
        began = self.products
        start = np.random.default_rng(seed).standard_normal(size)

        def applied(vector: np.ndarray, shift: float = 0.0) -> np.ndarray:
            flat = np.ascontiguousarray(vector).reshape(-1)
            product = self.product(torch.from_numpy(flat)).double().cpu().numpy()
            if not np.isfinite(product).all():
                raise NumericsError("the Hessian is NaN or infinite here; check the weights, or use --curvature none")
            return product - shift * flat

        def ends(which: str, count: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
            operator = LinearOperator((size, size), matvec=lambda v: applied(v, shift), dtype=np.float64)
            basis = min(size, _BASIS)
            try:
                values, vectors = eigsh(
                    operator, count, which=which, v0=start, ncv=basis, tol=_TOLERANCE, maxiter=_RESTARTS
                )
            except ArpackError as error:
                raise NumericsError(
                    f"the curvature does not settle within {self.products - began} products with the Hessian; give "
                    "other images, more of them, or --curvature none"
                ) from error
            return values, vectors

        values, vectors = ends("LA", leading, 0.0)
        order = np.argsort(-values)
        shifted, _ = ends("LM", 1, float(values.max()))
        rows = torch.from_numpy(np.ascontiguousarray(vectors.T[order]))
        # an eigenvector has no sign of its own
        rows *= torch.gather(rows, 1, rows.abs().argmax(1, keepdim=True)).sign()
        whole = torch.zeros(leading, len(self._weights.flat), dtype=self._weights.flat.dtype)
        whole[:, self._positions.cpu()] = rows.to(whole.dtype)
        smallest = float(shifted[0] + values.max())
        return Spectrum(values[order].tolist(), whole.to(self._weights.flat.device), smallest, self.products - began)

    def probe(self, seed: Sequence[int]) -> float:
        """One estimate of the trace, from a vector of random signs (Hutchinson 1990).

        Args:
            seed: of the signs.

        Raises:
            NumericsError: it is not finite.
        """
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), len(self._positions))
        vector = torch.from_numpy(signs)
        value = float(vector.to(self._weights.flat).double() @ self.product(vector).double())
        if not math.isfinite(value):
            raise NumericsError("the Hessian's trace is NaN or infinite; check the weights, or use --curvature none")
        return value
