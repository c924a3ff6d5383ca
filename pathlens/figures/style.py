"""What all figures share: sizes, colours, marks, and how a figure becomes files.

Figures are drawn on matplotlib's ``Figure`` objects with their own canvas. Nothing here touches pyplot's state, the
user's backend or the user's style.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pathlens.errors import UsageError
from pathlens.results.charts import StageRun, stage_runs
from pathlens.results.result import Row, Rows
from pathlens.results.text import power_of_ten, with_power
from pathlens.storage import write_together
from pathlens.tables import Table, check_stem

SINGLE = 3.5
"""Width of one column of a journal page, in inches."""
DOUBLE = 7.2
"""Width of the whole page, in inches."""

_DPI = 300  # of PNG files

_RC = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "lines.linewidth": 1.0,
    "legend.frameon": False,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a "$" in the name of a file or module is a "$"
    # Type 42 keeps text in a PDF as text; journals refuse matplotlib's default Type 3.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "savefig.dpi": _DPI,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pathlens",  # and identifiers the same every time
}

COLOURS = tuple(sns.color_palette("colorblind").as_hex())
"""Seaborn's palette that readers with any of the common colour deficiencies can tell apart."""
INK, MUTED, SHADE = "#222222", "#6e6e6e", "#f1f1f1"
_SMALL = 7


class Mark(NamedTuple):
    """How a kind of block is drawn: the words for it, the marker, its colour, and whether it changes shapes."""

    words: str
    marker: str
    colour: str
    changes_shape: bool


KINDS = {
    "identity": Mark("identity shortcut", "o", COLOURS[0], False),
    "projection": Mark("projection shortcut", "D", COLOURS[1], True),
    "padding": Mark("padded shortcut", "^", COLOURS[3], True),
    "scaled": Mark("scaled shortcut", "v", COLOURS[4], False),
    "gated": Mark("gated shortcut", "s", COLOURS[2], False),
    "concatenation": Mark("concatenation", "P", COLOURS[5], False),
    "layer": Mark("layer", "o", COLOURS[0], False),
    "layer-resized": Mark("layer that changes shape", "D", COLOURS[1], True),
}
"""Marks by the ``kind`` of a block. Shape-changing kinds differ in marker and in colour."""


def kind_mark(kind: object) -> Mark:
    """The mark of a kind; kinds that are not known get a neutral one under their own name."""
    return KINDS.get(str(kind), Mark("other" if kind is None or pd.isna(kind) else str(kind), "X", MUTED, False))


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in pathlens' style, whatever the user's is, and put the user's back."""
    with matplotlib.style.context(["default", sns.axes_style("ticks"), sns.plotting_context("paper"), _RC]):
        yield


