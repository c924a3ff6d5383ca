"""The same pieces of a network, prepared for running them many times without gradients.

What changes is speed, not meaning: whatever does not depend on the input is computed once, batch norms are folded into
the convolutions before them, activations are channels-last, and on a CPU convolution, addition and ReLU are one oneDNN
call with weights packed in advance. Results differ from the model's own by float rounding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from pathlens.errors import ModelError
from pathlens.residual import engines
from pathlens.residual import operations as ops
from pathlens.residual.chain import Chain
from pathlens.residual.engines import Engine
from pathlens.residual.modes import in_mode
from pathlens.residual.rewritten import Instead, Rewritten
from pathlens.residual.routes import Part, Route
from pathlens.residual.segments import Segment, compiled
from pathlens.residual.sizes import may_follow_batch
from pathlens.residual.view import ResidualView

aten = torch.ops.aten
Call = Callable[[Tensor], Tensor]
_T = TypeVar("_T")
_R = TypeVar("_R")


class Inference:
    """A network in eval mode on one device and in one dtype, block by block.

    Args:
        view: the network's view; its model is put into eval mode only while it is read, and never moved.
        device: where to compute.
        dtype: floating-point type to compute in.
        engine: how to prepare the pieces (default: as :func:`engines.default` says). In the form ``plain`` they are
            the model's own operations, which is slower and rounds exactly as the model does.

    A piece keeps its own copy of the weights that the model has when the piece is first asked for.

    Raises:
        ModelError: the model fixes its batch size.
    """

    def __init__(
        self,
        view: ResidualView,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: Engine | None = None,
    ) -> None:
        self.view = view
        self.device = torch.device(device)
        self.dtype = dtype
        self.engine = engine or engines.default(self.device, dtype, None, view.largest_activation)
        with in_mode(view.model):
            self._chain: Chain = view.chain()
        trace = self._chain.trace
        source = trace.value(trace.source)
        if trace.fixed_batch is not None:
            raise ModelError(
                f"the trace of {type(view.model).__name__} holds for batches of {trace.fixed_batch} images alone; "
                "write its forward without loops over the batch and without sizes as plain numbers"
            )
        self._own = next((t.dtype for t in view.model.parameters() if t.is_floating_point()), source.dtype)
        # types and devices that the trace recorded, as of torch.zeros(..., device=x.device), become the engine's
        self._moved = {self._own: dtype, trace.device: self.device}
        self._pieces: dict[Segment, Call] = {}
        self._shared: dict[str, Tensor] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._image_layout = self.engine.form != "plain" and any(
            node.target in ops.CONVOLUTIONS for node in trace.graph.nodes
        )

    def __len__(self) -> int:
        return len(self._chain.links)

    @property
    def chain(self) -> Chain:
        """The traced network in eval mode."""
        return self._chain

    def prepare(self, images: Tensor) -> Tensor:
        """Move a batch to the device, dtype and memory format that the pieces expect."""
        images = images.to(self.device)
        if images.is_floating_point():
            images = images.to(self.dtype)
        if self._image_layout and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    @property
    def stem(self) -> Call:
        """From a prepared batch to x_0."""
        with self._lock:
            return self._prepared(self._chain.stem)

    @property
    def head(self) -> Call:
        """From x_n to the logits."""
        with self._lock:
            return self._prepared(self._chain.head)

    def step(self, part: Part, index: int) -> Call:
        """All or a part of a block, from x_{i-1} to x_i."""
        with self._lock:
            return self._prepared(self._chain.step(part, index))

    def pieces(self, index: int) -> tuple[Call, Call, Call, Call]:
        """A block's transition, branch, shortcut and post-activation; branch and shortcut start at the branch point."""
        chain = self._chain
        with self._lock:
            transition, branch, shortcut, post = (
                self._prepared(piece(index)) for piece in (chain.transition, chain.branch, chain.shortcut, chain.post)
            )
        return transition, branch, shortcut, post

    def whole(self, route: Route, instead: Instead | None = None) -> Call:
        """From a prepared batch to the logits, with what a route says of each block.

        Args:
            route: what runs at each position.
            instead: of branches that are replaced, where blocks are no chain (:class:`.Rewritten`).
        """
        if self._chain.in_series:
            calls = (self.stem, *(self.step(*step) for step in route), self.head)
            return lambda x: reduce(lambda value, call: call(value), calls, x)
        return self._rewritten.route(route, instead)

    def branches(self, blocks: Sequence[int], take: Call) -> Callable[[Tensor], Sequence[Tensor]]:
        """From a prepared batch to what is taken of some branches of the intact network, in the order of the blocks.

        Args:
            blocks: which, sorted.
            take: what is kept of a branch.
        """
        return self._chained_branches(blocks, take) if self._chain.in_series else self._rewritten.branches(blocks, take)

    def _chained_branches(self, blocks: Sequence[int], take: Call) -> Callable[[Tensor], list[Tensor]]:
        def call(x: Tensor) -> list[Tensor]:
            x = self.stem(x)
            taken = []
            for block in range(blocks[-1] + 1):
                if block not in blocks:
                    x = self.step(Part.BLOCK, block)(x)
                    continue
                transition, branch, shortcut, post = self.pieces(block)
                branch_point = transition(x)
                value = branch(branch_point)
                taken.append(take(value))
                x = post(shortcut(branch_point) + value)
            return taken

        return call

    @cached_property
    def _rewritten(self) -> Rewritten:
        with self._lock:
            return Rewritten(self._chain, self._lowered)

    def parts(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Batches cut into the parts that the engine computes at a time.

        Args:
            *tensors: each of shape (N, ...) with the same N.
        """
        size = self.engine.images or max(1, len(tensors[0]))
        return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))

    def keep_batches_whole(self) -> None:
        """Compute all images of a batch together from now on, where what is computed of one depends on the others."""
        # weights are packed for a number of images
        form = "folded" if self.engine.form == "packed" else self.engine.form
        self.engine = replace(self.engine, form=form, images=None, lanes=1)
        self._pieces.clear()
        self.__dict__.pop("_rewritten", None)

    def each(self, function: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        """A function of every item, as many at the same time as the engine has lanes; results in the items' order."""
        if self.engine.lanes == 1 or len(items) < 2:
            return [function(item) for item in items]
        if self._pool is None:
            share = max(1, torch.get_num_threads() // self.engine.lanes)
            self._pool = ThreadPoolExecutor(self.engine.lanes, initializer=torch.set_num_threads, initargs=(share,))
        inference = torch.is_inference_mode_enabled()

        def call(item: _T) -> _R:
            # inference mode is a setting of each thread
            with torch.inference_mode(inference):
                return function(item)

        return list(self._pool.map(call, items))

    def __enter__(self) -> Inference:
        return self

    def __exit__(self, *error: object) -> None:
        """End the lanes' threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            # new threads would otherwise inherit the share that a lane was given
            torch.set_num_threads(torch.get_num_threads())

    def _prepared(self, segment: Segment) -> Call:
        if segment not in self._pieces:
            module = self._lowered(segment)
            self._pieces[segment] = lambda x: module.forward(x)[0]
        return self._pieces[segment]

    def _lowered(self, segment: Segment) -> fx.GraphModule:
        return _lower(segment, self._constant, self._moved, self._own, self.device, self.dtype, self.engine)

    def _constant(self, tensor: Tensor, name: str | None = None) -> Tensor:
        """A tensor in the engine's device and dtype; of a parameter or buffer one copy for all pieces."""
        copy = self._shared.get(name) if name else None
        if copy is None:
            dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
            # always copied, because later changes of a shared tensor would reach only some pieces
            copy = tensor.detach().to(self.device, dtype, copy=True)
            if name:
                self._shared[name] = copy
        return copy


def _lower(
    segment: Segment,
    constant: Callable[..., Tensor],
    moved: dict[Any, Any],
    own: torch.dtype,
    device: torch.device,
    dtype: torch.dtype,
    engine: Engine,
) -> fx.GraphModule:
    """Rewrite a segment for speed, with its parameters and buffers as constants."""
    fast = engine.form != "plain"
    root = nn.Module()
    graph = fx.Graph()
    (start, *tensors) = [node for node in segment.graph.nodes if node.op == "placeholder"]
    known: dict[fx.Node, Any] = {}
    # constants are computed in the wider of the model's type and the engine's
    wide = torch.promote_types(own, dtype) if own.is_floating_point else own
    originals = {
        node: tensor.detach().to(wide) if tensor.dtype == own else tensor.detach()
        for node, tensor in zip(tensors, segment.trace.fetch(segment.tensor_names), strict=True)
    }
    fixed = _fixed(segment.graph, set(tensors))
    folded = _foldable(segment.graph, fixed) if fast else {}
    norms = set(folded.values())
    env: dict[fx.Node, fx.Node] = {start: graph.placeholder(start.name)}
    env[start].meta = dict(start.meta)
    binder = _Binder(root, graph)

    def value_of(node: fx.Node) -> Any:
        """The value of a node that does not depend on the input, computed from the model's own tensors."""
        return originals[node] if node in originals else known[node]

    def new(node: fx.Node) -> fx.Node:
        if node not in env:
            value = value_of(node)
            name = node.name if node in originals else None
            if name is None and isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype:
                value = torch.where(value.isfinite(), value.clamp(-largest, largest), value)
            env[node] = binder.bind(node.name, constant(value, name)) if isinstance(value, Tensor) else value
        return env[node]

    # the lowest number of the model's type, with which masks are filled, is one that the engine's type may not have
    largest = torch.finfo(dtype).max

    def here(item: Any) -> Any:
        if isinstance(item, float) and largest < abs(item) < math.inf:
            return math.copysign(largest, item)
        return moved.get(item, item) if isinstance(item, (torch.dtype, torch.device)) else item

    def there(item: Any) -> Any:
        return wide if isinstance(item, torch.dtype) and item == own else item

    for node in segment.graph.nodes:
        if node.op == "output":
            graph.output(fx.node.map_arg(node.args[0], new))
        elif node.op != "call_function" or node in norms:
            continue
        elif node in fixed:
            with torch.no_grad():
                given = fx.node.map_aggregate((node.args, dict(node.kwargs)), there)
                args, kwargs = fx.node.map_arg(given, value_of)
                known[node] = node.target(*args, **kwargs)
        elif node in folded:
            norm = folded[node]
            weight, bias = _fold(node, norm, value_of)
            given = ops.convolution_arguments(node)
            convolution = graph.call_function(
                aten.conv2d.default,
                (
                    new(given[0]),
                    binder.bind(f"{node.name}_folded_weight", _cast(weight, device, dtype)),
                    binder.bind(f"{node.name}_folded_bias", _cast(bias, device, dtype)),
                    *given[3:],
                ),
            )
            convolution.meta = dict(norm.meta)
            env[norm] = convolution
        else:
            copied = env[node] = graph.node_copy(node, new)
            typed = {"dtype": node.meta["val"].dtype} if _names_no_type(node) else {}
            copied.args = fx.node.map_aggregate(copied.args, here)
            copied.kwargs = fx.node.map_aggregate({**copied.kwargs, **typed}, here)
    if engine.form == "packed":
        fuse_onednn(root, graph, engine.images)
    elif fast and engines.widens(device, dtype):
        engines.widen(graph)
    graph.eliminate_dead_code()
    # copies only the tensors in use: keeping the weights that were packed would double the memory
    return compiled(root, graph, "Piece")


def _fixed(graph: fx.Graph, tensors: set[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on constants alone and are no random draws."""
    fixed = set(tensors)
    for node in graph.nodes:
        inputs = node.all_input_nodes
        tags = getattr(node.target, "tags", ())
        if (
            node.op == "call_function"
            and inputs
            and all(i in fixed for i in inputs)
            and torch.Tag.nondeterministic_seeded not in tags
        ):
            fixed.add(node)
    return fixed


def _names_no_type(node: fx.Node) -> bool:
    """Whether a node makes a tensor from nothing, such as zeros, and leaves its type to torch's default."""
    schema = getattr(node.target, "_schema", None)
    takes = schema is not None and any(argument.name == "dtype" for argument in schema.arguments)
    from_tensors = any(isinstance(i.meta.get("val"), Tensor) for i in node.all_input_nodes)
    return takes and not from_tensors and node.kwargs.get("dtype") is None and "val" in node.meta


class _Binder:
    """Registers tensors on a module and hands out nodes for them."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self._root = root
        self._graph = graph

    def bind(self, name: str, tensor: Tensor) -> fx.Node:
        self._root.register_buffer(name, tensor)
        return self._graph.get_attr(name)


def _foldable(graph: fx.Graph, fixed: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Convolutions with constant weights of which a batch norm in eval mode is the only user -> that batch norm."""
    pairs: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.target is not aten.batch_norm.default or node.args[5] or node.args[3] is None:
            continue
        conv = node.args[0]
        if not isinstance(conv, fx.Node) or conv.target is not aten.conv2d.default or len(conv.users) != 1:
            continue
        if conv not in fixed and all(i in fixed for i in (*conv.all_input_nodes[1:], *node.all_input_nodes[1:])):
            pairs[conv] = node
    return pairs


def _fold(conv: fx.Node, norm: fx.Node, value_of: Callable[[fx.Node], Any]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does both, computed in float64."""

    def get(node: Any) -> Tensor | None:
        return None if node is None else value_of(node).double()

    _, weight, bias, *_ = ops.convolution_arguments(conv)
    _, gamma, beta, mean, variance, _, _, eps = norm.args[:8]
    w, b, m, v = get(weight), get(bias), get(mean), get(variance)
    assert w is not None
    assert m is not None
    assert v is not None
    scale = torch.rsqrt(v + float(eps))  # type: ignore[arg-type]
    g, shift = get(gamma), get(beta)
    if g is not None:
        scale = scale * g
    offset = (b - m if b is not None else -m) * scale
    if shift is not None:
        offset = offset + shift
    return w * scale.reshape(-1, *([1] * (w.dim() - 1))), offset


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = tensor.to(device=device, dtype=dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@dataclass(frozen=True)
class _Fusion:
    """A convolution and what is done to its result in the same oneDNN call."""

    conv: fx.Node
    add: fx.Node | None
    relu: fx.Node | None

    @property
    def last(self) -> fx.Node:
        return self.relu or self.add or self.conv


def fuse_onednn(root: nn.Module, graph: fx.Graph, images: int | None) -> None:
    """Turn convolution (+ addition) (+ ReLU) into one oneDNN call with weights packed for a number of images."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    taken: set[fx.Node] = set()
    for conv in list(graph.nodes):
        if conv.target is not aten.conv2d.default or not _packs(conv):
            continue
        fusion = _fusion(conv, order, taken)
        if fusion.add is not None:
            taken.add(fusion.add)
        _emit(root, graph, fusion, images)
    graph.lint()


def _packs(conv: fx.Node) -> bool:
    args = ops.convolution_arguments(conv)
    return all(
        isinstance(operand, fx.Node) and operand.op == "get_attr" for operand in args[1:3] if operand is not None
    )


def _fusion(conv: fx.Node, order: dict[fx.Node, int], taken: set[fx.Node]) -> _Fusion:
    add = relu = None
    last = conv
    user = _only_user(last)
    if user is not None and user.target is aten.add.Tensor and not user.kwargs and user not in taken:
        other = user.args[1] if user.args[0] is last else user.args[0]
        # of two convolutions that are added, the later one absorbs the addition
        earlier = isinstance(other, fx.Node) and other is not last and order.get(other, -1) < order[last]
        if earlier and _shape(last) == _shape(other) == _shape(user):
            add, last = user, user
    user = _only_user(last)
    if user is not None and user.target is aten.relu.default:
        relu = user
    return _Fusion(conv, add, relu)


def _shape(node: Any) -> tuple[str, ...] | None:
    """The shape as the exporter saw it; the oneDNN call does not broadcast."""
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else (str(node),)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _emit(root: nn.Module, graph: fx.Graph, fusion: _Fusion, images: int | None) -> None:
    x, weight, bias, stride, padding, dilation, groups = ops.convolution_arguments(fusion.conv)
    packed = f"{weight.target}_packed_{fusion.conv.name}"
    plain = getattr(root, weight.target)
    geometry = list(padding), list(stride), list(dilation)
    size = _size(x, images)
    root.register_buffer(packed, engines.pack(plain, geometry, groups, size), persistent=False)
    relu = "relu" if fusion.relu is not None else "none"
    with graph.inserting_before(fusion.last):
        attribute = graph.get_attr(packed)
        if fusion.add is None:
            fused = graph.call_function(
                torch.ops.mkldnn._convolution_pointwise.default,
                (x, attribute, bias, *geometry, groups, relu, [], ""),
            )
        else:
            other = fusion.add.args[1] if fusion.add.args[0] is fusion.conv else fusion.add.args[0]
            fused = graph.call_function(
                torch.ops.mkldnn._convolution_pointwise.binary,
                (x, other, attribute, bias, *geometry, groups, "add", 1.0, relu if fusion.relu else None, [], None),
            )
    fused.meta = dict(fusion.last.meta)
    fusion.last.replace_all_uses_with(fused)
    for node in (fusion.relu, fusion.add, fusion.conv):
        if node is not None:
            graph.erase_node(node)


def _size(x: fx.Node, images: int | None) -> tuple[int, ...] | None:
    """Shape of a convolution's input for a number of images; None where more than the batch is not known."""
    value = x.meta.get("val")
    if images is None or not isinstance(value, Tensor):
        return None
    if not all(str(size).isdigit() and not may_follow_batch(size) for size in value.shape[1:]):
        return None
    return (images, *map(int, value.shape[1:]))
