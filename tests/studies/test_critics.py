"""The study of the critics at a size that tests can afford: statistics by hand, numbers as the package gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import pathlens
from pathlens.tables import Column, Table, read_table
from studies import common, subjects
from studies.critics import drawing, judged, responses, shortcuts, tails
from tests.helpers.study_modules import run_study

PER_NETWORK = ("shortcuts", "responses", "path-gradients", "cancellation", "tails")
TABLES = {
    "shortcuts": {"network", "which", "difference", "difference_low", "difference_high", "p", "shortcut_worse"},
    "counts": {"network", "deleted", "count", "error", "error_low", "error_high"},
    "responses": {"network", "which", "response", "harm", "rho", "rho_low", "rho_high"},
    "effective": {"network", "contribution", "first", "last", "first_low", "last_high", "share_of_paths"},
    "tails": {"network", "length", "paths", "mean", "q99", "rms_error", "rms_signed_error", "tail_error", "four_below"},
    "claims": {"claim", "source", "rule", "test", "outcome"},
    "beyond": {"network", "seeds", "branch_increase", "skip_increase", "middle_low"},
    "beyond-runs": {"network", "seed", "error_intact", "first", "last"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of one smoke run: the page and tables in ``out``, trained networks in ``runs``."""
    folder = tmp_path_factory.mktemp("critics")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PATHLENS_DATA", "PATHLENS_MODELS"):
            patch.delenv(name, raising=False)
        where = ("--out", str(folder / "out"), "--runs", str(folder / "runs"))
        run_study("critics", "--scale", "smoke", "--device", "cpu", "--jobs", "2", *where)
    return folder


@pytest.fixture(scope="module")
def network():
    """The network of the smoke run, and its test images."""
    loaded = pathlens.load_model("preresnet20", "random", in_channels=1, num_classes=10, seed=0)
    data = pathlens.open_data("digits", limit=24)
    return pathlens.find_blocks(loaded.model, data.batch(0, 2).images), data


def test_a_loss_that_falls_while_the_error_rises_is_said():
    rows = [
        {"block": block, "loss": loss, "relative_std": float(block), "increase": low + 0.01, "increase_low": low}
        for block, (loss, low) in enumerate([(1.2, 0.01), (1.3, 0.02), (1.4, 0.03), (0.7, 0.02), (0.9, -0.01)])
    ]
    assert responses.without_better_losses("n", rows[:3], 1.0) == ""
    told = responses.without_better_losses("n", rows, 1.0)
    assert "without the branch of block 3 (loss 0.700 against 1.000 nats, error +3.00 points)" in told
    rest = [(row["relative_std"], row["loss"]) for row in rows if row["block"] != 3]
    assert f"is {stats.spearmanr(rest).statistic:.2f} (" in told


@pytest.mark.slow
def test_it_writes_page_tables_and_figures(done):
    page = (done / "out" / "README.md").read_text()
    assert "Its numbers mean nothing" in page
    assert str(done) not in page
    for title in ("**Question.**", "**Protocol.**", "## a.", "## b.", "## c.", "## d.", "## What was claimed"):
        assert title in page
    for stem, columns in TABLES.items():
        assert columns <= set(read_table(done / "out" / f"{stem}.csv").names), stem
        assert f"({stem}.csv)" in page, stem
    figures = [f"{stem}-preresnet20" for stem in PER_NETWORK] + [
        "counts",
        "lengths",
        "shortcuts-vit",
        "shortcuts-convnext",
    ]
    for stem in figures:
        assert f"({stem}.png)" in page, stem
        assert (done / "out" / f"{stem}.png").read_bytes().startswith(b"\x89PNG"), stem
    for file in (done / "out").glob("*.meta.json"):
        assert "/nets.py" not in file.read_text(), file  # where the study lies is nobody's business


