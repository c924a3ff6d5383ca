"""The one room that changes what a model computes, always for the length of a ``with`` block.

Inside the block the model's ``forward`` is the traced network with the plan applied: the same parameters, buffers,
gradients and train/eval mode, without the deleted branches. Hooks on the model itself run, hooks on its inner modules
do not. The model's class is never touched, and afterwards the model is as it was, also when the body raises.

Plans of nested blocks add up, those on a part of the model too. A plan holds in the thread (or asyncio task) that
entered its block: the model's own forward runs in a thread without plans. Only calls of the model itself are
changed: its other methods, and its parts called by themselves, run as they are.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pathlens import plans
from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.plans import Deletion, Plan, Restriction
from pathlens.residual import ResidualView, find_blocks, find_layers
from pathlens.residual.chain import Chain, module_path
from pathlens.residual.lesioned import lesioned
from pathlens.residual.restricted_graph import restricted
from pathlens.residual.routes import Schedule, intact
from pathlens.residual.scheduled import scheduled
from pathlens.residual.turns import together

#: networks prepared for interventions that a chain keeps
_MOST_BUILT = 64


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
def rewired(
    model: nn.Module | ResidualView,
    layers: Iterable[int | Iterable[int]],
    how: str = "parallel",
    times: int | None = None,
) -> Iterator[nn.Module]:
    """Carry a run of neighbouring blocks or layers out side by side, again, or with the middle one in place of all.

    Args:
        model: the model or its view; in loops the view.
        layers: indices of blocks, such as ``[4, 5, 6]``, or the blocks of each layer, such as ``[(4, 5), (6, 7)]``.
        how: ``parallel``, ``middle`` or ``repeat``; see :class:`pathlens.plans.Rewiring`.
        times: how often, of ``parallel`` (default: 1) and ``repeat`` (default: 2).

    Yields:
        The model; calling it computes the rewired network.

    Raises:
        UsageError: blocks that are no run of neighbours or cannot run in each other's place; a second such plan, a
            restricted backward pass, or running statistics in train mode.

    Source: Sun et al. 2024, arXiv 2407.09298.
    """
    with applied(model, plans.rewire(layers, how, times)) as changed:
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

    Blocks need be no chain: in a view of additions or concatenations anywhere, a path's length is the number of those
    whose branch it takes.

    Together with :func:`deleted`, :func:`skips_deleted` and :func:`reordered`, in any nesting order, the paths are
    those of the lesioned network: a block without its branch is no choice, and every path takes one without its
    shortcut.

    Args:
        model: the model or its view; in a training loop the view, or every step traces the model.
        lengths: allowed path lengths, such as ``range(5, 18)``.
        path: instead, one path of a chain, as the blocks whose branch it takes.

    Yields:
        The model.

    Raises:
        UsageError: lengths or blocks outside the network, none given, no path left in a lesioned network, a path or
            lengths above 256 where blocks are no chain, a second restriction, or no forward pass inside the block.

    Example:
        >>> import torch, torchvision, pathlens
        >>> model, images = torchvision.models.resnet18(), torch.randn(2, 3, 64, 64)
        >>> view = pathlens.find_blocks(model, images)
        >>> with pathlens.restrict_backward(view, lengths=range(2, 6)):
        ...     model(images).sum().backward()
    """
    with _entered(model, plans.restrict(lengths, path)) as own:
        yield own.model
        if not own.calls:
            raise UsageError("restrict_backward: no forward pass ran inside the with block; call the model inside it")


@contextlib.contextmanager
def applied(model: nn.Module | ResidualView, plan: Plan) -> Iterator[nn.Module]:
    """Apply any plan to a model for the length of a ``with`` block. Blocks may be nested: the plans add up.

    A plan on a part of the model adds to one on the model, where the part's blocks are blocks of the model. Plans act
    in the thread that entered the block. Copies and pickles that are made inside are of the network itself, and a
    ``forward`` that is assigned inside is kept.

    Args:
        model: the model or its view; in loops the view.
        plan: what to do to it, from :mod:`pathlens.plans`.

    Raises:
        UsageError: the plan does not fit the network, or is a second restriction of the backward pass.
    """
    with _entered(model, plan) as own:
        yield own.model


@contextlib.contextmanager
def _entered(model: nn.Module | ResidualView, plan: Plan) -> Iterator[_Active]:
    view = model if isinstance(model, ResidualView) else None
    if isinstance(plan, Deletion) and plan.replacement != "zero":
        raise UsageError(
            f"a branch is replaced by {plan.replacement!r} in pathlens.delete_blocks alone, which has the data; "
            "a with block deletes it (zero)"
        )
    if view is not None:
        plan = plan.check(view)
    target = view.model if view is not None else model
    if not isinstance(target, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(target).__name__}")
    with together(), _changing:
        current = target.__dict__.get("forward")
        if not isinstance(current, _Intervened) or current.model is not target:
            current = _Intervened(target, current)
        own = current.add(plan, view)
    try:
        with together():
            current.begin(own)
        yield own
    finally:
        current.pop(own)


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """The models' own forwards: no intervention acts in this thread meanwhile."""
    before = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(before)


