"""The study of growth laws at a size that tests can afford, its measurements by hand, and its page from its tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import pathlens
from pathlens.metrics import holm
from pathlens.tables import Column, Table, read_table
from studies import common
from studies.rules import claims
from studies.udl11 import growth, judged, nets, shattered, trained, words
from tests.helpers.study_modules import ROOT, run_study

STEMS = (
    "autocorrelation", "autocorrelation-networks", "gradients", "notebook", "notebook-networks", "notebook-layers",
    "notebook-halving", "growth", "rates", "parameters",
)  # fmt: skip
FIGURES = ("shattered", "notebook", "growth")
COMMITTED = ROOT / "results" / "udl11"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of one smoke run: page and tables in ``out``, trained networks in ``runs``."""
    folder = tmp_path_factory.mktemp("udl11")
    where = ("--out", str(folder / "out"), "--runs", str(folder / "runs"))
    run_study("udl11", "--scale", "smoke", "--device", "cpu", *where)
    return folder


def tables_of(folder):
    return {
        stem: read_table(folder / f"{stem}.csv")
        for stem in (*STEMS, "runs", "epochs")
        if (folder / f"{stem}.csv").is_file()
    }


def check_page(folder, study):
    """Every verdict and every sentence with a number follows from the tables."""
    page, tables = (folder / "README.md").read_text(), tables_of(folder)
    rows = {stem: table.rows for stem, table in tables.items()}
    verdicts = judged.verdicts(tables)
    kept = read_table(folder / "claims.csv").rows
    assert [row["outcome"] for row in kept] == [row["outcome"] for row in verdicts]
    assert [row["here"] for row in kept] == [row["here"] for row in verdicts]
    for text in (
        words.shattered_text(rows), words.notebook_text(rows), words.growth_text(rows), words.deeper_text(rows, study),
        words.parameters_text(rows), claims.tally(verdicts), claims.listing(verdicts),
    ):  # fmt: skip
        assert text in page
    for stem in (*tables, "claims"):
        assert page.count(f"({stem}.csv)") == 1
    for stem in FIGURES + (("errors",) if "runs" in tables else ()):
        assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert f"]({stem}.png)" in page


@pytest.mark.slow
def test_the_page_is_made_from_its_tables(done):
    check_page(done / "out", common.setting("udl11", "x", ["--scale", "smoke"]))
    assert str(done) not in (done / "out" / "README.md").read_text()
    runs = read_table(done / "out" / "runs.csv").rows
    for row in runs:
        (test,) = [one for one in read_table(done / "runs" / row["run"] / "result.csv").rows if one["split"] == "test"]
        assert row["test_error"] == test["error"]
    assert {row["network"] for row in runs} == {"plain20", "resnet20"}


def test_the_committed_page_is_made_from_its_tables():
    check_page(COMMITTED, common.setting("udl11", "x", ["--scale", "cpu"]))


def test_without_trainings_the_page_says_so():
    study = common.setting("udl11", "x", ["--scale", "cpu"])
    assert words.deeper_text({}, study).startswith("Not run yet.")
    assert trained.finished([trained.Training("plain20-seed0", "plain20", 0, ())], study.__class__(
        **{**vars(study), "runs": ROOT / "tests"}
    )) == {}  # fmt: skip
    runs = [
        {"shortcuts": False, "layers": layers, "seed": seed, "test_error": error}
        for layers, seed, error in ((20, 0, 0.1), (56, 0, 0.15), (20, 1, 0.1), (56, 1, 0.2), (56, 2, 0.9))
    ]
    assert trained.differences(runs, False, "test_error") == pytest.approx([0.05, 0.1])
    assert trained.differences(runs, True, "test_error") == []


# Shattered gradients


@pytest.mark.parametrize("constant", [True, False])
def test_gradients_are_those_of_differences(constant):
    spec = nets.Scalar("n", 3, norm=True, residual=True, share=0.5, constant=constant)
    model = shattered.drawn(spec, 0, width=6)
    x = torch.linspace(-1.2, 1.3, 7, dtype=torch.float64)[:, None] ** 3  # none is the mean, where a ReLU switches
    given = shattered.gradient(model, x)
    if constant:  # the statistics of this batch, as numbers
        for module in list(model.modules()):
            if isinstance(module, nets.BatchNorm):
                seen = []
                hook = module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                model(x)
                hook.remove()
                mean, deviation = seen[0].mean(0), (seen[0].var(0, correction=0) + 1e-5).sqrt()
                module.forward = lambda y, mean=mean, deviation=deviation: (y - mean) / deviation
    step = 1e-6
    for place in range(len(x)):
        moved = torch.zeros_like(x)
        moved[place] = step
        with torch.no_grad():
            difference = (model(x + moved) - model(x - moved)).sum() / (2 * step)
        assert given[place] == pytest.approx(float(difference), rel=1e-5, abs=1e-8)


