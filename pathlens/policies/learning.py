"""Training of a policy by policy gradient: on a frozen network, and then together with the network."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pathlens.analyses.agreement import check_agreement
from pathlens.data import DataSet, ImageData
from pathlens.errors import NumericsError, UsageError
from pathlens.metrics import Task
from pathlens.metrics.tasks import CLASSIFICATION
from pathlens.models import state_sha256
from pathlens.policies import network as policies
from pathlens.policies.rewards import bounded, most_probable, reward, surrogate
from pathlens.policies.routing import chosen_logits
from pathlens.residual import ResidualView, view_of
from pathlens.residual.inference import Inference
from pathlens.residual.modes import copied
from pathlens.residual.routes import intact
from pathlens.results.blockdrop import LearningRow
from pathlens.tables import Provenance
from pathlens.tables.declared import Row
from pathlens.training import recipe_for, recipe_name, state
from pathlens.training.batches import BLOCKS, Augmentation, Batches, TrainingBatches, generator
from pathlens.training.network import Partial, memory_format

_SECONDS = 120.0  # between two checkpoints inside an epoch
_SUMS = ("examples", "reward", "right", "blocks", "likely_right", "likely_blocks", "loss")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a policy is trained.

    Attributes:
        epochs: passes over the training examples with the network frozen.
        joint_epochs: passes after that in which network and policy are trained together.
        batch_size: examples in a step.
        lr: learning rate of Adam, for the policy.
        joint_lr: that of both in the joint epochs.
        penalty: gamma, minus the reward of what is predicted wrongly.
        alpha: bound of the probabilities while blocks are drawn, in (0.5, 1].
        curriculum: epochs until the policy chooses all blocks, or None for one epoch a block, and at most half of the
            epochs. 0 is no curriculum.
        seed: of the policy's weights, the order of the examples, the augmentation of images, and the draws.

    Raises:
        UsageError: a setting that no training can have; the message names it.
    """

    epochs: int = 30
    joint_epochs: int = 0
    batch_size: int = 128
    lr: float = 1e-3
    joint_lr: float = 1e-4
    penalty: float = 5.0
    alpha: float = 0.95
    curriculum: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("joint_epochs", 0), ("batch_size", 2)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} {getattr(self, name)}: give {least} or more")
        for name in ("lr", "joint_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} {getattr(self, name):g}: give a number above 0")
        if not 0 <= self.penalty < math.inf:
            raise UsageError(f"penalty {self.penalty:g}: give 0 or more; a wrong prediction is worth minus the penalty")
        if not 0.5 < self.alpha <= 1:
            raise UsageError(
                f"alpha {self.alpha:g}: give more than 0.5 and at most 1, the largest probability of a block"
            )
        if self.curriculum is not None and not 0 <= self.curriculum < math.inf:
            raise UsageError(f"curriculum {self.curriculum:g}: give a number of epochs, or 0 for none")

    def choosing(self, epoch: float, blocks: int) -> int:
        """How many of the last blocks the policy chooses; those before them are kept.

        With a curriculum of as many epochs as there are blocks, these are t in the t-th epoch (Wu et al. 2018,
        section 3); other lengths, also of parts of an epoch, are ours.

        Args:
            epoch: since the beginning, with its fraction.
            blocks: of the network.
        """
        length = min(blocks, self.epochs / 2) if self.curriculum is None else self.curriculum
        return blocks if epoch >= length else min(blocks, math.floor(blocks * epoch / length) + 1)


@dataclass(frozen=True)
class Learned:
    """A trained policy.

    Attributes:
        policy: in eval mode.
        view: of the network that it is for: the one that was given, or a copy that was trained with it.
        history: a row for each epoch.
    """

    policy: nn.Module
    view: ResidualView
    history: list[Row]


