"""The network of one training step: whole, without the blocks that were not drawn, or with a restricted backward pass.

Each form is a module that holds the user's model, so that an optimizer and DistributedDataParallel see its parameters.
It computes with the model's own parameters and updates its batch-norm statistics as the model itself would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pathlens.residual import ResidualView
from pathlens.residual.chain import Chain
from pathlens.residual.parallel import parallel_branches
from pathlens.residual.restricted import Choice
from pathlens.residual.restricted_graph import restricted
from pathlens.residual.segments import Piece, Segment, UpdatingSegment, updating
from pathlens.training.rules.scaling import Scaling, Share

#: channels below which oneDNN gathers the input of a strided 1x1 convolution into too small a place
_GATHERED = 16


def memory_format(model: nn.Module) -> torch.memory_format:
    """The order of activations in memory: channels-last, which is the faster one, where it is safe.

    In that order the weight gradient of a 1x1 convolution with a stride and few input channels writes beyond its memory
    on CPUs without AVX-512, and is wrong where it does not crash (oneDNN, issue 6035).
    """
    risky = any(
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and tuple(module.stride) != (1, 1)
        and module.in_channels // module.groups < _GATHERED
        for module in model.modules()
    )
    return torch.contiguous_format if risky else torch.channels_last


@dataclass(frozen=True)
class Scalings:
    """How the branches of all blocks are scaled in a step.

    Attributes:
        blocks: for each block, or None where it runs as it is.
        share: the images of this process.
    """

    blocks: Sequence[Scaling | None]
    share: Share


class Whole(nn.Module):
    """The model itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, *_: None) -> Tensor:
        """The model's logits, shape (N, classes)."""
        logits: Tensor = self.model(images)
        return logits


class Restricted(nn.Module):
    """The whole forward pass, with a backward pass through paths of some lengths."""

    def __init__(self, view: ResidualView, first: int, last: int) -> None:
        super().__init__()
        self.model = view.model
        self._view = view
        self._choice = Choice(lengths=frozenset(range(first, last + 1)))

    def forward(self, images: Tensor, *_: None) -> Tensor:
        """The model's logits, shape (N, classes)."""
        results, updates = self._view.chain(images).once(restricted).run(images, self._choice)
        _store(self.model, updates)
        return results[0]


