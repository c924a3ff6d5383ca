"""The training loop."""

from __future__ import annotations

import contextlib
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pathlens.data.images import NOT_COUNTED
from pathlens.errors import ModelError, NumericsError, PathlensError, UsageError, described, one_line
from pathlens.metrics.mask_losses import BATCH_IOU, OF_IMAGES, batch_iou
from pathlens.metrics.tasks import CROSS_ENTROPY, of_two_classes
from pathlens.residual.modes import copied
from pathlens.results.result import Row
from pathlens.runtime import processes
from pathlens.runtime.memory import ran_out
from pathlens.training import state
from pathlens.training.batches import BLOCKS, NETWORK, generator
from pathlens.training.history import epoch_row
from pathlens.training.network import Partial, Restricted, Scalings, Whole
from pathlens.training.rules.scaling import Share
from pathlens.training.session import Session
from pathlens.training.synced import SyncedBatchNorm

#: which blocks a step has, what their branches are multiplied by, which run, and how they are scaled (``Partial``)
_SubNetwork = tuple[Tensor | None, Tensor | None, Tensor | None, Scalings | None]

#: steps between two checks of the loss on a GPU, where reading it waits for the device, and between two questions of
#: several processes whether a checkpoint is due
_LOOK = 50


def _loss(logits: Tensor, labels: Tensor, smoothing: float, name: str) -> Tensor:
    """Sum of the losses of the examples; the cross-entropy of one with many targets is the mean over those that count.

    That of a whole batch counts for each of its examples.
    """
    if name != CROSS_ENTROPY:
        pixels = logits.flatten(2).transpose(1, 2), labels.flatten(1)
        return batch_iou(*pixels) * len(labels) if name == BATCH_IOU else OF_IMAGES[name](*pixels).sum()
    if labels.dim() == 1:
        return nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    each = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return _per_example(each, labels).sum()


def _per_example(values: Tensor, labels: Tensor, empty: float = 0.0) -> Tensor:
    """Of each example its value, or the mean over those of its targets that are counted, ``empty`` where none is."""
    if labels.dim() == 1:
        return values
    counted = (labels != NOT_COUNTED).flatten(1)
    number = counted.sum(1)
    return ((values.flatten(1) * counted).sum(1) / number.clamp(min=1)).where(number > 0, empty)


@contextlib.contextmanager
def _learning(model: nn.Module) -> Iterator[None]:
    """What a step raises is said of the network: its own errors, and what autograd refuses, such as cut gradients."""
    try:
        yield
    except Exception as error:  # foreign code may raise anything
        if isinstance(error, PathlensError) or ran_out(error):
            raise
        if isinstance(error, RuntimeError) and processes.is_lost(error):
            raise
        kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
        raise ModelError(
            f"{type(model).__name__} cannot be trained as it is: {kind}{one_line(error, 300)}; run a forward and a "
            "backward pass of it by hand"
        ) from error


