"""One forward pass of any module as a functional graph of ATen operations.

The graph is recorded (:mod:`pathlens.residual.recorded`) or, where that is not surely right, comes from
:func:`torch.export.export` with a symbolic batch size. It is functional: in-place additions and activations are
ordinary nodes, and updates of buffers (batch-norm statistics) are extra outputs. It refers to parameters and buffers by
name only, so it always computes with those that the module holds at the time of the call. Other tensors that modules
hold are constants of it; :attr:`Trace.is_current` says whether they still hold the same ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pathlens.errors import ModelError, PathlensError, one_line
from pathlens.residual.aliases import memory_of
from pathlens.residual.outputs import Output, choose_output
from pathlens.residual.recorded import BackwardError, ReplacedError, record
from pathlens.residual.simplify import batch_norm_update, simplify
from pathlens.residual.sizes import at_batch, may_follow_batch
from pathlens.residual.turns import together
from pathlens.residual.undisturbed import undisturbed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Trace", "batch_norm_update", "trace"]

_MAX_BATCH_PROBE = 2


@dataclass(frozen=True, eq=False)
class _Place:
    """Where a module holds a constant: the keys that lead to it from the attributes, through lists, tuples, dicts."""

    tensor: Tensor
    attributes: dict[str, Any]
    keys: tuple[Any, ...]

    @property
    def now(self) -> Any:
        """What is there now, or None."""
        value: Any = self.attributes
        try:
            for key in self.keys:
                value = value[key]
        except (LookupError, TypeError):
            return None
        return value


@dataclass(frozen=True, eq=False)
class Trace:
    """A functional graph of one forward pass.

    Attributes:
        graph: nodes in execution order; parameters, buffers and constants are placeholders.
        source: the placeholder that stands for the input.
        tensors: placeholder name -> ``("parameter" | "buffer" | "constant", qualified name or tensor)``.
        outputs: output nodes (or constants) in the order of the flattened return value.
        out_spec: how to put the flat outputs back into what the module returns.
        output: which of them the residual trunk leads to.
        mutations: buffer name -> node with its new value, in train mode.
        static_batch: the batch size when the module fixed it while tracing, else None.
        input_shape: shape of the input without the batch dimension.
        batch: number of examples that it was traced with.
        recorded: sizes that follow the batch are multiples of ``STAND_IN``; otherwise symbols of the exporter.
        device: on which it was traced.
        has_functions: whether an ``autograd.Function`` is in it, whose own backward pass is not traced.
    """

    graph: fx.Graph
    source: fx.Node
    tensors: dict[str, tuple[str, Any]]
    outputs: tuple[Any, ...]
    out_spec: pytree.TreeSpec
    output: Output
    mutations: dict[str, fx.Node]
    static_batch: int | None
    input_shape: tuple[int, ...]
    batch: int
    recorded: bool
    device: torch.device
    has_functions: bool
    _lookups: dict[str, Callable[[], Tensor]] = field(repr=False)
    _places: tuple[_Place, ...] = field(repr=False)

    @property
    def is_current(self) -> bool:
        """Whether the modules hold the constants, and no other tensors in their place."""
        return all(place.now is place.tensor for place in self._places)

    @property
    def main(self) -> fx.Node:
        """The output that the residual trunk leads to."""
        return self.output.node

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the graph holds for alone, if there is one."""
        first = self.value(self.source).shape[0]
        # comparing a symbolic size may have fixed it
        fixed = not self.recorded and str(first).isdigit()
        return int(first) if self.static_batch is None and fixed else self.static_batch

    def fetch(self, names: tuple[str, ...]) -> list[Tensor]:
        """The tensors behind placeholders, as the module holds them now."""
        with together():
            return [self._lookups[name]() for name in names]

    def value(self, node: fx.Node) -> Any:
        """Shape-carrying stand-in for the value of a node (a fake tensor, a size or a tuple)."""
        return node.meta.get("val")

    def follows_batch(self, size: object) -> bool:
        """Whether a size of a value follows the batch."""
        return may_follow_batch(size) if self.recorded else isinstance(size, torch.SymInt)

    def batch_axis(self, node: fx.Node) -> int:
        """The dimension of a value along which its examples lie; not the first where sequences come first."""
        return next((axis for axis, size in enumerate(self.value(node).shape) if self.follows_batch(size)), 0)

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a value, for as many examples as it was traced with."""
        sizes = self.value(node).shape
        return tuple(at_batch(s, self.batch) if self.recorded and may_follow_batch(s) else _known(s) for s in sizes)

    def at_batch(self, value: Any, batch: int) -> Any:
        """A size, or for a tensor one without memory of that shape, for a batch of so many examples."""
        if isinstance(value, Tensor):
            return torch.empty([self.at_batch(s, batch) for s in value.shape], dtype=value.dtype, device="meta")
        return at_batch(value, batch) if self.follows_batch(value) else value


def _known(size: int | torch.SymInt) -> int:
    """What the exporter saw of a size; ``int`` of a symbolic one would fix it for good."""
    hint = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(size if hint is None else hint)


def trace(model: nn.Module, example: Tensor, output: str | int | None = None) -> Trace:
    """Trace ``model`` in its present train/eval mode.

    Args:
        model: the module; its parameters, buffers, modes and hooks are left as they are.
        example: an input, shape (N, ...). A single example is doubled, because a batch of one would be taken for
            a constant.
        output: name or position of the output to study, where the module returns several.

    Returns:
        The functional graph.

    Raises:
        ModelError: the module cannot be traced, does not take or return tensors, or returns several of which none is
            known to be the one.
        UsageError: an output that the module does not have.
    """
    if example.dim() < 1 or example.shape[0] < 1:
        raise ModelError(f"example input of shape {tuple(example.shape)} has no batch; give one of shape (N, ...)")
    single = example.shape[0] < _MAX_BATCH_PROBE
    probe = example.repeat(_MAX_BATCH_PROBE, *([1] * (example.dim() - 1))) if single else example
    replaced: tuple[str, ...] = ()
    has_functions = False
    try:
        recorded = _record(model, probe, output)
    except ReplacedError as error:
        recorded, replaced = None, error.buffers
    except BackwardError:
        recorded, has_functions = None, True
    if recorded is not None:
        return recorded
    traced = _canonical(model, _export(model, probe), probe, output, has_functions)
    if single and traced.static_batch is not None:
        # the module fixes any batch size that it sees, so trace it with the one given
        traced = _canonical(model, _export(model, example), example, output, has_functions)
    # the exporter follows what the outermost module does to its buffers, and says nothing of others
    lost = next((name for name in replaced if name not in traced.mutations), None)
    if lost is not None:
        raise ModelError(
            f"{type(model).__name__} assigns its buffer {lost} in a forward pass; write it in place "
            f"(self.{lost.rpartition('.')[2]}.copy_(...)), so that its new value can be followed"
        )
    return traced


def _record(model: nn.Module, example: Tensor, output: str | int | None) -> Trace | None:
    """The trace by recording; None where the exporter is needed."""
    try:
        with undisturbed(model):
            recording = record(model, example)
    except (ReplacedError, BackwardError):
        raise
    except Exception:
        # the exporter then either succeeds or reports the error
        return None
    graph = recording.graph
    simplify(graph)
    results = _results(graph)
    count = len(recording.mutated)
    return _assemble(
        model,
        graph,
        recording.source,
        recording.tensors,
        mutations=dict(zip(recording.mutated, results[:count], strict=True)),
        outputs=results[count:],
        out_spec=recording.out_spec,
        example=example,
        output=output,
        recorded=True,
    )


def _export(model: nn.Module, example: Tensor) -> ExportedProgram:
    from torch.export import Dim, export

    name = type(model).__name__
    # the first dimension of the first argument may vary
    try:
        first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{name} has no forward in Python (torch.jit?); give the module that it was made from"
        ) from error
    batch = {0: Dim.AUTO}
    listed = first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL
    try:
        with undisturbed(model):
            program = export(model, (example,), dynamic_shapes=((batch,),) if listed else (batch,), strict=False)
            return program.run_decompositions({})
    except (PathlensError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # The exporter reports whatever the user's own forward raised, so every class is possible here.
        raise ModelError(
            f"{name} cannot be traced with an input of shape {tuple(example.shape)}: {type(error).__name__}: "
            f"{one_line(error, 300)}; "
            "check the input shape, and remove control flow that depends on tensor values"
        ) from error


def _canonical(
    model: nn.Module, program: ExportedProgram, example: Tensor, output: str | int | None, has_functions: bool
) -> Trace:
    from torch.export.graph_signature import InputKind, OutputKind

    graph = program.graph_module.graph
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    tensors: dict[str, tuple[str, Any]] = {}
    source: fx.Node | None = None
    constants = program.constants
    for spec in program.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind == InputKind.USER_INPUT:
            source = placeholders.get(name, source)
        elif spec.kind == InputKind.PARAMETER:
            tensors[name] = ("parameter", spec.target)
        elif spec.kind == InputKind.BUFFER:
            tensors[name] = ("buffer", spec.target)
        elif spec.kind == InputKind.CONSTANT_TENSOR:
            assert spec.target is not None
            tensors[name] = ("constant", constants[spec.target])
        else:
            raise ModelError(
                f"{type(model).__name__} takes an input of kind {spec.kind.name}; wrap it in a module of one tensor"
            )
    simplify(graph)
    mutations: dict[str, fx.Node] = {}
    results: list[Any] = []
    for value, out in zip(_results(graph), program.graph_signature.output_specs, strict=True):
        if out.kind == OutputKind.BUFFER_MUTATION:
            assert out.target is not None
            mutations[out.target] = value
        elif out.kind == OutputKind.USER_OUTPUT:
            results.append(value)
    return _assemble(
        model,
        graph,
        source,
        tensors,
        mutations=mutations,
        outputs=tuple(results),
        out_spec=program.call_spec.out_spec,
        example=example,
        output=output,
        recorded=False,
        has_functions=has_functions,
    )


def _results(graph: fx.Graph) -> tuple[Any, ...]:
    (node,) = [node for node in graph.nodes if node.op == "output"]
    results: Any = node.args[0]
    return tuple(results)


def _assemble(
    model: nn.Module,
    graph: fx.Graph,
    source: fx.Node | None,
    tensors: dict[str, tuple[str, Any]],
    *,
    mutations: dict[str, fx.Node],
    outputs: tuple[Any, ...],
    out_spec: pytree.TreeSpec,
    example: Tensor,
    output: str | int | None,
    recorded: bool,
    has_functions: bool = False,
) -> Trace:
    name = type(model).__name__
    if source is None:
        raise ModelError(f"{name} does not turn its input tensor into an output tensor")
    first = source.meta["val"].shape[0]
    # a size that was fixed while tracing may still be a symbolic object
    static = first.node.maybe_as_int() if isinstance(first, torch.SymInt) else int(first)
    return Trace(
        graph=graph,
        source=source,
        tensors=tensors,
        outputs=outputs,
        out_spec=out_spec,
        output=choose_output(name, outputs, out_spec, output),
        mutations=mutations,
        static_batch=None if recorded else static,
        input_shape=tuple(example.shape[1:]),
        batch=example.shape[0],
        recorded=recorded,
        device=example.device,
        has_functions=has_functions,
        _lookups={name: _lookup(model, kind, target) for name, (kind, target) in tensors.items()},
        _places=tuple(_places(model, [target for kind, target in tensors.values() if kind == "constant"])),
    )


def _places(model: nn.Module, constants: list[Tensor]) -> Iterator[_Place]:
    """The attributes of modules, and the parts of lists, tuples and dicts in them, that are constants of a graph."""
    # known by their memory, because the exporter may have other tensors that look at it
    wanted = {memory_of(constant) for constant in constants if constant.layout is torch.strided}
    if not wanted:
        return
    for module in model.modules():
        waiting: list[tuple[Any, tuple[Any, ...]]] = [(module.__dict__, ())]
        seen = {id(module._parameters), id(module._buffers)}
        while waiting:
            held, keys = waiting.pop()
            parts: Any = held.items() if isinstance(held, dict) else enumerate(held)
            for key, value in parts:
                if isinstance(value, Tensor):
                    if value.layout is torch.strided and memory_of(value) in wanted:
                        yield _Place(value, module.__dict__, (*keys, key))
                elif type(value) in (list, tuple, dict) and id(value) not in seen:
                    seen.add(id(value))
                    waiting.append((value, (*keys, key)))


def _lookup(model: nn.Module, kind: str, target: Any) -> Callable[[], Tensor]:
    if kind == "constant":
        return lambda: target
    owner_name, _, leaf = target.rpartition(".")
    owner = model.get_submodule(owner_name)
    # ``getattr`` at call time: a parameter that the user replaces between calls is the one that is used.
    return lambda: getattr(owner, leaf)
