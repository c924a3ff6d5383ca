"""``pathlens signal-propagation`` on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pathlens.cli import options as o
from pathlens.cli.progress import progress_bar
from pathlens.cli.setting import finish, foreign_output, setting
from pathlens.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


Mode = StrEnum("Mode", "train eval")


@dataclass(frozen=True)
class SignalOptions(o.Common):
    """The shared options, with fewer images and several initialisations."""

    limit: Annotated[int, o.option("Only the first N images.", min=1, metavar="N")] = 128
    init: Annotated[
        str | None,
        o.option(
            "Initialisations to measure, such as he-fan-in,brock,as-built; beside trained weights, if those are "
            "given. Default with --weights random: as-built. All: see pathlens blocks --help.",
            "--init",
            metavar="SCHEMES",
        ),
    ] = None


@o.takes_objects
def signal_propagation(
    seeds: Annotated[int, o.option("Initialisations of each scheme.", metavar="N")] = 5,
    mode: Annotated[Mode, o.option("train: batch norms with the statistics of the batch.", "--mode")] = Mode.train,
    steps: Annotated[
        int,
        o.option("Steps of gradient descent before all else, on the first batch with targets.", metavar="N"),
    ] = 0,
    lr: Annotated[float, o.option("Learning rate of these steps.", "--lr", metavar="X")] = 0.1,
    loss: o.Loss = None,
    *,
    common: SignalOptions,
) -> None:
    """What depth does to activations and gradients, at initialisation or as trained (Brock et al. 2021, section 3).

    Mean, variance and second moment at the end of every branch and shortcut, at their sum and behind it, and the same
    of the gradient of the loss; what theory expects; and the growth per block.
    """
    asked: dict[str, Any] = {"seeds": seeds, "mode": mode.value, "steps": steps, "lr": lr}
    asked |= {} if loss is None else {"loss": loss.value}
    over_initialisations("signal-propagation", common, asked)


def over_initialisations(verb: str, common: SignalOptions, asked: dict[str, Any]) -> None:
    """Run an analysis of given weights, or of several initialisations, or of both.

    Args:
        verb: of :mod:`pathlens.analyses`, as it is spelled on the command line.
        common: the options.
        asked: what the verb alone takes, and the manifest states.

    Raises:
        PathlensError: as of the analysis, or of opening network and data.
    """
    random = common.weights == "random"
    schemes = [name.strip() for name in common.init.split(",")] if common.init else ["as-built"] if random else []
    if common.standardise and not common.init:
        raise UsageError("--standardise belongs to --init; give both or neither")
    asked = {"init": schemes, **asked}
    with setting(verb, replace(common, init=None, standardise=False)) as current:
        from pathlens import analyses
        from pathlens.models import load_model
        from pathlens.runtime.memory import oom_as_error

        def build(seed: int) -> nn.Module:
            # random weights are shaped by the data, and others have the sizes that they were trained with
            loaded, data = current.loaded, current.data
            classes, channels = data.num_classes, data.channels
            if not random and loaded.num_classes is not None:
                classes = loaded.num_classes
            if not random and loaded.input_shape is not None:
                channels = loaded.input_shape[0]
            return load_model(common.model, "random", num_classes=classes, in_channels=channels, seed=seed).model

        with (
            progress_bar(verb, current.shows_progress, current.notes) as progress,
            foreign_output(),
            oom_as_error(common.batch_size),
        ):
            table = getattr(analyses, verb.replace("-", "_"))(
                current.view,
                current.data,
                **asked,
                given=not random,
                standardise=common.standardise,
                build=build,
                seed=common.seed,
                dtype=common.dtype.value,
                progress=progress,
                **current.options,
            )
        finish(current, table, {**asked, "standardise": common.standardise})