@pytest.mark.slow
def test_lesions_and_exact_totals_are_those_of_the_package(done, network):
    view, data = network
    rows = read_table(done / "out" / "shortcuts-preresnet20.csv").rows
    branch, skip = pathlens.delete_blocks(view, data, blocks=4), pathlens.delete_skips(view, data, blocks=4)
    assert rows[4]["error_intact"] == branch.rows[0]["error"]
    assert (rows[4]["error_branch"], rows[4]["loss_branch"]) == pytest.approx(
        (branch.rows[1]["error"], branch.rows[1]["loss"])
    )
    assert (rows[4]["error_skip"], rows[4]["loss_skip"]) == pytest.approx((skip.rows[1]["error"], skip.rows[1]["loss"]))
    images = pathlens.open_data("digits", split="train", limit=2)
    exact = pathlens.path_gradients(view, images, method="exact")
    found = read_table(done / "out" / "cancellation-preresnet20.csv")
    assert found.values("total_norm") == pytest.approx(exact.values("total_norm"), rel=1e-4)
    for row in found.rows:
        assert row["survives"] == pytest.approx(row["total_norm"] / row["contribution"])
    assert found.rows[0]["coherence"] == pytest.approx(1, rel=1e-4)  # there is one path without branches
    assert found.rows[-1]["coherence"] == pytest.approx(1, rel=1e-4)  # and one through all of them
    ranges = read_table(done / "out" / "effective.csv").rows
    (own,) = [row for row in ranges if row["contribution"] == "exact"]
    effective = exact.provenance["effective"]["exact"]
    assert (own["first"], own["last"]) == (effective["first"], effective["last"])


@pytest.mark.slow
def test_responses_are_those_of_hooks(done, network):
    view, data = network
    seen = {}
    block = view.model.get_submodule(view[4].name)
    hooks = [
        block.register_forward_hook(lambda module, args, out: seen.update(out=out)),
        block.register_forward_pre_hook(lambda module, args: seen.update(start=args[0])),
    ]
    with torch.no_grad():
        view.model(data.batch(0, 24).images)
    for hook in hooks:
        hook.remove()
    row = read_table(done / "out" / "responses-preresnet20.csv").rows[4]
    assert row["kind"] == "identity"
    branch = float((seen["out"] - seen["start"]).double().std(correction=0))
    shortcut = float(seen["start"].double().std(correction=0))
    assert row["branch_std"] == pytest.approx(branch, rel=1e-4)
    assert row["relative_std"] == pytest.approx(branch / shortcut, rel=1e-4)
    rows = read_table(done / "out" / "responses-preresnet20.csv").rows
    rho = stats.spearmanr([r["relative_std"] for r in rows], [r["loss"] for r in rows]).statistic
    found = read_table(done / "out" / "responses.csv").rows
    (one,) = [r for r in found if (r["which"], r["response"], r["harm"]) == ("all", "relative_std", "loss")]
    assert one["rho"] == pytest.approx(rho)
    assert one["rho_low"] <= rho <= one["rho_high"]


@pytest.mark.slow
def test_trained_networks_are_no_resnets_and_were_read_back(done):
    runs = {row["network"]: row for row in read_table(done / "out" / "beyond-runs.csv").rows}
    assert {name: row["blocks"] for name, row in runs.items()} == {"vit": 4, "convnext": 4}
    lesions = [row for row in read_table(done / "out" / "beyond-blocks.csv").rows if row["network"] == "vit"]
    assert runs["vit"]["error_intact"] == lesions[0]["error_intact"]
    assert runs["vit"]["branch_largest"] == pytest.approx(
        max(row["error_branch"] for row in lesions) - lesions[0]["error_intact"]
    )


def test_single_paths_are_those_of_the_chain_rule(network):
    view, _ = network
    setting = common.setting("critics", "A study.", ["--device", "cpu"])
    loaded = pathlens.load_model("preresnet20", "random", in_channels=1, num_classes=10, seed=0)
    subject = subjects.subject(setting, "n", "n", loaded)
    vars(subject)["view"] = view  # of the same network, found once for all tests
    tail = tails.sample_tail(subject, 2, 0, 4)  # the one path through no branch
    batch = pathlens.open_data("digits", split="train", limit=2).batch(0, 2)
    inputs = batch.images.clone().requires_grad_()
    x = view.stem(inputs)
    values = [x]
    for block in range(len(view)):
        x = view.run(x, block, block + 1)
        values.append(x)
    loss = torch.nn.functional.cross_entropy(view.head(x), batch.labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, values[-1], retain_graph=True)
    for block in reversed(range(len(view))):
        start = values[block].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(view.without_branch(block, start), start, gradient)
    (gradient,) = torch.autograd.grad(values[0], inputs, gradient)
    assert tail.norms.shape == (1, 2)
    assert tail.norms[0] == pytest.approx(gradient.flatten(1).norm(dim=1).numpy(), rel=1e-4)


