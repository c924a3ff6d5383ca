"""Objections raised against the ensemble view of residual networks, put to the numbers.

Run ``python -m studies.critics --scale cpu``; see ``studies/common.py`` for the options and what a scale is. Of the
environment it reads ``PATHLENS_MODELS`` and ``PATHLENS_DATA``; where both name folders with the published ResNet-56 and
the JPEG images of CIFAR-10, that network is studied beside the one that comes with the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pathlens.errors import DataError, PathlensError
from studies.common import Page, StudySetting, one_thread, say, setting, start_fresh
from studies.critics.answers import TALK, answers
from studies.critics.beyond import beyond
from studies.critics.cancellation import cancellation
from studies.critics.responses import responses
from studies.critics.shortcuts import shortcuts
from studies.subjects import Subject, packaged, published, untrained

NAME = "critics"

QUESTION = (
    "Do the objections raised against Veit, Wilber, Belongie 2016 hold: against deleting branches alone, against "
    "reading harmlessness as redundancy, against norms of sampled paths, and against ResNets alone?"
)
PROTOCOL = (
    "(a) Every block twice: without its branch, and without its shortcut; also random sets. (b) Standard deviation of "
    "each branch's output over the test images, against the error without that branch: Spearman's rank correlation. "
    "(c) For each path length the paper's product of number and mean norm of sampled paths, the exact norm of the sum, "
    "and the root mean square norm by random signs; distributions of single paths of some lengths. (d) The same "
    "lesions and exact gradients on a vision transformer and a ConvNeXt, several seeds. Networks of (a) to (c): the "
    "54-block network that comes with the package, on digits, and the published ResNet-56 on CIFAR-10 as JPEG files "
    "(`cifar10-jpeg`), whose errors are higher than on the original images. Differences from the papers: Veit et al. "
    "2016 do not delete shortcuts; He et al. 2016a (figure 7) measure the response of every 3x3 layer after batch norm "
    "and set it beside no lesion, and here it is that of the whole branch where it enters the addition (in "
    "pre-activation networks no batch norm comes after it); Veit et al. sample paths in a CIFAR-10 network of 54 "
    "blocks. Blocks are the unit of the intervals over blocks, although blocks of one network are not independent."
)


def subjects_of(study: StudySetting) -> tuple[list[Subject], str]:
    """The networks of (a) to (c), and what is missing."""
    if study.scale == "smoke":
        return [untrained(study, "preresnet20")], ""
    try:
        return [packaged(study), published(study, "resnet56")], ""
    except DataError as error:
        return [packaged(study)], f"The published ResNet-56 is left out: {error}."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    asked = setting(NAME, __doc__, argv)
    if asked.scale == "smoke":
        one_thread()
    try:
        chosen, missing = subjects_of(asked)
        start_fresh(asked.out)
        page = Page(asked, "The critics of the ensemble view", QUESTION, PROTOCOL)
        if asked.scale == "smoke":
            page.text("**A smoke run for the tests: a network with random weights. Its numbers mean nothing.**")
        if missing:
            page.text(missing)
        lesions, summary = shortcuts(page, asked, chosen)
        found: dict[str, Any] = {"shortcuts": summary}
        found["responses"] = responses(
            page, asked, chosen, {name: tables["branches"] for name, tables in lesions.items()}
        )
        found |= cancellation(page, asked, chosen)
        found["beyond"] = beyond(page, asked, chosen[0], lesions[chosen[0].name])
        page.section("What agrees, what does not, and the likely reason", answers(found))
        page.text(TALK)
        page.write()
    except PathlensError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return error.exit_code
    say(f"wrote {asked.out / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
