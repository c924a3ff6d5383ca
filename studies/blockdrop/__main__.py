"""BlockDrop (Wu et al. 2018): is it worth to choose blocks image by image?

Run ``python -m studies.blockdrop --scale cpu``; see ``studies/common.py`` for the options and for scales. It reads
``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``) and ``PATHLENS_MODELS``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pathlens
from pathlens import figures
from pathlens.policies import Settings
from pathlens.tables import Table
from studies.blockdrop.judged import verdicts
from studies.common import Page, StudySetting, carry_out, once, say, setting, start_fresh
from studies.record import Tables
from studies.subjects import Subject, packaged, published, untrained

NAME = "blockdrop"
QUESTION = (
    "A small network looks at each image and chooses which residual blocks of a frozen network run. Does that err less "
    "than running as many blocks, the same for all images?"
)
PROTOCOL = (
    "Policies are trained on training images with the network frozen, one for each seed, and tested on test images. "
    "Random sets, the blocks of the dearest single lesions, and what a greedy deletion leaves run as many blocks, the "
    "policy's mean rounded. Single and greedy deletions are chosen on training images too. What is judged is the "
    "error; a policy that makes one choice for all images is a fixed set of blocks, and not judged. Two networks: "
    "ResNet-56 on CIFAR-10, which others trained and whose policies see few epochs here, and the 54 blocks for 8x8 "
    "digits that come with pathlens, whose policies are trained for long. A wrong prediction is worth -5 for both."
)
_TABLES = ("blockdrop", "blockdrop-choices", "blockdrop-classes", "blockdrop-training")


@dataclass(frozen=True)
class Part:
    """A frozen network and how policies for it are trained.

    Attributes:
        network: its name in tables.
        end: of the stems of its tables.
        sizes: test images, training images, and training images by which single and greedy deletions are chosen.
        epochs: of a policy.
        batch_size: images in a step.
        lr: of a policy.
    """

    network: str
    end: str
    sizes: tuple[int, int, int]
    epochs: int
    batch_size: int
    lr: float

    def subject(self, study: StudySetting) -> Subject:
        """The network itself."""
        if study.scale == "smoke":
            return untrained(study, "preresnet20")
        return packaged(study) if self.network == "digits54" else published(study, self.network)

    def stems(self, seed: int) -> list[str]:
        """Of the tables of one policy."""
        return [f"{stem}{self.end}-seed{seed}" for stem in _TABLES]


def _parts(study: StudySetting) -> tuple[Part, ...]:
    return (
        Part(
            "resnet56",
            "",
            study.pick((16, 32, 4), (2000, 6000, 256), (10_000, 50_000, 2000)),
            study.pick(1, 8, 100),
            study.pick(16, 128, 256),
            study.pick(1e-3, 2e-3, 1e-3),
        ),
        Part(
            "digits54",
            "-digits54",
            study.pick((16, 32, 4), (10_000, 10_000, 500), (10_000, 10_000, 2000)),
            study.pick(1, 200, 200),
            study.pick(16, 128, 128),
            2e-3,
        ),
    )


def _seeds(study: StudySetting) -> range:
    return range(study.pick(2, 3, 5))


def measure(study: StudySetting) -> None:
    """For each network choose the blocks of the others once, then train and test a policy for each seed."""
    for part in _parts(study):
        _measure(study, part)
    kept = Tables(study.runs / "measured")
    start_fresh(study)
    for part in _parts(study):
        policies = [stem for seed in _seeds(study) for stem in part.stems(seed)]
        for stem in (f"single{part.end}", f"greedy{part.end}", *policies):
            # other work on the machine takes its part of a time, and multiply-adds say what a policy saves
            study.tables.put(stem, kept[stem], without=("seconds",))


def _measure(study: StudySetting, part: Part) -> None:
    subject = part.subject(study)
    test, train = subject.images(part.sizes[0]), subject.images(part.sizes[1], "train")
    chosen_by = subject.images(part.sizes[2], "train")
    options = {**subject.options, "device": subject.device, "journal": study.runs / "journal"}
    single = once(study, f"single{part.end}", lambda: pathlens.delete_blocks(subject.view, chosen_by, **options))
    deletions = len(subject.view) - 1
    greedy = once(
        study,
        f"greedy{part.end}",
        lambda: pathlens.delete_blocks_greedy(subject.view, chosen_by, count=deletions, **options),
    )
    kept = Tables(study.runs / "measured")
    for seed in _seeds(study):
        stems = part.stems(seed)
        if not all(stem in kept for stem in stems):
            say(f"policy of seed {seed} for {part.network}")
            settings = Settings(epochs=part.epochs, batch_size=part.batch_size, lr=part.lr, penalty=5.0, seed=seed)
            result = pathlens.blockdrop(
                subject.view,
                test,
                train,
                settings=settings,
                samples=study.pick(2, 10, 20),
                single=single,
                greedy=greedy,
                out=study.runs / f"seed{seed}{part.end}",
                **options,
            )
            assert result.history is not None
            for stem, table in zip(stems, (result.table, result.choices, result.classes, result.history), strict=True):
                kept.put(stem, table)


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "BlockDrop: blocks chosen for each image", QUESTION)
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: an untrained network and few images. Its numbers mean nothing.**")
    rows, data = [], {}
    for part in _parts(study):
        tables = {f"seed {seed}": page.tables[part.stems(seed)[0]] for seed in _seeds(study)}
        _state(page, part, tables)
        about = tables["seed 0"].provenance
        data[part.network] = f"{about['data']} {about['images']} images"
        rows += verdicts(tables, part.network)
    page.claims(rows, data.__getitem__)
    page.section(
        "What the numbers can and cannot say",
        "The networks are frozen, so that no set of blocks was trained for; jointly trained networks are not here. "
        "Policies see far more training images than single and greedy deletions are chosen by. A policy that runs all "
        "blocks is compared with nothing. One that makes one choice for all images is a fixed set of blocks that "
        "policy gradient has found, and says nothing of choosing image by image. What a policy saves is counted in "
        "multiply-adds; times are not kept, because other work on the machine has its part in them.",
    )
    return page


def _state(page: Page, part: Part, tables: dict[str, Table]) -> None:
    page.section(f"{part.network}: error at the same number of blocks")
    shown = {
        "network": "", "sample": "d", "blocks": ".2f", "blocks_sd": ".2f", "choices": "d", "multiply_adds": ".3g",
        "error": ".2%", "difference": ".2%", "policy_difference": ".2%", "policy_p": ".2g",
    }  # fmt: skip
    for seed, (name, table) in enumerate(tables.items()):
        said = name.capitalize()
        page.text(f"**{said}.** {_told(table)}")
        page.table(part.stems(seed)[0], shown, lambda row: row["network"] != "random" or row["sample"] is None)
        page.measured(part.stems(seed)[0])
        if any(row["kept"] is not None for row in table.rows):
            page.figure(
                f"trade-off{part.end}-seed{seed}",
                lambda table=table: figures.draw("blockdrop", table),
                f"{said}: error against the blocks that run for an image, marks of as many blocks side by side; 95 % "
                "intervals, of the mean over random sets Student's.",
            )
    page.section(f"{part.network}: what is chosen")
    looks = {"label": "d", "n": "d", "blocks": ".2f", "blocks_sd": ".2f", "error": ".1%", "intact_error": ".1%"}
    for seed, name in enumerate(tables):
        _, choices, classes, _ = part.stems(seed)
        page.figure(
            f"choices{part.end}-seed{seed}",
            lambda choices=choices: figures.draw("blockdrop-choices", page.tables[choices]),
            f"{name.capitalize()}: how many blocks run for an image, and for how many images each block runs.",
        )
        page.table(choices)
        page.table(classes, looks)
    about = tables["seed 0"].provenance
    page.section(
        f"{part.network}: how the policies were trained, and what the other sets were chosen by",
        f"Each policy was trained for {about['settings']['epochs']} epochs on {about['train_images']:,} training "
        f"images in batches of {about['settings']['batch_size']}, batch norms of the frozen network in eval mode. "
        f"There are {about['samples']} random sets for each policy that leaves out a block on average, or all that "
        "exist where these are fewer.",
    )
    shown = {"epoch": "d", "choosing": "d", "reward": ".3f", "likely_blocks": ".2f", "likely_error": ".2%"}
    every = max(1, part.epochs // 10)
    for seed, _ in enumerate(tables):
        page.table(part.stems(seed)[3], shown, lambda row: row["epoch"] % every == 0)
    for chosen in (f"single{part.end}", f"greedy{part.end}"):
        page.table(chosen)
        page.measured(chosen)


def _told(table: Table) -> str:
    """What a policy chooses and costs, and whether it looks at the image."""
    intact, policy = (next(row for row in table.rows if row["network"] == name) for name in ("intact", "policy"))
    cost = (
        f"The policy runs {policy['blocks']:.2f} +- {policy['blocks_sd']:.2f} of {intact['blocks']:.0f} blocks, with "
        f"{policy['multiply_adds']:.3g} multiply-adds, its own network's among them, against "
        f"{intact['multiply_adds']:.3g} of the intact network."
    )
    if policy["choices"] > 1:
        return f"{cost} It makes {policy['choices']} different choices."
    if policy["blocks"] == intact["blocks"]:
        return f"{cost} It drops nothing for any image, and there is nothing to compare it with, in a figure or a test."
    return f"{cost} It makes one choice for all images: a fixed set of blocks, and no choosing image by image."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
