"""The findings of all studies on one page, from their tables of claims: ``python -m studies.findings``.

Each finding says what was claimed and by whom, what was measured on which networks and data, by which test, and what
would refute it. No number is typed here: a study that has no table of claims yet is said to be missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathlens.storage import atomic_write_bytes
from studies.common import ROOT, say
from studies.record import Tables
from studies.rules import claims
from studies.rules.veit import (
    DECAY,
    FEW,
    FEW_ELSEWHERE,
    ORDERS,
    SETS,
    SHORT,
    SHORT_ELSEWHERE,
    SINGLE,
    elsewhere,
)

NAME = "findings.md"
#: studies whose networks without seeds were trained by others
_OF_OTHERS = ("pretrained_resnets", "critics", "li2018", "language", "blockdrop")
#: characters of a cell of the overview
_WIDE = 75
#: network that comes with the package in these studies; veit2016 trains others under the same name
_PACKAGED = {("critics", "digits54"), ("blockdrop", "digits54")}


@dataclass(frozen=True)
class Finding:
    """What a reader should know.

    Attributes:
        title: of its section.
        claims: (study, name of the claim) of the verdicts behind it.
        figures: files below ``results/``, each shown where it is there.
        refuted: what would refute it.
        only: the one outcome that is listed; empty for all.
    """

    title: str
    claims: Sequence[tuple[str, str]]
    figures: Sequence[str]
    refuted: str
    only: str = ""


FINDINGS = (
    Finding(
        "With and without shortcuts",
        [
            ("pretrained_resnets", "deletions cost more without shortcuts"),
            ("pretrained_resnets", "a plain twin at chance"),
            ("veit2016", "plain network"),
        ],
        ["pretrained_resnets/twins.png"],
        "Another pair of twins, or other seeds of this one, in which deletions cost as much with shortcuts as without.",
    ),
    Finding(
        "Single deletions, and the blocks that are not spared",
        [
            (study, claim)
            for claim in ("single deletions", "no block but those that downsample", "downsampling blocks")
            for study in ("pretrained_resnets", "veit2016", "critics")
        ]
        + [("critics", elsewhere(SINGLE).name), ("veit2016", "highway network")],
        [
            "pretrained_resnets/lesions-resnet56.png",
            "veit2016/lesions-preresnet110-seeds.png",
            "veit2016/lesions-cifar10-jpeg.png",
            "veit2016/lesions.png",
        ],
        "Seeds or networks of the same kind, trained whole, whose first blocks can be deleted at no cost.",
    ),
    Finding(
        "Where trained networks disagree with the paper",
        [
            (study, claim)
            for claim in (
                "single deletions",
                "no block but those that downsample",
                "downsampling blocks",
                "deleting many blocks",
                "reordering",
                "gradient of single paths",
            )
            for study in ("pretrained_resnets", "veit2016")
        ]
        + [("veit2016", claim) for claim in (SHORT.name, FEW.name, "plain network")],
        ["pretrained_resnets/lesions-resnet20.png", "veit2016/lesions-digits54-seeds.png"],
        "ResNet-20 has nine blocks, of which none can be spared: other networks of nine blocks that lose little. The "
        "networks of 27 and 54 blocks depend on a few of them, mostly early ones, which do not downsample: seeds, or "
        "longer trainings of the same kind, for which they do not.",
        claims.DISAGREES,
    ),
    Finding(
        "Many deletions and reordering: sets that hold a critical block, and others",
        [
            (study, claim)
            for claim in ("deleting many blocks", "reordering")
            for study in ("pretrained_resnets", "veit2016")
        ],
        ["veit2016/sets-preresnet110-full-seed0.png", "veit2016/sets-digits54-full-seed0.png"],
        "Sets with and without a critical block that cost the same, within five points.",
    ),
    Finding(
        "Cancellation",
        [("critics", "cancellation"), ("pretrained_resnets", "cancellation"), ("veit2016", "cancellation")],
        [
            "veit2016/cancellation-preresnet110-full-seed0.png",
            "veit2016/cancellation-digits54-full-seed0.png",
            "critics/cancellation-resnet56.png",
        ],
        "A trained network whose sum over the paths of a length measures a large part of their number times mean norm.",
    ),
    Finding(
        "Short paths, with cancellation and without",
        [
            (study, claim)
            for claim in ("short paths survive cancellation", "gradient of single paths")
            for study in ("pretrained_resnets", "veit2016", "critics")
        ]
        + [(study, claim.name) for claim in (SHORT, FEW) for study in ("veit2016", "critics")]
        + [("pretrained_resnets", claim.name) for claim in (SHORT_ELSEWHERE, FEW_ELSEWHERE)],
        [
            "veit2016/gradients-preresnet110-full-seed0.png",
            "veit2016/gradients-digits54-full-seed0.png",
            "pretrained_resnets/gradients-resnet20.png",
        ],
        "A deep trained network whose gradient comes from paths of half its blocks or more. ResNet-20 is one of nine "
        "blocks.",
    ),
    Finding(
        "Heavy tails",
        [("critics", "heavy tails")],
        ["critics/tails-digits54.png", "critics/tails-resnet56.png"],
        "Networks in which the root mean square of one example's paths is below twice their mean at every length that "
        "carries the gradient.",
    ),
    Finding(
        "Shortcut against branch",
        [("critics", "shortcut against branch"), ("pretrained_resnets", "shortcut against branch")],
        ["critics/shortcuts-digits54.png", "critics/shortcuts-resnet56.png"],
        "A network in which branches hurt more to delete. Harm by a deleted shortcut may be harm by a change of scale: "
        "a network whose later layers are recalibrated after each deletion would tell the two apart.",
    ),
    Finding(
        "Harm and the size of the response",
        [("critics", "harm rises with the response")],
        ["critics/responses-digits54.png", "critics/responses-resnet56.png"],
        "Blocks with large responses that can be deleted at no cost, as often as those with small ones.",
    ),
    Finding(
        "Does training on random sub-networks harden?",
        [
            ("veit2016", "training on few blocks hardens"),
            ("veit2016", "training on effective paths"),
            ("veit2016", "training on other numbers of blocks"),
            ("veit2016", "single deletions after stochastic depth"),
        ],
        ["veit2016/hurt-preresnet110.png", "veit2016/sets-preresnet110.png", "veit2016/hurt-digits54.png"],
        "Where it agrees: other seeds or other data, or other sets of as many blocks, with which it comes out "
        "otherwise. Where training on fewer paths is shown to do worse: trainings as long as the paper's, after which "
        "it does not. Where it cannot tell nothing is claimed; more seeds or sets would tell.",
    ),
    Finding(
        "The ensemble in training",
        [
            ("depth_in_training", claim)
            for claim in (
                "shallow at the start",
                "deeper with training",
                "deeper from initialisation on",
                "the batch norms' gamma drives it",
            )
        ],
        ["depth_in_training/trajectories.png"],
        "A network whose mean path length grows after it has left chance.",
    ),
    Finding(
        "Wider or deeper",
        [
            ("wider_or_deeper", claim)
            for claim in (
                "wider instead of deeper",
                "long paths need no gradient",
                "fewer blocks than the effective depth need a gradient",
            )
        ],
        ["wider_or_deeper/depths.png"],
        "More seeds or images, or another task, with which the deep network is as good as the wide ones or better.",
    ),
    Finding(
        "The loss around the weights, with and without shortcuts",
        [
            ("li2018", claim)
            for claim in (
                "shortcuts make the minimum flat",
                "shortcuts make the minimum flat, trained here",
                "without shortcuts the surface is not convex",
                "without shortcuts the loss curves more",
                "the comparison does not depend on the treatment",
                "kept statistics make the surface steeper",
                "biases and norms make the surface steeper",
                "a cut network is no plain network",
            )
        ],
        ["li2018/surfaces.png"],
        "Where it agrees: other pairs of twins, or other random directions, with which it comes out otherwise. Where "
        "it cannot tell nothing is claimed; lines of more points would tell.",
    ),
    Finding(
        "Blocks that are chosen for each image",
        [("blockdrop", f"policy against {others}") for others in ("random sets", "single lesions", "greedy deletion")],
        ["blockdrop/trade-off-seed1.png"],
        "Policies that were trained longer, or together with their network, for which the verdicts are others.",
    ),
    Finding(
        "What sets the lengths of paths at initialisation, and what training makes of them",
        [
            ("civitelli2021", claim)
            for claim in (
                "growth sets the effective length at initialisation",
                "1/sqrt(2) and paths at initialisation",
                "convolutions as shortcuts and paths at initialisation",
                "training shortens effective paths",
                "1/sqrt(2) and paths after training",
                "convolutions as shortcuts and paths after training",
            )
        ],
        ["civitelli2021/expected.png", "civitelli2021/moving.png"],
        "A network at initialisation whose mean path length is far from the sum over its blocks of 1 - c^2 / r, with r "
        "the growth of the squared gradient backwards through the block and c the factor of its sum.",
    ),
    Finding(
        "Growth laws and shattered gradients at initialisation",
        [
            ("udl11", claim)
            for claim in (
                "nearby-unrelated",
                "deeper-less-alike",
                "residual-more-alike",
                "small-scale-more-alike",
                "variance-doubles",
                "gradient-doubles",
                "stable",
                "linear-growth",
                "linear-growth-of-a-unit",
                "unit-variance",
                "normed-layer",
                "deep-plain-worse",
                "deep-residual-better",
                "autocorrelation",
                "signal-halves",
                "biases-take-over",
                "parameters",
            )
        ],
        ["udl11/shattered.png", "udl11/growth.png"],
        "Networks drawn as the textbook's are, with which these means lie elsewhere.",
    ),
    Finding(
        "Strict residual networks: where batch norms are, and what up- and downsampling leave",
        [
            ("strict_resnets", claim)
            for claim in (
                "norms shrink the first blocks, in variance",
                "norms shrink the first blocks, in norm",
                "the shrinking is geometric",
                "a norm at the end alone leaves no trend over the blocks",
                "Glorot leaves more to the stem",
                "normal or uniform does not matter",
                "training starts on a plateau",
                "deep against wide",
                "more blocks do better",
                "sizes of sub-kernels",
                "uneven sub-kernels show in outputs",
                "uneven sub-kernels show in gradients",
                "interpolation and pooling leave less",
            )
        ],
        ["strict_resnets/shares.png", "strict_resnets/checkerboards.png"],
        "Deeper rows of blocks, or other images, in which the first blocks keep their share; and trainings of the "
        "post's size, since those here are short, that start or end otherwise.",
    ),
    Finding(
        "Language models",
        [
            ("language", claim)
            for claim in (
                elsewhere(SINGLE).name,
                "no block is noticed alone",
                elsewhere(SETS).name,
                elsewhere(ORDERS).name,
                "shortcut against branch",
                "MLP against attention",
                "a layer is more than its blocks",
                elsewhere(DECAY).name,
                SHORT_ELSEWHERE.name,
                "short paths survive cancellation",
                FEW_ELSEWHERE.name,
                "cancellation",
            )
        ],
        ["language/beside-lesions.png", "language/beside-sets.png", "language/gradients-bytes24-seed0.png"],
        "Language models of the same sizes on text of the same kind in which the verdicts are others. Both are small: "
        "those that people use have a hundred times the width.",
    ),
    Finding(
        "Without normalisation",
        [
            ("civitelli2021", claim)
            for claim in (
                "sizes",
                "Brock's weights explode",
                "the schemes keep the signal",
                "Brock's weights fail to train",
                "the schemes train",
                "ConvShort competes with batch norm",
            )
        ],
        ["civitelli2021/signals-nfresnet50.png", "civitelli2021/epochs.png"],
        "Trainings at the size and with the recipe of the paper (`--scale paper`) that end otherwise.",
    ),
)


def section(finding: Finding, known: Mapping[str, Sequence[Mapping[str, Any]]], results: Path) -> str:
    """The section of a finding.

    Args:
        finding: which.
        known: study -> rows of its table of claims.
        results: where figures lie.
    """
    parts, seen = [f"## {finding.title}"], ""
    listed: dict[str, list[str]] = {}
    for study, name in finding.claims:
        rows = [row for row in known.get(study, ()) if row["claim"] == name and finding.only in ("", row["outcome"])]
        if not rows:
            continue
        if finding.only:
            listed.setdefault(name, []).extend(_short(study, row) for row in rows)
            continue
        if name != seen:
            first, seen = rows[0], name
            parts.append(
                f"**{first['says'][:1].upper()}{first['says'][1:]}** ({first['source']}). {first['rule']} "
                f"*Test: {first['test']}*{claims.revised(first)}"
            )
        parts.append("\n".join(_line(study, row) for row in rows))
    if listed:
        parts.append(
            f"The verdicts *{finding.only}* on claims of others, whose numbers stand with their claims elsewhere on "
            "this page:\n\n" + "\n".join(f"- {name}: {', '.join(networks)}" for name, networks in listed.items())
        )
    if len(parts) == 1:
        parts.append("Not measured by these rules yet.")
    else:
        parts += [_shown(results / figure) for figure in finding.figures if (results / figure).is_file()]
    parts.append(f"**What would refute it.** {finding.refuted}")
    return "\n\n".join(parts)


def overview(known: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One table of all verdicts: claims by name, under their findings, and on what each came out how.

    Args:
        known: study -> rows of its table of claims.
    """
    lines = ["| Finding | Claim | " + " | ".join(claims.OUTCOMES) + " |", "|---|---|" + "---|" * len(claims.OUTCOMES)]
    for finding in FINDINGS:
        if finding.only:  # a selection from the others
            continue
        anchor = re.sub(r"[^\w -]", "", finding.title.lower()).replace(" ", "-")
        title = f"[{finding.title}](#{anchor})"
        for name in dict.fromkeys(name for _, name in finding.claims):
            judged = [
                (study, row)
                for study in dict.fromkeys(study for study, one in finding.claims if one == name)
                for row in known.get(study, ())
                if row["claim"] == name
            ]
            if judged:
                cells = [
                    _counted([_short(study, row) for study, row in judged if row["outcome"] == outcome])
                    for outcome in claims.OUTCOMES
                ]
                lines.append(f"| {title} | {name.replace('-', ' ')} | " + " | ".join(cells) + " |")
                title = ""
    return "\n".join(lines)


