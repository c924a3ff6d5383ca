"""The one room that changes what a model computes, always for the length of a ``with`` block.

Inside the block the model's ``forward`` is the traced network with the plan applied: the same parameters, buffers,
gradients and train/eval mode, without the deleted branches. Hooks on the model itself run, hooks on its inner modules
do not. The model's class is never touched, and afterwards the model is as it was, also when the body raises.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pathlens import plans
from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.plans import Deletion, Plan, Reordering, Restriction, SkipDeletion
from pathlens.residual import ResidualView, find_blocks, find_layers
from pathlens.residual.chain import Chain
from pathlens.residual.restricted import Choice, restricted
from pathlens.residual.segments import Piece, Segment, splice, with_updates


@contextlib.contextmanager
def deleted(model: nn.Module | ResidualView, blocks: int | Iterable[int]) -> Iterator[nn.Module]:
    """Delete the branches of some blocks: block i becomes s_i(S_i(x)).

    Args:
        model: the model, or its view. A model is traced anew in every ``with`` block, which takes seconds; a view was
            traced already, and the plan is checked at once. In loops give a view.
        blocks: indices from 0; negative ones count from the end.

    Yields:
        The model; calling it computes the lesioned network. A deleted branch is not computed.

    Raises:
        UsageError: a block that does not exist.

    Source: Veit, Wilber, Belongie 2016, sections 4.1 and 4.2.

    Example:
        >>> import torch, torchvision, pathlens
        >>> model, images = torchvision.models.resnet18().eval(), torch.zeros(2, 3, 64, 64)
        >>> view = pathlens.find_blocks(model, images)
        >>> with pathlens.deleted(view, blocks=[3, 7]):
        ...     logits = model(images)
    """
    with applied(model, plans.delete(blocks)) as changed:
        yield changed


@contextlib.contextmanager
def skips_deleted(model: nn.Module | ResidualView, blocks: int | Iterable[int]) -> Iterator[nn.Module]:
    """Delete the shortcuts of some blocks: block i becomes s_i(F_i(x)). Arguments and errors as :func:`deleted`."""
    with applied(model, plans.delete_skips(blocks)) as changed:
        yield changed


@contextlib.contextmanager
def reordered(model: nn.Module | ResidualView, order: Sequence[int]) -> Iterator[nn.Module]:
    """Run the blocks in another order.

    Args:
        model: the model or its view; in loops the view.
        order: ``order[p]`` is the block that runs at position p; only blocks of equal shapes inside a stage move.

    Yields:
        The model; calling it computes the reordered network.

    Raises:
        UsageError: not a permutation, or one that moves a block where it does not fit.

    Source: Veit, Wilber, Belongie 2016, section 4.3.
    """
    with applied(model, plans.reorder(order)) as changed:
        yield changed


@contextlib.contextmanager
def restrict_backward(
    model: nn.Module | ResidualView, lengths: int | Iterable[int] | None = None, *, path: Iterable[int] | None = None
) -> Iterator[nn.Module]:
    """Let gradients go back through some path lengths alone, on the user's own model and training loop.

    The forward pass is whole and must happen inside the ``with`` block, and so must ``loss.backward()``. The head's
    parameters get their ordinary gradient. A parameter of block i's branch gets the sum over the paths from the loss to
    it whose number of branches, block i's own included, is allowed; parameters of shortcuts, post-activations and of
    the stem likewise without an own block. With all lengths allowed the gradients equal the ordinary ones.

    Args:
        model: the model or its view; in a training loop the view, or every step traces the model.
        lengths: allowed path lengths, such as ``range(5, 18)``.
        path: instead, one path, as the blocks whose branch it takes.

    Yields:
        The model.

    Raises:
        UsageError: lengths or blocks outside the network, none given, or no forward pass inside the block.

    Example:
        >>> import torch, torchvision, pathlens
        >>> model, images = torchvision.models.resnet18(), torch.randn(2, 3, 64, 64)
        >>> view = pathlens.find_blocks(model, images)
        >>> with pathlens.restrict_backward(view, lengths=range(2, 6)):
        ...     model(images).sum().backward()
    """
    with applied(model, plans.restrict(lengths, path)) as changed:
        forward = changed.__dict__["forward"]
        before = forward.calls
        yield changed
        if forward.calls == before:
            raise UsageError("restrict_backward: no forward pass ran inside the with block; call the model inside it")


@contextlib.contextmanager
def applied(model: nn.Module | ResidualView, plan: Plan) -> Iterator[nn.Module]:
    """Apply any plan to a model for the length of a ``with`` block. Blocks may be nested: the plans add up.

    Args:
        model: the model or its view; in loops the view.
        plan: what to do to it, from :mod:`pathlens.plans`.

    Raises:
        UsageError: the plan does not fit the network.
    """
    view = model if isinstance(model, ResidualView) else None
    if view is not None:
        plan = plans.check(plan, view)
    target = view.model if view is not None else model
    if not isinstance(target, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(target).__name__}")
    current = target.__dict__.get("forward")
    changed = current if isinstance(current, _Intervened) else _Intervened(target, current)
    own = changed.push(plan, view)
    try:
        yield target
    finally:
        changed.pop(own)


class _Intervened:
    """Stands in for ``model.forward``: the traced network with all active plans."""

    def __init__(self, model: nn.Module, original: Callable[..., Any] | None) -> None:
        self._model = model
        self._original = original
        self._plans: dict[object, Plan] = {}
        self._view: ResidualView | None = None
        self._built: dict[tuple[int, tuple[Plan, ...]], tuple[Chain, Segment, list[str]]] = {}
        #: forward passes so far
        self.calls = 0

    def push(self, plan: Plan, view: ResidualView | None) -> object:
        """Add a plan; the result stands for it when it ends."""
        if self._view is not None:
            plan = plans.check(plan, self._view)
        self._view = self._view or view
        own = object()
        self._plans[own] = plan
        self._model.forward = self
        return own

    def pop(self, own: object) -> None:
        """End a plan; with the last one the model's own forward is back. Plans may end in any order."""
        del self._plans[own]
        if not self._plans:
            self._restore()

    def _restore(self) -> None:
        if self._original is None:
            self._model.__dict__.pop("forward", None)
        else:
            self._model.forward = self._original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise UsageError("inside an intervention the model takes exactly one tensor")
        images = args[0]
        if self._view is None:
            self._view = _find(self._model, images)
        view = self._view
        active = tuple(plans.check(plan, view) for plan in self._plans.values())
        chain = view.chain(images)
        self.calls += 1
        restrictions = [plan for plan in active if isinstance(plan, Restriction)]
        run = self._run_restricted if restrictions else self._run_changed
        results, updates = run(chain, active, images)
        with torch.no_grad():
            for name, value in updates.items():
                self._model.get_buffer(name).copy_(value)
        computed = iter(results)
        flat = [next(computed) if isinstance(item, fx.Node) else item for item in chain.trace.outputs]
        return pytree.tree_unflatten(flat, chain.trace.out_spec)

    def _run_changed(
        self, chain: Chain, active: tuple[Plan, ...], images: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        key = (id(chain), active)
        if key not in self._built:
            self._built[key] = (chain, *_build(chain, active))
        _, segment, buffers = self._built[key]
        results = list(segment(images))
        split = len(results) - len(buffers)
        return results[:split], dict(zip(buffers, results[split:], strict=True))

    def _run_restricted(
        self, chain: Chain, active: tuple[Plan, ...], images: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        if len(active) > 1:
            raise UsageError("restrict_backward cannot be combined with another intervention on the same model")
        (plan,) = active
        assert isinstance(plan, Restriction)
        network = chain.once(restricted)
        if plan.path is not None:
            return network.run(images, Choice(path=frozenset(plan.path)))
        return network.run(images, Choice(lengths=frozenset(plan.lengths)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """A copy of the model is a copy of the network itself: no ``with`` block would ever end its intervention."""
        if self._original is not None:
            return copy.deepcopy(self._original, memo)
        twin = memo[id(self._model)]
        return type(twin).forward.__get__(twin)

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """The model's own forward, which tracing needs (:func:`pathlens.residual.trace.trace` calls this)."""
        self._restore()
        try:
            yield
        finally:
            self._model.forward = self


def _find(model: nn.Module, images: Tensor) -> ResidualView:
    try:
        return find_blocks(model, images)
    except NoResidualBlocksError as none_found:
        return find_layers(model, images, otherwise=none_found)


def _build(chain: Chain, active: tuple[Plan, ...]) -> tuple[Segment, list[str]]:
    """The network with the plans applied, and the buffers that its extra results are for."""
    trace = chain.trace
    swap: dict[fx.Node, fx.Node] = {}
    order = list(range(len(chain.links)))
    for plan in active:
        if isinstance(plan, (Deletion, SkipDeletion)):
            for block in plan.blocks:
                link = chain.links[block]
                rest = link.bypass if isinstance(plan, Deletion) else link.branch
                if swap.setdefault(link.total, rest) is not rest:
                    raise UsageError(
                        f"block {block} would lose both its branch and its shortcut, and nothing would be left"
                    )
        elif isinstance(plan, Reordering):
            order = [order[block] for block in plan.order]
    outputs = tuple(item for item in trace.outputs if isinstance(item, fx.Node))
    pieces = [Piece(trace.source, outputs, swap)]
    if order != sorted(order):
        pieces = [
            Piece(trace.source, (chain.boundaries[0],), swap),
            *(Piece(chain.links[i].start, (chain.links[i].end,), swap) for i in order),
            Piece(chain.boundaries[-1], outputs, swap),
        ]
    pieces, updated = with_updates(trace, chain.discovery.dependent, pieces)
    buffers = [name for part in updated for name in part]
    ends = [*outputs, *(trace.mutations[name] for name in buffers)]
    return splice(trace, pieces, ends), buffers