def test_differences_have_newcombes_interval():
    # Newcombe 1998, table II, case (a): 56/70 and 48/80, method 10: 0.0524 to 0.3339
    rows = []
    for failures, n in ((56, 70), (48, 80)):
        low, high = pathlens.metrics.wilson_interval(failures, n)
        rows.append({"error": failures / n, "error_low": low, "error_high": high})
    found = shortcuts.newcombe(*rows)
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_correlation_of_ties_and_of_nothing():
    correlation = responses.correlation
    rows = [{"x": x, "y": y} for x, y in zip(range(8), (0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.4), strict=True)]
    found = correlation(rows, "x", "y")
    assert found["ties"] == 3
    assert found["rho"] == pytest.approx(stats.spearmanr(range(8), [row["y"] for row in rows]).statistic)
    assert 0.8 < found["rho_low"] <= found["rho"] <= found["rho_high"] <= 1
    assert correlation([{**row, "y": 0.0} for row in rows], "x", "y")["rho"] is None


def test_tails_by_hand():
    norms = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [13.0, 13.0]])
    signed = {"path_norm_rms": 8.0, "path_norm_rms_error": 0.1}
    row = tails.tail_row("n", tails.Tail(3, norms), signed, 4000)
    assert (row["mean"], row["median"], row["largest"], row["tail"]) == (4.0, 1.0, 13.0, 2.0)
    assert row["rms"] == row["mean"] * row["tail_example"] == pytest.approx(np.sqrt(43))
    assert row["missed"] == pytest.approx(8 / np.sqrt(43))
    assert row["top_share"] == pytest.approx(13 / 32)
    # both examples are alike, but the same paths serve both: the interval is that over paths, widened by what is missed
    within = stats.bootstrap(
        (np.array([1.0, 1.0, 1.0, 13.0]),),
        lambda drawn, axis: np.sqrt((drawn**2).mean(axis=axis)) / drawn.mean(axis=axis),
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(8),
    ).confidence_interval
    assert row["tail_example_low"] == pytest.approx(within.low)
    assert row["tail_example_high"] == pytest.approx(within.high * 8 / np.sqrt(43))
    found = tails.tail_row("n", tails.Tail(3, norms), {**signed, "path_norm_rms": 3.0}, 99)
    assert found["tail_example_low"] == pytest.approx(within.low * 3 / np.sqrt(43))  # paths at large are less uneven
    assert found["tail_example_high"] == pytest.approx(within.high)
    uneven = tails.tail_row("n", tails.Tail(3, norms * [[1.0, 2.0]] + [[0.0, 9.0]]), signed, 9)
    each = [np.sqrt((one**2).mean()) / one.mean() for one in (norms * [[1.0, 2.0]] + [[0.0, 9.0]]).T]
    assert uneven["tail_example"] == pytest.approx(np.mean(each))
    # the mean of four paths has a standard error of 6 / 2, and a root mean square of 8 one of 0.1
    assert row["tail_error"] == pytest.approx(2 * np.hypot(0.1 / 8, 3 / 4))
    squares = np.array([1.0, 1.0, 1.0, 169.0])
    picked = np.random.default_rng(5).choice(squares, size=(20000, 4)).mean(axis=1)
    assert row["rms_error"] == pytest.approx(np.sqrt(picked).std(), rel=0.05)
    # below the mean are draws without the heavy path; one heavy path of four gives the mean itself
    assert row["four_below"] == pytest.approx(0.75**4, abs=0.03)


def test_the_interval_of_a_tail_is_over_paths_and_examples():
    rng = np.random.default_rng(3)
    norms = rng.lognormal(0, 1.2, (12, 1)) * rng.lognormal(0, 0.8, (12, 5))
    drawn = []
    for _ in range(4000):
        paths, examples = rng.integers(0, 12, 12), rng.integers(0, 5, 5)
        picked = norms[paths][:, examples]
        drawn.append((np.sqrt((picked**2).mean(axis=0)) / picked.mean(axis=0)).mean())
    low, high = tails.within_interval(norms, 4000)
    assert (low, high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), rel=0.03)
    # paths vary where there is one example, and nothing where there is one path
    assert tails.within_interval(norms[:, :1], 4000)[1] > tails.within_interval(norms[:, :1], 4000)[0] > 1
    assert tails.within_interval(norms[:1], 99) == (None, None)
    # an example without any gradient has no uneven paths
    low, high = tails.within_interval(np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), 999)
    assert 1 <= low <= high <= np.sqrt(3)