class Loop:
    """Takes a session through all epochs.

    Args:
        session: what to train.
        on_epoch: called with each row of the history.
        progress: called with (steps done, steps in all).
    """

    def __init__(
        self,
        session: Session,
        on_epoch: Callable[[Row], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.history: list[Row] = []
        self._session = session
        self._model, self._view, self._batches = session.model, session.view, session.batches
        self._config, self._rule, self._group = session.config, session.config.rule, session.group
        self._device = session.device
        self._total = session.config.recipe.epochs * session.batches.per_epoch
        self._on_epoch, self._progress = on_epoch, progress

    def run(self) -> None:
        """Train to the end; from a checkpoint where there is one.

        Raises:
            NumericsError: the loss is NaN or infinite; the last checkpoint is from before.
            CheckpointError: a checkpoint that is damaged or of another network.
            ResourceError: the disk is full.
        """
        checkpoint, arguments = self._session.checkpoint, self._session.arguments
        calls = self._session.about["calls"]
        optimizer = self._optimizer()
        position = state.TrainState(0, [0.0] * 5, [], arguments)
        if checkpoint is not None:
            position = state.peek(checkpoint)
            state.check_position(position, 5, self._total, checkpoint)
            state.load(checkpoint, self._model, optimizer)
        elif 0 in self._config.keep_epochs:
            self._session.keep(0, self._session.final(0.0))
        self.history = position.history
        total = self._total
        network = self._network()
        sums = torch.tensor(position.sums[:4], dtype=torch.float64, device=self._device)
        earlier, began, saved = position.sums[4], time.monotonic(), time.monotonic()
        self._model.train()
        for step in range(position.step, total):
            lr = self._config.recipe.rate(step, self._batches.per_epoch)
            for parameters in optimizer.param_groups:
                parameters["lr"] = lr
            with self._group.connected():
                sums += self._step(network, optimizer, step)
            if self._device.type == "cpu" or step % _LOOK == 0:
                self._look(sums, step, lr)
            done = step + 1
            if self._progress is not None:
                self._progress(done, total)
            if done % self._batches.per_epoch == 0:
                self._look(sums, step, lr, weights=True)
                seconds = earlier + time.monotonic() - began
                self._end_epoch(done, lr, [*sums.tolist(), seconds])
                sums.zero_()
                position = state.TrainState(done, [0.0] * 5, self.history, arguments, calls)
                self._save(optimizer, position)
                earlier, began, saved = 0.0, time.monotonic(), time.monotonic()
            elif self._is_due(done, time.monotonic() - saved):
                self._look(sums, step, lr, weights=True)
                earlier += time.monotonic() - began
                position = state.TrainState(done, [*sums.tolist(), earlier], self.history, arguments, calls)
                self._save(optimizer, position)
                began = saved = time.monotonic()
        self._model.eval()

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self._config.recipe
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        if not parameters:
            raise ModelError(
                f"{type(self._model).__name__} has no parameter that learns: requires_grad is False for all of them; "
                "set it for those that should"
            )
        fused = self._device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
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
        if self._rule.lengths is not None:
            assert self._view is not None
            network = Restricted(self._view, *self._rule.lengths)
        elif self._rule.is_random or self._config.compiled:
            assert self._view is not None
            network = Partial(self._view, self._config.compiled, self._rule.mixes)
        else:
            network = Whole(self._model)
        self._form = network
        if self._rule.is_random:
            # branches that a batch does not have get a gradient of zero, so that momentum and decay go on for them as
            # in the published code, where one flat vector holds all gradients
            for parameter in self._model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
        if self._group.world > 1:
            self._norms = dist.new_group() if self._config.synced else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers is deprecated in newer torch
                return DistributedDataParallel(
                    network,
                    device_ids=[self._device] if self._device.type == "cuda" else None,
                    broadcast_buffers=False,
                    find_unused_parameters=self._rule.is_random or self._rule.lengths is not None or self._has_unused(),
                )
        return network

    def _has_unused(self) -> bool:
        """Whether the loss does not depend on a parameter, such as one of a head that is not in use."""
        with self._group.agreed(), _learning(self._model):
            images, labels, _ = self._batches(0)
            try:
                network = copied(self._model).train()
            except Exception:  # foreign code may raise anything; then torch looks for them at each step
                return True
            with self._session.lower_precision():
                losses, _ = self._judged(network(images[:2]), labels[:2])
            losses.backward()
        return any(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())

    def _step(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> Tensor:
        """One step; images, loss, correct and blocks, as a tensor on the device."""
        images, labels, everybody = self._batches(step)
        sub_network, blocks = self._sub_network(step, everybody)
        if self._view is not None and (self._config.without_skips or not isinstance(self._form, Whole)):
            self._view.chain(
                images
            )  # traced before autocast and synced batch norms are on, which the trace must not record
        # seeded anew, so that the network's own random numbers (dropout) depend only on the seed and the step
        rng = generator(self._config.seed, NETWORK, step * self._group.world + self._group.rank)
        seed = int(rng.integers(2**62))
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        with _learning(self._model):
            with self._together(), self._session.lower_precision():
                losses, correct = self._judged(network(images, *sub_network), labels)
            optimizer.zero_grad(set_to_none=not self._rule.is_random)
            # scaled, because DistributedDataParallel averages over processes, whose parts may differ in size
            (losses * (self._group.world / everybody)).backward()
        optimizer.step()
        with torch.no_grad():
            counts = torch.stack([losses.detach().double(), correct.double()])
            if self._group.world > 1:
                dist.all_reduce(counts)
            first = counts.new_tensor([everybody])
            return torch.cat([first, counts, counts.new_tensor([blocks])])

    def _judged(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses of the examples, and of their shares that are correct.

        Of a regression, whose errors are relative to the variance of the targets, 1 minus that error.
        """
        if not isinstance(outputs, Tensor):
            raise UsageError(
                "only networks that return one tensor in train mode can be trained; found "
                f"{described(outputs)}; wrap the network so that it returns its logits alone"
            )
        outputs = outputs if self._session.dtype == torch.float64 else outputs.float()
        if self._session.variance is not None:
            losses = self._session.task.losses(outputs, targets).sum()
            return losses, len(targets) - losses.detach() / self._session.variance
        logits = of_two_classes(outputs).movedim(self._session.task.axis, 1)
        losses = _loss(logits, targets, self._config.recipe.label_smoothing, self._config.loss)
        # nothing is wrong of an example of which nothing is counted
        return losses, _per_example((logits.detach().argmax(1) == targets).double(), targets, empty=1.0).sum()

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        if self._group.world > 1 and self._config.synced:
            with SyncedBatchNorm(self._norms):
                yield
        else:
            yield

    def _sub_network(self, step: int, images: int) -> tuple[_SubNetwork, float]:
        """The step's sub-network for this process, as ``Partial`` takes it, and how many blocks run for an image."""
        if not self._rule.is_random:
            return (None, None, None, None), 0.0 if self._view is None else len(self._view)
        assert self._view is not None
        rule, rng = self._rule.at(step / self._total), generator(self._config.seed, BLOCKS, step)
        kept = rule.draw(len(self._view), images, rng)
        scaling = rule.scale(len(self._view), rng)
        blocks = float(kept.mean(axis=1).sum() if kept.ndim == 2 else kept.sum())
        own = kept[:, self._group.rank :: self._group.world] if kept.ndim == 2 else kept
        expected = np.array(rule.expectation(len(self._view)))
        rescaled = self._config.rescale == "train" and bool((expected != 1).any())
        factors = torch.from_numpy(1 / expected) if rescaled else None
        # a block that any process keeps runs on all, because synced batch norms exchange statistics
        running = torch.from_numpy(kept.any(axis=1)) if kept.ndim == 2 else None
        share = Share(images, self._group.rank, self._group.world)
        scalings = None if scaling == (None,) * len(scaling) else Scalings(scaling, share)
        return (torch.from_numpy(np.ascontiguousarray(own)), factors, running, scalings), blocks

    def _look(self, sums: Tensor, step: int, lr: float, weights: bool = False) -> None:
        """Raise if the loss is not finite, and before a checkpoint also if a weight is not."""
        what = None if math.isfinite(float(sums[1])) else "the loss"
        if what is None and weights:
            named = self._model.named_parameters()
            what = next((name for name, value in named if not bool(torch.isfinite(value).all())), None)
        if what is not None:
            where = "" if self._device.type == "cpu" else f" or the {_LOOK} steps before"
            raise NumericsError(
                f"{what} is NaN or infinite in step {step}{where} (epoch {step // self._batches.per_epoch + 1}, "
                f"learning rate {lr:.3g}); give a smaller --lr or a longer --warmup; the last checkpoint is from before"
            )

    def _end_epoch(self, done: int, lr: float, sums: list[float]) -> None:
        epoch = done // self._batches.per_epoch
        if self._group.world > 1 and not self._config.synced:
            for buffer in self._model.buffers():
                dist.broadcast(buffer, 0)
        tested = None
        if self._session.validation is not None or epoch in self._config.keep_epochs:
            network = self._session.final(done / self._total)
            if self._session.validation is not None:
                tested = self._session.evaluate(network, self._session.validation)
            if epoch in self._config.keep_epochs:
                self._session.keep(epoch, network)
        row = epoch_row(epoch, done, lr, sums, self._batches.per_epoch, tested)
        self.history.append(row)
        if self._on_epoch is not None and self._group.is_main:
            self._on_epoch(row)

    def _is_due(self, done: int, seconds: float) -> bool:
        """Whether a checkpoint inside an epoch is due, which the first of several processes says by its clock."""
        if self._session.folder is None or (self._group.world > 1 and done % _LOOK):
            return False
        return self._group.gather(seconds > self._config.checkpoint_seconds)[0]

    def _save(self, optimizer: torch.optim.Optimizer, position: state.TrainState) -> None:
        if self._session.folder is None:
            return
        with self._group.agreed():
            if self._group.is_main:
                state.save(self._session.folder, self._model, optimizer, position)