def test_autocorrelations_are_those_of_the_definition():
    values = np.random.default_rng(0).normal(1.0, 1.0, 20).cumsum()
    centred = values - values.mean()
    for series, given in (
        (centred, shattered.autocorrelation(values)),
        (values, shattered.autocorrelation(values, centred=False)),
    ):
        assert given is not None
        assert len(given) == 11
        whole = sum(value * value for value in series)
        for lag in range(11):
            product = sum(series[place] * series[place + lag] for place in range(20 - lag))
            assert given[lag] == pytest.approx(product / whole)
    assert shattered.autocorrelation(np.full(9, 0.3)) is None
    assert shattered.pieces(np.array([1.0, 1.0, 2.0, 2.0, 1.0])) == 3


def test_without_later_biases_the_weights_only_scale():
    _, _, first, both = (replace(variant, depth=12) for variant in shattered.VARIANTS)
    x = shattered.inputs()
    # the notebook's first weights and biases have variance 1/200, of which only their ratio matters
    one, other = (shattered.gradient(shattered.drawn(spec, 3, width=30), x) for spec in (first, both))
    assert one / np.abs(one).max() == pytest.approx(other / np.abs(other).max())
    assert np.abs(other).max() / np.abs(one).max() == pytest.approx(2**6)  # the root of 2 for each of twelve maps


def test_layer_profiles_split_the_mean_square():
    model = shattered.drawn(replace(shattered.NOTEBOOK, depth=3), 0, width=9)
    x = shattered.inputs()
    profile = shattered.layer_profile(model, x)
    assert len(profile) == 3
    for layer, (signal, rest, switching) in enumerate(profile):
        entering = model[: 2 * layer + 1](x).detach()
        assert signal + rest == pytest.approx(float(entering.square().mean()))
        signs = [len({bool(value > 0) for value in unit}) == 2 for unit in entering.T]
        assert switching == pytest.approx(np.mean(signs))


# Growth


def test_walks_are_those_of_a_loop():
    torch.manual_seed(0)
    model = nets.residual_mlp(7, 3, norm=True, scale=0.7)
    x, cotangent = torch.randn(11, 7, dtype=torch.float64), torch.randn(11, 7, dtype=torch.float64)
    walked = growth.walk(pathlens.find_blocks(model, x[:4]), x.clone(), cotangent)
    places, branches = [x.clone().requires_grad_()], []
    for block in list(model)[:-1]:
        branches.append(block.branch(places[-1]))
        places.append(0.7 * (places[-1] + branches[-1]))
    gradients = torch.autograd.grad((model[-1](places.pop()) * cotangent).sum(), places)
    assert walked.gradients == pytest.approx([float(one.square().mean()) for one in gradients])
    for (variance, square), branch in zip(walked.branches, branches, strict=True):
        values = branch.detach().numpy()
        assert variance == pytest.approx(np.mean([np.var(unit) for unit in values.T]))
        assert square == pytest.approx(np.mean([np.mean(unit) ** 2 for unit in values.T]))
    for given, place in zip(walked.moments, places, strict=True):
        values = place.detach().numpy()
        assert given[:2] == pytest.approx([np.mean(values**2), np.var(values)])
        assert given[2] + given[3] == pytest.approx(given[0])


def test_walks_see_what_signal_propagation_sees():
    torch.manual_seed(0)
    view = pathlens.find_blocks(nets.residual_mlp(7, 4, norm=True), torch.zeros(2, 7, dtype=torch.float64))
    x, cotangent = torch.randn(2, 11, 7, dtype=torch.float64)
    walked = growth.walk(view, x.clone(), cotangent)
    batches = [(x, torch.zeros(11, dtype=torch.long))]
    table = pathlens.signal_propagation(view, batches, given=True, loss=lambda out, _: (out * cotangent).sum(1))
    names = ("second_moment", "variance", "channel_variance", "squared_mean")
    for row in table.rows:
        if row["place"] == "shortcut":
            assert walked.moments[row["block"]] == pytest.approx([row[name] for name in names])
        if row["place"] == "branch":
            assert walked.branches[row["block"]] == pytest.approx([row["channel_variance"], row["squared_mean"]])
        if row["place"] == "sum" and row["block"] < 3:  # where the next block begins
            assert walked.gradients[row["block"] + 1] == pytest.approx(row["gradient_second_moment"])


