"""The study of the critics at a size that tests can afford: statistics by hand, numbers as the package gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import pathlens
from pathlens.tables import Column, Table, read_table
from studies import common, subjects
from studies.critics import judged, responses, shortcuts, tails
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
    assert (row["tail_example_low"], row["tail_example_high"]) == (row["tail_example"],) * 2  # both examples are alike
    uneven = tails.tail_row("n", tails.Tail(3, norms * [[1.0, 2.0]] + [[0.0, 9.0]]), signed, 9)
    each = [np.sqrt((one**2).mean()) / one.mean() for one in (norms * [[1.0, 2.0]] + [[0.0, 9.0]]).T]
    assert uneven["tail_example"] == pytest.approx(np.mean(each))
    assert uneven["tail_example_low"] < uneven["tail_example"] < uneven["tail_example_high"]
    # the mean of four paths has a standard error of 6 / 2, and a root mean square of 8 one of 0.1
    assert row["tail_error"] == pytest.approx(2 * np.hypot(0.1 / 8, 3 / 4))
    squares = np.array([1.0, 1.0, 1.0, 169.0])
    picked = np.random.default_rng(5).choice(squares, size=(20000, 4)).mean(axis=1)
    assert row["rms_error"] == pytest.approx(np.sqrt(picked).std(), rel=0.05)
    # below the mean are draws without the heavy path; one heavy path of four gives the mean itself
    assert row["four_below"] == pytest.approx(0.75**4, abs=0.03)


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
    assert (two["error_low"], two["error_high"]) == (pytest.approx(0.2), pytest.approx(0.6))
    assert (three["sets"], three["error"], three["error_low"]) == (1, 0.9, None)


def test_verdicts_follow_the_numbers():
    key = {"network": "n", "which": "all", "response": "relative_std", "harm": "loss", "n_blocks": 9, "ties": 0}
    rows = [{**key, "rho": 0.5, "rho_low": 0.1, "rho_high": 0.8}]

    def response(row):
        return judged.response(Table(tuple(Column(name) for name in row), (row,)), "n").outcome

    assert response(rows[0]) == "agrees"
    assert response({**rows[0], "rho_low": -0.1}) == "cannot tell"
    assert response({**rows[0], "rho": None}) == "cannot tell"
    identity = Table(tuple(map(Column, rows[0])), (rows[0], {**rows[0], "which": "identity", "rho_low": -0.1}))
    assert judged.response(identity, "n").outcome == "cannot tell"  # of blocks that change no shapes
    tail = {"network": "n", "length": 5, "paths": 100, "images": 9, "tail_example": 3.0, "tail_example_low": 2.5}
    tail |= {"tail_example_high": 3.5}

    def heavy(**more):
        row = {**tail, **more}
        return judged.tail(Table(tuple(Column(name) for name in row), (row,)), "n", 5).outcome

    assert heavy() == "agrees"
    assert heavy(tail_example_low=1.5) == heavy(tail_example_low=None) == "cannot tell"
    assert heavy(tail_example_low=1.1, tail_example_high=1.9) == "disagrees"


def test_a_measurement_that_another_study_made_is_taken(tmp_path):
    def setting(name):
        return common.StudySetting(name, "cpu", tmp_path / "out" / name, tmp_path / "runs" / f"{name}-cpu", "cpu", 1)

    def table(value):
        return Table((Column("value", "", "a number"),), ({"value": value},))

    common.once(setting("pretrained_resnets"), "lesions-net", lambda: table(1))
    for stem, same, value in (("branches", "lesions-net", 1), ("others", "none", 2)):
        taken = common.once(setting("critics"), stem, lambda: table(2), ("pretrained_resnets", same))
        assert taken.rows == ({"value": value},)
        assert taken.provenance.get("taken_from") == ("pretrained_resnets/lesions-net" if value == 1 else None)
        assert judged.taken_over(taken) == (value == 1)
