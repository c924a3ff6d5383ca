"""Trained networks that nobody here trained: lesions, reordering, path gradients, and a twin without shortcuts.

Run ``python -m studies.pretrained_resnets --scale cpu``; see ``studies/common.py`` for the options and for scales. The
environment names the folders of the files: ``PATHLENS_MODELS`` holds ``pytorch_resnet_cifar10/`` and
``loss_landscape/`` (files in ``studies/subjects.py``), ``PATHLENS_DATA`` holds ``cifar10-jpeg/``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

import pathlens
from pathlens import figures
from pathlens.data import ImageData
from pathlens.tables import Table
from studies.common import Page, StudySetting, carry_out, keep, say, setting, start_fresh
from studies.pretrained_resnets.judged import intact, verdicts
from studies.pretrained_resnets.twins import blocks_of_twin
from studies.record import make_table
from studies.rules import lesions as lesion_rules
from studies.rules import paths as path_rules
from studies.rules.veit import CHANCE
from studies.subjects import Subject, published, untrained

NAME = "pretrained_resnets"

QUESTION = (
    "Do residual networks that others trained and published behave as Veit, Wilber, Belongie 2016 say theirs do, and "
    "does the same network without its shortcuts behave otherwise?"
)
PROTOCOL = (
    "ResNet-20 (9 blocks) and ResNet-56 (27 blocks) of He et al. 2016a, section 4.2, published by "
    "github.com/akamaster/pytorch_resnet_cifar10; and ResNet-56 with projection shortcuts and its twin without any "
    "shortcut, trained alike by Li et al. 2018 (github.com/tomgoldstein/loss-landscape). All were trained on the "
    "original CIFAR-10. Each block's branch deleted, each block's shortcut deleted, distinct random sets of blocks "
    "deleted, blocks exchanged inside their stages; gradients of training images at the input by path length: sampled "
    "single paths, root mean square by random signs, exact sums. Of the twin each layer is deleted, and each pair of "
    "layers that is a block's branch in the other network. Every lesioned network is compared with the intact one on "
    "the same images, all 10,000 of the test split (McNemar's exact test, Holm's correction over the table). "
    "Differences from the paper: it studies pre-activation networks of 54 blocks, and these have a ReLU after the "
    "addition, so that a shortcut is not linear; the test images are JPEG files of CIFAR-10 (`cifar10-jpeg`), on which "
    "the networks err more than on the original ones, so that errors here are comparable with each other alone. One "
    "training each: what is said is of these networks, and not of their kind."
)
LESIONS = {
    "block": "d", "name": "", "kind": "", "error": ".2%", "difference": "+.2%", "difference_low": "+.2%",
    "difference_high": "+.2%", "p_holm": ".2g",
}  # fmt: skip
SETS = {"count": "d", "error": ".2%", "error_low": ".2%", "error_high": ".2%", "n": "d"}
CAPTIONS = {
    "lesions": "Error with each block deleted in turn",
    "skips": "Error with each block's shortcut deleted in turn",
    "sets": "Error with random sets of blocks deleted",
    "orders": "Error against Kendall's tau of the order of the blocks",
    "gradients": "Number of paths, norm of one path, and contribution, by length (shaded: effective lengths, sampled)",
}
#: kind of table -> stem of the one that tells its networks apart by whether they touch a critical block
KINDS = {"sets": "many", "orders": "many-orders"}
#: the network and its twin without shortcuts
TWINS = ("resnet56b", "plain56")


def subjects_of(study: StudySetting) -> list[Subject]:
    """The networks: those with shortcuts, then the twin.

    Raises:
        DataError: the weights or the images are not there.
    """
    if study.scale == "smoke":
        return [untrained(study, "resnet20"), untrained(study, "plain20")]
    return [published(study, name) for name in ("resnet20", "resnet56", *TWINS)]


def measure(study: StudySetting) -> None:
    """All measurements of all networks."""
    *chosen, twin = subjects_of(study)
    start_fresh(study)
    for subject in (*chosen, twin):
        say(f"single lesions of {subject.name}")
        view, data, options = subject.view, _tested(study, subject), _kept(study, subject)
        keep(study, f"lesions-{subject.name}", partial(pathlens.delete_blocks, view, data, **options))
        if subject is twin:
            keep(study, f"twin-{subject.name}", partial(blocks_of_twin, view, data, **options))
        else:
            keep(study, f"skips-{subject.name}", partial(pathlens.delete_skips, view, data, **options))
    for subject in chosen:
        _measure_many(study, subject)


def _measure_many(study: StudySetting, subject: Subject) -> None:
    pick, name, view = study.pick, subject.name, subject.view
    options, data = _kept(study, subject), _tested(study, subject)
    say(f"random sets of {name}")
    most, samples = min(len(view), pick(2, 10, 20)), pick(2, 10, 10)
    sets = partial(pathlens.delete_blocks, view, data, count=range(1, most + 1), samples=samples, **options)
    keep(study, f"sets-{name}", sets)
    say(f"orders of {name}")
    swaps = range(1, pick(2, 10, 20) + 1)
    orders = partial(pathlens.reorder_blocks, view, data, swaps=swaps, samples=pick(2, 6, 10), **options)
    keep(study, f"orders-{name}", orders)
    say(f"path gradients of {name}")
    # 512 images in batches of 16, and 32 paths of a length for each: 1,024 paths a length, as in the paper
    gradients = {"max_samples": pick(4, 32, 32), "draws": pick(2, 8, 16), "batch_size": 16}
    images = subject.images(pick(4, 512, 512), split="train")
    measured = partial(pathlens.path_gradients, view, images, **gradients, **subject.options)
    keep(study, f"gradients-{name}", measured)


def _tested(study: StudySetting, subject: Subject) -> ImageData:
    """All test images."""
    return subject.images(study.pick(16, 10_000, 10_000))


def _kept(study: StudySetting, subject: Subject) -> dict[str, object]:
    """Options of a sweep, which is taken up again where it was killed."""
    return {**subject.options, "journal": study.runs / "journal"}


def drawn(key: str, table: Table, lesions: Table) -> object:
    """The figure of a measurement.

    Args:
        key: which.
        table: its own.
        lesions: of single blocks of the same network.
    """
    if key == "gradients":
        effective = table.provenance["effective"]["sampled"]
        return figures.path_gradients(table, effective=(effective["first"], effective["last"]))
    if key == "skips":
        return figures.skips(table)
    critical = () if key == "lesions" else lesion_rules.critical_blocks(lesions)
    return (figures.reordering if key == "orders" else figures.deletion)(table, critical=critical)


def _put_derived(study: StudySetting, names: Sequence[str]) -> None:
    """Tables that are computed from those that were measured.

    Args:
        study: whose tables.
        names: of the networks with shortcuts.
    """
    tables = study.tables
    drawn_of = {"sets": lesion_rules.distinct_sets, "orders": lesion_rules.distinct_orders}
    for key, columns in (("sets", lesion_rules.SPLIT_SETS), ("orders", lesion_rules.SPLIT_ORDERS)):
        rows = [
            {"network": name, **one}
            for name in names
            for one in lesion_rules.split_rows(drawn_of[key](tables[f"{key}-{name}"]), tables[f"lesions-{name}"])
        ]
        tables.put(KINDS[key], make_table((("network", "", "network"), *columns), rows))
    shares = [path_rules.share_row(name, tables[f"gradients-{name}"]) for name in names]
    tables.put("shares", make_table(path_rules.SHARES, shares))


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "Networks that nobody here trained", QUESTION)
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: networks with random weights. Their numbers mean nothing.**")
    tables = page.tables
    names = [stem.removeprefix("skips-") for stem in tables if stem.startswith("skips-")]
    twin = next(stem.removeprefix("twin-") for stem in tables if stem.startswith("twin-"))
    _put_derived(study, names)
    pair = TWINS[0] if TWINS[0] in names else names[-1]
    page.section(
        "With and without shortcuts",
        f"{pair} and {twin} have the same layers and were trained alike; the second has no shortcuts, and so not the "
        "two projections either which the first has beside the blocks that downsample and which stay when those are "
        "deleted. Deleting a block is deleting the same two convolutions in both.",
    )
    both = {f"{pair}, with shortcuts": tables[f"lesions-{pair}"], f"{twin}, without": tables[f"twin-{twin}"]}
    page.figure(
        "twins",
        lambda: figures.deletions(both, chance=CHANCE),
        f"Error with each block deleted in turn: {pair} and {twin}.",
    )
    caption = f"Error with each layer deleted in turn: {twin}."
    page.figure(f"lesions-{twin}", lambda: figures.deletion(tables[f"lesions-{twin}"]), caption)
    page.table(f"twin-{twin}", {name: look for name, look in LESIONS.items() if name != "kind"})
    page.measured(f"twin-{twin}")
    page.table(f"lesions-{twin}")
    for name in names:
        blocks = tables[f"lesions-{name}"].provenance["blocks"]
        page.section(f"{name}: {blocks} blocks")
        for key, caption in CAPTIONS.items():
            stem = f"{key}-{name}"
            lesions = tables[f"lesions-{name}"]
            critical = lesion_rules.critical_blocks(lesions)
            end = lesion_rules.apart(key, tables[stem], critical) if key in KINDS else "."
            page.figure(stem, partial(drawn, key, tables[stem], lesions), f"{caption}: {name}{end}")
            if key == "sets":
                page.table(stem, SETS, rows=lambda row: row["sample"] is None)
            else:
                page.table(stem, LESIONS if key == "lesions" else None, rows=lambda row: row["block"] is not None)
            page.measured(stem)
            if key in KINDS:
                own = [row for row in tables[KINDS[key]].rows if row["network"] == name]
                page.text(lesion_rules.side_by_side(own, key))
                page.table(KINDS[key])
    page.section("Shares of the gradient, by projection", path_rules.by_projection(tables["shares"].rows))
    page.table("shares", path_rules.SHARES_SHOWN)
    errors = [(name, intact(tables[f"lesions-{name}"])) for name in (*names, twin)]
    page.section(
        "The intact networks",
        "\n".join(
            f"- {name}: {row['error']:.2%} ({row['error_low']:.2%} to {row['error_high']:.2%}, {row['n']:,} images)"
            for name, row in errors
        ),
    )
    page.claims(verdicts(tables, names, pair, twin), lambda _: tables[f"lesions-{twin}"].provenance["data"])
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
