"""Two trained networks that nobody here trained: lesions, reordering, exact and sampled path gradients.

Run ``python -m studies.pretrained_resnets --scale cpu``; see ``studies/common.py`` for the options and for scales. The
environment names the folders of the files: ``PATHLENS_MODELS`` holds ``pytorch_resnet_cifar10/resnet20-12fca82f.th``
and ``resnet56-4bfd9763.th`` beside it, ``PATHLENS_DATA`` holds ``cifar10-jpeg/test.parquet``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pathlens
from pathlens import figures
from pathlens.errors import PathlensError
from pathlens.tables import Table
from studies.common import Page, StudySetting, make_table, one_thread, say, setting, start_fresh
from studies.pretrained_resnets.headlines import HEADLINES, headlines, intact
from studies.subjects import Subject, published, untrained

NAME = "pretrained_resnets"

QUESTION = (
    "Do two residual networks that others trained and published behave as Veit, Wilber, Belongie 2016 say theirs do?"
)
PROTOCOL = (
    "ResNet-20 (9 blocks) and ResNet-56 (27 blocks) of He et al. 2016a, section 4.2, with the weights published by "
    "github.com/akamaster/pytorch_resnet_cifar10, which were trained on the original CIFAR-10. Each block's branch "
    "deleted, each block's shortcut deleted, random sets of blocks deleted, blocks exchanged inside their stages, and "
    "gradients by path length: sampled single paths, root mean square by random signs, exact sums. Differences from "
    "the paper: it studies pre-activation networks of 54 blocks, and these have a ReLU after the addition, so that a "
    "shortcut is not linear; their shortcuts between stages are subsampling and padding without parameters; the test "
    "images are JPEG files of CIFAR-10 (`cifar10-jpeg`), on which the networks err more than on the original ones "
    "(published: 8.27 % and 6.61 %), so that errors here are comparable with each other alone."
)
SETS = {"count": "d", "error": ".2%", "error_low": ".2%", "error_high": ".2%"}


def subjects_of(study: StudySetting) -> list[Subject]:
    """The networks.

    Raises:
        DataError: the weights or the images are not there.
    """
    if study.scale == "smoke":
        return [untrained(study, "resnet20")]
    return [published(study, name) for name in ("resnet20", "resnet56")]


def measure(page: Page, study: StudySetting, subject: Subject) -> dict[str, Table]:
    """All measurements of one network, with figures and tables on the page."""
    pick, name = study.pick, subject.name
    data, options, view = subject.images(pick(16, 1000, 10_000)), subject.options, subject.view
    page.section(f"{name}: {len(view)} blocks", f"{subject.words}; {data.n:,} test images.")
    tables: dict[str, Table] = {}

    def keep(key: str, table: Table, drawn: Any, caption: str, **shown: Any) -> None:
        tables[key] = table
        page.figure(f"{key}-{name}", drawn, f"{caption}: {name}.")
        page.table(f"{key}-{name}", table, **shown)

    say(f"lesions of {name}")
    table = pathlens.delete_blocks(view, data, **options)
    keep("lesions", table, figures.deletion(table), "Error with each block deleted in turn")
    table = pathlens.delete_skips(view, data, **options)
    keep("skips", table, figures.skips(table), "Error with each block's shortcut deleted in turn")
    say(f"random sets of {name}")
    most = min(len(view), pick(2, 10, 20))
    table = pathlens.delete_blocks(view, data, count=range(1, most + 1), samples=pick(2, 10, 10), **options)
    caption = "Error with random sets of blocks deleted"
    keep("sets", table, figures.deletion(table), caption, shown=SETS, rows=lambda row: row["sample"] is None)
    say(f"orders of {name}")
    table = pathlens.reorder_blocks(view, data, swaps=range(1, pick(2, 10, 20) + 1), samples=pick(2, 6, 10), **options)
    keep("orders", table, figures.reordering(table), "Error against Kendall's tau of the order of the blocks")
    say(f"path gradients of {name}")
    gradients = {"max_samples": pick(4, 32, 128), "draws": pick(2, 8, 16), "batch_size": 16}
    table = pathlens.path_gradients(view, subject.images(pick(4, 64, 512)), **gradients, **options)
    effective = table.provenance["effective"]["exact"]
    drawn = figures.path_gradients(table, effective=(effective["first"], effective["last"]))
    caption = "Number of paths, norm of one path, and contribution, by length (shaded: effective lengths, exact)"
    keep("gradients", table, drawn, caption)
    return tables


def answers(found: Sequence[Mapping[str, Any]]) -> str:
    """What agrees and what does not, from the rows of headlines."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in found):
        own = [row for row in found if row["network"] == network]
        for verdict, agrees in (("agrees with the paper", True), ("does not agree", False)):
            told = [f"{row['fact']} ({row['here']})" for row in own if row["agrees"] is agrees]
            lines.append(f"- {network} {verdict} in: {'; '.join(told) or 'nothing'}.")
    return "\n".join(lines)


def reasons(found: Sequence[Mapping[str, Any]]) -> str:
    """The likely reasons of what disagrees, where it does."""
    disagree = {row["fact"] for row in found if row["agrees"] is False}
    said = []
    if "deleting one block" in disagree:
        said.append(
            "A network of few blocks has few paths, and a deletion takes a larger share of the short ones that carry "
            "the gradient."
        )
    if "which blocks hurt most" in disagree:
        said.append(
            "The shortcuts between stages have no parameters here. What a deleted block leaves is the subsampled input "
            "with padded channels, which the later blocks may still use; and the first blocks, on which everything "
            "after them rests, compete for the worst place."
        )
    if {"effective lengths, the paper's product", "effective lengths, exact sum"} & disagree:
        said.append(
            "A path's gradient shrinks with its length only where branches carry less of it than shortcuts; with few "
            "blocks and large responses they need not."
        )
    said.append(
        "The interval of a rank correlation takes sets and orders for independent draws; they share images and network."
    )
    return " ".join(said)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    asked = setting(NAME, __doc__, argv)
    if asked.scale == "smoke":
        one_thread()
    try:
        chosen = subjects_of(asked)
        start_fresh(asked.out)
        page = Page(asked, "Networks that nobody here trained", QUESTION, PROTOCOL)
        if asked.scale == "smoke":
            page.text("**A smoke run for the tests: a network with random weights. Its numbers mean nothing.**")
        found, errors = [], []
        for subject in chosen:
            tables = measure(page, asked, subject)
            found += headlines(subject.name, tables)
            errors.append((subject.name, intact(tables["lesions"])))
        page.section(
            "Beside the paper",
            "Error of the intact networks: "
            + "; ".join(
                f"{name} {row['error']:.2%} ({row['error_low']:.2%} to {row['error_high']:.2%}, {row['n']:,} images)"
                for name, row in errors
            )
            + ".",
        )
        shown = {"network": "", "fact": "", "paper": "", "here": ""}
        shown |= {"value": ".3g", "value_low": ".3g", "value_high": ".3g", "agrees": ""}
        page.table("headlines", make_table(HEADLINES, found), shown)
        page.section("What agrees, what does not, and the likely reason", answers(found))
        page.text(reasons(found))
        page.write()
    except PathlensError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return error.exit_code
    say(f"wrote {asked.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