def test_paths_of_a_tail_are_distinct(network):
    setting = common.setting("critics", "A study.", ["--device", "cpu"])
    loaded = pathlens.load_model("preresnet20", "random", in_channels=1, num_classes=10, seed=0)
    subject = subjects.subject(setting, "n", "n", loaded)
    vars(subject)["view"] = network[0]
    assert len(tails.sample_tail(subject, 1, 1, 8).norms) < 9  # of nine paths of one block, some are drawn twice
    assert len(tails.sample_tail(subject, 1, 9, 5).norms) == 1


def test_means_of_counts_are_over_distinct_sets():
    columns = ("count", "sample", "blocks", "error", "error_low", "error_high")
    rows = [(0, None, None, 0.1, 0.05, 0.15), (2, 0, "1,2", 0.2, None, None), (2, 1, "1,2", 0.2, None, None)]
    rows += [(2, 2, "0,2", 0.6, None, None), (2, None, None, 0.33, 0.1, 0.5), (3, 0, "0,1,2", 0.9, None, None)]
    table = Table(tuple(Column(name) for name in columns), tuple(dict(zip(columns, row, strict=True)) for row in rows))
    intact, two, three = shortcuts.count_rows("n", {"branches": table})
    assert (intact["error"], intact["error_low"]) == (0.1, 0.05)
    assert (two["sets"], two["error"]) == (2, pytest.approx(0.4))
    # Student's interval of two sets, inside of what an error can be
    assert (two["error_low"], two["error_high"]) == (0, 1)
    assert (three["sets"], three["error"], three["error_low"]) == (1, 0.9, None)


def test_verdicts_follow_the_numbers():
    key = {"network": "n", "which": "all", "response": "relative_std", "harm": "loss", "n_blocks": 9, "ties": 0}
    loss = {**key, "rho": 0.5, "rho_low": 0.1, "rho_high": 0.8}
    error = {**loss, "harm": "error", "rho": 0.4}

    def response(*rows):
        return judged.response(Table(tuple(Column(name) for name in loss), rows), "n").outcome

    falls = {"rho": -0.5, "rho_low": -0.8, "rho_high": -0.1}
    assert response(loss, error) == "agrees"
    assert response({**loss, **falls}, {**error, **falls}) == "disagrees"
    for one, other in ((loss, {**error, "rho_low": -0.1}), ({**loss, "rho_low": -0.1}, error), (loss, error | falls)):
        assert response(one, other) == "cannot tell"  # loss and error both have to show it
    assert response({**loss, "rho": None}, error) == "cannot tell"
    identity = {**loss, "which": "identity", "rho_low": -0.1}
    assert response(loss, error, identity, {**error, "which": "identity"}) == "cannot tell"  # blocks that keep shapes


def test_tails_are_heavy_where_they_are_at_all_effective_lengths():
    names = ("network", "length", "paths", "images", "tail_example", "tail_example_low", "tail_example_high")

    def heavy(*rows):
        table = Table(tuple(map(Column, names)), tuple(dict(zip(names, row, strict=True)) for row in rows))
        return judged.tail(table, "n", {"first": 2, "last": 7})

    def at(length, value, low, high, network="n"):
        return network, length, 100, 9, value, low, high

    above, below, other = at(5, 3.0, 2.5, 3.5), at(5, 1.4, 1.1, 1.9), at(7, 2.6, 2.1, 4.5)
    assert heavy(above).outcome == heavy(above, other).outcome == "agrees"
    assert heavy(below).outcome == "disagrees"
    assert heavy(below, other).outcome == heavy(above, at(7, 2.6, 1.9, 4.5)).outcome == "cannot tell"
    assert heavy(below, at(7, 1.8, 1.6, 2.2)).outcome == "cannot tell"
    assert heavy(above, at(7, 2.6, None, None)).outcome == "cannot tell"
    # lengths that are not effective, and other networks, do not count
    assert heavy(above, at(8, 1.4, 1.1, 1.9), at(6, 1.4, 1.1, 1.9, "m")).outcome == "agrees"
    assert heavy(at(8, 3.0, 2.5, 3.5)).outcome == "cannot tell"
    found = heavy(above, other)
    assert found.here.startswith("2.60 to 3.00 times")
    assert (found.value, found.low, found.high) == (pytest.approx(2.8), 2.1, 4.5)