class Learner:
    """Takes a policy, and maybe its network, through all epochs.

    Args:
        view: of the network, which is never changed.
        data: training examples.
        task: what of an example is right.
        variance: of the training targets of a regression.
        settings: of the training.
        mean: of each channel, of pixels in [0, 1]; empty for what are no images.
        std: likewise.
        device: where to compute, where the network is too.

    Raises:
        DataError, ModelError: targets that do not fit the network.
        UsageError: a network in half precision is to be trained with its policy.

    Attributes:
        arguments: what must be the same when a training goes on.
    """

    def __init__(
        self,
        view: ResidualView,
        data: DataSet,
        task: Task,
        variance: float | None,
        settings: Settings,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self.settings, self.view = settings, view
        self._task, self._variance = task, variance
        self.policy = policies.fresh(view, settings.seed)
        if settings.joint_epochs:
            model = copied(view.model)
            model.requires_grad_(True)
            dtype = next(model.parameters()).dtype
            if dtype.itemsize < 4:
                raise UsageError(
                    f"a network in {str(dtype).removeprefix('torch.')} cannot be trained with its policy, whose steps "
                    "are too small for it; give it in float32, or no joint epochs"
                )
            example = data.batch(0, min(2, data.n), mean=mean, std=std, device=device, dtype=dtype).images
            self.view = view_of(model, example, view.output)
        self._device, self._dtype = device, next(view.model.parameters()).dtype
        recipe = recipe_for(recipe_name(data))
        augmentation = Augmentation(recipe.crop, recipe.flip) if isinstance(data, ImageData) else Augmentation(0, False)
        where = device, self._dtype, settings.seed
        self._batches = (
            TrainingBatches(
                data,
                settings.batch_size,
                augmentation,
                mean,
                std,
                *where,
                memory_format=memory_format(self.view.model),
            )
            if isinstance(data, ImageData)
            else Batches(data, settings.batch_size, *where)
        )
        self._frozen = Inference(view, device, self._dtype)
        first, targets, _ = self._batches(0)
        with torch.no_grad():
            check_agreement(self._frozen, first)
            outputs = self._frozen.whole(intact(len(view)))(self._frozen.prepare(first[:2]))
            task.answers(outputs, targets[:2])  # which refuses targets of another shape
        self._partial = Partial(self.view)
        self.arguments: Provenance = {
            **dataclasses.asdict(settings),
            "crop": augmentation.crop,
            "flip": augmentation.flip,
            "mean": list(mean),
            "std": list(std),
            "train_images": data.n,
            "train_sha256": data.fingerprint,
            "network_sha256": state_sha256(view.model),
            **({} if task is CLASSIFICATION else {"task": task.name, "loss": task.loss}),
        }
        # one module, so that one checkpoint holds what is trained
        self._trained = nn.ModuleDict({"policy": self.policy})
        groups = [{"params": list(self.policy.parameters())}]
        if settings.joint_epochs:
            self._trained["network"] = self.view.model
            groups.append({"params": list(self.view.model.parameters())})
        self._optimizer = torch.optim.Adam(groups, lr=settings.lr)

    def run(
        self,
        folder: Path | None = None,
        on_epoch: Callable[[Row], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Learned:
        """Train to the end, from the checkpoint in a folder where there is one.

        Args:
            folder: of the checkpoint; None keeps nothing.
            on_epoch: called with each row of the history.
            progress: called with (steps done, steps in all).

        Raises:
            NumericsError: the policy's logits or the loss are NaN or infinite.
            CheckpointError: a checkpoint that is damaged.
            ModelError: a network whose state a checkpoint cannot hold.
            RunError: a checkpoint of a run with other arguments.
            ResourceError: the disk is full.
        """
        position = state.TrainState(0, [0.0] * (len(_SUMS) + 1), [], self.arguments)
        if folder is not None:
            state.check_kept(self._trained)
        checkpoint = None if folder is None else state.find(folder)
        per_epoch = self._batches.per_epoch
        total = (self.settings.epochs + self.settings.joint_epochs) * per_epoch
        if folder is not None and checkpoint is not None:
            position = state.peek(checkpoint)
            state.check_arguments(position.arguments, self.arguments, folder)
            state.check_position(position, len(_SUMS) + 1, total, checkpoint)
            state.load(checkpoint, self._trained, self._optimizer)
        history = position.history
        sums = torch.tensor(position.sums[:-1], dtype=torch.float64)
        earlier, began, saved = position.sums[-1], time.monotonic(), time.monotonic()
        self.policy.train()
        self.view.model.eval()
        for step in range(position.step, total):
            sums += self._step(step)
            done = step + 1
            seconds = earlier + time.monotonic() - began
            if done % per_epoch == 0:
                history.append(self._row(done, sums, seconds))
                if on_epoch is not None:
                    on_epoch(history[-1])
                sums.zero_()
                seconds, earlier, began = 0.0, 0.0, time.monotonic()
            if folder is not None and (done % per_epoch == 0 or time.monotonic() - saved > _SECONDS):
                kept = state.TrainState(done, [*sums.tolist(), seconds], history, self.arguments)
                state.save(folder, self._trained, self._optimizer, kept)
                saved = time.monotonic()
            if progress is not None:
                progress(done, total)
        return Learned(self.policy.eval(), self.view, history)

    def _step(self, step: int) -> Tensor:
        """One step; sums over its examples, in the order of ``_SUMS``."""
        settings, blocks = self.settings, len(self.view)
        images, labels, _ = self._batches(step)
        epoch = step / self._batches.per_epoch
        joint = epoch >= settings.epochs
        for group in self._optimizer.param_groups:
            group["lr"] = settings.joint_lr if joint else settings.lr
        first = blocks - settings.choosing(epoch, blocks)
        logits = policies.logits_of(self.policy, images)
        if not logits.isfinite().all():
            raise NumericsError(
                f"the policy gives NaN or infinity in step {step}; give a smaller --lr; the checkpoint is from before"
            )
        drawn = torch.from_numpy(generator(settings.seed, BLOCKS, step).random((len(images), blocks)))
        kept = drawn < bounded(logits.detach(), settings.alpha).cpu()
        likely = most_probable(logits.detach()).cpu()
        kept[:, :first] = likely[:, :first] = True
        loss = logits.new_zeros(())
        with torch.no_grad():
            if joint:
                others = self._partial(images, likely.T.contiguous())
            else:
                answers, others = chosen_logits(self._frozen, images, (kept, likely))
        if joint:
            answers = self._partial(images, kept.T.contiguous())
            loss = self._loss(answers, labels)
        right, likely_right = (self._right(given, labels) for given in (answers, others))
        rewards = reward(kept, right, settings.penalty)
        advantage = (rewards - reward(likely, likely_right, settings.penalty)).to(self._device)
        chosen = kept[:, first:].to(self._device)
        gradient = surrogate(logits[:, first:], chosen, advantage, settings.alpha).mean()
        self._optimizer.zero_grad()
        (gradient + loss).backward()
        if not math.isfinite(loss.item()):
            raise NumericsError(
                f"the loss is NaN or infinite in step {step}; give a smaller --joint-lr; the checkpoint is from before"
            )
        self._optimizer.step()
        counts: list[Tensor | float] = [
            len(images),
            rewards.sum(),
            right.sum(),
            kept.sum(),
            likely_right.sum(),
            likely.sum(),
        ]
        return torch.tensor([*map(float, counts), loss.item() * len(images)], dtype=torch.float64)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the examples."""
        if self._task is CLASSIFICATION:  # the same but for rounding, with which earlier trainings were made
            return nn.functional.cross_entropy(outputs, targets)
        return self._task.losses(outputs, targets).mean()

    def _right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Share of each example that is right, float64, shape (N,), on the CPU."""
        return self._task.share_right(self._task.answers(outputs.detach(), targets)[1], self._variance).cpu()

    def _row(self, done: int, sums: Tensor, seconds: float) -> Row:
        epoch = done // self._batches.per_epoch
        of = dict(zip(_SUMS, sums.tolist(), strict=True))
        joint = epoch > self.settings.epochs
        row = LearningRow(
            epoch=epoch,
            phase="joint" if joint else "frozen",
            choosing=self.settings.choosing((done - 1) / self._batches.per_epoch, len(self.view)),
            reward=of["reward"] / of["examples"],
            error=1 - of["right"] / of["examples"],
            blocks=of["blocks"] / of["examples"],
            likely_error=1 - of["likely_right"] / of["examples"],
            likely_blocks=of["likely_blocks"] / of["examples"],
            loss=of["loss"] / of["examples"] if joint else None,
            seconds=round(seconds, 3),
        )
        return vars(row)
