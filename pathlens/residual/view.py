"""The read-only view of a network's residual blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from pathlens.errors import ModelError, NoResidualBlocksError, UsageError
from pathlens.residual.chain import ADDITIONS, Chain, build_additions, build_chain, check_index
from pathlens.residual.describe import Block, Totals, describe, nodes_between, shape_of, totals
from pathlens.residual.discover import concatenations, discover
from pathlens.residual.modes import in_mode, settings
from pathlens.residual.operations import WEIGHTED
from pathlens.residual.plain import build_layers
from pathlens.residual.routes import Part
from pathlens.residual.segments import Segment
from pathlens.residual.trace import Trace, trace
from pathlens.residual.turns import together

Mode = tuple[tuple[Any, ...], str, torch.dtype, torch.dtype, tuple[int, ...], int | None]
#: traces that a view keeps: of modes, types and shapes, and of what a network was set to
_MOST_CHAINS = 16


class ResidualView:
    r"""The ordered residual blocks of a network, and the means to run it from block to block.

    With x_0 the output of the stem, block i computes

    .. math:: x_i = s_i(S_i(t_i) + F_i(t_i)), \qquad t_i = T_i(x_{i-1})

    with branch F, shortcut S, post-activation s and transition T (the identity in most networks). In this class blocks
    are numbered from 0, so ``run(x, 3, 5)`` takes x_3 through blocks 3 and 4 to x_5.

    The view never changes the model. It computes with the parameters, buffers, device and train/eval mode that the
    model has at the time of a call; in train mode batch norms use the statistics of the batch and their running
    statistics stay as they are. Forward hooks on inner modules do not run. A pickled or deep-copied view has a model of
    its own, and is traced again when it is first used.

    Args:
        model: any module that takes one tensor.
        example: an input, shape (N, ...); only its shape and type matter.
        output: name or position of the output to study, where the model returns several tensors.
        arrange: makes the chain of blocks from the trace; :func:`find_blocks` and :func:`find_layers` have theirs.

    Source: Veit, Wilber, Belongie 2016, section 3; He et al. 2016, equation 1.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        arrange: Callable[[Trace, str], Chain] = build_chain,
        output: str | int | None = None,
    ) -> None:
        self._model = model
        self._output = output
        example = _as_tensor(example)
        #: shape, type and device of an input; the values do not matter and are not kept
        self._example = torch.zeros((), dtype=example.dtype, device=example.device).expand(example.shape)
        self._follows = example.dtype == self._parameter().dtype
        self._arrange = arrange
        self._chains: dict[Mode, Chain] = {}
        self._blocks: tuple[Block, ...] = ()
        chain = self.chain(self._example)
        self._additions, self._concat, self._in_series = chain.additions, chain.concat, chain.in_series
        before = (nodes_between(chain, link.start, link.branch_point) for link in chain.links)
        self._weights_before = tuple(any(node.target in WEIGHTED for node in nodes) for nodes in before)
        self._studied = chain.trace.output.name if len(chain.trace.output.among) > 1 else None
        self._blocks = describe(chain)

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy takes: all but the traces, which are made again when they are needed."""
        return {**self.__dict__, "_chains": {}}

    @property
    def model(self) -> nn.Module:
        """The user's model."""
        return self._model

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in order."""
        return self._blocks

    @property
    def is_plain(self) -> bool:
        """Whether the network has no residual blocks and its layers stand in their place."""
        return bool(self._blocks) and self._blocks[0].is_layer

    @property
    def additions(self) -> str:
        """Which residual additions are the blocks. Those of the ``trunk`` are a chain, others can be deleted alone."""
        return self._additions

    @property
    def concat(self) -> bool:
        """Whether there are new channels of concatenations among the blocks."""
        return self._concat

    @property
    def in_series(self) -> bool:
        """Whether the blocks are a chain, each starting where the one before it ends."""
        return self._in_series

    @property
    def has_others(self) -> bool:
        """Whether there are residual additions that are not among the blocks."""
        chain = self.chain()
        return bool(chain.discovery.additions.keys() - {link.total for link in chain.links})

    @property
    def has_concatenations(self) -> bool:
        """Whether there are concatenations of a tensor with something learned from it."""
        chain = self.chain()
        return bool(concatenations(chain.trace, chain.discovery))

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the blocks of each stage."""
        count = max((block.stage for block in self._blocks), default=-1) + 1
        return tuple(tuple(b.index for b in self._blocks if b.stage == stage) for stage in range(count))

    def has_layers_before(self, index: int) -> bool:
        """Whether a layer with weights lies between the output of the block before and the start of a block's branch.

        Args:
            index: of the block.
        """
        return self._weights_before[check_index(index, len(self))]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch dimension."""
        return tuple(self._example.shape[1:])

    @property
    def input_dtype(self) -> torch.dtype:
        """Type of the input that the blocks were found with."""
        return self._example.dtype

    @property
    def largest_activation(self) -> int:
        """Values in the largest of the tensors between the blocks, of one example."""
        return max(math.prod(shape) for block in self._blocks for shape in (block.in_shape, block.out_shape))

    @property
    def output(self) -> str | None:
        """Name of the output that is studied, where the model returns several tensors."""
        return self._studied

    @property
    def totals(self) -> Totals:
        """Parameters and multiply-adds of the whole network, with stem and head."""
        return totals(self.chain(), self._model)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the block table should know: additions that were found but are not blocks of the trunk."""
        discovery, output = self.chain().discovery, self.chain().trace.output
        notes = []
        if len(output.among) > 1:
            returned = ", ".join(output.among)
            notes.append(f"of the tensors that the network returns ({returned}), {output.name} is studied")
        blocks = {link.total for link in self.chain().links}
        beside, inside = (
            [addition.node.name for addition in group if addition.node not in blocks]
            for group in (discovery.off_trunk, discovery.nested)
        )
        if not self.in_series:
            notes.append(f"the blocks are {self.chain().kinds} wherever they lie, and no chain")
        if beside:
            notes.append(
                f"{len(beside)} residual additions lie beside the trunk (the first: {beside[0]}) and are not blocks of "
                "the chain"
            )
        if inside:
            notes.append(f"{len(inside)} residual additions lie inside the branch of another block")
        if discovery.refused:
            name, reason = next(iter(discovery.refused.items()))
            notes.append(f"{len(discovery.refused)} additions are no residual blocks (first: {name}, {reason})")
        if self.chain().trace.has_functions:
            notes.append(
                "a part of it has a backward pass of its own (autograd.Function) or none (inference mode), which is "
                "not traced: gradients of interventions are those of its operations"
            )
        return tuple(notes)

    def __len__(self) -> int:
        return len(self._blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def __getitem__(self, index: int) -> Block:
        return self._blocks[check_index(index, len(self))]

    def __repr__(self) -> str:
        return f"ResidualView({type(self._model).__name__}: {len(self)} blocks in {len(self.stages)} stages)"

    def rows(self) -> list[dict[str, object]]:
        """The blocks as rows of a table."""
        return [block.row() for block in self._blocks]

    def chain(self, images: Tensor | None = None) -> Chain:
        """The traced network in the model's present mode, for inputs like ``images`` (default: like the example).

        Args:
            images: inputs, of which only shape and type matter.

        Raises:
            ModelError: the model cannot be traced in this mode, or shows another number of blocks in it.
        """
        like = self._like() if images is None else images
        key = self._mode(like, None)
        chain = self._chains.get(key) or self._chains.get(self._mode(like, like.shape[:1].numel()))
        if chain is None or not chain.trace.is_current:
            traced = trace(self._model, like.detach().to(self._parameter().device).contiguous(), self._output)
            chain = self._arrange(traced, type(self._model).__name__)
            if self._blocks and len(chain.links) != len(self._blocks):
                raise ModelError(
                    f"{type(self._model).__name__} shows {len(chain.links)} blocks in this mode and "
                    f"{len(self._blocks)} in the mode it was first seen in; study the two as two networks"
                )
            while len(self._chains) >= _MOST_CHAINS:
                self._chains.pop(next(iter(self._chains)))
            self._chains[self._mode(like, traced.static_batch)] = chain
        return chain

    def _mode(self, like: Tensor, static_batch: int | None) -> Mode:
        first, shape = self._parameter(), tuple(like.shape[1:])
        return settings(self._model), str(first.device), first.dtype, like.dtype, shape, static_batch

    def _parameter(self) -> Tensor:
        """The first parameter, which tells the type and device of the model."""
        with together():  # while another thread traces, parameters have no values and another device
            return next(self._model.parameters(), self._example)

    def _like(self, batch: int | None = None) -> Tensor:
        """An input like the example, of the type that the model has now."""
        like = self._example if batch is None else self._example[:1].expand(batch, *self._example.shape[1:])
        return like.to(self._parameter().dtype) if self._follows else like

    def _chain_for(self, x: Tensor, boundary: Callable[[Chain], fx.Node]) -> Chain:
        """The chain that takes ``x`` at a boundary: of another batch size, where the network fixes the batch size."""
        chain = self.chain()
        static = chain.trace.static_batch
        if static is None or x.dim() == 0:
            return chain
        folded = int(chain.trace.value(boundary(chain)).shape[0])
        return self.chain(self._like(x.shape[0] * static // folded))

    def stem(self, images: Tensor) -> Tensor:
        """x_0 for a batch of inputs, shape (N, ...).

        Args:
            images: inputs, shape (N, ...).

        Raises:
            ModelError: the input does not fit the network.
        """
        return self.chain(images).stem(images)[0]

    def head(self, x: Tensor) -> Tensor:
        """The network's output (the one that is studied) from x_n.

        Args:
            x: x_n, shape (N, ...).
        """
        return self._chain_for(x, lambda chain: chain.boundaries[-1]).head(x)[0]

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """x_stop from x_start: blocks ``start`` to ``stop - 1``, as the model itself computes them.

        Args:
            x: x_start, of shape (N, ...) with the ``in_shape`` of block ``start`` after N.
            start: boundary to start from, 0 to n.
            stop: boundary to end at, ``start`` to n (default n).

        Raises:
            UsageError: boundaries out of order or range, or a tensor of another shape.
        """
        count = len(self)
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise UsageError(
                f"run from {start} to {stop}: boundaries of this network are 0 to {count}, start not after stop"
            )
        chain = self._chain_for(x, lambda chain: chain.boundaries[start])
        _check(x, chain.trace, chain.boundaries[start], f"x_{start}")
        if start == stop:
            return x
        return chain.run(start, stop)(x)[0]

    def transition(self, index: int, x: Tensor) -> Tensor:
        """t_i = T_i(x_{i-1}): what both branch and shortcut of a block start from.

        Args:
            index: of the block.
            x: x_{i-1}, the output of the block before.
        """
        return self._block(index, x, "start", Chain.transition)

    def branch(self, index: int, t: Tensor) -> Tensor:
        """F_i(t_i), as it enters the addition.

        Args:
            index: of the block.
            t: t_i, which :meth:`transition` gives.
        """
        return self._block(index, t, "branch_point", Chain.branch)

    def shortcut(self, index: int, t: Tensor) -> Tensor:
        """S_i(t_i), as it enters the addition.

        Args:
            index: of the block.
            t: t_i, which :meth:`transition` gives.
        """
        return self._block(index, t, "branch_point", Chain.shortcut)

    def post(self, index: int, total: Tensor) -> Tensor:
        """x_i = s_i(total): the post-activation.

        Args:
            index: of the block.
            total: the sum of branch and shortcut.
        """
        return self._block(index, total, "total", Chain.post)

    def without_branch(self, index: int, x: Tensor) -> Tensor:
        """x_i with the branch deleted, from x_{i-1} (Veit et al. 2016, section 4.1). The branch is not computed.

        Args:
            index: of the block.
            x: x_{i-1}, the output of the block before.
        """
        return self._block(index, x, "start", lambda chain, i: chain.step(Part.SHORTCUT, i))

    def without_shortcut(self, index: int, x: Tensor) -> Tensor:
        """x_i with the shortcut deleted, from x_{i-1}.

        Args:
            index: of the block.
            x: x_{i-1}, the output of the block before.
        """
        return self._block(index, x, "start", lambda chain, i: chain.step(Part.BRANCH, i))

    def _block(self, index: int, x: Tensor, start: str, piece: Callable[[Chain, int], Segment]) -> Tensor:
        """A piece of a block, from the node of its link that ``start`` names."""
        index = check_index(index, len(self))
        chain = self._chain_for(x, lambda chain: getattr(chain.links[index], start))
        return piece(chain, index)(x)[0]


def _check(x: Tensor, trace: Trace, node: fx.Node, what: str) -> None:
    """Raise where a value does not have the shape of a node, but for the batch."""
    axis, shape = trace.batch_axis(node), shape_of(trace, node)
    if x.dim() != len(shape) + 1 or (*x.shape[:axis], *x.shape[axis + 1 :]) != shape:
        names = [*map(str, shape[:axis]), "N", *map(str, shape[axis:])]
        raise UsageError(f"{what} has shape ({', '.join(names)}); found {tuple(x.shape)}")


def find_blocks(
    model: nn.Module,
    example: Tensor,
    output: str | int | None = None,
    additions: str | None = None,
    concat: bool = False,
) -> ResidualView:
    """Find the residual blocks of any model.

    The model runs on tensors without values; nothing is registered, subclassed or changed.

    Args:
        model: any module that takes one tensor.
        example: an input, shape (N, ...); only its shape and type matter.
        output: name (key, attribute) or position of the output to study, where the model returns several tensors.
            Default: ``logits``, ``out`` or ``last_hidden_state``, or the only one.
        additions: which residual additions are blocks: those of the ``trunk``, which every path from input to output
            passes and which are a chain; those ``nested`` in a side of another; those ``off-trunk`` (parallel trunks,
            levels of a U-Net); or ``all``. Default: the trunk, and all where there is none. Blocks that are no chain
            can be deleted, and what else needs blocks one after the other is refused.
        concat: concatenations of a tensor with something learned from it are blocks too (DenseNets, U-Nets). The branch
            is what is learned, the new channels; deleted, they are zero in every concatenation that takes them. Where
            there are any, the blocks are no chain.

    Returns:
        The view of the blocks, in the order in which they are computed.

    Raises:
        NoResidualBlocksError: no addition, or none of these, is residual.
        ModelError: the model cannot be traced with this input, or returns several tensors of which none is named.
        UsageError: it returns no such output.

    Example:
        >>> import torch, torchvision, pathlens
        >>> view = pathlens.find_blocks(torchvision.models.resnet18().eval(), torch.zeros(2, 3, 64, 64))
        >>> len(view), view[2].name, view[2].kind
        (8, 'layer2.0', 'projection')
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module; found {type(model).__name__}")
    if additions not in (None, *ADDITIONS):
        raise UsageError(f"additions {additions!r} are unknown; give {', '.join(ADDITIONS)}")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_complex():
            raise ModelError(
                f"{name} of {type(model).__name__} is complex; only networks of real numbers are taken apart"
            )
    return ResidualView(model, example, partial(build_additions, additions=additions, concat=concat), output)


def find_layers(
    model: nn.Module,
    example: Tensor,
    otherwise: NoResidualBlocksError | None = None,
    output: str | int | None = None,
) -> ResidualView:
    """The layers of a plain (VGG-style) network as a view, so that the same interventions apply to it.

    Args:
        model: any module that takes one tensor and runs its layers one after the other.
        example: an input, shape (N, ...).
        otherwise: what to raise when the network is not a chain of layers.
        output: as for :func:`find_blocks`.

    Returns:
        A view whose blocks have kind ``layer``, or ``layer-resized`` where deletion must change the shape.

    Raises:
        NoResidualBlocksError: the network is not a chain of layers.
        ModelError: the model cannot be traced with this input.

    Source: Veit, Wilber, Belongie 2016, section 4.1 (the VGG comparison).
    """
    fallback = otherwise or NoResidualBlocksError(f"{type(model).__name__} is not a plain chain of layers")
    return ResidualView(model, example, partial(_as_layers, fallback), output)


def _as_layers(otherwise: NoResidualBlocksError, traced: Trace, _name: str) -> Chain:
    return build_layers(traced, otherwise)


def view_of(
    model: nn.Module,
    example: Tensor,
    output: str | int | None = None,
    additions: str | None = "trunk",
    may_be_empty: bool = False,
    concat: bool = False,
) -> ResidualView:
    """The residual blocks of a network or, where it has none and is a plain chain, its layers.

    Args:
        model: any module that takes one tensor; it is traced in eval mode.
        example: an input, shape (N, ...).
        output: as for :func:`find_blocks`.
        additions: as for :func:`find_blocks`; here the trunk alone where nothing is said, since most studies need it.
        may_be_empty: a network without any residual addition is a view without blocks.
        concat: as for :func:`find_blocks`.

    Raises:
        NoResidualBlocksError: it is neither.
        ModelError: it cannot be traced.
    """
    with together():
        own = next(model.parameters(), example)
    example = example[:2].to(own.device)
    if example.is_floating_point():
        example = example.to(own.dtype)
    with in_mode(model):
        try:
            return find_blocks(model, example, output, additions, concat)
        except NoResidualBlocksError as none_found:
            if may_be_empty:
                view = ResidualView(model, example, _without_blocks, output)
                if view.has_others:
                    raise
                return view
            return find_layers(model, example, otherwise=none_found, output=output)


def _without_blocks(traced: Trace, _name: str) -> Chain:
    return Chain(traced, discover(traced), (), "all")


def _as_tensor(example: object) -> Tensor:
    if isinstance(example, (tuple, list)) and len(example) == 1:
        example = example[0]
    if not isinstance(example, Tensor):
        raise UsageError(
            f"an example input must be one tensor; found {type(example).__name__}; wrap models of several inputs"
        )
    return example.detach()
