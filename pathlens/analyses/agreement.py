"""Whether what is computed in a model's place is what the model itself computes."""

from __future__ import annotations

import torch
from torch import Tensor

from pathlens.errors import DataError, ModelError, NumericsError, PathlensError
from pathlens.machine.memory import ran_out
from pathlens.residual.inference import Inference
from pathlens.residual.modes import in_mode

_CHECKED_IMAGES = 16
_LARGEST_DIFFERENCE = {torch.float64: 1e-4, torch.float32: 1e-2}


def check_images(network: Inference, images: Tensor, batch: int) -> None:
    """Refuse images that do not fit the network, or are not finite.

    Raises:
        DataError: another shape than the network was traced with, or pixels that are NaN or infinite.
    """
    wanted, found = network.view.input_shape, tuple(images.shape[1:])
    if found != wanted:
        raise DataError(
            f"batch {batch} has images of shape {found} and the network was traced with {wanted}; "
            "give images of one shape"
        )
    # asked here, because a ReLU that is fused into a convolution turns NaN into 0
    if images.is_floating_point() and not images.isfinite().all():
        raise DataError(f"batch {batch} has pixels that are NaN or infinite; check how the images are normalised")


def check_agreement(network: Inference, images: Tensor) -> float:
    """Largest difference between a logit of the prepared network and of the model itself, over the largest logit.

    Raises:
        NumericsError: more than rounding in float32 or float64, or the model gives NaN.
    """
    model = network.view.model
    check_images(network, images, 0)
    images = images[:_CHECKED_IMAGES]
    own = next((parameter for parameter in model.parameters()), images)
    chain = network.chain
    # a copy, because a model may work on its input in place
    reference_input = images.to(own.device, copy=True)
    if reference_input.is_floating_point():
        reference_input = reference_input.to(own.dtype)
    try:
        with in_mode(model):
            output = model(reference_input)
    except Exception as error:  # foreign code may raise anything
        if isinstance(error, PathlensError) or ran_out(error):
            raise
        raise ModelError(
            f"{type(model).__name__} fails on images of shape {tuple(images.shape)}: {type(error).__name__}: "
            f"{_one_line(error)}; run it alone to see where"
        ) from error
    flat = torch.utils._pytree.tree_leaves(output)
    position = next(i for i, item in enumerate(chain.trace.outputs) if item is chain.trace.main)
    reference = flat[position].double().cpu()
    if not reference.isfinite().all():
        broken = int((~reference.isfinite()).reshape(len(reference), -1).any(1).sum())
        raise NumericsError(
            f"the intact network gives NaN or infinity for {broken} of the first {len(reference)} images; "
            "check the weights and the normalisation of the data"
        )
    logits = _logits(network, images)
    difference = (logits.double().cpu() - reference).abs().max() / reference.abs().max().clamp_min(1e-12)
    relative = float(difference)
    limit = _LARGEST_DIFFERENCE.get(network.dtype)
    if (
        limit is not None
        and own.dtype in _LARGEST_DIFFERENCE
        and not torch.backends.cuda.matmul.allow_tf32
        and relative > limit
    ):
        raise NumericsError(
            f"the prepared network differs from {type(model).__name__}'s own forward by {relative:.1e} of the largest "
            "logit; use fast=False (--plain-forward) and report the network"
        )
    return relative if relative == relative else float("inf")  # noqa: PLR0124


def _logits(network: Inference, images: Tensor) -> Tensor:
    x = network.piece("stem")(network.prepare(images))
    for block in range(len(network)):
        x = network.piece("run", block)(x)
    return network.piece("head")(x)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
