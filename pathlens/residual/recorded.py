"""One forward pass recorded operation by operation on tensors without values: the short way to a functional graph.

:func:`torch.export.export` and its decompositions give the same graph and take ten times as long. The pass is recorded
for two batch sizes, and a number in the graph that differs between them must be a multiple of the batch size
(:mod:`pathlens.residual.generalised`). Writes in place become operations of their own
(:mod:`pathlens.residual.aliases`). Wherever a network does something that is not surely done right here,
:class:`Unsure` is raised, and the exporter takes over.
"""

from __future__ import annotations

import contextlib
import io
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pathlens.residual import operations as ops
from pathlens.residual.aliases import Aliases, Step, Unsure, Value, memory_of
from pathlens.residual.generalised import generalise
from pathlens.residual.shapes import shape_of_result
from pathlens.residual.sizes import STAND_IN
from pathlens.residual.undisturbed import attributes_kept

aten = torch.ops.aten

_META = torch.device("meta")
_BATCH_NORM = aten.batch_norm.default
_UPDATING_BATCH_NORM = aten._native_batch_norm_legit_functional.default
_VIEW_OF_A_COPY = aten._unsafe_view.default
#: in-place operations whose functional form has another name -> that form and its default arguments
_WITHOUT_WRITING = {aten.bernoulli_.float: (aten.bernoulli.p, (0.5,))}
_DETACHING = (aten.detach.default, aten.detach_.default)
_NOT_RECORDED = (torch.Tag.data_dependent_output, torch.Tag.inplace_view)


class BackwardError(Unsure):
    """An ``autograd.Function`` has a backward pass of its own, which operations do not tell; or inference mode none."""


class ReplacedError(Unsure):
    """Parameters or buffers are replaced by others in the pass.

    Args:
        buffers: names of those that are buffers.
    """

    def __init__(self, buffers: tuple[str, ...]) -> None:
        super().__init__("a parameter or buffer that is replaced")
        self.buffers = buffers


@dataclass(frozen=True, eq=False)
class Recording:
    """A functional graph, and what its nodes stand for.

    Attributes:
        graph: placeholders of parameters, buffers, constants and the input; then the operations; it returns the new
            values of the mutated buffers and then the flattened outputs.
        source: the placeholder of the input.
        tensors: placeholder name -> ``("parameter" | "buffer" | "constant", qualified name or tensor)``.
        mutated: names of the buffers that the pass writes to.
        out_spec: how to put the outputs back into what the module returns.
    """

    graph: fx.Graph
    source: fx.Node
    tensors: dict[str, tuple[str, Any]]
    mutated: tuple[str, ...]
    out_spec: pytree.TreeSpec


@dataclass(frozen=True, eq=False)
class _Held:
    """A tensor that the module holds, and what stands for it while recording."""

    kind: str
    name: str
    tensor: Tensor
    stand_in: Tensor


