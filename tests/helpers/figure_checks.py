"""Tables for figures, and what is written in a figure."""

from __future__ import annotations

import pytest
from matplotlib.text import Text

from pathlens import figures
from pathlens.tables import Column, Table


def table(columns: list[str], rows: list[dict]) -> Table:
    return Table(tuple(map(Column, columns)), tuple(dict.fromkeys(columns) | row for row in rows))


def texts(figure: figures.Figure) -> list[Text]:
    """The words that are really drawn, which leaves out ticks beyond the ends of an axis."""
    drawn: list[Text] = []
    with pytest.MonkeyPatch.context() as patch:
        draw = Text.draw
        patch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer)))
        figure.draw_without_rendering()
    return [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text().strip()]


def assert_legible(figure: figures.Figure) -> None:
    """All words are inside the figure, at least 6 points tall, and none covers another."""
    found = texts(figure)
    boxes = [text.get_window_extent() for text in found]
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in zip(found, boxes, strict=True):
        assert text.get_fontsize() >= 6, text
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
    for i, one in enumerate(boxes):
        for j in range(i):
            other = boxes[j]
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            down = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert across < 1 or down < 1, (found[i], found[j])


def words(figure: figures.Figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def legend(figure: figures.Figure) -> list[str]:
    return sorted(text.get_text() for text in figure.legends[0].get_texts())
