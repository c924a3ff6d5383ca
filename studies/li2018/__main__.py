"""Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", and figure 11.13 of "Understanding Deep Learning".

Run ``python -m studies.li2018 --scale cpu``; see ``studies/common.py`` for the options and for scales. It reads
``PATHLENS_MODELS`` (a folder with ``loss_landscape/``) and ``PATHLENS_DATA`` (a folder with ``cifar10-jpeg/``).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from pathlens import figures
from pathlens.figures.style import COLOURS, legend_outside, new_figure, style
from studies import record
from studies.common import Page, StudySetting, carry_out, setting, start_fresh, train_all
from studies.li2018 import measured
from studies.li2018.judged import verdicts
from studies.li2018.words import DISCUSSION, PROTOCOL, QUESTION, SECTIONS
from studies.record import make_table

NAME = "li2018"
Row = Mapping[str, Any]


def measure(study: StudySetting) -> list[dict[str, Any]]:
    """Train, measure surfaces and lines, and return where the own networks come from."""
    done = train_all(measured.trainings(study), study)
    pair = measured.pair(study)
    grids = [(network, measured.grid(study, network)) for network in pair]
    data = measured.images(study)
    lines = [
        (one, treatment, measured.line(study, one, treatment, data))
        for one in pair
        for treatment in measured.TREATMENTS
    ]
    small = measured.images(study, measured.own_size(study))
    lines += [
        (one, measured.PUBLISHED, measured.line(study, one, measured.PUBLISHED, small))
        for one in measured.own(study, done)
    ]
    start_fresh(study)
    facts: dict[str, Any] = {"study": NAME, "scale": study.scale, **record.images(data)}
    for network, table in grids:
        study.tables.put(f"surface-{network.name}", table)
    tables = {
        "lines": (measured.LINES, [row for one in lines for row in measured.line_rows(*one)]),
        "curvature": (measured.CURVATURE, [measured.curvature_row(*one) for one in grids]),
    }
    for stem, (columns, all_rows) in tables.items():
        study.tables.put(stem, make_table(columns, all_rows, **facts))
    return [record.training(name, folder) for name, folder in done.items()]


def state(study: StudySetting) -> Page:
    """The page, from the tables."""
    page = Page(study, "Li et al. 2018: the loss around the weights, with and without shortcuts", QUESTION)
    tables = page.tables
    if study.scale == "smoke":
        page.text("**A smoke run for the tests: networks with random weights. Its numbers mean nothing.**")
    tables.put("numbers", make_table(measured.NUMBERS, measured.number_rows(tables["lines"].rows)))
    curved = tables["curvature"].rows
    page.section("Surfaces (figure 1 of the paper, figure 11.13 of the book)", SECTIONS["surfaces"])
    page.figure(
        "surfaces",
        lambda: figures.surfaces({row["kind"]: tables[f"surface-{row['network']}"] for row in curved}),
        f"Contours of the loss and the surface itself: {', '.join(row['network'] for row in curved)}.",
    )
    for row in curved:
        page.table(f"surface-{row['network']}")
        page.measured(f"surface-{row['network']}")
    lines = [row for row in tables["lines"].rows if row["seed"] is None]
    page.section("What moves and what is kept", SECTIONS["treatments"])
    page.figure(
        "treatments",
        lambda: lines_figure(lines),
        "Loss along random lines, of a point at most 10 nats: mean over directions, with their range.",
    )
    page.table("lines")
    numbers = {"network": "", "one_dimensional": "", "batch_norm": "", "draw": "d", "mean_loss": ".3f", "basin": ".1%",
               "concave": ".1%"}  # fmt: skip
    page.table("numbers", numbers, rows=lambda row: row["seed"] is None)
    page.section("Curvature", SECTIONS["curvature"])
    page.table(
        "curvature", {"network": "", "largest": ".4g", "smallest": ".4g", "trace": ".4g", "trace_standard_error": ".2g"}
    )
    page.section("Trained here", SECTIONS["own"])
    own = [row for row in tables["lines"].rows if row["seed"] is not None]
    page.figure(
        "own",
        lambda: lines_figure(own),
        "Loss along random lines, of a point at most 10 nats: mean over directions and seeds, and range.",
    )
    page.claims(verdicts(tables), lambda _: tables["lines"].provenance["data"])
    page.section("What the numbers can and cannot say", DISCUSSION)
    return page


def lines_figure(rows: Sequence[Row]) -> figures.Figure:
    """Loss along lines: a panel for each treatment, a curve for each kind of network."""
    treatments = list(dict.fromkeys((row["one_dimensional"], row["batch_norm"]) for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    with style():
        figure = new_figure(figures.DOUBLE, 2.6)
        panels = figure.subplots(1, len(treatments), sharey=True, squeeze=False)[0]
        for axes, treatment in zip(panels, treatments, strict=True):
            own = [row for row in rows if (row["one_dimensional"], row["batch_norm"]) == treatment]
            for colour, kind in zip(COLOURS, kinds, strict=False):
                _band(axes, [row for row in own if row["kind"] == kind], kind, colour)
            axes.set_title("\n".join(treatment))
            axes.set_xlabel("coordinate")
        panels[0].set_ylabel("loss (nats)")
        panels[0].set_ylim(0, measured.HIGHEST)
        legend_outside(panels[0], figures.DOUBLE, below=True)
    return figure


def _band(axes: Axes, rows: Sequence[Row], label: str, colour: str) -> None:
    """Mean and range at each coordinate; what is not finite is as high as the figure."""
    by_x: dict[float, list[float]] = {}
    for row in rows:
        loss = measured.HIGHEST if row["loss"] is None else min(row["loss"], measured.HIGHEST)
        by_x.setdefault(row["x"], []).append(loss)
    x = sorted(by_x)
    axes.fill_between(x, [min(by_x[at]) for at in x], [max(by_x[at]) for at in x], color=colour, alpha=0.2, lw=0)
    axes.plot(x, [sum(by_x[at]) / len(by_x[at]) for at in x], color=colour, label=label)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its page."""
    return carry_out(setting(NAME, __doc__, argv), PROTOCOL, measure, state)


if __name__ == "__main__":
    sys.exit(main())
