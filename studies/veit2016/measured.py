"""What is measured of the trained networks: lesions of all seeds, and path gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import pathlens
from pathlens.data import ImageData
from pathlens.residual import ResidualView, view_of
from pathlens.runtime.processes import pick_device
from pathlens.tables import Table
from studies.common import StudySetting, keep, say
from studies.rules import answers
from studies.rules.veit import HURT
from studies.veit2016.cifar import Kept
from studies.veit2016.trainings import OWN_BLOCKS, PAPER_BLOCKS, Training, cifar

#: kinds of tables of a network, whose names begin with theirs
KINDS = ("lesions", "sets", "hurt", "orders", "gradients")


def kinds_of(trained: str) -> tuple[str, ...]:
    """Which of them a network needs: a residual one that was trained whole all, with random blocks what hurts it."""
    if trained == "full":
        return KINDS
    return {"plain": KINDS[:1], "highway": KINDS[:1], "sd": KINDS[:2]}.get(trained, KINDS[:3])


@dataclass(frozen=True)
class Network:
    """A trained network to measure.

    Attributes:
        name: of its run, which ends the names of its tables.
        model: reference name.
        weights: file.
        spec: of its data.
    """

    name: str
    model: str
    weights: Path
    spec: str

    def opened(self, study: StudySetting) -> tuple[ResidualView, dict[str, Any]]:
        """The blocks of the network, found once, and the options of its analyses."""
        loaded = pathlens.load_model(self.model, self.weights)
        options = {
            "mean": loaded.mean,
            "std": loaded.std,
            "device": str(pick_device(study.device)),
            "provenance": {"model": self.model, "run": self.name, "weights": loaded.sha256},
        }
        return view_of(loaded.model.float(), self.images(2).batch(0, 2).images), options

    def images(self, limit: int, split: str = "test") -> ImageData:
        """The first images of a split."""
        return pathlens.open_data(self.spec, split=split, limit=limit)


def right_answers(
    study: StudySetting,
    wanted: Sequence[Training],
    done: Mapping[str, Path],
    kept: Sequence[Kept],
    split: str = "test",
    limit: int = 10**9,
) -> dict[str, torch.Tensor]:
    """Which images of a split every network gets right, by name of its run; without those whose images are not there.

    Args:
        study: what was asked for.
        wanted: trainings.
        done: their run folders.
        kept: networks on CIFAR-10 that were trained beside.
        split: of the data.
        limit: the first images of it.
    """
    say(f"which {split} images the networks get right")
    networks = [_trained(one, done) for one in wanted]
    networks += [_kept(one) for one in kept if cifar() is not None]
    return {
        one.name: answers.is_right(
            pathlens.load_model(one.model, one.weights), one.images(limit, split), pick_device(study.device)
        )
        for one in networks
    }


def _trained(training: Training, done: Mapping[str, Path]) -> Network:
    spec = "digits" if training.data == "digits" else str(cifar())
    return Network(training.name, training.network, done[training.name] / "weights.safetensors", spec)


def _kept(one: Kept) -> Network:
    return Network(one.name, one.network, one.weights, str(cifar()))


def measure_trained(study: StudySetting, wanted: Sequence[Training], done: Mapping[str, Path]) -> None:
    """Lesions of every network whose claim needs them, and path gradients of the whole ones."""
    pick = study.pick
    for training in wanted:
        measured = training.blocks in (None, OWN_BLOCKS, PAPER_BLOCKS, *pick((4,), (), ()))
        kinds = kinds_of(training.tag) if measured else ()
        if training.data == "digits" and study.scale == "cpu":  # which is judged by the sets that it was judged by
            kinds = tuple(kind for kind in kinds if kind != "hurt")
        measure_one(study, _trained(training, done), kinds, pick(40, 10**9, 10**9), pick(40, 360, 10_000))


def is_known(study: StudySetting, one: Kept) -> bool:
    """Whether a network has its rows of runs and of what they fit, and a table of lesions (:func:`check_weights`)."""
    return f"lesions-{one.name}" in study.tables and all(
        table in study.tables and any(row["run"] == one.name for row in study.tables[table].rows)
        for table in ("runs", "fitted")
    )


def check_weights(study: StudySetting, kept: Sequence[Kept]) -> None:
    """Raise where a table of a network is of other weights than those that are kept, before any is written."""
    for one in kept:
        sha256 = pathlens.load_model(one.network, one.weights).sha256
        for kind in kinds_of(one.trained):
            _check_known(study, f"{kind}-{one.name}", one.name, sha256)


def _check_known(study: StudySetting, stem: str, name: str, weights: str) -> None:
    if stem in study.tables and study.tables[stem].provenance["weights"] != weights:
        raise SystemExit(f"{study.out / stem}.csv is of other weights of {name}; remove it to measure these")


def measure_kept(study: StudySetting, kept: Sequence[Kept], kinds: Collection[str] = KINDS) -> None:
    """The same of networks on CIFAR-10 that were trained beside this study; tables that are there stay.

    Args:
        study: what was asked for.
        kept: the networks.
        kinds: of tables that are measured, one after the other for all networks.

    Raises:
        SystemExit: a table of a network is of other weights.
    """
    if kept and cifar() is None:
        say("the networks on CIFAR-10 are left out: PATHLENS_DATA is not set")
        return
    for kind in KINDS:
        for one in kept:
            if kind in kinds and kind in kinds_of(one.trained):
                measure_one(study, _kept(one), (kind,), 10_000, study.pick(40, 2000, 10_000))


def measure_one(study: StudySetting, network: Network, kinds: Collection[str], images: int, fewer: int) -> None:
    """The tables of one network.

    Args:
        study: what was asked for.
        network: to measure.
        kinds: of tables: every block deleted in turn, many deleted, more sets of the size that tells how hard networks
            are to hurt, many exchanged, the gradient by path length.
        images: test images for single deletions.
        fewer: test images for many.
    """
    if not kinds:
        return
    pick = study.pick
    view, options = network.opened(study)
    swept = {**options, "journal": study.runs / "journal"}
    most, samples = pick(2, 20, 20), pick(2, 10, 10)

    def kept(key: str, analysis: Callable[..., Table], *arguments: Any, **more: Any) -> None:
        stem = f"{key}-{network.name}"
        if key not in kinds:
            return
        if stem not in study.tables:
            say(f"{key} of {network.name}")
            known = {"weights": options["provenance"]["weights"]}
            keep(study, stem, partial(analysis, view, *arguments, **more), about=known)
        _check_known(study, stem, network.name, options["provenance"]["weights"])

    kept("lesions", pathlens.delete_blocks, network.images(images), **swept)
    several = {"samples": samples, **swept}
    kept("sets", pathlens.delete_blocks, network.images(fewer), count=range(1, most + 1), **several)
    kept("hurt", pathlens.delete_blocks, network.images(fewer), count=HURT, samples=pick(2, 50, 50), **swept)
    kept("orders", pathlens.reorder_blocks, network.images(fewer), swaps=range(1, most + 1), **several)
    # batches of 16, and so many paths of a length for each
    paths = {"max_samples": pick(4, 32, 32), "draws": pick(1, 8, 16), "batch_size": 16}
    kept("gradients", pathlens.path_gradients, network.images(pick(4, 512, 512), "train"), **paths, **swept)


def measure_imagenet(study: StudySetting) -> None:
    """Figure 4, where there are images."""
    folder = os.environ.get("PATHLENS_IMAGENET")
    if not folder:
        return
    pick = study.pick
    name = f"torchvision:{pick('resnet18', 'resnet50', 'resnet50')}"
    say(f"single lesions of {name} on ImageNet")
    limit, size = pick(4, 1000, 50_000), pick(64, None, None)
    data = pathlens.open_data(f"imagefolder:{folder}", split="validation", limit=limit, image_size=size)
    weights = os.environ.get("PATHLENS_IMAGENET_WEIGHTS") or "pretrained"
    loaded = pathlens.load_model(name, weights, num_classes=data.num_classes)
    options: dict[str, Any] = {"mean": loaded.mean, "std": loaded.std, "provenance": {"model": name}}
    options["device"] = str(pick_device(study.device))
    table = pathlens.delete_blocks(loaded.model, data, batch_size=pick(2, 32, 256), **options)
    study.tables.put("lesions-imagenet", table)
