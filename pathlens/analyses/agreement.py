"""Checks that a traced or prepared network computes what the model itself computes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pathlens.errors import DataError, ModelError, NumericsError, PathlensError, UsageError, one_line
from pathlens.intervene import active_plans, suspended
from pathlens.residual import ResidualView
from pathlens.residual.chain import Chain
from pathlens.residual.gradients import mixes_examples
from pathlens.residual.inference import Inference
from pathlens.residual.modes import in_mode
from pathlens.residual.routes import intact
from pathlens.runtime.memory import ran_out

_CHECKED_IMAGES = 16
#: how many modules with hooks a message names
_NAMED = 5
#: by what share of the largest output two passes over the same images differ where a network draws
_DRAWN = 1e-3
_LARGEST_DIFFERENCE = {torch.float64: 1e-4, torch.float32: 1e-2}
#: relative distance of numbers with the 10 bits of TensorFloat-32
_TF32 = 2.0**-10


def check_images(network: Inference, images: Tensor, batch: int) -> None:
    """Refuse images that do not fit the network, or are not finite.

    Raises:
        DataError: another shape than the network was traced with, or pixels that are NaN or infinite.
    """
    expected, shape = network.view.input_shape, tuple(images.shape[1:])
    if shape != expected:
        raise DataError(
            f"batch {batch} has images of shape {shape} and the network was traced with {expected}; "
            "give images of one shape"
        )
    # checked here, because a ReLU that is fused into a convolution turns NaN into 0
    if images.is_floating_point() and not images.isfinite().all():
        raise DataError(f"batch {batch} has pixels that are NaN or infinite; check how the images are normalised")


def check_agreement(network: Inference, images: Tensor) -> float:
    """Largest difference between a logit of the prepared network and of the model itself, over the largest logit.

    Raises:
        NumericsError: more than rounding in float32 or float64, or the model gives NaN.
        UsageError: an intervention is active on the model.
    """
    view = network.view
    with in_mode(view.model):
        active = active_plans(view.model, view)
    if active:
        raise UsageError(
            f"an intervention is active on {type(view.model).__name__}, and this study makes its own of the network as "
            "it is; call it outside the with block"
        )
    check_images(network, images, 0)
    images = images[:_CHECKED_IMAGES]
    with in_mode(view.model), _buffers_kept(view.model):
        reference = _own_output(view.model, network.chain, images)
    if not reference.isfinite().all():
        broken = int((~reference.isfinite()).reshape(len(reference), -1).any(1).sum())
        raise NumericsError(
            f"the intact network gives NaN or infinity for {broken} of the first {len(reference)} images; "
            "check the weights and the normalisation of the data"
        )
    advice = "report the network"
    if network.engine.form != "plain":
        advice = f"use fast=False (--plain-forward) and {advice}"
    logits = network.whole(intact(len(network)))(network.prepare(images))
    try:
        return _compared("prepared", view.model, logits, reference, network.dtype, advice)
    except NumericsError:
        with in_mode(view.model), _buffers_kept(view.model):
            if torch.equal(_own_output(view.model, network.chain, images), reference):
                raise
            raise _changing(view.model) from None


def depends_on_batch(network: Inference, images: Tensor) -> bool:
    """Whether the model's own answers to images depend, by more than rounding, on the others of their batch.

    Batch norms without running statistics make them. Half of the images that are compared is run by itself.

    Raises:
        DataError: images that do not fit the network, or are not finite.
        ModelError: the model fails on them.
    """
    check_images(network, images, 0)
    model, chain, images = network.view.model, network.chain, images[:_CHECKED_IMAGES]
    if len(images) < 2:
        return mixes_examples(chain.trace)
    with in_mode(model), _buffers_kept(model), suspended():
        whole = _output_of(model, chain, images)
        try:
            half = _output_of(model, chain, images[: len(images) // 2])
        except ModelError:
            return True
    axis = chain.trace.batch_axis(chain.trace.main)
    if half.dim() != whole.dim() or half.shape[axis] > whole.shape[axis]:
        return False  # what it answers to a single image has another shape, which tells nothing of the numbers
    difference = (whole.narrow(axis, 0, half.shape[axis]).double() - half.double()).abs().max()
    kind = whole.dtype if whole.is_floating_point() else torch.float32
    rounding = math.sqrt(_TF32 if _products_in_tf32() else torch.finfo(kind).eps)
    return not difference <= rounding * whole.abs().max()  # so that NaN counts as well


def check_traced(view: ResidualView, images: Tensor) -> float:
    """As :func:`check_agreement`, for the traced network itself, in the train/eval mode that the model is in.

    Raises:
        NumericsError: more than rounding in float32 or float64, or the model draws at random in this mode.
    """
    model = view.model
    chain = view.chain(images)
    if chain.trace.static_batch is None:
        images = images[:_CHECKED_IMAGES]
    with torch.no_grad(), _buffers_kept(model), suspended():
        reference = _own_output(model, chain, images)
        if not reference.isfinite().all():  # reported later, when the loss is computed
            return float("nan")
        # in train mode of any type, also of those for which no bound on rounding is known
        if model.training:
            change = (_own_output(model, chain, images) - reference).abs().max()
            if change > _DRAWN * reference.abs().max():  # more than sums in another order make of it
                raise _changing(model)
        try:
            difference = _compared(
                "traced", model, _traced_output(view, chain, images), reference, images.dtype, "report the network"
            )
        except NumericsError:
            if torch.equal(_own_output(model, chain, images), reference):
                raise
            raise _changing(model) from None
        if not chain.trace.recorded:  # what was recorded holds where gradients end, and no functions of their own
            _check_gradients(view, chain, images)
        return difference


def _check_gradients(view: ResidualView, chain: Chain, images: Tensor) -> None:
    """Refuse a network whose gradients are not those of its traced operations: by images, or by weights for tokens.

    Raises:
        ModelError: the network's own backward pass fails.
        NumericsError: the gradients differ by more than rounding.
    """
    model = view.model
    limit = _LARGEST_DIFFERENCE.get(images.dtype if images.is_floating_point() else torch.float32)
    if limit is None:
        return
    parameters = [p for p in model.parameters() if p.is_floating_point()] if not images.is_floating_point() else []
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        traced = _gradients(lambda x: _traced_output(view, chain, x), images, parameters)
        try:
            own = _gradients(lambda x: _output_of(model, chain, x), images, parameters)
        except (RuntimeError, NotImplementedError) as error:
            if isinstance(error, PathlensError) or ran_out(error):
                raise
            raise ModelError(
                f"the backward pass of {type(model).__name__} fails: {one_line(error, 200)}; run it by hand"
            ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(traced, own, strict=True))
    relative = math.sqrt(difference / max(sum(float(b.double().square().sum()) for b in own), 1e-24))
    if relative > limit:
        raise NumericsError(
            f"the gradient of the traced network differs from {type(model).__name__}'s own by {relative:.1e} of its "
            "norm, because a part of it has a backward pass of its own (autograd.Function) or none (no_grad), which a "
            "trace does not hold; write that part without it"
        )


def _gradients(output: Callable[[Tensor], Tensor], images: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """Those of half the squared output by the images, or by parameters where there are any."""
    x = images.clone().requires_grad_(not parameters)
    with torch.enable_grad():
        value = output(x)
        if not value.requires_grad:
            return [torch.zeros_like(tensor) for tensor in parameters or [x]]
        if parameters:
            return torch.autograd.grad(value, parameters, value.detach(), allow_unused=True, materialize_grads=True)
        value.backward(value.detach())  # the weights are frozen, and some functions know no other way
    return [torch.zeros_like(x) if x.grad is None else x.grad]


def _traced_output(view: ResidualView, chain: Chain, images: Tensor) -> Tensor:
    return view.head(view.run(view.stem(images))) if chain.in_series else chain.whole(images)[0]


def _changing(model: nn.Module) -> NumericsError:
    """The error for a network whose passes over the same images differ, in the mode that it is in."""
    remedy = (
        "use mode='eval' (--mode eval)"
        if model.training
        else "pass training=self.training to functional dropout, and take out what changes from call to call"
    )
    mode = "train" if model.training else "eval"
    return NumericsError(
        f"{type(model).__name__} draws at random in this mode, or counts its calls: the same images have other answers "
        f"when it is called again in {mode} mode; {remedy}"
    )


def _own_output(model: nn.Module, chain: Chain, images: Tensor) -> Tensor:
    """What the model's own forward gives, in float64 on the CPU."""
    return _output_of(model, chain, images).double().cpu()


