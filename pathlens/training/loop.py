"""The training loop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pathlens.data import ImageData
from pathlens.errors import NumericsError
from pathlens.machine.processes import Processes
from pathlens.measure import ClassificationCounts, count_values
from pathlens.residual import ResidualView
from pathlens.residual.modes import in_mode
from pathlens.training import state
from pathlens.training.batches import BLOCKS, NETWORK, TrainingBatches, generator
from pathlens.training.fold import fold
from pathlens.training.history import epoch_row
from pathlens.training.network import Partial, Restricted, Whole
from pathlens.training.recipe import Recipe
from pathlens.training.rules import Rule
from pathlens.training.synced import SyncedBatchNorm

#: steps between two looks at the loss, on devices where looking means waiting
_LOOK = 50

_EVALUATED = 500  # images at a time


@dataclass
class Run:
    """Everything one training run works with.

    Attributes:
        model: trained in place.
        view: its blocks; None where it has none and nothing asks for them.
        recipe: what to do.
        rule: which paths to train.
        batches: training images by step.
        validation: images to watch, or None.
        seed: of everything drawn.
        mean: per channel.
        std: per channel.
        device: where to compute.
        dtype: of weights and images.
        autocast: lower precision for products, or None.
        group: the processes.
        rescale: ``test``, ``train`` or ``none``: where the survival probabilities enter.
        ends: parameters to fold them into, for ``test``.
        compiled: run blocks through ``torch.compile``.
        synced: batch-norm statistics over all processes.
        folder: where the run is kept, or None.
        checkpoint_seconds: between two checkpoints inside an epoch.
        keep_epochs: epochs whose weights are kept.
        arguments: what a continuation must be given again.
    """

    model: nn.Module
    view: ResidualView | None
    recipe: Recipe
    rule: Rule
    batches: TrainingBatches
    validation: ImageData | None
    seed: int
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device
    dtype: torch.dtype
    autocast: torch.dtype | None
    group: Processes
    rescale: str
    ends: list[tuple[str, ...]] | None
    compiled: bool
    synced: bool
    folder: Path | None
    checkpoint_seconds: float
    keep_epochs: frozenset[int]
    arguments: dict[str, Any]
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    on_keep: Callable[[int, nn.Module], None] | None = None
    progress: Callable[[int, int], None] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self, resume: Path | None) -> None:
        """Train to the end; from a checkpoint where there is one.

        Raises:
            NumericsError: the loss is NaN or infinite; the last checkpoint is from before.
            CheckpointError: a checkpoint that is damaged or of another network.
            ResourceError: the disk is full.
        """
        optimizer = self._optimizer()
        position = state.Position(0, [0.0] * 5, [], self.arguments)
        if resume is not None:
            position = state.peek(resume)
            state.load(resume, self.model, optimizer)
        self.history = position.history
        total = self.recipe.epochs * self.batches.per_epoch
        network = self._network()
        sums = torch.tensor(position.sums[:4], dtype=torch.float64, device=self.device)
        earlier, began, saved = position.sums[4], time.monotonic(), time.monotonic()
        self.model.train()
        for step in range(position.step, total):
            lr = self.recipe.rate(step, self.batches.per_epoch)
            for parameters in optimizer.param_groups:
                parameters["lr"] = lr
            sums += self._step(network, optimizer, step)
            if self.device.type == "cpu" or step % _LOOK == 0:
                self._look(sums, step, lr)
            done = step + 1
            if self.progress is not None:
                self.progress(done, total)
            if done % self.batches.per_epoch == 0:
                self._look(sums, step, lr, weights=True)
                seconds = earlier + time.monotonic() - began
                self._end_epoch(done, lr, [*sums.tolist(), seconds])
                sums.zero_()
                position = state.Position(done, [0.0] * 5, self.history, self.arguments)
                self._save(optimizer, position)
                earlier, began, saved = 0.0, time.monotonic(), time.monotonic()
            elif self.folder is not None and time.monotonic() - saved > self.checkpoint_seconds:
                self._look(sums, step, lr, weights=True)
                position = state.Position(
                    done, [*sums.tolist(), earlier + time.monotonic() - began], self.history, self.arguments
                )
                self._save(optimizer, position)
                saved = time.monotonic()
        self.model.eval()

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        fused = self.device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(
                parameters, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay, fused=fused
            )
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )

    def _network(self) -> nn.Module:
        network: nn.Module
        if self.rule.lengths is not None:
            assert self.view is not None
            network = Restricted(self.view, *self.rule.lengths)
        elif self.rule.draws or self.compiled:
            assert self.view is not None
            network = Partial(self.view, self.compiled)
        else:
            network = Whole(self.model)
        self._form = network
        if self.rule.draws:
            # branches that a batch does not have get a gradient of zero, so that momentum and decay go on for them as
            # in the published code, where one flat vector holds all gradients
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        if self.group.world > 1:
            self._norms = dist.new_group() if self.synced else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer torch has another word for broadcast_buffers
                return DistributedDataParallel(
                    network,
                    device_ids=[self.device] if self.device.type == "cuda" else None,
                    broadcast_buffers=False,
                    find_unused_parameters=self.rule.draws or self.rule.lengths is not None,
                )
        return network

    def _step(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
        """One step; images, loss, correct and blocks, as a tensor on the device."""
        images, labels, everybody = self.batches(step)
        kept, factors, running, blocks = self._drawn(step, everybody)
        if self.view is not None and not isinstance(self._form, Whole):
            self.view.chain(images)  # traced here, where neither autocast nor batch norms over processes get into it
        # what the network itself draws (dropout) depends on the step too, and on nothing that was drawn before
        drawn = generator(self.seed, NETWORK, step * self.group.world + self.group.rank)
        torch.manual_seed(int(drawn.integers(2**62)))
        with self._together(), self._lower_precision():
            logits = network(images, kept, factors, running)
            losses = nn.functional.cross_entropy(
                logits.float() if self.dtype != torch.float64 else logits,
                labels,
                reduction="sum",
                label_smoothing=self.recipe.label_smoothing,
            )
        optimizer.zero_grad(set_to_none=not self.rule.draws)
        # processes may have parts of different size; their gradients are averaged, and the sum over images counts
        (losses * (self.group.world / everybody)).backward()
        optimizer.step()
        with torch.no_grad():
            correct = (logits.argmax(1) == labels).sum()
            counts = torch.stack([losses.detach().double(), correct.double()])
            if self.group.world > 1:
                dist.all_reduce(counts)
            first = counts.new_tensor([everybody])
            return torch.cat([first, counts, counts.new_tensor([blocks])])

    def _lower_precision(self) -> torch.autocast:
        """Products in the lower precision that was asked for, if any was."""
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        if self.group.world > 1 and self.synced:
            with SyncedBatchNorm(self._norms):
                yield
        else:
            yield

    def _drawn(self, step: int, images: int) -> tuple[Tensor | None, Tensor | None, Tensor | None, float]:
        """The step's sub-network for this process, as ``Partial`` takes it, and how many blocks run for an image."""
        if not self.rule.draws:
            return None, None, None, 0.0 if self.view is None else len(self.view)
        assert self.view is not None
        drawn = self.rule.draw(len(self.view), images, generator(self.seed, BLOCKS, step))
        blocks = float(drawn.mean(axis=1).sum() if drawn.ndim == 2 else drawn.sum())
        mine = drawn[:, self.group.rank :: self.group.world] if drawn.ndim == 2 else drawn
        survival = np.array(self.rule.survival(len(self.view)))
        factors = torch.from_numpy(1 / survival) if self.rescale == "train" and survival.min() < 1 else None
        # batch norms over all processes want all of them where one of them has an image that keeps the block
        running = torch.from_numpy(drawn.any(axis=1)) if drawn.ndim == 2 else None
        return torch.from_numpy(np.ascontiguousarray(mine)), factors, running, blocks

    def _look(self, sums: Tensor, step: int, lr: float, weights: bool = False) -> None:
        """Refuse to go on, or to write a checkpoint, with a loss (and weights) that are not finite."""
        what = None if math.isfinite(float(sums[1])) else "the loss"
        if what is None and weights:
            named = self.model.named_parameters()
            what = next((name for name, value in named if not bool(torch.isfinite(value).all())), None)
        if what is not None:
            where = "" if self.device.type == "cpu" else f" or the {_LOOK} steps before"
            raise NumericsError(
                f"{what} is NaN or infinite in step {step}{where} (epoch {step // self.batches.per_epoch + 1}, "
                f"learning rate {lr:.3g}); give a smaller --lr or a longer --warmup; the last checkpoint is from before"
            )

    def _end_epoch(self, done: int, lr: float, sums: list[float]) -> None:
        epoch = done // self.batches.per_epoch
        if self.group.world > 1 and not self.synced:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)
        tested = None
        if self.validation is not None or epoch in self.keep_epochs:
            network = self.final()
            if self.validation is not None:
                tested = self.evaluate(network, self.validation)
            if epoch in self.keep_epochs:
                self.keep(epoch, network)
        row = epoch_row(epoch, done, lr, sums, self.batches.per_epoch, tested)
        row |= {name: None for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
        self.history.append(row)
        if self.on_epoch is not None and self.group.leads:
            self.on_epoch(row)

    def keep(self, epoch: int, network: nn.Module) -> None:
        """Hand on the network of an epoch that is to be kept, in the process that leads."""
        with self.group.agreed():
            if self.on_keep is not None and self.group.leads:
                self.on_keep(epoch, network)

    def _save(self, optimizer: torch.optim.Optimizer, position: state.Position) -> None:
        if self.folder is None:
            return
        with self.group.agreed():
            if self.group.leads:
                state.save(self.folder, self.model, optimizer, position)

    def final(self) -> nn.Module:
        """The network as it is tested: with survival probabilities folded in where ``rescale`` is ``test``."""
        if self.ends is None:
            return self.model
        assert self.view is not None
        network = copy.deepcopy(self.model)
        fold(network, self.ends, self.rule.survival(len(self.view)))
        return network

    def evaluate(self, network: nn.Module, data: ImageData) -> ClassificationCounts:
        """Errors in eval mode, each process on a part of the batches."""
        values = []
        with in_mode(network), torch.no_grad(), self._lower_precision():
            for index in range(self.group.rank, data.num_batches(_EVALUATED), self.group.world):
                batch = data.batch(
                    index, _EVALUATED, mean=self.mean, std=self.std, device=self.device, dtype=self.dtype
                )
                images = batch.images.contiguous(memory_format=torch.channels_last)
                values.append(count_values(network(images), batch.labels).cpu())
        total = torch.stack(values).sum(0) if values else torch.zeros(5, dtype=torch.float64)
        return ClassificationCounts.from_values(
            torch.tensor(self.group.gather(total.tolist()), dtype=torch.float64).sum(0).tolist()
        )