def test_plain_layers_are_walked_too():
    torch.manual_seed(0)
    model = nets.plain_mlp(6, 3)
    x, cotangent = torch.randn(9, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    walked = growth.walk(pathlens.find_layers(model, x[:4]), x.clone(), cotangent)
    places = [x.clone().requires_grad_()]
    for layer in list(model)[:-1]:
        places.append(layer(places[-1]))
    gradients = torch.autograd.grad((model[-1](places.pop()) * cotangent).sum(), places)
    assert walked.gradients == pytest.approx([float(one.square().mean()) for one in gradients])
    assert walked.moments[:, 0] == pytest.approx([float(one.detach().square().mean()) for one in places])


def test_rates_of_powers_are_their_bases():
    powers = 3.0 ** np.arange(6)
    moments = np.stack([powers, powers, 2.0 * np.arange(6), powers], axis=1)
    case = replace(growth.RESIDUAL, name="n")
    (row,) = growth.rate_rows(case, [growth.Walk(moments, 1 / powers, np.array([[1.0, 2.0], [3.0, 4.0]]))])
    assert (row["forward"], row["backward"], row["unit_variance_slope"]) == pytest.approx((3, 3, 2))
    assert (row["branch_unit_variance"], row["branch_unit_mean_square"]) == (2, 3)


# Verdicts


def test_verdicts_need_an_interval():
    assert claims.near(0.95, 1.05, 1, 0.1) == claims.AGREES
    assert claims.near(1.05, 1.15, 1, 0.1) == claims.CANNOT_TELL
    assert claims.near(1.11, 1.15, 1, 0.1) == claims.near(0.8, 0.89, 1, 0.1) == claims.DISAGREES
    assert claims.near(None, None, 1, 0.1) == claims.CANNOT_TELL
    claim = claims.Claim("c", "c", "c", "c", "c")
    assert judged.compared(claim, "n", [1.0, 1.0], 1.0, 0.1)["outcome"] == claims.CANNOT_TELL  # two networks
    assert judged.compared(claim, "n", [1.0, 1.01, 0.99], 1.0, 0.1)["outcome"] == claims.AGREES
    one, other = (dict(enumerate(values)) for values in ([1.0, 1.1, 0.9], [3.0, 3.15, 2.9]))
    assert judged.difference(claim, "n", one, other, -1)["outcome"] == claims.AGREES
    assert judged.difference(claim, "n", one, other, 1)["outcome"] == claims.DISAGREES
    assert judged.difference(claim, "n", one, {0: 1.05, 1: 1.1, 2: 0.95}, 1)["outcome"] == claims.CANNOT_TELL
    # of several rows one that is shown by itself alone is not shown
    weak = [1.0, 1.1, 0.9, 1.05], [1.15, 1.4, 1.1, 1.13]
    alike = {0: 1.05, 1: 1.0, 2: 0.95}
    rows = [
        judged.difference(claim, "n", *(dict(enumerate(values)) for values in weak), -1),
        *(judged.difference(claim, "n", one, alike, -1) for _ in range(2)),
    ]
    p = stats.ttest_rel(*weak).pvalue
    assert p < 0.05 < 3 * p
    assert rows[0]["outcome"] == claims.AGREES
    found = claims.corrected([*rows, judged.difference(claim, "n", one, {0: 1.0, 7: 9.0}, -1)])
    assert found[0]["p"] == pytest.approx(3 * p)
    assert {row["outcome"] for row in found} == {claims.CANNOT_TELL}
    assert found[-1]["p"] is None
    assert claims.corrected([judged.difference(claim, "n", one, other, 1)])[0]["outcome"] == claims.DISAGREES
    # what is no pair of one seed is left out
    found = judged.difference(claim, "n", {**one, 3: 9.0}, {**other, 4: -9.0}, -1)
    assert (found["seeds"], found["value"]) == (3, pytest.approx(np.mean(list(one.values())) - 9.05 / 3))


def test_means_are_corrected_over_the_rows_of_their_claim():
    verdicts = judged.verdicts(tables_of(COMMITTED))
    networks = read_table(COMMITTED / "autocorrelation-networks.csv").rows
    ps = {}
    for name, given in judged.GIVEN.items():
        for lag, expected in zip(shattered.LAGS, given, strict=True):
            values = [row[f"lag_{lag}"] for row in networks if row["network"] == name]
            bounds = expected - 0.1, expected + 0.1
            ps[f"{name}, lag {lag}"] = max(stats.ttest_1samp(values, bound).pvalue for bound in bounds)
    found = {row["network"]: row["p"] for row in verdicts if row["claim"] == judged.NUMBERS.name}
    assert found == pytest.approx(dict(zip(ps, holm(list(ps.values())), strict=True)))
    alone = {judged.HALVES.name, judged.LINEAR.name, judged.LINEAR_UNIT.name, judged.LAYER.name, judged.COUNT.name}
    for row in verdicts:
        assert row["here"].count("Holm") == (row["claim"] not in alone), row["here"]


def test_trainings_that_have_only_begun_are_held_against_no_source():
    runs = [
        {"shortcuts": residual, "layers": layers, "seed": seed, "test_error": error, "train_error": error, "epochs": 0}
        for residual in (False, True)
        for layers, error in ((20, 0.1), (56, 0.2))
        for seed in range(3)
    ]
    for epochs, theirs in ((12, False), (trained.EPOCHS_OF_PAPER, True)):
        columns = [Column(name, "", "") for name in runs[0]]
        table = Table(tuple(columns), tuple({**run, "epochs": epochs} for run in runs), {})
        sources = {row["source"] for row in judged._trained({"runs": table})}
        assert sources == ({judged.DEEP_PLAIN.source, judged.DEEP_RESIDUAL.source} if theirs else {claims.OURS})


def test_blocks_to_count_run():
    for build, shape in ((nets.convolutions((8, 2, 2, 8), (1, 3, 1)), (2, 8, 4, 4)), (nets.ten_layers(True), (3, 1))):
        assert isinstance(build, nn.Sequential)
        assert build(torch.randn(shape)).shape == shape