class PageFigure(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        with style():
            self.savefig(stream, format="png", dpi=120, metadata=_METADATA["png"])
        return stream.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with its own canvas; width and height in inches."""
    figure = PageFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_page(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure for a drawing: one set of axes that fills it, without axis lines; width and height in inches."""
    figure = PageFigure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def to_rows(table: Table | pd.DataFrame | Rows, columns: Sequence[str], what: str) -> list[Row]:
    """The rows of a table that has the columns the figure needs; None stands for a missing value.

    Raises:
        UsageError: a column is missing, or there are no rows.
    """
    if isinstance(table, pd.DataFrame):
        table = table.astype(object).where(table.notna(), None).to_dict("records")
    rows = table.rows if isinstance(table, Table) else table
    if not rows:
        raise UsageError(f"the {what} figure got a table without rows; give one with results")
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise UsageError(f"the {what} figure needs column {missing[0]!r}; the table has {', '.join(map(str, rows[0]))}")
    return list(rows)


def label_stages(
    axes: Axes, runs: Sequence[StageRun], points_per_block: float, details: Mapping[object, str] | None = None
) -> None:
    """Write the stages above the axes in the longest form that fits: "stage 2, 64×8×8", "stage 2", "2", or nothing.

    Args:
        axes: where; x is the position of a block.
        runs: the stages.
        points_per_block: room that a block has on paper, in points.
        details: more on a stage, such as its shape.
    """
    room = [points_per_block * (run.last - run.first + 1) for run in runs]
    forms = [[f"stage {run.stage}" for run in runs]]
    if details:
        forms.insert(0, [f"stage {run.stage}, {details[run.stage]}" for run in runs])
    fitting = [form for form in forms if all(map(_fits, form, room))]
    texts = fitting[0] if fitting else [str(run.stage) for run in runs]
    written = [(run, text) for run, text, width in zip(runs, texts, room, strict=True) if _fits(text, width)]
    look: dict[str, Any] = {"textcoords": "offset points", "color": MUTED, "size": _SMALL}
    transform = axes.get_xaxis_transform()
    if written and not fitting:  # the numbers alone would not say what they are
        axes.annotate("stage", (0, 1), (-3, 2), xycoords="axes fraction", ha="right", **look)
    for run, text in written:
        axes.annotate(text, ((run.first + run.last) / 2, 1), (0, 2), xycoords=transform, ha="center", **look)


def _fits(text: str, points: float) -> bool:
    return 0.6 * _SMALL * len(text) < points


def text_inches(text: str, size: float = _SMALL) -> float:
    """Width of one line of text on paper, in inches; ``size`` in points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / 72


def count_words(number: int) -> str:
    """``1,024 paths``, or ``1.8×10¹⁶ paths`` for numbers that nobody reads."""
    if number < 10**7:
        return f"{number:,} path{'' if number == 1 else 's'}"
    digits, _, power = f"{Decimal(number):.1e}".partition("e")
    return f"{digits}×{power_of_ten(int(power))} paths"


class _Powers(LogLocator):
    """Some powers of ten; where fewer than two are in view 1, 2 and 5 times these, and if need be numbers between."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        if vmin <= 0 or _has_powers(vmin, vmax):
            return super().tick_values(vmin, vmax)
        first, last = (math.floor(math.log10(end)) for end in (vmin, vmax))
        ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
        if sum(vmin <= tick <= vmax for tick in ticks) < 2:
            return MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(vmin, vmax)
        return ticks


def _has_powers(low: float, high: float) -> bool:
    """Whether two powers of ten or more are in view."""
    return math.floor(math.log10(high)) > math.ceil(math.log10(low))


def powers_of_ten(axes: Axes) -> None:
    """Ticks of a logarithmic axis at some powers of ten, or between them where fewer than two are in view."""

    def text(value: float, _: int | None) -> str:
        if not 0 < value < math.inf:
            return ""
        if _has_powers(*axes.get_ylim()):
            return power_of_ten(math.log10(value))
        digits = 3 if math.isclose(float(f"{value:.3g}"), value, rel_tol=1e-9) else 10
        return with_power(f"{value:.{digits}g}")

    axes.yaxis.set_major_locator(_Powers(numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(text))
    axes.yaxis.set_minor_locator(NullLocator())


def shade_stages(axes: Axes, rows: Rows) -> list[StageRun]:
    """Shade every other stage, and return all of them.

    Args:
        axes: with blocks along x.
        rows: of blocks, in order, with ``block`` and ``stage``.
    """
    runs = stage_runs((row["stage"] for row in rows), (row["block"] for row in rows))
    for run in runs[1::2]:
        axes.axvspan(run.first - 0.5, run.last + 0.5, color=SHADE, lw=0, zorder=0)
    return runs


def block_ticks() -> MaxNLocator:
    """Ticks at whole numbers."""
    return MaxNLocator(steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def legend_outside(axes: Axes, width: float, below: bool = False, enlarge: float = 1.0) -> None:
    """The legend above or below the axes, where it covers no data.

    Args:
        axes: whose legend.
        width: of the figure, in inches.
        below: below and not above.
        enlarge: size of the marks in the legend, relative to those in the axes.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    widths = [0.35 + text_inches(text) for text in labels]
    columns = len(labels)  # as many as fit the width; they are filled one after the other
    while columns > 1 and sum(max(part) for part in np.array_split(widths, columns)) >= width - 0.05:
        columns -= 1
    columns = math.ceil(len(labels) / math.ceil(len(labels) / max(1, columns)))  # rows of even length
    figure = axes.get_figure(root=True)
    place: Literal["outside lower center", "outside upper center"]
    place = "outside lower center" if below else "outside upper center"
    if figure is not None:
        figure.legend(handles, labels, loc=place, ncols=columns, borderaxespad=0.2, markerscale=enlarge)


_LARGE = 300_000  # bytes of a picture beyond which it is written in fewer colours

#: entries that matplotlib writes of its version and the date, left out so that the same figure gives the same bytes
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None, "Creator": None},
}


def files(figure: Figure, stem: str, formats: Sequence[str] = ("png", "pdf")) -> dict[str, bytes]:
    """What :func:`save` writes: content by file name. The same figure gives the same bytes.

    Args:
        figure: drawn by this room.
        stem: of the file names.
        formats: of ``png``, ``pdf`` and ``svg``.

    Raises:
        UsageError: ``stem`` is not a plain file name, or a format is unknown.
    """
    check_stem(stem)
    contents = {}
    with style():
        for suffix in formats:
            if suffix not in _METADATA:
                raise UsageError(f"figures have no format {suffix!r}; give one of {', '.join(_METADATA)}")
            stream = io.BytesIO()
            smaller: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if suffix == "png" else {}  # the same pixels
            figure.savefig(stream, format=suffix, dpi=_DPI, metadata=_METADATA[suffix], **smaller)
            content = stream.getvalue()
            contents[f"{stem}.{suffix}"] = _smaller(content) if suffix == "png" and len(content) > _LARGE else content
    return contents


def _smaller(png: bytes) -> bytes:
    """A picture of many shades, such as of surfaces, in 256 colours, which nobody tells from it."""
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        colours = picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        colours.save(stream, "PNG", optimize=True, dpi=picture.info["dpi"])
    return stream.getvalue()


def save(figure: Figure, folder: str | os.PathLike[str], stem: str) -> list[Path]:
    """Write ``stem.png`` (300 dots per inch) and ``stem.pdf`` (vectors) into ``folder``, both or neither.

    Args:
        figure: drawn by this room.
        folder: where to; made if it is missing.
        stem: of the file names.

    Returns:
        The two paths, PNG first.

    Raises:
        ResourceError: the disk is full.
        RunError: the folder cannot be written to.
        UsageError: ``stem`` is not a plain file name.
    """
    return write_together({Path(folder) / name: data for name, data in files(figure, stem).items()})