def active_plans(model: nn.Module, view: ResidualView) -> tuple[Plan, ...]:
    """The plans that are active here on a model and on its parts, as plans for the blocks of a view.

    Args:
        model: whose interventions count.
        view: of this model, or of a copy of it.

    Raises:
        UsageError: a plan on a part of the model whose blocks are not blocks of the model.
    """
    if not _intervened(model):
        return ()
    return tuple(plan for _, plan in _collected(model, view, view.chain()))


@dataclass(eq=False)
class _Active:
    """A plan that is active in one thread.

    Attributes:
        model: that it changes.
        plan: as the user gave it; block indices may be negative where no view is known.
        view: the user's view, if there is one.
        key: identifies the plan in the context variable of the thread; later ones have larger keys.
        thread: identifier of the thread.
        calls: forward passes so far.
    """

    model: nn.Module
    plan: Plan
    view: ResidualView | None
    key: int = field(default_factory=count().__next__)
    thread: int = field(default_factory=threading.get_ident)
    calls: int = 0


#: keys of the plans entered in this context; not the plans themselves, because a context may outlive a model
_keys: ContextVar[tuple[int, ...]] = ContextVar("pathlens_plans", default=())
#: set while the models' own forwards are to run, whatever plans are active
_suspended: ContextVar[bool] = ContextVar("pathlens_suspended", default=False)
#: held while forwards are exchanged, or a thread that ends the last plan could take away that of one that begins
_changing = threading.Lock()


