"""The figures of path gradients: every curve is the table's, for whatever methods were run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pathlens import figures
from pathlens.analyses.path_rows import COLUMNS, LATTICE_COLUMNS
from pathlens.errors import UsageError
from pathlens.tables import Table


def table(blocks=54, methods=("sampled", "exact", "signed")):
    rows = []
    for length in range(blocks + 1):
        row = {column.name: None for column in COLUMNS}
        count = math.comb(blocks, length)
        norm = 10.0 ** (-0.8 * length)
        row |= {"length": length, "n_paths": count}
        if "sampled" in methods:
            row |= {
                "path_norm_mean": norm, "path_norm_low": norm / 2, "path_norm_high": norm * 2,
                "path_norm_median": norm / 3, "path_norm_q05": norm / 9, "path_norm_q95": norm * 4,
                "contribution": float(count) * norm, "contribution_share": 1 / (blocks + 1), "samples": 8,
                "stopped": "budget",
            }  # fmt: skip
        if "exact" in methods:
            row |= {"total_norm": norm * 5, "total_share": 0.5 if length < 2 else 0.0}
        if "signed" in methods:
            row |= {"path_norm_rms": norm * 1.5, "path_norm_rms_error": norm / 10}
        rows.append(row)
    return Table(COLUMNS, tuple(rows), {})


def lines(axes):
    return {line.get_label(): np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()}


def test_three_panels_draw_the_table():
    made = table()
    count, norm, share = figures.path_gradients(made, effective=(3, 9)).axes
    expected = [100 * math.comb(54, k) / 2**54 for k in range(55)]
    assert np.allclose(next(iter(lines(count).values())), expected)
    assert np.allclose(lines(norm)["mean of sampled paths"], made.values("path_norm_mean"))
    assert np.allclose(lines(norm)["median"], made.values("path_norm_median"))
    assert np.allclose(lines(norm)["root mean square"], made.values("path_norm_rms"))
    assert norm.get_yscale() == "log"
    found = lines(share)
    assert np.allclose(found["norm of the sum (exact)"], [100 * float(v) for v in made.values("total_share")])
    weights = [n * r for n, r in zip(made.values("n_paths"), made.values("path_norm_rms"), strict=True)]
    assert np.allclose(found["paths x root mean square"], [100 * w / sum(weights) for w in weights])
    assert any("3 to 9" in text.get_text() for text in share.get_legend().get_texts())


@pytest.mark.parametrize("method", ["sampled", "exact", "signed"])
@pytest.mark.parametrize("blocks", [1, 9, 600])
def test_one_method_alone_can_be_drawn(method, blocks, tmp_path):
    figure = figures.path_gradients(table(blocks, (method,)))
    assert len(figure.axes) == 3
    png, pdf = figures.save(figure, tmp_path, "paths")
    assert png.stat().st_size > 0
    assert pdf.stat().st_size > 0


@pytest.mark.parametrize("blocks", [1, 54, 300])
def test_the_lattice_shows_every_norm(blocks):
    rows = [
        {"boundary": i, "length": k, "n_paths": math.comb(blocks - max(0, i), k), "norm": norm, "share": 0.0}
        for i in range(-1, blocks + 1)
        for k in range(blocks - max(0, i) + 1)
        for norm in [0.0 if k == blocks else 10.0 ** (-k / 10)]
    ]
    axes = figures.lattice(Table(LATTICE_COLUMNS, tuple(rows), {})).axes[0]
    grid = axes.collections[0].get_array().reshape(blocks + 1, blocks + 2)
    assert np.ma.is_masked(grid[blocks, 0]) or np.isnan(grid[blocks, 0])
    assert grid[0, 0] == pytest.approx(1.0)
    if blocks > 20:
        assert grid[10, 3] == pytest.approx(0.1)
        assert np.ma.is_masked(grid[20, blocks]) or np.isnan(grid[20, blocks])


def test_tables_that_cannot_be_drawn():
    with pytest.raises(UsageError, match="no norms"):
        figures.path_gradients(table(3, ()))
    with pytest.raises(UsageError, match="n_paths"):
        figures.path_gradients(table().to_frame().drop(columns="n_paths"))
    zero = {"boundary": 0, "length": 0, "n_paths": 1, "norm": 0.0, "share": 0.0}
    with pytest.raises(UsageError, match="zero"):
        figures.lattice(Table(LATTICE_COLUMNS, (zero,), {}))
