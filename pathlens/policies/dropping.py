"""The public entry: a network, images to train a policy on and images to test it on; tables of what it chooses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

from pathlens.analyses.evaluation import BATCH_SIZE, Evaluation, comparison, evaluating, task_of, view_for
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.sweep import SweepResult
from pathlens.data import ImageData
from pathlens.errors import ModelError, NumericsError, UsageError
from pathlens.intervene import active_plans
from pathlens.metrics import PairedCounts
from pathlens.models import save_weights, state_sha256
from pathlens.policies import network as policies
from pathlens.policies.baselines import chosen_on, fixed_sets
from pathlens.policies.evaluation import Measured, choose, measure, route_of
from pathlens.policies.learning import Learned, Learner, Settings
from pathlens.policies.network import PolicyNetwork
from pathlens.policies.rows import Costs, class_rows, image_rows, network_rows
from pathlens.residual import ResidualView
from pathlens.residual.modes import in_mode
from pathlens.residual.routes import intact as intact_route
from pathlens.results.blockdrop import BLOCKDROP, CHOICES, CLASSES, LEARNING
from pathlens.runtime import processes
from pathlens.storage import lock_run
from pathlens.tables import Json, Table
from pathlens.tables.declared import Row, Rows
from pathlens.training.session import WEIGHTS

POLICY = "policy.safetensors"


@dataclass(frozen=True)
class BlockDrop:
    """What a policy chooses, and what that is worth.

    Attributes:
        table: a row for each network on the test images (:class:`pathlens.results.blockdrop.ChoiceRow`).
        choices: a row for each image (:class:`pathlens.results.blockdrop.ImageRow`).
        classes: a row for each class (:class:`pathlens.results.blockdrop.ClassRow`).
        history: a row for each epoch of the policy's training (:class:`pathlens.results.blockdrop.LearningRow`), or
            None where the policy was given.
        policy: the policy, in eval mode.
        model: the network that it is for: the one that was given, or the copy that was trained with it.
    """

    table: Table
    choices: Table
    classes: Table
    history: Table | None
    policy: nn.Module
    model: nn.Module


def blockdrop(
    model: nn.Module | ResidualView,
    data: ImageData,
    train: ImageData | None = None,
    *,
    policy: str | Path | PolicyNetwork | None = None,
    settings: Settings | None = None,
    samples: int = 10,
    selection: int = 500,
    single: Table | None = None,
    greedy: Table | None = None,
    out: str | Path | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    **options: Unpack[SweepOptions],
) -> BlockDrop:
    """Train a small network that chooses for each image which blocks of a frozen network run, and test its choices.

    The reward of a choice is 1 minus the squared share of the blocks that it runs, and minus a penalty where the
    prediction is wrong; the baseline of the policy gradient is the reward of the most probable choice; drawn blocks
    have bounded probabilities; and at first only the last blocks are chosen. After that network and policy may be
    trained together, the network by cross-entropy through the blocks that run. The statistics of batch norms stay as
    they are.

    A block that does not run is one whose branch is deleted, as everywhere in pathlens: x_i = s_i(S_i(x)). In the
    published network a dropped block returns its shortcut without the ReLU after the sum, which makes no difference
    where that ReLU's input is an earlier ReLU's output. The branch of a block with a projection or padding as shortcut
    is dropped like any other, and its shortcut always runs.

    The networks that it is compared with run the same number of blocks for all images, the policy's mean rounded to a
    whole number.

    Args:
        model: the network or its view, a classifier of images whose blocks are a chain. It is not changed.
        data: images to test on.
        train: images to train the policy on, and to choose the blocks of the networks without choice by.
        policy: a policy that was trained before, or its file, in place of a training.
        settings: of the training.
        samples: random sets of blocks.
        selection: training images by which single and greedy deletions are chosen.
        single: table of :func:`.delete_blocks`, in the place of measuring it on these images.
        greedy: table of :func:`.delete_blocks_greedy`, likewise; of as many deletions as are needed or more.
        out: folder for the policy, and for the checkpoint from which a killed training goes on. None keeps nothing.
        on_epoch: called with each row of the history.
        **options: see :func:`.evaluating`; ``progress`` is called from 0 on in the training, each search and the test.

    Raises:
        UsageError: fewer than two blocks, no training images, the same images to train and to test on, or several
            processes.
        ModelError: outputs that are not one class an image.
        CheckpointError: a file that holds no policy, or that of another network.
        NumericsError: a policy that keeps no block of any image, or one that gives NaN.
        DataError, ResourceError, RunError: see :func:`.evaluating` and :func:`pathlens.train`.

    Source: Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris 2018, "BlockDrop: Dynamic Inference Paths in Residual
    Networks", section 3 (reward, baseline, bounded probabilities, curriculum, joint training).
    """
    settings = settings or Settings(seed=options.get("seed", 0))
    view = view_for(model, data, options)
    _check(view, data, train, samples, selection, options)
    assert train is not None
    learned, history = _learned(view, data, train, policy, settings, out, on_epoch, options)
    kept = _mean_blocks(learned.policy, data, options)
    swept: dict[str, Any] = {key: value for key, value in options.items() if key != "task"}
    choose_single, choose_greedy = chosen_on(learned.view, train, selection, swept)
    sets = fixed_sets(
        learned.view,
        round(kept),
        samples,
        settings.seed,
        choose_single if single is None else lambda: single,
        choose_greedy if greedy is None else lambda _: greedy,
    )
    intact = None
    identity: Json = [state_sha256(learned.policy), [fixed.kept for fixed in sets]]
    if learned.view is not view:
        with _evaluating(view, data, identity, options) as evaluation:
            intact = measure(evaluation, learned.policy, []).whole
    with _evaluating(learned.view, data, identity, options) as evaluation:
        measured = measure(evaluation, learned.policy, [route_of(fixed.kept, len(view)) for fixed in sets])
        rows = network_rows(measured, sets, Costs(learned.view, learned.policy), intact)
        record = _record(evaluation, measured, rows)
    stated = {
        **record,
        "settings": vars(settings) if policy is None else None,
        "policy": str(policy) if isinstance(policy, str | Path) else "trained" if policy is None else "given",
        "policy_sha256": state_sha256(learned.policy),
        "train_images": train.n,
        "train_sha256": train.fingerprint,
        "selection": min(selection, train.n),
        "samples": samples,
        "saved": _saved(rows, len(view)),
    }
    before = intact or measured.whole
    return BlockDrop(
        BLOCKDROP.table(rows, stated),
        CHOICES.table(image_rows(measured, before), stated),
        CLASSES.table(class_rows(measured, before, data), stated),
        history,
        learned.policy,
        learned.view.model,
    )


def _check(
    view: ResidualView,
    data: ImageData,
    train: ImageData | None,
    samples: int,
    selection: int,
    options: SweepOptions,
) -> None:
    name = type(view.model).__name__
    if len(view) < 2:
        raise UsageError(f"blockdrop chooses among blocks, and {name} has {len(view)}; give a network of 2 or more")
    if options.get("task") not in (None, "classification"):
        raise UsageError(f"task {options['task']!r}: blockdrop rewards the right class of an image; leave the task out")
    for images in (data, train):
        if images is not None and not isinstance(images, ImageData):
            raise UsageError(
                f"blockdrop wants images of pathlens.open_data and found {type(images).__name__}; open them with it"
            )
    trace = view.chain().trace
    shape = trace.shape(trace.main)
    if task_of(view, None).name != "classification":
        raise ModelError(
            f"blockdrop rewards the right class of an image, and {name} gives outputs of shape {tuple(shape)}; give a "
            "network that classifies images"
        )
    if processes.current().world > 1:
        raise UsageError("blockdrop trains its policy in one process; start it without torchrun")
    if active_plans(view.model, view):
        raise UsageError(f"an intervention is active on {name}; call blockdrop outside of its with block")
    if samples < 1 or selection < 1:
        raise UsageError(f"samples {samples}, selection {selection}: give 1 or more of each")
    if train is None:
        raise UsageError("blockdrop has no training images, which the policy and the baselines need; give some")
    shared = min(train.n, data.n)
    same = train.total == data.total and bool((train.labels[:shared] == data.labels[:shared]).all())
    if train.fingerprint == data.fingerprint or (same and (train.name, train.split) == (data.name, data.split)):
        raise UsageError(
            f"{data.name}: the images to train on are those to test on; give another split, or images of another file"
        )


def _learned(
    view: ResidualView,
    data: ImageData,
    train: ImageData,
    policy: str | Path | PolicyNetwork | None,
    settings: Settings,
    out: str | Path | None,
    on_epoch: Callable[[Row], None] | None,
    options: SweepOptions,
) -> tuple[Learned, Table | None]:
    """The policy that was given, or a trained one with the history of its training."""
    if policy is not None:
        own = policy if isinstance(policy, PolicyNetwork) else policies.read(Path(policy), view)
        return Learned(own.eval(), view, []), None
    device = processes.device_of(view.model, options.get("device"))
    view.model.to(device)
    mean, std = tuple(options.get("mean") or data.mean), tuple(options.get("std") or data.std)
    learner = Learner(view, train, settings, mean, std, device)
    with contextlib.ExitStack() as stack:
        folder = None if out is None else stack.enter_context(lock_run(out))
        learned = learner.run(folder, on_epoch, options.get("progress"))
        if folder is not None:
            policies.save(folder / POLICY, learned.policy, learned.view, {"settings": vars(settings)})
            if learned.view is not view:
                metadata = {
                    "mean": json.dumps(mean),
                    "std": json.dumps(std),
                    "input_shape": json.dumps(view.input_shape),
                    "trained_from": state_sha256(view.model),
                }
                save_weights(folder / WEIGHTS, learned.view.model, metadata)
    return learned, LEARNING.table(learned.history, {"verb": BLOCKDROP.name, **learner.arguments})


def _mean_blocks(policy: PolicyNetwork, data: ImageData, options: SweepOptions) -> float:
    """Blocks that a policy keeps for an image, mean.

    Raises:
        NumericsError: none for any image.
    """
    kept = 0
    with in_mode(policy), torch.inference_mode():
        size, normalised = options.get("batch_size", BATCH_SIZE), (options.get("mean"), options.get("std"))
        for batch in data.batches(size, mean=normalised[0], std=normalised[1]):
            kept += int(choose(policy, batch.images).sum())
    if not kept:
        raise NumericsError(
            f"the policy keeps no block of any of the {data.n} images, so that nothing is left to compare; give a "
            "larger penalty (--penalty), or more epochs"
        )
    return kept / data.n


def _evaluating(
    view: ResidualView, data: ImageData, identity: Json, options: SweepOptions
) -> contextlib.AbstractContextManager[Evaluation]:
    given: SweepOptions = {**options, "task": "classification"}
    return evaluating(BLOCKDROP.name, view, data, identity, 4, **given)


def _record(evaluation: Evaluation, measured: Measured, rows: Rows) -> dict[str, Json]:
    """The provenance of the evaluation."""
    whole, blocks = measured.whole.counts, len(evaluation.view)
    swept = SweepResult(evaluation.task, [intact_route(blocks)], [whole], [PairedCounts(whole.n)], measured.difference)
    tests = [(row["p"], row["p_holm"]) for row in rows if row["p"] is not None]
    compared = {
        **(comparison(evaluation.task, tests) or {}),
        "policy": "McNemar's exact test, two-sided, not corrected",
    }
    return replace(
        evaluation.record([swept]), comparison=compared, networks_evaluated=2 + len(measured.others)
    ).entries()


def _saved(rows: Rows, blocks: int) -> str:
    """What the policy saves, in one sentence."""
    whole, policy = (next(row for row in rows if row["network"] == kind) for kind in ("intact", "policy"))
    return (
        f"the policy runs {policy['blocks']:.2f} +- {policy['blocks_sd']:.2f} of {blocks} blocks in "
        f"{policy['choices']} different choices: {policy['multiply_adds']:.4g} of {whole['multiply_adds']:.4g} "
        f"multiply-adds and {policy['seconds']:.3g} of {whole['seconds']:.3g} s, with what the policy itself needs"
    )
