"""BlockDrop (Wu et al. 2018): is it worth to choose blocks image by image?

Run ``python -m studies.blockdrop --scale cpu``; see ``studies/common.py`` for the options and for scales. It reads
``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``) and ``PATHLENS_MODELS``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pathlens
from pathlens import figures
from pathlens.policies import Settings
from pathlens.tables import Table
from studies.blockdrop.judged import verdicts
from studies.common import Page, StudySetting, carry_out, once, say, setting, start_fresh
from studies.record import Tables
from studies.subjects import published, untrained

NAME = "blockdrop"
QUESTION = (
    "A small network looks at each image and chooses which residual blocks of a frozen network run. Does that err less "
    "than running as many blocks, the same for all images?"
)
PROTOCOL = (
    "Policies are trained on training images with the network frozen, one for each seed, and tested on test images. "
    "Random sets, the blocks of the dearest single lesions, and what a greedy deletion leaves run as many blocks, the "
    "policy's mean rounded. Single and greedy deletions are chosen on training images too. What is judged is the error."
)
_TABLES = ("blockdrop", "blockdrop-choices", "blockdrop-classes", "blockdrop-training")


def _seeds(study: StudySetting) -> range:
    return range(study.pick(2, 3, 5))


def measure(study: StudySetting) -> None:
    """Choose the blocks of the other networks once, then train and test a policy for each seed."""
    subject = untrained(study, "preresnet20") if study.scale == "smoke" else published(study, "resnet56")
    test = subject.images(study.pick(16, 2000, 10_000))
    train = subject.images(study.pick(32, 6000, 50_000), "train")
    chosen_by = subject.images(study.pick(4, 256, 2000), "train")
    options = {**subject.options, "device": subject.device, "journal": study.runs / "journal"}
    single = once(study, "single", lambda: pathlens.delete_blocks(subject.view, chosen_by, **options))
    deletions = len(subject.view) - 1
    greedy = once(
        study, "greedy", lambda: pathlens.delete_blocks_greedy(subject.view, chosen_by, count=deletions, **options)
    )
    kept = Tables(study.runs / "measured")
    for seed in _seeds(study):
        stems = [f"{stem}-seed{seed}" for stem in _TABLES]
        if not all(stem in kept for stem in stems):
            say(f"policy of seed {seed}")
            settings = Settings(
                epochs=study.pick(1, 8, 100),
                batch_size=study.pick(16, 128, 256),
                lr=study.pick(1e-3, 2e-3, 1e-3),
                penalty=5.0,
                seed=seed,
            )
            result = pathlens.blockdrop(
                subject.view,
                test,
                train,
                settings=settings,
                samples=study.pick(2, 10, 20),
                single=single,
                greedy=greedy,
                out=study.runs / f"seed{seed}",
                **options,
            )
            assert result.history is not None
            for stem, table in zip(stems, (result.table, result.choices, result.classes, result.history), strict=True):
                kept.put(stem, table)
    start_fresh(study.out)
    for stem in ("single", "greedy", *(f"{stem}-seed{seed}" for seed in _seeds(study) for stem in _TABLES)):
        study.tables.put(stem, _without_times(kept[stem]) if stem.startswith("blockdrop-training") else kept[stem])


def _without_times(table: Table) -> Table:
    """Epochs take what other work on the machine leaves them; only times measured in turns are kept."""
    columns = tuple(column for column in table.columns if column.name != "seconds")
    rows = tuple({column.name: row[column.name] for column in columns} for row in table.rows)
    return Table(columns, rows, table.provenance)


def _of_seeds(study: StudySetting, tables: Any) -> dict[str, Table]:
    return {f"seed {seed}": tables[f"blockdrop-seed{seed}"] for seed in _seeds(study)}


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "BlockDrop: blocks chosen for each image", QUESTION)
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: an untrained network and few images. Its numbers mean nothing.**")
    tables = _of_seeds(study, page.tables)
    page.section("Error at the same number of blocks")
    shown = {
        "network": "", "sample": "d", "blocks": ".2f", "blocks_sd": ".2f", "choices": "d", "multiply_adds": ".3g",
        "seconds": ".1f", "error": ".2%", "difference": ".2%", "policy_difference": ".2%", "policy_p": ".2g",
    }  # fmt: skip
    for seed, (name, table) in enumerate(tables.items()):
        stem = f"blockdrop-seed{seed}"
        page.text(f"**{name.capitalize()}.** {table.provenance['saved'].capitalize()}.")
        page.table(stem, shown, lambda row: row["network"] != "random" or row["sample"] is None)
        page.figure(
            f"trade-off-seed{seed}",
            lambda table=table: figures.draw("blockdrop", table),
            f"{name.capitalize()}: error against the blocks that run for an image; 95 % intervals, of the mean over "
            "random sets Student's.",
        )
    page.section("What is chosen")
    for seed in _seeds(study):
        choices = page.tables[f"blockdrop-choices-seed{seed}"]
        page.figure(
            f"choices-seed{seed}",
            lambda choices=choices: figures.draw("blockdrop-choices", choices),
            f"Seed {seed}: how many blocks run for an image, and for how many images each block runs.",
        )
        page.table(f"blockdrop-choices-seed{seed}")
        page.table(
            f"blockdrop-classes-seed{seed}",
            {"label": "d", "n": "d", "blocks": ".2f", "blocks_sd": ".2f", "error": ".1%", "intact_error": ".1%"},
        )
    page.section("How the policies were trained, and what the other sets were chosen by")
    for seed in _seeds(study):
        page.table(
            f"blockdrop-training-seed{seed}",
            {"epoch": "d", "choosing": "d", "reward": ".3f", "likely_blocks": ".2f", "likely_error": ".2%"},
        )
    page.table("single")
    page.table("greedy")
    first = tables["seed 0"].provenance
    page.claims(verdicts(tables, str(first["model"])), lambda _: f"{first['data']} {first['images']} images")
    page.section(
        "What the numbers can and cannot say",
        "The network is frozen, so that no set of blocks was trained for; jointly trained networks are not here. "
        "Policies see far more training images than single and greedy deletions are chosen by. The time is that of one "
        "machine that may have done other work beside.",
    )
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