def test_nothing_is_told_of_a_single_training_of_ours(monkeypatch):
    monkeypatch.setattr(judged, "_beyond", lambda tables: [])
    for name, seeds, outcome in (("resnet56", None, "agrees"), ("digits54", 1, "cannot tell")):
        of_effective = {"network": name, "contribution": "exact", "first": 2, "last": 7}
        rho = {"network": name, "which": "all", "response": "relative_std", "harm": "loss", "n_blocks": 9, "ties": 0}
        rho |= {"rho": 0.5, "rho_low": 0.1, "rho_high": 0.8}
        tail = {"network": name, "length": 5, "paths": 100, "images": 9, "tail_example": 3.0}
        tail |= {"tail_example_low": 2.5, "tail_example_high": 3.5}
        given = {
            stem: Table(tuple(map(Column, rows[0])), rows, {"taken_from": "elsewhere"})
            for stem, rows in (
                (f"path-gradients-{name}", ({"length": 0},)),
                (f"lesions-{name}", ({"block": 0},)),
                ("effective", (of_effective,)),
                ("responses", (rho, {**rho, "harm": "error"})),
                ("tails", (tail,)),
            )
        }
        rows = judged.verdicts(given, [name])
        assert {(row["claim"], row["seeds"], row["outcome"]) for row in rows} == {
            (claim.name, seeds, outcome) for claim in (judged.RESPONSE, judged.TAILS)
        }
        assert all("2." in row["here"] or "0.50" in row["here"] for row in rows)  # the numbers stay


def test_figures_draw_what_is_judged_and_what_matters():
    rows = [{"kind": "identity", "branch_std": 0.1 * i, "relative_std": 0.2 * i, "loss": 0.3 * i} for i in range(1, 6)]
    for axes, name in zip(drawing.responses_figure(rows, 0.25).axes, ("branch_std", "relative_std"), strict=True):
        points, intact = axes.lines
        assert list(zip(*points.get_data(), strict=True)) == [(row[name], row["loss"]) for row in rows]
        assert set(intact.get_ydata()) == {0.25}
    norms = [10.0**-power for power in range(0, 40, 3)]
    rows = [
        {
            **dict.fromkeys(("contribution", "incoherent", "total_norm", "survives", "coherence"), norm),
            "length": length,
            "n_paths": 1,
            "contribution_low": norm / 2,
            "contribution_high": 2 * norm,
        }
        for length, norm in enumerate(norms)
    ]
    left, right = drawing.cancellation_figure(rows).axes
    for line in left.lines:
        assert [not np.isnan(y) for y in line.get_ydata()] == [norm >= 1e-12 for norm in norms]
    assert left.get_ylim()[0] > 1e-15
    assert [text.get_text() for text in left.texts] == ["below 10⁻¹² not drawn"]
    assert list(right.lines[0].get_ydata()) == norms
    assert left.get_xlim() == right.get_xlim()


def test_a_measurement_that_another_study_made_is_taken(tmp_path):
    def setting(name):
        return common.StudySetting(name, "cpu", tmp_path / "out" / name, tmp_path / "runs" / f"{name}-cpu", "cpu", 1)

    def table(value):
        return Table((Column("value", "", "a number"),), ({"value": value},))

    common.once(setting("pretrained_resnets"), "lesions-net", lambda: table(1))
    for stem, same, value in (("branches", "lesions-net", 1), ("others", "none", 2)):
        taken = common.once(setting("critics"), stem, lambda: table(2), same=("pretrained_resnets", same))
        assert taken.rows == ({"value": value},)
        assert taken.provenance.get("taken_from") == ("pretrained_resnets/lesions-net" if value == 1 else None)
        assert judged.taken_over(taken) == (value == 1)
