"""The public entry: a network, examples to train a policy on and to test it on; tables of what it chooses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from pathlens.analyses.evaluation import BATCH_SIZE, Evaluation, comparison, evaluating, task_of, view_for
from pathlens.analyses.options import SweepOptions
from pathlens.analyses.sweep import SweepResult
from pathlens.data import ArrayData, DataSet, ImageData, TextData, check_labels, check_tokens
from pathlens.errors import DataError, NumericsError, UsageError
from pathlens.intervene import active_plans
from pathlens.metrics import Task
from pathlens.models import save_weights, state_sha256
from pathlens.policies import network as policies
from pathlens.policies.baselines import chosen_on, fixed_sets
from pathlens.policies.evaluation import Measured, choose, measure, route_of
from pathlens.policies.learning import Learned, Learner, Settings
from pathlens.policies.rows import Costs, class_rows, image_rows, network_rows
from pathlens.residual import ResidualView
from pathlens.residual.gradients import mixes_examples
from pathlens.residual.inference import Inference
from pathlens.residual.modes import copied, in_mode
from pathlens.residual.routes import intact as intact_route
from pathlens.results.blockdrop import BLOCKDROP, CHOICES, CLASSES, LEARNING
from pathlens.runtime import processes
from pathlens.runtime.memory import oom_as_error
from pathlens.runtime.precision import precision
from pathlens.storage import lock_run
from pathlens.tables import Json, Table
from pathlens.tables.declared import Row, Rows
from pathlens.training.rows import require_rows_of_blocks
from pathlens.training.session import WEIGHTS, variance_of

POLICY = "policy.safetensors"
_COMPARED = 64  # examples that are decoded at a time


@dataclass(frozen=True)
class BlockDrop:
    """What a policy chooses, and what that is worth.

    Attributes:
        table: a row for each network on the test examples (:class:`pathlens.results.blockdrop.ChoiceRow`).
        choices: a row for each example (:class:`pathlens.results.blockdrop.ImageRow`).
        classes: a row for each class (:class:`pathlens.results.blockdrop.ClassRow`), or None where an example has no
            class.
        history: a row for each epoch of the policy's training (:class:`pathlens.results.blockdrop.LearningRow`), or
            None where the policy was given.
        policy: the policy, in eval mode.
        model: the network that it is for: the one that was given, or the copy that was trained with it.
    """

    table: Table
    choices: Table
    classes: Table | None
    history: Table | None
    policy: nn.Module
    model: nn.Module


def blockdrop(
    model: nn.Module | ResidualView,
    data: DataSet,
    train: DataSet | None = None,
    *,
    policy: str | Path | nn.Module | None = None,
    settings: Settings | None = None,
    samples: int = 10,
    selection: int = 500,
    single: Table | None = None,
    greedy: Table | None = None,
    out: str | Path | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    **options: Unpack[SweepOptions],
) -> BlockDrop:
    """Train a small network that chooses for each example which blocks of a frozen network run, and test its choices.

    Of an example, an image or a sequence most often, the share c is right: 1 or 0 for a class, else the share of its
    pixels or tokens that count, or for a regression 1 - squared error / variance of the training targets, and 0 where
    that is negative. The reward of a choice is c (1 - the squared share of the blocks that it runs) - (1 - c) times a
    penalty, which for a class is the published one, and else ours. The baseline of the policy gradient is the reward of
    the most probable choice; drawn blocks have bounded probabilities; and at first only the last blocks are chosen.
    After that network and policy may be trained together, the network by the loss of its task through the blocks that
    run. The statistics of batch norms stay as they are.

    A policy looks at what the network looks at. One of tokens sees the whole sequence, so that its choice may tell the
    network of tokens that come later: at most a bit for each block and sequence.

    A block that does not run is one whose branch is deleted, as everywhere in pathlens: x_i = s_i(S_i(x)). In the
    published network a dropped block returns its shortcut without the ReLU after the sum, which makes no difference
    where that ReLU's input is an earlier ReLU's output. The branch of a block with a projection or padding as shortcut
    is dropped like any other, and its shortcut always runs.

    The networks that it is compared with run the same number of blocks for all examples, the policy's mean rounded to a
    whole number.

    Args:
        model: the network or its view, whose blocks are a chain. It is not changed.
        data: examples to test on.
        train: examples to train the policy on, and to choose the blocks of the networks without choice by.
        policy: a policy that was trained before, or its file, in place of a training.
        settings: of the training.
        samples: random sets of blocks.
        selection: training examples by which single and greedy deletions are chosen.
        single: table of :func:`.delete_blocks`, in the place of measuring it on these examples.
        greedy: table of :func:`.delete_blocks_greedy`, likewise; of as many deletions as are needed or more.
        out: folder for the policy, and for the checkpoint from which a killed training goes on. None keeps nothing.
        on_epoch: called with each row of the history.
        **options: see :func:`.evaluating`; ``progress`` is called from 0 on in the training, each search and the test.

    Raises:
        UsageError: fewer than two blocks, or blocks without a row for each example; nothing to train on, or the same
            examples to train and to test on; several processes.
        ModelError: outputs that do not fit the task.
        CheckpointError: a file that holds no policy, or that of another network.
        NumericsError: a policy that keeps no block of any example, or one that gives NaN.
        DataError, ResourceError, RunError: see :func:`.evaluating` and :func:`pathlens.train`.

    Source: Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris 2018, "BlockDrop: Dynamic Inference Paths in Residual
    Networks", section 3 (reward, baseline, bounded probabilities, curriculum, joint training).
    """
    settings = settings or Settings(seed=options.get("seed", 0))
    view = view_for(model, data, options)
    task = _checked(view, data, train, samples, selection, options)
    assert train is not None
    # of both kinds of examples the same; what are no images have none
    alike: SweepOptions = {
        **options,
        "mean": tuple(options.get("mean") or data.mean) or None,
        "std": tuple(options.get("std") or data.std) or None,
    }
    variance = variance_of(train, task)
    with precision(options.get("dtype", "float32")):
        learned, history = _learned(view, train, task, variance, policy, settings, out, on_epoch, alike)
        kept = _mean_blocks(learned.policy, data, alike)
    choose_single, choose_greedy = chosen_on(learned.view, train, selection, dict(alike))
    sets = fixed_sets(
        learned.view,
        round(kept),
        samples,
        settings.seed,
        choose_single if single is None else lambda: single,
        choose_greedy if greedy is None else lambda _: greedy,
    )
    routes = [route_of(fixed.kept, len(view)) for fixed in sets]
    identity: Json = [state_sha256(learned.policy), state_sha256(view.model), variance, *map(repr, routes)]
    with contextlib.ExitStack() as stack:
        evaluation = stack.enter_context(evaluating(BLOCKDROP.name, learned.view, data, identity, 4, **options))
        before = None
        if learned.view is not view:
            runner = evaluation.runner
            before = stack.enter_context(Inference(view, runner.device, runner.dtype, evaluation.network.engine))
        measured = measure(evaluation, learned.policy, routes, before, variance)
        rows = network_rows(measured, sets, Costs(learned.view, learned.policy))
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
    classes = None
    if measured.labels is not None:
        assert isinstance(data, ImageData)
        classes = CLASSES.table(class_rows(measured, data), stated)
    return BlockDrop(
        BLOCKDROP.table(rows, stated),
        CHOICES.table(image_rows(measured), stated),
        classes,
        history,
        learned.policy,
        learned.view.model,
    )


def _checked(
    view: ResidualView,
    data: DataSet,
    train: DataSet | None,
    samples: int,
    selection: int,
    options: SweepOptions,
) -> Task:
    """What is measured, where the network, the data and the options allow it."""
    name = type(view.model).__name__
    if len(view) < 2:
        raise UsageError(f"blockdrop chooses among blocks, and {name} has {len(view)}; give a network of 2 or more")
    for given in (data, train):
        if given is not None and not isinstance(given, DataSet):
            raise UsageError(
                "blockdrop wants data of pathlens.open_data, open_text or open_arrays and found "
                f"{type(given).__name__}; open them with one of these"
            )
    if processes.current().world > 1:
        raise UsageError("blockdrop trains its policy in one process; start it without torchrun")
    if active_plans(view.model, view):
        raise UsageError(f"an intervention is active on {name}; call blockdrop outside of its with block")
    require_rows_of_blocks(view, "blockdrop", "delete-blocks leaves the same blocks out for all examples")
    with in_mode(view.model):
        mixes = mixes_examples(view.chain().trace)
    if mixes:
        raise UsageError(
            f"batch norms of {name} take their statistics of the batch in eval mode too, so that an example's blocks "
            "would change the others' answers; delete-blocks leaves the same blocks out for all examples"
        )
    if samples < 1 or selection < 1:
        raise UsageError(f"samples {samples}, selection {selection}: give 1 or more of each")
    if train is None:
        raise UsageError(
            f"blockdrop has no training {data.rows_are}, which the policy and the baselines need; give some"
        )
    if type(train) is not type(data):
        raise UsageError(
            f"blockdrop trains on {train.rows_are} ({train.name}) and tests on {data.rows_are} ({data.name}); give "
            "data of one kind"
        )
    usual = "regression" if isinstance(data, ArrayData) else None
    task = task_of(view, options.get("task") or usual, options.get("loss"))
    outputs = policies.output_shape(view)
    for part in (train, data):
        few = min(2, part.n)
        examples, targets = part.rows(torch.arange(few))
        task.check_targets(targets, few)
        if tuple(examples.shape[1:]) != view.input_shape:
            raise DataError(
                f"{part.name} has {part.rows_are} of shape {tuple(examples.shape[1:])} and the network was traced with "
                f"{view.input_shape}; give {part.rows_are} of one shape"
            )
        if isinstance(part, TextData):
            check_tokens(part, outputs[task.axis])
        elif isinstance(part, ImageData):
            check_labels(part, outputs[task.axis])
    variance_of(data, task)  # which refuses targets that are all equal
    if _are_same(train, data):
        raise UsageError(
            f"{data.name}: the {data.rows_are} to train on are those to test on; give another split, or "
            f"{data.rows_are} of another file"
        )
    return task


def _are_same(train: DataSet, data: DataSet) -> bool:
    """Whether the examples of one are those of the other, or the first of them."""
    if train.fingerprint == data.fingerprint:
        return True
    if train.total != data.total:
        return False
    if isinstance(train, TextData) and isinstance(data, TextData):
        return torch.equal(train.tokens, data.tokens)
    shared = min(train.n, data.n)
    # a few at a time, because the pixels of all images may not fit in memory; others differ in the first of them
    parts = torch.arange(shared).split(_COMPARED)
    return all(all(map(torch.equal, train.rows(part), data.rows(part))) for part in parts)


def _learned(
    view: ResidualView,
    train: DataSet,
    task: Task,
    variance: float | None,
    policy: str | Path | nn.Module | None,
    settings: Settings,
    out: str | Path | None,
    on_epoch: Callable[[Row], None] | None,
    options: SweepOptions,
) -> tuple[Learned, Table | None]:
    """The policy that was given, or a trained one with the history of its training."""
    if policy is not None:
        # the user's own stays in the mode that it is in
        own = copied(policy) if isinstance(policy, nn.Module) else policies.read(Path(policy), view)
        return Learned(own.eval(), view, []), None
    home, device = (processes.device_of(view.model, name) for name in (None, options.get("device")))
    mean, std = tuple(options.get("mean") or ()), tuple(options.get("std") or ())
    with contextlib.ExitStack() as stack:
        # the user's network is afterwards where it was, in the mode that it was in
        stack.enter_context(in_mode(view.model))
        stack.callback(view.model.to, home)
        view.model.to(device)
        with oom_as_error(settings.batch_size, "--train-batch-size"):
            learner = Learner(view, train, task, variance, settings, mean, std, device)
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


def _mean_blocks(policy: nn.Module, data: DataSet, options: SweepOptions) -> float:
    """Blocks that a policy keeps for an example, mean.

    Raises:
        NumericsError: none for any example.
    """
    kept = 0
    size, normalised = options.get("batch_size", BATCH_SIZE), (options.get("mean"), options.get("std"))
    with in_mode(policy), torch.inference_mode(), oom_as_error(size):
        for index in range(data.num_batches(size)):
            batch = data.batch(index, size, mean=normalised[0], std=normalised[1])
            kept += int(choose(policy, batch.images).sum())
    if not kept:
        raise NumericsError(
            f"the policy keeps no block of any of the {data.n} {data.rows_are}, so that nothing is left to compare; "
            "give a larger penalty (--penalty), or more epochs"
        )
    return kept / data.n


def _record(evaluation: Evaluation, measured: Measured, rows: Rows) -> dict[str, Json]:
    """The provenance of the evaluation."""
    intact, task = measured.intact, evaluation.task
    route = intact_route(len(evaluation.view))
    swept = SweepResult(task, [route], [intact.counts], [intact.against_intact], measured.difference)
    # as in the family of the corrected tests, rows of one set of blocks are of one network
    tests = {
        row["network"] if row["kept"] is None else row["kept"]: (row["p"], row["p_holm"])
        for row in rows
        if row["p"] is not None
    }
    compared = {
        **(comparison(task, list(tests.values())) or {}),
        "policy": f"{task.test}, not corrected",
    }
    evaluated = 2 + (measured.tuned is not None) + len(measured.others)
    return replace(evaluation.record([swept]), comparison=compared, networks_evaluated=evaluated).entries()


def _saved(rows: Rows, blocks: int) -> str:
    """What the policy saves, in one sentence."""
    whole, policy = (next(row for row in rows if row["network"] == kind) for kind in ("intact", "policy"))
    return (
        f"the policy runs {policy['blocks']:.2f} +- {policy['blocks_sd']:.2f} of {blocks} blocks in "
        f"{policy['choices']} different choices: {policy['multiply_adds']:.4g} of {whole['multiply_adds']:.4g} "
        f"multiply-adds and {policy['seconds']:.3g} of {whole['seconds']:.3g} s, with what the policy itself needs"
    )
