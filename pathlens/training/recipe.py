"""Optimizer, learning rate schedule and augmentation of a training run, checked when they are put together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pathlens.errors import UsageError

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("step", "cosine", "constant")
POLICIES = ("none", "randaugment")


@dataclass(frozen=True)
class Recipe:
    """Optimizer, schedule and augmentation.

    The defaults are those of He et al. 2016 for CIFAR: SGD with Nesterov momentum, the learning rate divided by 10
    after half and three quarters of the training, weight decay 1e-4, images padded by 4 pixels and cropped, half of
    them mirrored. :func:`recipe_for` has those of other data.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a step, over all processes together.
        optimizer: ``sgd`` or ``adamw``.
        lr: full learning rate, after the warm-up.
        momentum: of SGD; the first moment's decay of AdamW.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty (decoupled for AdamW), on all parameters.
        schedule: ``step`` (times ``gamma`` at each milestone), ``cosine`` (to zero) or ``constant``.
        milestones: shares of the whole training, in (0, 1), ascending.
        gamma: factor at a milestone.
        warmup: epochs in which the learning rate rises linearly to ``lr``; the schedule counts them in.
        crop: pixels of zeros around an image before it is cropped to its size at random; 0 leaves images as they are.
        flip: mirror every other image, at random.
        augment: ``none``, or ``randaugment``: two random operations on each image after that, of the magnitude 9 that
            is torchvision's default (Cubuk et al. 2020, section 3).
        label_smoothing: share of the target spread over all classes.

    Raises:
        UsageError: a value that no training could use; the message names it.

    Source: He, Zhang, Ren, Sun 2016, "Deep Residual Learning", section 4.2, and "Identity Mappings", appendix.
    """

    epochs: int = 200
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: str = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: float = 1.0
    crop: int = 4
    flip: bool = True
    augment: str = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, kinds in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augment", POLICIES)):
            if getattr(self, name) not in kinds:
                raise UsageError(f"{name} {getattr(self, name)!r} is unknown; give one of {', '.join(kinds)}")
        for name in ("epochs", "batch_size", "crop"):
            number, smallest = getattr(self, name), 0 if name == "crop" else 1
            if isinstance(number, bool) or not isinstance(number, int) or number < smallest:
                raise UsageError(f"{name} {number}: give a whole number of {smallest} or more")
        ranges = {
            "lr": (0, math.inf, False),
            "momentum": (0, 1, True),
            "weight_decay": (0, math.inf, True),
            "gamma": (0, math.inf, False),
            "warmup": (0, self.epochs, True),
            "label_smoothing": (0, 1, True),
        }
        for name, (low, high, closed) in ranges.items():
            value = getattr(self, name)
            if not math.isfinite(value) or not (low <= value if closed else low < value) or not value < high:
                least = "of at least" if closed else "above"
                below = "" if high == math.inf else f" and below {high:g}"
                raise UsageError(f"{name} {value:g}: give a number {least} {low:g}{below}")
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < m < 1 for m in self.milestones):
            raise UsageError(f"milestones {self.milestones}: give ascending shares of the training between 0 and 1")
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise UsageError("momentum 0 has no Nesterov form; give a momentum or nesterov off")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0.

        Args:
            step: number of steps before this one.
            steps_per_epoch: batches in an epoch.
        """
        total, rising = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step + 1 < rising:
            return self.lr * (step + 1) / rising
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * max(0.0, step - rising) / max(1.0, total - rising)))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(step >= milestone * total for milestone in self.milestones)
        return self.lr

    def spoken(self) -> dict[str, Any]:
        """The recipe as plain JSON; ``augment`` only where there is any, so that runs from before it can go on."""
        stated = {**dataclasses.asdict(self), "milestones": list(self.milestones)}
        if self.augment == "none":
            del stated["augment"]
        return stated


#: what training the embedded default needs: small images of centred digits, which are not mirrored
DIGITS = Recipe(epochs=60, batch_size=64, weight_decay=1e-3, schedule="cosine", warmup=5, crop=1, flip=False)

#: for small language models: AdamW with the decay of GPT-3 (Brown et al. 2020, appendix B) and a cosine to zero
TEXT = Recipe(
    epochs=10, batch_size=32, optimizer="adamw", lr=2e-3, weight_decay=0.1, schedule="cosine", crop=0, flip=False
)

#: for a regression, about which nothing is known
ARRAYS = Recipe(
    epochs=50, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=1e-2, schedule="cosine", crop=0, flip=False
)


def recipe_for(data: str, **changes: Any) -> Recipe:
    """The default recipe for a data set, with changes.

    Args:
        data: name of the data set, such as ``digits``; ``text:`` for texts, ``arrays:`` for arrays.
        **changes: attributes of :class:`Recipe`; None leaves the default.

    Raises:
        UsageError: see :class:`Recipe`.
    """
    base = {"digits": DIGITS, "text:": TEXT, "arrays:": ARRAYS}.get(data, Recipe())
    given = {name: value for name, value in changes.items() if value is not None}
    if "epochs" in given and "warmup" not in given:  # a short trial run of a long recipe should still warm up
        given["warmup"] = min(base.warmup, given["epochs"] / 4)
    return dataclasses.replace(base, **given)