def record(model: nn.Module, example: Tensor) -> Recording:
    """Record a model in its present train/eval mode, for any batch size.

    Args:
        model: the module; it is left as it was.
        example: an input, shape (N, ...) with N of 2 or more, of which only shape, type and device matter.

    Returns:
        The graph. Its values are tensors without memory, with a batch of ``STAND_IN`` examples.

    Raises:
        Unsure: the exporter has to do it; so do all errors that come out of the model.
    """
    modules = list(model.modules())
    if any(isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod") for module in modules):
        raise Unsure("a compiled or scripted module")
    if sum(1 for _ in model.named_modules(remove_duplicate=False)) != len(modules):
        raise Unsure("a module under two names")
    held = [_Held("parameter", name, tensor, _stand_in(tensor)) for name, tensor in model.named_parameters()]
    held += [_Held("buffer", name, tensor, _stand_in(tensor)) for name, tensor in model.named_buffers()]
    if any(item.tensor.device != example.device for item in held):
        raise Unsure("tensors on several devices")

    def recorded(batch: int) -> Recording:
        x = torch.empty((batch, *example.shape[1:]), dtype=example.dtype, device=_META)
        return _Recorder(model, held, example.device).record(x)

    small = recorded(example.shape[0])
    with contextlib.redirect_stdout(io.StringIO()):  # the first recording has printed the same
        large = recorded(STAND_IN)
    generalise(small.graph, large.graph, example.shape[0])
    for one, other in zip(small.tensors.values(), large.tensors.values(), strict=True):
        if one[0] == "constant" and not _equal(one[1], other[1]):
            raise Unsure("a constant that depends on the batch size")
    if small.out_spec != large.out_spec or small.mutated != large.mutated:
        raise Unsure("another result for another batch size")
    large.graph.eliminate_dead_code()
    return large


class _Recorder(TorchDispatchMode):
    """Writes each operation of a forward pass into a graph, as the dispatcher hands it over."""

    def __init__(self, model: nn.Module, held: list[_Held], device: torch.device) -> None:
        super().__init__()
        self._model = model
        self._held = held
        self._device = device
        self._graph = fx.Graph()
        self._aliases = Aliases(self._graph)
        self._tensors: dict[str, tuple[str, Any]] = {}
        #: parameters, buffers and constants by id; the tensors are kept, so that no new tensor gets the same id
        self._real: dict[int, tuple[Tensor, Value]] = {}
        self._source: fx.Node | None = None
        self._paths = {module: name for name, module in model.named_modules()}
        self._running: list[str] = []
        self._asked = _AsReal(device)
        #: nodes that end what was computed without gradients
        self._ends: dict[fx.Node, None] = {}
        for item in held:
            name = re.sub(r"\W", "_", f"{item.kind[0]}_{item.name}")
            value = self._placeholder(name, item.kind, item.name, item.stand_in)
            self._real[id(item.tensor)] = item.tensor, value

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No guard against torch.compile, of which the import alone takes longer than recording most networks."""
        return False

    def record(self, x: Tensor) -> Recording:
        """Run the model on a tensor without values."""
        self._source = self._graph.placeholder("x")
        self._source.meta = {"val": x}
        self._aliases.own(x, self._source, "input")
        stand_ins = {id(item.tensor): item.stand_in for item in self._held}
        with attributes_kept(self._model):
            for module in self._model.modules():
                held: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for tensors in held:
                    tensors.update((k, stand_ins[id(t)]) for k, t in tensors.items() if t is not None)
            before = self._registered()
            with contextlib.ExitStack() as stack:
                # without autograd the dispatcher sees whole layers, such as conv2d, and not their decompositions
                stack.enter_context(torch.inference_mode())
                for context in (torch.enable_grad(), _as_for_the_exporter(), self._following(), self._asked):
                    stack.enter_context(context)
                stack.enter_context(self)
                result = self._model(x)
                self._asked.check()
            if self._registered() != before:
                now = dict(self._model.named_buffers(remove_duplicate=False))
                own = [item for item in self._held if item.kind == "buffer"]
                raise ReplacedError(tuple(item.name for item in own if now.get(item.name) is not item.stand_in))
        flat, out_spec = pytree.tree_flatten(result)
        if not all(isinstance(item, (Tensor, int, float, str, type(None))) for item in flat):
            raise Unsure("a result that is neither tensor nor number")
        outputs = [self._read(item) if isinstance(item, Tensor) else item for item in flat]
        written = self._written()
        self._graph.output((*written.values(), *outputs))
        self._thin_ends()
        return Recording(self._graph, self._source, self._tensors, tuple(written), out_spec)

    def _registered(self) -> list[tuple[str, int]]:
        owners = [tensors for m in self._model.modules() for tensors in (m._parameters, m._buffers)]
        return [(name, id(tensor)) for tensors in owners for name, tensor in tensors.items()]

    def _written(self) -> dict[str, fx.Node]:
        """New values of the buffers that were written to."""
        seen_by = Counter(memory_of(tensor) for tensor, _ in self._real.values())
        updates = {}
        for item in self._held:
            base = self._real[id(item.tensor)][1].base
            if base.version:
                if seen_by[memory_of(item.tensor)] > 1:
                    raise Unsure("a write to a buffer that shares its memory")
                updates[item.name] = base.node
        return updates

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Know which module runs."""
        entered: set[nn.Module] = set()

        def enter(module: nn.Module, _inputs: Any) -> None:
            if module in entered and module._modules:
                raise Unsure("a module of modules that runs twice, whose passes the exporter tells apart")
            entered.add(module)
            self._running.append(self._paths.get(module, self._running[-1] if self._running else ""))

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._running.pop()

        hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record an operation, and give what it returns for tensors without values."""
        args, kwargs = self._without_device((tuple(args), kwargs or {}))
        if not torch.is_inference_mode_enabled():
            raise Unsure("a part outside of inference mode")
        self._asked.check()
        if func is aten.lift_fresh.default:
            return self._fresh(*args)
        if func in _DETACHING and self._is_fresh(*args):
            return args[0]  # torch detaches tensors that it has just made, and there is no gradient to stop
        if func.namespace != "aten" or any(tag in func.tags for tag in _NOT_RECORDED):
            raise Unsure(f"{func}")
        # it writes to its running statistics, and its schema does not say so
        updates = func is aten.instance_norm.default and args[3] is not None and args[5]
        drops = func is aten.dropout.default and args[2] and args[1] > 0  # otherwise it returns its operand
        if updates or (func is not _BATCH_NORM and not drops and _hides_aliases(func)):
            with self:
                return func.decompose(*args, **kwargs)
        if func is _BATCH_NORM:
            return self._batch_norm(args)
        if func._schema.is_mutable:
            return self._in_place(func, args, kwargs)
        node_args, options = self._nodes((args, kwargs))
        out = self._run(func, args, kwargs)
        if not isinstance(out, (Tensor, tuple, list)):
            if out is None:
                raise Unsure(f"{func}, which returns nothing")
            return out
        node = self._emit(func, node_args, options, out)
        of = self._value(args[0]) if _is_view(func) else None
        for index, item in enumerate([out] if isinstance(out, Tensor) else out):
            if not isinstance(item, Tensor):
                raise Unsure(f"{func}, which returns other things than tensors")
            element = None if item is out else index
            taken = node if element is None else self._emit(operator.getitem, (node, index), {}, item)
            taken = self._ended(taken, item)
            if of is None:
                self._aliases.own(item, taken)
            else:
                step = Step(func, tuple(node_args[1:]), options, element, of.tensor, item)
                self._aliases.view(item, taken, of, step)
        return out

    def _ended(self, node: fx.Node, value: Tensor) -> fx.Node:
        """A node, or where the pass is without gradients one through which none goes back to it."""
        if torch.is_grad_enabled() or not (value.is_floating_point() or value.is_complex()):
            return node
        end = self._emit(aten.detach.default, (node,), {}, value)
        self._ends[end] = None
        return end

    def _thin_ends(self) -> None:
        """Keep those ends alone that something with gradients uses; inside of a part they would hide what is there."""

        def ends(node: fx.Node) -> bool:
            taken = (user.target is operator.getitem and ends(user) for user in node.users)
            return all(user in self._ends or is_taken for user, is_taken in zip(node.users, taken, strict=True))

        for end in [end for end in self._ends if all(user.op != "output" and ends(user) for user in end.users)]:
            end.replace_all_uses_with(end.all_input_nodes[0])
            self._graph.erase_node(end)

    def _is_fresh(self, tensor: Tensor) -> bool:
        """Whether a tensor is as an operation without gradients made it."""
        value = self._value(tensor)
        return not value.steps and not value.base.version and value.node.target in ops.FRESH

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What an operation gives for tensors without memory."""
        args, kwargs = _map((args, kwargs), Tensor, lambda tensor: self._value(tensor).tensor)
        operands = [item for item in pytree.tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
        if func in ops.WEIGHTED and func is not aten.embedding.default and len({item.dtype for item in operands}) > 1:
            raise Unsure(f"{func} of several types, which goes wrong with values alone")
        if _makes_tensors(func) and not operands:
            if "device" not in kwargs and self._device.type != "cpu":
                raise Unsure("a tensor on another device")
            kwargs = {**kwargs, "device": _META}
        known = shape_of_result(func, args, kwargs)
        return func(*args, **kwargs) if known is None else args[0].new_empty(known)

    def _in_place(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """``x.add_(y)`` as ``x = x.add(y)``, for everything that looks at the memory of x."""
        written = [a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        name = func._schema.name.partition("::")[2]
        same = getattr(getattr(aten, name[:-1], None), func._overloadname, None)
        whole, left_out = _WITHOUT_WRITING.get(func, (same, ()))
        args = (*args, *left_out[len(args) - 1 :])
        if whole is None or not name.endswith("_") or written != func._schema.arguments[:1] or whole._schema.is_mutable:
            raise Unsure(f"{func}")
        node_args, options = self._nodes((args, kwargs))
        out = self._run(whole, args, kwargs)
        target: Tensor = args[0]
        if (out.shape, out.dtype) != (target.shape, target.dtype):
            raise Unsure(f"{func}, whose result is of another type than its operand")
        value = self._value(target)
        computed = self._emit(whole, node_args, options, out)
        end = self._ended(computed, out)
        if end is not computed and value.base.kind != "buffer" and value.base.node not in self._ends:
            raise Unsure("a write without gradients to what has some")
        self._aliases.write(value, end)
        return target

    def _batch_norm(self, args: Any) -> Tensor:
        """Batch norm writes to its running statistics, and does not say so."""
        (*_, mean, variance, training, _momentum, _eps, _cudnn) = args
        if mean is None or variance is None:
            raise Unsure("a batch norm without statistics")
        node_args = self._nodes(args)
        out: Tensor = self._run(_BATCH_NORM, args, {})
        if not training:
            self._aliases.own(out, self._ended(self._emit(_BATCH_NORM, node_args, {}, out), out))
            return out
        statistics = [self._value(mean), self._value(variance)]
        values = (out, out, out, *(buffer.tensor for buffer in statistics))
        whole = self._emit(_UPDATING_BATCH_NORM, node_args[:8], {}, values)
        first, *updates = [self._emit(operator.getitem, (whole, i), {}, values[i]) for i in (0, 3, 4)]
        for buffer, update in zip(statistics, updates, strict=True):
            self._aliases.write(buffer, update)
        self._aliases.own(out, self._ended(first, out))
        return out

    def _fresh(self, tensor: Tensor) -> Tensor:
        """What ``torch.tensor`` makes: a constant, copied at each call because it may be written to."""
        constant = self._value(tensor)
        out = torch.empty_like(constant.tensor)
        self._aliases.own(out, self._emit(aten.lift_fresh_copy.default, (constant.node,), {}, out))
        return out

    def _value(self, tensor: Tensor) -> Value:
        """What is known of a tensor; one that the pass did not make, and that the module does not hold, is constant."""
        value = self._aliases.find(tensor)
        if value is None and id(tensor) in self._real:
            value = self._real[id(tensor)][1]
        if value is None:
            if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta or tensor.device != self._device:
                raise Unsure("a tensor from elsewhere")
            assert self._source is not None
            with self._graph.inserting_before(self._source):
                value = self._placeholder("c_constant", "constant", tensor, _stand_in(tensor))
            self._real[id(tensor)] = tensor, value
        return value

    def _read(self, tensor: Tensor) -> fx.Node:
        return self._aliases.read(self._value(tensor))

    def _nodes(self, arguments: Any) -> Any:
        """Arguments as they stand in the graph."""
        return _map(_map(arguments, Tensor, self._read), torch.device, lambda _: self._device)

    def _without_device(self, arguments: Any) -> Any:
        """Arguments that name the device of the tensors that stand for the real ones."""

        def moved(device: torch.device) -> torch.device:
            if device not in (self._device, _META):
                raise Unsure("another device")
            return _META

        return _map(arguments, torch.device, moved)

    def _placeholder(self, name: str, kind: str, target: Any, stand_in: Tensor) -> Value:
        node = self._graph.placeholder(name)
        node.target = node.name  # the graph may have changed the name to make it unique
        node.meta = {"val": stand_in}
        self._tensors[node.name] = (kind, target)
        return self._aliases.own(stand_in, node, kind)

    def _emit(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> fx.Node:
        name = target.overloadpacket.__name__ if hasattr(target, "overloadpacket") else target.__name__
        node = self._graph.create_node("call_function", target, args, kwargs, name)
        node.meta = {"val": value}
        # from the outermost module to the innermost; the kind is none, because it is not asked for
        node.meta["nn_module_stack"] = {path: (path, "") for path in self._running}
        return node


class _AsReal(TorchFunctionMode):
    """Lets tensors say that they are on the device of those that they stand for; gives up where types are chosen.

    Attributes:
        gradients: whether the network asks for some, which ``no_grad`` and the like say.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.gradients = True
        self._kinds = {"cpu", device.type}
        attributes: Any = torch.Tensor
        self._answers: dict[Any, Any] = {attributes.device.__get__: device, attributes.is_meta.__get__: False}
        for kind in ("cpu", "cuda", "mps", "xpu"):
            self._answers[getattr(torch.Tensor, f"is_{kind}").__get__] = device.type == kind

    def check(self) -> None:
        """Give up where autograd itself has switched gradients off or on."""
        if torch.is_grad_enabled() != self.gradients:
            raise BackwardError("a forward pass that autograd calls itself, or one in inference mode")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer, or go on as ever."""
        if any(torch.is_autocast_enabled(kind) for kind in self._kinds):
            raise Unsure("types that autocast chooses")
        if func is torch._C._set_grad_enabled:
            self.check()
            self.gradients = bool(args[0])
        return self._answers[func] if func in self._answers else func(*args, **(kwargs or {}))


def _stand_in(tensor: Tensor) -> Tensor:
    """A tensor like another, without memory."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_complex():
        raise Unsure("an unusual tensor")
    size, stride = tensor.size(), tensor.stride()
    stand_in = torch.empty_strided(size, stride, dtype=tensor.dtype, device=_META)
    return nn.Parameter(stand_in, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else stand_in


def _map(item: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Arguments with everything of a kind changed."""
    if isinstance(item, kind):
        return change(item)
    if isinstance(item, (tuple, list)):
        return type(item)(_map(part, kind, change) for part in item)
    if isinstance(item, dict):
        return {key: _map(part, kind, change) for key, part in item.items()}
    return item


@cache
def _hides_aliases(func: Any) -> bool:
    """Whether an operation is made of others, and may return or change its operand: then those others tell."""
    if not func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return False
    return _is_view(func) or torch.Tag.maybe_aliasing_or_mutating in func.tags


@cache
def _is_view(func: Any) -> bool:
    # _unsafe_view is a view, though its schema does not say so
    return any(argument.alias_info is not None for argument in func._schema.arguments) or func is _VIEW_OF_A_COPY


@cache
def _makes_tensors(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other))


@contextlib.contextmanager
def _as_for_the_exporter() -> Iterator[None]:
    """What ``torch.compiler.is_exporting()`` answers, which some networks ask to leave out what cannot be traced."""
    flags = ("_is_compiling_flag", "_is_exporting_flag")
    before = [getattr(torch.compiler, flag) for flag in flags]
    try:
        for flag in flags:
            setattr(torch.compiler, flag, True)
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            setattr(torch.compiler, flag, value)