@dataclass(frozen=True, eq=False)
class _Part:
    """A piece of the network, and how it is called."""

    piece: UpdatingSegment
    call: Any

    def __call__(self, updates: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        segment = self.piece.segment
        return self.piece.split(self.call(*inputs, *segment.trace.fetch(segment.tensor_names)), updates)


@dataclass(frozen=True, eq=False)
class _Parts:
    """A chain in the pieces that sub-networks are put together from."""

    stem: _Part
    head: _Part
    whole: tuple[_Part, ...]
    bypass: tuple[_Part, ...]
    #: transition; branches, shortcut and what replaces the sum without the branch; and post-activation
    split: tuple[tuple[_Part, _Part, _Part], ...]
    #: what each of the branches is multiplied by
    numbers: tuple[tuple[float, ...], ...]


class Partial(nn.Module):
    """The network without the branches of the blocks that a batch does not have; those are not computed.

    Args:
        view: the network.
        compiled: run the pieces through ``torch.compile``. Blocks of the same structure share one compiled piece, so
            that the number of compilations does not grow with depth or with the number of sub-networks.
        mixed: give scalings the parallel branches of a block apart, where it has two.
    """

    def __init__(self, view: ResidualView, compiled: bool = False, mixed: bool = False) -> None:
        super().__init__()
        self.model = view.model
        self._view = view
        self._mixed = mixed
        self._compiled: dict[str, Any] | None = {} if compiled else None
        self._parts: dict[int, tuple[Chain, _Parts]] = {}

    def forward(
        self,
        images: Tensor,
        kept: Tensor | None = None,
        factors: Tensor | None = None,
        running: Tensor | None = None,
        scalings: Scalings | None = None,
    ) -> Tensor:
        """Logits of a sub-network, shape (N, classes).

        Args:
            images: shape (N, ...).
            kept: which blocks are in it, shape (blocks,), or (blocks, N) where images differ, on the CPU; None for all.
            factors: what each branch is multiplied by, shape (blocks,), or None for 1.
            running: which blocks are computed though none of these images may keep them, shape (blocks,), on the CPU:
                where another process has images that do, whose batch norms these images are part of.
            scalings: how branches are scaled before that, or None where they are not.
        """
        parts = self._of(self._view.chain(images))
        updates: dict[str, Tensor] = {}
        (x,) = parts.stem(updates, images)
        for index in range(len(parts.whole)):
            mask = None if kept is None else kept[index]
            scaling = None if scalings is None else scalings.blocks[index]
            if mask is not None and not bool((mask if running is None else running[index]).any()):
                (x,) = parts.bypass[index](updates, x)
            elif scaling is None and factors is None and (mask is None or bool(mask.all())):
                (x,) = parts.whole[index](updates, x)
            else:
                before, both, after = parts.split[index]
                (branch_point,) = before(updates, x)
                *branches, shortcut, bypass = both(updates, branch_point)
                terms = [_times(*term) for term in zip(branches, parts.numbers[index], strict=True)]
                if scaling is None or scalings is None:
                    branch = sum(terms[1:], terms[0])
                else:
                    branch = scaling(terms, scalings.share)
                factor = 1.0 if factors is None else float(factors[index])
                total = _total(self._view[index].is_layer, branch, shortcut, bypass, mask, factor)
                (x,) = after(updates, total)
        results = parts.head(updates, x)
        _store(self.model, updates)
        return results[0]

    def _of(self, chain: Chain) -> _Parts:
        if id(chain) not in self._parts:
            self._parts[id(chain)] = (chain, self._cut(chain))
        return self._parts[id(chain)][1]

    def _cut(self, chain: Chain) -> _Parts:
        outer = [
            Piece(chain.trace.source, (chain.boundaries[0],), {}),
            Piece(chain.boundaries[-1], (chain.trace.main,), {}),
        ]
        whole = [Piece(link.start, (link.end,), {}) for link in chain.links]
        stem, *blocks, head = self._cut_into(chain, [outer[0], *whole, outer[1]])
        split: list[Piece] = []
        numbers: list[tuple[float, ...]] = []
        for index, link in enumerate(chain.links):
            branches = parallel_branches(chain, index) if self._mixed else ((link.branch, 1.0),)
            numbers.append(tuple(number for _, number in branches))
            ends = (*(node for node, _ in branches), link.shortcut, link.bypass)
            split.append(Piece(link.start, (link.branch_point,), {}))
            split.append(Piece(link.branch_point, ends, {}))
            split.append(Piece(link.total, (link.end,), {}))
        _, *inner, _ = self._cut_into(chain, [outer[0], *split, outer[1]])
        bypass = [Piece(link.start, (link.end,), {link.total: link.bypass}) for link in chain.links]
        return _Parts(
            stem,
            head,
            tuple(blocks),
            tuple(self._cut_into(chain, [piece])[0] for piece in bypass),
            tuple((inner[i], inner[i + 1], inner[i + 2]) for i in range(0, len(inner), 3)),
            tuple(numbers),
        )

    def _cut_into(self, chain: Chain, pieces: list[Piece]) -> list[_Part]:
        parts = updating(chain.trace, chain.discovery.input_dependent, pieces)
        return [_Part(part, self._callable(part.segment)) for part in parts]

    def _callable(self, segment: Segment) -> Any:
        if self._compiled is None:
            return segment.graph_module.forward
        structure = _structure(segment.graph)
        if structure not in self._compiled:
            self._compiled[structure] = torch.compile(segment.graph_module)
        return self._compiled[structure]


def _times(tensor: Tensor, number: float) -> Tensor:
    return tensor if number == 1 else tensor * number


def _total(layer: bool, branch: Tensor, shortcut: Tensor, bypass: Tensor, mask: Tensor | None, factor: float) -> Tensor:
    """Output of a block's sum; for images that skip the branch, that of the block with its branch deleted."""
    # a plain layer has no shortcut to add
    whole = branch * factor if layer else shortcut + branch * factor
    if mask is None or bool(mask.all()):
        return whole
    here = mask.to(branch.device, non_blocking=True).reshape(-1, *([1] * (branch.dim() - 1)))
    return torch.where(here, whole, bypass)


def _structure(graph: fx.Graph) -> str:
    """A graph as text with numbered nodes: equal for blocks that differ only in their tensors."""
    number = {node: f"%{index}" for index, node in enumerate(graph.nodes)}
    lines = []
    for node in graph.nodes:
        arguments = fx.node.map_arg((node.args, dict(node.kwargs)), number.__getitem__)
        target = "" if node.op == "placeholder" else node.target
        lines.append(f"{node.op} {target} {arguments}")
    return "\n".join(lines)


def _store(model: nn.Module, updates: dict[str, Tensor]) -> None:
    if updates:
        with torch.no_grad():
            torch._foreach_copy_([model.get_buffer(name) for name in updates], list(updates.values()))
