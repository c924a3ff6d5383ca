"""``pathlens blockdrop`` on the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pathlens.cli import options as o
from pathlens.cli.lesions import LesionOptions
from pathlens.cli.progress import progress_bar, say
from pathlens.cli.setting import Setting, data_spec, finish, foreign_output, opened, setting
from pathlens.errors import UsageError

if TYPE_CHECKING:
    from pathlens.data import DataSet
    from pathlens.tables import Table
    from pathlens.tables.declared import Row


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """How the policy is trained; the fields are those of :class:`pathlens.policies.Settings`."""

    epochs: Annotated[int, o.option("Passes over the training examples, the network frozen.", metavar="N")] = 30
    joint_epochs: Annotated[
        int, o.option("Passes after that in which a copy of the network is trained too.", metavar="N")
    ] = 0
    train_batch_size: Annotated[int, o.option("Examples in a step of the training.", metavar="N")] = 128
    lr: Annotated[float, o.option("Learning rate of the policy.")] = 1e-3
    joint_lr: Annotated[float, o.option("Learning rate of both in the joint epochs.")] = 1e-4
    penalty: Annotated[float, o.option("A wrong prediction is worth minus this, or the share of it that is wrong.")] = (
        5.0
    )
    alpha: Annotated[float, o.option("Bound of the probabilities that blocks are drawn with, in (0.5, 1].")] = 0.95
    curriculum: Annotated[
        float | None,
        o.option(
            "Epochs until the policy chooses all blocks, from the last on; 0 for none. Default: one a block, and at "
            "most half of the epochs.",
            metavar="EPOCHS",
        ),
    ] = None


@o.takes_objects
def blockdrop(
    training: PolicyOptions,
    policy: Annotated[
        Path | None, o.option("A policy of an earlier run, which is tested and not trained.", metavar="FILE")
    ] = None,
    train_data: Annotated[
        str | None,
        o.option(
            "Train on this. Default: the split 'train' of --data, which a text and arrays do not have.", metavar="SPEC"
        ),
    ] = None,
    train_limit: Annotated[
        int | None, o.option("Train on the first N images, or sequences or examples.", min=1, metavar="N")
    ] = None,
    samples: Annotated[int, o.option("Random sets of as many blocks.", min=1)] = 10,
    selection: Annotated[
        int, o.option("Training examples by which single and greedy deletions are chosen.", min=1, metavar="N")
    ] = 500,
    *,
    common: LesionOptions,
) -> None:
    """Train a small network that chooses for each image which blocks run (BlockDrop, Wu et al. 2018), and test it.

    For each sequence of a language model, image with a mask, or example of a regression likewise. Trained on the split
    'train' or --train-data, tested on --split. It is compared with the intact network, and with networks that run as
    many blocks for all examples. A training that was killed goes on when the same command is given again with the same
    --out.
    """
    from pathlens.policies import Settings
    from pathlens.policies import blockdrop as run

    given = vars(training)
    plain = vars(PolicyOptions())
    if policy is not None and (named := [name for name, value in given.items() if value != plain[name]]):
        said = ", ".join(f"--{name.replace('_', '-')}" for name in named)
        raise UsageError(f"--policy {policy} is tested and not trained; leave {said} out, or --policy")
    settings = Settings(
        **{name: value for name, value in given.items() if name != "train_batch_size"},
        batch_size=training.train_batch_size,
        seed=common.seed,
    )
    with setting("blockdrop", common) as current:
        train = _to_train_on(current, train_data, train_limit)
        total = settings.epochs + settings.joint_epochs

        def on_epoch(row: Row) -> None:
            if current.shows_progress:
                say(_line(row, total, len(current.view)))

        with progress_bar("blockdrop", current.shows_progress, current.notes) as progress, foreign_output():
            result = run(
                current.view,
                current.data,
                train,
                policy=policy,
                settings=settings,
                samples=samples,
                selection=selection,
                out=common.out,
                on_epoch=on_epoch,
                **current.options,
                **common.sweep,
                progress=progress,
            )
        tables: dict[str, Table | None] = {
            "blockdrop-choices": result.choices,
            "blockdrop-classes": result.classes,
            "blockdrop-training": result.history,
        }
        more = {stem: table for stem, table in tables.items() if table is not None}
        arguments = {**given, "policy": policy and str(policy), "train_data": train_data, "train_limit": train_limit}
        finish(current, result.table, {**arguments, "samples": samples, "selection": selection}, more)


def _to_train_on(current: Setting, spec: str | None, limit: int | None) -> DataSet:
    """The data that is named, or the split 'train' of what is tested on, with images of the same size."""
    from pathlens.data import ImageData

    common, tested = current.common, current.data
    own = data_spec(common.data, common.model)
    if spec is None and not isinstance(tested, ImageData):
        raise UsageError(f"{own} is one file without a split to train on; give another with --train-data")
    size = tested.width if isinstance(tested, ImageData) and own.startswith("imagefolder:") else common.image_size
    return opened(dataclasses.replace(common, data=spec or own), "train", limit, size)


def _line(row: Row, epochs: int, blocks: int) -> str:
    return (
        f"epoch {row['epoch']} of {epochs}, {row['phase']}: {row['choosing']} of {blocks} blocks chosen, reward "
        f"{row['reward']:.3f}; most probable choice: {row['likely_blocks']:.2f} blocks, error "
        f"{100 * row['likely_error']:.2f} %"
    )
