"""What Veit, Wilber, Belongie 2016 found in residual networks for images, asked of a language model.

Run ``python -m studies.language --scale cpu``; see ``studies/common.py`` for the options and for scales. The
environment names the folder of the network: ``PATHLENS_MODELS`` holds ``llama2/stories260K.bin``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import pathlens
from pathlens import figures
from pathlens.models.llama import Llama
from pathlens.residual import view_of
from pathlens.tables import Table
from studies.common import Page, StudySetting, carry_out, keep, say, setting, start_fresh
from studies.language.judged import verdicts
from studies.language.stories import network, written

NAME = "language"
NETWORK = "stories260K"

PROTOCOL = (
    "A Llama 2 of 5 layers and 260,032 parameters that others trained on short stories (karpathy/tinyllamas, "
    "stories260K). Attention and MLP of each layer are two residual blocks, so it has 10. It is studied on stories "
    "that it writes itself, drawn token by token from what it predicts; so the intact network is the distribution that "
    "the text comes from, and what a lesion costs is what it takes away from that. Each block's branch deleted, each "
    "block's shortcut deleted, each layer deleted, every run of neighbouring layers, distinct random sets of blocks, "
    "distinct random orders of the blocks; gradients of the loss at the input of the first block by length: sampled "
    "single paths, root mean square by random signs, exact sums. Error is the share of tokens of which another is "
    "thought likelier, loss is in nats a token, and every lesioned network is compared with the intact one on the same "
    "stories (paired t test over stories, Holm's correction over the table). The rules are those of the other studies. "
    "Differences from the paper: it studies convolutional networks of 54 blocks on images and reports errors; here the "
    "blocks are of two kinds, and a token is one of 512 classes. One training: what is said is of this network, and "
    "not of its kind."
)
LESIONS = {
    "block": "d", "name": "", "error": ".1%", "difference": "+.1%", "difference_low": "+.1%", "difference_high": "+.1%",
    "p_holm": ".2g", "loss": ".3f",
}  # fmt: skip
SETS = {"count": "d", "error": ".1%", "error_low": ".1%", "error_high": ".1%", "loss": ".3f"}
RUNS = {"count": "d", "blocks": "", "error": ".1%", "difference": "+.1%", "loss": ".3f"}


def measure(study: StudySetting) -> None:
    """All measurements."""
    loaded = network(study)
    model = loaded.model
    assert isinstance(model, Llama)
    pick = study.pick
    stories, length = pick(4, 128, 1024), pick(8, 256, 256)
    say(f"{stories} stories of {length} tokens")
    tokens = written(model, stories, length, seed=0)
    start_fresh(study.out)
    about = {"data": "stories that the network wrote", "images": stories, "examples": "sequences"}
    about |= {"sequence_length": length, "model": NETWORK, "weights": loaded.sha256, "trained": loaded.trained}

    def batches(size: int, of: int = stories) -> list[tuple[Any, Any]]:
        return [(part[:, :-1], part[:, 1:]) for part in tokens[:of].split(size)]

    view = view_of(model, tokens[:2, :-1])
    swept: dict[str, Any] = {"provenance": about, "device": None if study.device == "auto" else study.device}
    most, samples = pick(2, len(view), len(view)), pick(2, 20, 20)
    random: dict[str, Any] = {"samples": samples, **swept}
    sizes = range(1, most + 1)
    runs: dict[str, Any] = {"group": "layer", "count": (1, 2, 3, 4), "contiguous": True, **swept}
    fewer = pick(4, 64, 512)
    paths = {"max_samples": pick(4, 32, 32), "draws": pick(2, 8, 16), **swept, "provenance": {**about, "images": fewer}}
    data = batches(32)
    measured = {
        "lesions": partial(pathlens.delete_blocks, view, data, **swept),
        "skips": partial(pathlens.delete_skips, view, data, **swept),
        "layers": partial(pathlens.delete_blocks, view, data, group="layer", **swept),
        "runs": partial(pathlens.delete_blocks, view, data, **runs),
        "sets": partial(pathlens.delete_blocks, view, data, count=sizes, **random),
        "orders": partial(pathlens.reorder_blocks, view, data, swaps=sizes, **random),
        "gradients": partial(pathlens.path_gradients, view, batches(16, fewer), **paths),
    }
    for stem, measuring in measured.items():
        say(stem)
        keep(study, stem, measuring)


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(
        study,
        "A language model",
        "Do the findings of Veit, Wilber, Belongie 2016 hold in a language model: does it survive the loss of blocks "
        "and of layers, and do its gradients come from short paths?",
    )
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: a network with random weights. Its numbers mean nothing.**")
    tables = page.tables
    single, sampled = (lambda row: row["block"] is not None), (lambda row: row["sample"] is None)
    page.section("Single blocks and layers")
    for stem, draw, caption in (
        ("lesions", figures.deletion, "Error with each block deleted in turn: attention and MLP of each layer."),
        ("layers", figures.deletion, "Error with each layer deleted in turn."),
        ("skips", figures.skips, "Error with each block's shortcut deleted in turn."),
    ):
        page.figure(stem, partial(draw, tables[stem]), caption)
        page.table(stem, LESIONS, rows=single)
        page.measured(stem)
    page.section("Runs of neighbouring layers", "Every run, as papers on pruning delete them; counts are of layers.")
    page.table("runs", RUNS, rows=lambda row: row["sample"] is not None)
    page.section("Many blocks, and other orders")
    for stem, draw, caption in (
        ("sets", figures.deletion, "Error against the number of deleted blocks, over distinct random sets."),
        ("orders", figures.reordering, "Error against Kendall's tau of the order of the blocks."),
    ):
        page.figure(stem, partial(draw, tables[stem]), caption)
        page.table(stem, SETS if stem == "sets" else None, rows=sampled)
        page.measured(stem)
    page.section("Gradients by path length")
    page.figure(
        "gradients",
        partial(drawn, tables["gradients"]),
        "Number of paths, norm of one path, and contribution, by length (shaded: effective lengths, sampled).",
    )
    page.table("gradients")
    page.measured("gradients")
    page.claims(verdicts(tables, NETWORK), lambda _: tables["lesions"].provenance["data"])
    return page


def drawn(table: Table) -> Any:
    """The figure of the gradients."""
    effective = table.provenance["effective"]["sampled"]
    return figures.path_gradients(table, effective=(effective["first"], effective["last"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
