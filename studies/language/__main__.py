"""What Veit, Wilber, Belongie 2016 found in residual networks for images, asked of language models.

Run ``python -m studies.language --scale cpu``; see ``studies/common.py`` for the options and for scales. The
environment names the folder of the published network: ``PATHLENS_MODELS`` holds ``llama2/stories260K.bin``. With
``--model``, ``--weights`` and ``--text`` the same is asked of any other language model, and of that alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pathlens
from pathlens import figures
from pathlens.residual import view_of
from pathlens.runtime.processes import pick_device
from pathlens.tables import Table, read_table
from studies.common import ROOT, Page, StudySetting, carry_out, keep, say, setting, start_fresh
from studies.language.judged import verdicts
from studies.language.subjects import Given, Subject, given, subjects
from studies.rules.paths import own_intervals

NAME = "language"
#: tables of another study, to set a ResNet beside a language model
RESNET = ROOT / "results" / "pretrained_resnets"

PROTOCOL = (
    "Two language models. `stories260K` is a Llama 2 of 5 layers and 260,032 parameters that others trained on short "
    "stories (karpathy/tinyllamas); it is studied on stories that it writes itself, drawn token by token from what it "
    "predicts, so that the intact network is the distribution that the text comes from, and what a lesion costs is "
    "what it takes away from that. `bytes24` is a Llama (at `--scale cpu` of 12 layers and width 64) that is trained "
    "here, with three seeds, on the bytes of the documentation that comes with Python (help topics, and docstrings of "
    "the standard library; each paragraph once, documents in an order drawn once), and is studied on the end of that "
    "text, which no training saw. Attention and MLP of each layer are two residual blocks, so the networks have 10 and "
    "24. At `--scale cpu` 128 sequences of 256 tokens are read by `stories260K`, and 96 of 128 bytes, the first of the "
    "held-out tenth, by `bytes24`, which is trained for 3 epochs in batches of 16 by AdamW with a learning rate of "
    "3e-3 and a cosine. Each block's branch deleted, each block's shortcut deleted, each layer deleted, every run of "
    "neighbouring layers, distinct random sets of blocks, distinct random orders of the blocks; gradients of the loss "
    "at the input of the first block by length: sampled single paths, root mean square by random signs, exact sums. "
    "All of it in eval mode, lesions and orders in batches of 32 sequences, gradients in batches of 16. "
    "Error is the share of tokens of which another is thought likelier, loss is in nats a token, and every lesioned "
    "network is compared with the intact one on the same sequences (paired t test over sequences, Holm's correction "
    "over the table). The rules are those of the other studies; over the seeds of `bytes24` a claim agrees or "
    "disagrees only where all three trainings do. Differences from the paper: it studies convolutional networks of 54 "
    "blocks on images and reports errors; here the blocks are of two kinds, and a token is one of 512 or 256 classes. "
    "`stories260K` is one training by others: what is said is of this network, and not of its kind. Path gradients "
    "are of the sequences that lesions are made on, and not of training ones as elsewhere. Sequences of `bytes24` "
    "follow each other in the text, so that neighbours may be of one document; intervals and tests take them for "
    "independent, and are too narrow where they are not."
)
OWN_PROTOCOL = (
    "A language model and a text that were given, by the protocol of this study: each block's branch deleted, each "
    "block's shortcut, each layer, every run of neighbouring layers, distinct random sets and orders of the blocks; "
    "gradients of the loss at the input of the first block by length. All of it in eval mode, lesions and orders in "
    "batches of 32 sequences, gradients in batches of 16. Error is the share of tokens of which another is thought "
    "likelier, loss is in nats a token, and every lesioned network is compared with the intact one on the same "
    "sequences (paired t test over sequences, Holm's correction over the table). What is said is of this network, and "
    "not of its kind."
)
LESIONS = {
    "block": "d", "name": "", "error": ".1%", "difference": "+.1%", "difference_low": "+.1%", "difference_high": "+.1%",
    "p_holm": ".2g", "loss": ".3f",
}  # fmt: skip
SETS = {"count": "d", "error": ".1%", "error_low": ".1%", "error_high": ".1%", "loss": ".3f"}
RUNS = {"count": "d", "blocks": "", "error": ".1%", "difference": "+.1%", "loss": ".3f"}


#: of the provenance, what says which network and text a table is of
_IDENTITY = ("weights", "data", "data_sha256", "sequence_length")
KINDS = ("lesions", "skips", "layers", "runs", "sets", "orders", "gradients")


def measure(study: StudySetting, own: Given) -> list[dict[str, Any]]:
    """All measurements; returns the trainings behind them."""
    found, trainings = subjects(study, own)
    start_fresh(study)
    for subject in found:
        measure_one(study, subject)
    return trainings


def measure_one(study: StudySetting, subject: Subject) -> None:
    """The tables of one network."""
    view = view_of(subject.model, subject.tokens[:2])
    layers = len(view) // 2
    swept: dict[str, Any] = {"provenance": subject.about, "device": str(pick_device(study.device))}
    most, samples = pick_sizes(study, len(view))
    random: dict[str, Any] = {"samples": samples, **swept}
    runs: dict[str, Any] = {"group": "layer", "count": range(1, min(layers, 5)), "contiguous": True, **swept}
    fewer = min(len(subject.tokens), study.pick(4, 64, 512))
    paths = {"max_samples": study.pick(4, 32, 32), "draws": study.pick(2, 8, 16), **swept}
    paths["provenance"] = {**subject.about, "images": fewer}
    data = subject.batches(32)
    measured = {
        "lesions": partial(pathlens.delete_blocks, view, data, **swept),
        "skips": partial(pathlens.delete_skips, view, data, **swept),
        "layers": partial(pathlens.delete_blocks, view, data, group="layer", **swept),
        "runs": partial(pathlens.delete_blocks, view, data, **runs),
        "sets": partial(pathlens.delete_blocks, view, data, count=most, **random),
        "orders": partial(pathlens.reorder_blocks, view, data, swaps=most, **random),
        "gradients": partial(pathlens.path_gradients, view, subject.batches(16, fewer), **paths),
    }
    assert tuple(measured) == KINDS
    for kind, measuring in measured.items():
        say(f"{kind} of {subject.name}")
        known = {name: value for name, value in subject.about.items() if name in _IDENTITY}
        known["images"] = fewer if kind == "gradients" else len(subject.tokens)
        keep(study, f"{kind}-{subject.name}", measuring, about=known)


def pick_sizes(study: StudySetting, blocks: int) -> tuple[range, int]:
    """Sizes of random sets, and how many sets of each: all sizes of a small network, every other of a deep one."""
    if study.scale == "smoke":
        return range(1, 3), 2
    return range(1, blocks + 1, 1 if blocks < 20 or study.scale == "paper" else 2), 20 if blocks < 20 else 10


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(
        study,
        "Language models",
        "Do the findings of Veit, Wilber, Belongie 2016 hold in language models: do they survive the loss of blocks "
        "and of layers, and do their gradients come from short paths?",
    )
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: networks of random weights. Its numbers mean nothing.**")
    names = [stem.removeprefix("lesions-") for stem in page.tables if stem.startswith("lesions-")]
    networks: dict[str, list[str]] = {}
    for name in names:
        networks.setdefault(name.partition("-seed")[0], []).append(name)
    for network, own in networks.items():
        state_one(page, own[0], network, own)
    if len(names) > 1:
        beside_a_resnet(page, names)
    tables = page.tables
    data = {name.partition("-seed")[0]: tables[f"lesions-{name}"].provenance["data"] for name in names}
    page.claims(verdicts(tables, names), data.__getitem__)
    return page


def state_one(page: Page, name: str, network: str, alike: Sequence[str]) -> None:
    """The part of one network; of several that differ in their seed the first, and where the others are."""
    tables = page.tables
    single, sampled = (lambda row: row["block"] is not None), (lambda row: row["sample"] is None)
    page.section(f"{network}: single blocks and layers")
    if len(alike) > 1:
        others = ", ".join(f"[{other}](lesions-{other}.csv)" for other in alike[1:])
        page.text(f"Figures and tables are of `{name}`. The other trainings have the same tables beside it: {others}.")
    for kind, draw, caption in (
        ("lesions", figures.deletion, "Error with each block deleted in turn: attention and MLP of each layer."),
        ("layers", figures.deletion, "Error with each layer deleted in turn."),
        ("skips", figures.skips, "Error with each block's shortcut deleted in turn."),
    ):
        page.figure(f"{kind}-{name}", partial(draw, tables[f"{kind}-{name}"]), caption)
        page.table(f"{kind}-{name}", LESIONS, rows=single)
        page.measured(f"{kind}-{name}")
    page.section(f"{network}: runs of neighbouring layers", "As papers on pruning delete them; counts are of layers.")
    page.table(f"runs-{name}", RUNS, rows=lambda row: row["sample"] is not None)
    page.section(f"{network}: many blocks, and other orders")
    for kind, draw, caption in (
        ("sets", figures.deletion, "Error against the number of deleted blocks, over distinct random sets."),
        ("orders", figures.reordering, "Error against Kendall's tau of the order of the blocks."),
    ):
        page.figure(f"{kind}-{name}", partial(draw, tables[f"{kind}-{name}"]), caption)
        page.table(f"{kind}-{name}", SETS if kind == "sets" else None, rows=sampled)
        page.measured(f"{kind}-{name}")
    page.section(f"{network}: gradients by path length")
    page.figure(
        f"gradients-{name}",
        partial(drawn, tables[f"gradients-{name}"]),
        "Number of paths, norm of one path, and contribution, by length (shaded: effective lengths, sampled).",
    )
    page.table(f"gradients-{name}")
    page.measured(f"gradients-{name}")
    if note := own_intervals(tables[f"gradients-{name}"]):
        page.text(note)


def beside_a_resnet(page: Page, names: Sequence[str]) -> None:
    """Figures 3 and 5a of the paper with a network for images in the same panel."""
    page.section(
        "Beside a network for images",
        "ResNet-56 with 27 blocks, trained by others on CIFAR-10, from [another study](../pretrained_resnets/README.md)"
        "; its error is the share of images. Its gradients by path length are "
        "[there](../pretrained_resnets/gradients-resnet56.png).",
    )
    for kind, caption in (
        ("lesions", "Error with each block deleted in turn (figure 3 of the paper)."),
        ("sets", "Error against the number of deleted blocks, over random sets (figure 5a)."),
    ):
        beside = {name: page.tables[f"{kind}-{name}"] for name in names}
        beside["ResNet-56, CIFAR-10"] = read_table(RESNET / f"{kind}-resnet56.csv")
        page.figure(f"beside-{kind}", partial(deletions_beside, beside), caption)


def deletions_beside(tables: Mapping[str, Table]) -> figures.Figure:
    """Deletions of language models and of a network for images, whose errors are of different things."""
    figure = figures.deletions(tables)
    figure.axes[0].set_ylabel("test error (% of tokens;\nResNet-56: % of images)")
    return figure


def drawn(table: Table) -> Any:
    """The figure of the gradients."""
    effective = table.provenance["effective"]["sampled"]
    return figures.path_gradients(table, effective=(effective["first"], effective["last"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    own, rest = given(argv)
    protocol = PROTOCOL if own.model is None else OWN_PROTOCOL
    return carry_out(setting(NAME, __doc__, rest), protocol, partial(measure, own=own), state)


if __name__ == "__main__":
    sys.exit(main())