def _counted(names: Sequence[str]) -> str:
    """Names where a cell has room for them, or else their number, and how many of them have few seeds."""
    named = "; ".join(names)
    few = sum(name.endswith(("seed)", "seeds)")) for name in names)
    return named if len(named) <= _WIDE else f"{len(names)} settings" + (f" ({few} of few seeds)" if few else "")


def _short(study: str, row: Mapping[str, Any]) -> str:
    """What a claim was judged on, as a cell of a table has room for it."""
    if (study, row["network"]) in _PACKAGED:
        return f"{row['network']} (packaged)"
    few = row["seeds"] is not None and row["seeds"] < claims.SEEDS
    return f"{row['network']} ({row['seeds']} seed{'s' * (row['seeds'] > 1)})" if few else row["network"]


def _shown(figure: Path) -> str:
    """A figure with its caption on the page of its study."""
    study = figure.parent.name
    found = re.search(rf"!\[(.*)\]\({re.escape(figure.name)}\)\n", figure.with_name("README.md").read_text())
    if found is None:
        raise SystemExit(f"the page of {study} does not show {figure.name}")
    return f"![{found[1]}]({study}/{figure.name})\n\n*{found[1]} From [{study}]({study}/README.md).*"


def _line(study: str, row: Mapping[str, Any]) -> str:
    theirs = ", one training by others" if study in _OF_OTHERS else ""
    seeds = theirs if row["seeds"] is None else f", seeds: {row['seeds']}"
    if (study, row["network"]) in _PACKAGED:
        seeds = ", the one network that comes with the package"
    return (
        f"- {row['network']} ({row['data']}{seeds}; [{study}]({study}/README.md)): **{row['outcome']}**. {row['here']}"
    )


