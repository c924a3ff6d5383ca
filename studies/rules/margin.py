"""Non-inferiority: is a network's error shown to be at most a margin above another's, or shown to be more than that?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from pathlens.metrics import holm
from studies.rules.claims import CANNOT_TELL, LEVEL, decide, paired

#: by how much a network that learned from fewer paths may be worse and still be as good
MARGIN = 0.005
_POINTS = f"{100 * MARGIN:g} points"
#: column -> alternative of its one-sided test, and the null hypothesis in words
_TESTS = {"p_if_worse": ("less", f"{_POINTS} or more"), "p_if_not_worse": ("greater", f"{_POINTS} or less")}

COLUMNS = tuple(
    column
    for name, (_, null) in _TESTS.items()
    for column in (
        (name, "", f"p value if the difference were {null}: one-sided paired t test; missing where none varies"),
        (f"{name}_holm", "", "the same after Holm's correction; over which rows, the test of the claim says"),
    )
)
SHOWN = {f"{name}_holm": ".2g" for name in _TESTS}


def tested(differences: Sequence[float]) -> dict[str, float | None]:
    """Both tests of paired differences against the margin, which :func:`correct` corrects.

    Args:
        differences: of error, one for each seed; none for a row that is not tested.
    """
    found: dict[str, float | None] = {name: None for name, *_ in COLUMNS}
    if differences and paired(differences).p is not None:
        for name, (alternative, _) in _TESTS.items():
            found[name] = float(stats.ttest_1samp(differences, MARGIN, alternative=alternative).pvalue)
    return found


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Write the corrected p values of both tests into the rows that are tested."""
    for name in _TESTS:
        family = [row for row in rows if row[name] is not None]
        for row, p in zip(family, holm([row[name] for row in family]), strict=True):
            row[f"{name}_holm"] = p


def judged(
    row: Mapping[str, Any], difference: float, low: float | None, high: float | None
) -> tuple[str, float | None, str]:
    """Outcome by interval and test, the p value that decides it, and that in words.

    Args:
        row: with both tests of :func:`tested`.
        difference: mean over the seeds; its direction says which test decides.
        low: lower end of its interval; None where there is none.
        high: upper end.
    """
    name = "p_if_not_worse" if difference > MARGIN else "p_if_worse"
    p = row[f"{name}_holm"]
    outcome = decide(low, high, below=MARGIN) if p is not None and p < LEVEL else CANNOT_TELL
    told = "" if p is None else f"p {p:.2g} after Holm's correction if the difference were {_TESTS[name][1]}"
    return outcome, p, told