def _output_of(model: nn.Module, chain: Chain, images: Tensor) -> Tensor:
    own = next((parameter for parameter in model.parameters()), images)
    # a copy, because a model may change its input in place
    images = images.to(own.device, own.dtype if images.is_floating_point() else None, copy=True)
    try:
        output = model(images)
    except Exception as error:  # foreign code may raise anything
        if isinstance(error, PathlensError) or ran_out(error):
            raise
        raise ModelError(
            f"{type(model).__name__} fails on images of shape {tuple(images.shape)}: {type(error).__name__}: "
            f"{one_line(error, 200)}; run it alone to see where"
        ) from error
    flat = torch.utils._pytree.tree_leaves(output)
    position = next(i for i, item in enumerate(chain.trace.outputs) if item is chain.trace.main)
    logits: Tensor = flat[position]
    return logits


def _compared(what: str, model: nn.Module, logits: Tensor, reference: Tensor, dtype: torch.dtype, advice: str) -> float:
    difference = (logits.double().cpu() - reference).abs().max() / reference.abs().max().clamp_min(1e-12)
    relative = float(difference)
    own = next((parameter.dtype for parameter in model.parameters()), dtype)
    limit = _LARGEST_DIFFERENCE.get(dtype)
    if limit is not None and own in _LARGEST_DIFFERENCE and not _products_in_tf32() and relative > limit:
        hooked = _hooked(model)
        if hooked:
            advice = f"forward hooks do not run in it, and there are some on {hooked}; remove them"
        raise NumericsError(
            f"the {what} network differs from {type(model).__name__}'s own forward by {relative:.1e} of the largest "
            f"logit; {advice}"
        )
    return relative if relative == relative else float("inf")  # noqa: PLR0124


def _products_in_tf32() -> bool:
    """Whether products of float32 are computed in TensorFloat-32, which the dtype of an analysis says (tf32)."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def _hooked(model: nn.Module) -> str:
    """Names of the modules with forward hooks or pre-hooks of the user's."""
    names = [
        name or "the model itself"
        for name, module in model.named_modules()
        for call in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        # those of torch's own weight and spectral norms are traced
        if not type(call).__module__.startswith("torch.nn.utils")
    ]
    names = list(dict.fromkeys(names))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers afterwards, which a forward pass may write to, as batch norms do, or replace."""
    held = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffers, own in held:
            buffers.update(own)
        for buffer, value in values:
            buffer.copy_(value)