def text(results: Path) -> str:
    """The page, from the tables in ``results/``."""
    studies = sorted({study for finding in FINDINGS for study, _ in finding.claims})
    known = {study: found["claims"].rows for study in studies if "claims" in (found := Tables(results / study))}
    missing = [study for study in studies if study not in known]
    parts = [
        "# Findings",
        "What the studies found, each with its evidence and with what would refute it. Written by `python -m "
        "studies.findings` from the tables of claims (`claims.csv` of each study); rules were set before these tables "
        "were measured, when first versions of some of them, of 21 November 2026, were known; one that was changed "
        "when numbers it judges were known says so, with what it gave before (*revised*). *agrees* and *disagrees* are "
        f"about the claim as it stands above, on the network and the data named; *{claims.CANNOT_TELL}* is also what "
        "fewer than three seeds of a training of our own give. A network that others trained is judged as that one "
        "network, and what is said is not of its kind. Trainings of our own are shorter than "
        "those of the papers, as the pages say: where the paper's claim is about trained networks, not about their "
        "training, it is judged on them all the same. The plain network on CIFAR-10, `vgg15_narrow`, has the paper's "
        "15 layers with about a third of their channels.",
    ]
    if missing:
        parts.append(f"Without a table of claims yet: {', '.join(missing)}.")
    parts += [
        "## Overview",
        "What each claim was judged on, by outcome: networks or settings, or their number where they are many. Seeds "
        f"are named where they are fewer than {claims.SEEDS} (few seeds). The sections below write the claims out.",
        overview(known),
    ]
    return "\n\n".join([*parts, *(section(finding, known, results) for finding in FINDINGS)]) + "\n"


def main() -> int:
    """Write the page."""
    path = atomic_write_bytes(ROOT / "results" / NAME, text(ROOT / "results").encode())
    say(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