class _Intervened:
    """Stands in for ``model.forward``: the traced network with all active plans, or the model's own forward."""

    def __init__(self, model: nn.Module, original: Callable[..., Any] | None) -> None:
        self.model = model
        self._original = original
        self._entries: dict[int, _Active] = {}
        self._view: ResidualView | None = None

    def add(self, plan: Plan, view: ResidualView | None) -> _Active:
        """Stay in place of the model's forward for a plan that does not act yet."""
        own = _Active(self.model, plan, view)
        self._entries[own.key] = own
        self.model.forward = self
        return own

    def begin(self, own: _Active) -> None:
        """Let a plan act in this thread, if it fits those that do."""
        before = self.active()
        known = self.known_view() or own.view
        if known is not None:
            _check_counted_alike(known, own.view)
            own.plan = own.plan.check(known)
        if not own.plan.changes_forward and not all(entry.plan.changes_forward for entry in before):
            raise UsageError(
                "restrict_backward is active on this model already; give all allowed lengths in one with block"
            )
        _keys.set((*_keys.get(), own.key))

    def pop(self, own: _Active) -> None:
        """End a plan; with the last one the model's own forward is back. Plans may end in any order."""
        _keys.set(tuple(key for key in _keys.get() if key != own.key))
        with together(), _changing:
            del self._entries[own.key]
            # a forward that the user has assigned meanwhile is kept
            if not self._entries and self.model.__dict__.get("forward") is self:
                if self._original is None:
                    del self.model.forward
                else:
                    self.model.forward = self._original

    def active(self) -> list[_Active]:
        """The plans that were entered in this thread, in that order."""
        entries, keys = list(self._entries.values()), _keys.get()
        own = [entry for entry in entries if entry.key in keys]
        if own or not entries or not _is_of_autograd():
            return own
        if len({entry.thread for entry in entries}) > 1:
            raise UsageError(
                "several threads have interventions on this model and a backward pass calls it again (checkpointing) "
                "on a thread of its own; intervene in one thread at a time"
            )
        return entries

    def known_view(self) -> ResidualView | None:
        """The view that the plans of this thread count blocks by, if there is one already."""
        return next((entry.view for entry in self.active() if entry.view is not None), self._view)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _suspended.get() or not self.active():
            with together():
                return self._own(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise UsageError("inside an intervention the model takes exactly one tensor")
        images = args[0]
        view = self.known_view()
        if view is None:
            view = self._view = _find(self.model, images)
        chain = view.chain(images)
        collected = _collected(self.model, view, chain)
        for entry, _ in collected:
            entry.calls += 1
        results, updates = self._run(chain, [plan for _, plan in collected], images)
        with together(), torch.no_grad():
            for name, value in updates.items():
                self.model.get_buffer(name).copy_(value)
        computed = iter(results)
        flat = [next(computed) if isinstance(item, fx.Node) else item for item in chain.trace.outputs]
        return pytree.tree_unflatten(flat, chain.trace.out_spec)

    @property
    def _own(self) -> Callable[..., Any]:
        """The model's own forward."""
        return type(self.model).forward.__get__(self.model) if self._original is None else self._original

    def _run(self, chain: Chain, active: list[Plan], images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        route = plans.schedule(active, len(chain.links))
        restrictions = [plan for plan in active if isinstance(plan, Restriction)]
        prepared = chain.once(_prepared)
        if isinstance(route, Schedule):
            if restrictions:
                raise UsageError(
                    "restrict_backward counts the blocks of a path, and here some run side by side or several times; "
                    "end one of the two"
                )
            return prepared(scheduled, route)(images), {}
        if len(restrictions) > 1:
            raise UsageError(
                "restrict_backward is active on this model and on a part of it; give all allowed lengths in one with "
                "block"
            )
        if restrictions and chain.in_series:
            restrictions[0].check_paths(route)
        # without gradients no backward pass follows that could be restricted
        if not restrictions or not torch.is_grad_enabled():
            part, updates = prepared(lesioned, route), dict[str, Tensor]()
            return list(part.split(part.segment(images), updates)), updates
        network = chain.once(restricted) if route == intact(len(route)) else prepared(restricted, route)
        return network.run(images, restrictions[0].choice)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """A copy of the model is a copy of the network itself: no ``with`` block would ever end its intervention."""
        if self._original is not None:
            return copy.deepcopy(self._original, memo)
        twin = copy.deepcopy(self.model, memo)
        return type(twin).forward.__get__(twin)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A pickle of the model is one of the network itself as well."""
        if self._original is not None:
            return _unchanged, (self._original,)
        return getattr, (self.model, "forward")

    def suspended(self) -> contextlib.AbstractContextManager[None]:
        """The model's own forward, which tracing needs (:func:`pathlens.residual.trace.trace` calls this)."""
        return suspended()


def _is_of_autograd() -> bool:
    """Whether this is a thread of autograd's, on which checkpointing runs a part of a forward pass again."""
    return torch._C._current_graph_task_id() != -1 and isinstance(threading.current_thread(), threading._DummyThread)


def _unchanged(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


def _prepared(chain: Chain) -> Callable[..., Any]:
    """``make(chain, route)``, kept for the routes that came last: loops enter a ``with`` block at every step."""
    return lru_cache(_MOST_BUILT)(lambda make, route: make(chain, route))


def _find(model: nn.Module, images: Tensor) -> ResidualView:
    try:
        return find_blocks(model, images)
    except NoResidualBlocksError as none_found:
        return find_layers(model, images, otherwise=none_found)


def _collected(model: nn.Module, view: ResidualView, chain: Chain) -> list[tuple[_Active, Plan]]:
    """The plans that are active here on a model and on its parts, each as it applies to the model's blocks."""
    collected: list[tuple[_Active, Plan]] = []
    for name, forward in _intervened(model):
        if not name:
            _check_counted_alike(view, forward.known_view())
        places = _places(name, forward, view, chain) if name else None
        for entry in forward.active():
            plan = entry.plan if places is None else entry.plan.lift(places, len(view), name)
            collected.append((entry, plan.check(view)))
    # of two orders the second permutes what the first has put there, whichever of them is on a part
    return sorted(collected, key=lambda pair: pair[0].key)


def _check_counted_alike(view: ResidualView, other: ResidualView | None) -> None:
    if other is not None and (view.additions, view.concat) != (other.additions, other.concat):
        one, two = (f"{each.additions!r}{', with concatenations' * each.concat}" for each in (view, other))
        raise UsageError(
            f"interventions on {type(view.model).__name__} count its blocks by two views, whose additions are "
            f"{one} and {two}; find the blocks once and use that view throughout"
        )


def _intervened(model: nn.Module) -> list[tuple[str, _Intervened]]:
    """What stands in for the forward of a model and of its parts, by their names, where plans are active here."""
    forwards = ((name, module, module.__dict__.get("forward")) for name, module in model.named_modules())
    return [
        (name, forward)
        for name, module, forward in forwards
        if isinstance(forward, _Intervened) and forward.model is module and forward.active()
    ]


def _places(name: str, part: _Intervened, view: ResidualView, chain: Chain) -> tuple[int, ...]:
    """Which blocks of a network the blocks of a part of it are.

    Raises:
        UsageError: that cannot be told.
    """
    path, its_view = tuple(name.split(".")), part.known_view()
    places = tuple(i for i, link in enumerate(chain.links) if module_path(link.total)[: len(path)] == path)
    stacks = [node.meta.get("nn_module_stack") or {} for node in chain.discovery.input_dependent]
    # each call of a module has a key of its own
    calls = {key for stack in stacks for key, (where, _) in stack.items() if where == name}
    same = its_view is None or [_looks(its_view, i) for i in range(len(its_view))] == [_looks(view, i) for i in places]
    if not places or len(calls) != 1 or not same:
        raise UsageError(
            f"interventions are active on {type(view.model).__name__} and on its part {name} "
            f"({type(part.model).__name__}), whose blocks are not blocks of the whole; end one of them first"
        )
    return places


def _looks(view: ResidualView, index: int) -> tuple[object, ...]:
    block = view[index]
    return block.kind, block.parameters, block.shortcut_parameters
