"""The study of networks without normalisation at a size that tests can afford, and its rules on numbers by hand."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

import pathlens
from pathlens.metrics import holm, sample_interval
from pathlens.tables import Column, Table, read_table
from studies import common
from studies.civitelli2021 import judged, kinds, profiles, signals, trained
from tests.helpers.study_modules import ROOT, run_study

TABLES = {
    "costs": {"parameters", "parameters_stated", "gflops", "gflops_stated"},
    "signals-tiny18": {"network", "block", "place", "second_moment", "gradient_second_moment", "growth"},
    "runs": {"run", "kind", "seed", "diverged", "train_error", "test_error", "lost", "gained"},
    "epochs": {"kind", "epoch", "train_loss", "train_loss_low", "validation_error"},
    "profiles": {"kind", "epoch", "seed", "mean_length", "share_length", "expected_length", "first", "last"},
    "lengths": {"kind", "length", "total_share"},
    "lengths-trained": {"kind", "epoch", "length", "total_share"},
    "claims": {"claim", "source", "rule", "test", "outcome"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of one smoke run: page and tables in ``out``, trained networks in ``runs``."""
    folder = tmp_path_factory.mktemp("civitelli")
    where = ("--out", str(folder / "out"), "--runs", str(folder / "runs"))
    run_study("civitelli2021", "--scale", "smoke", "--device", "cpu", "--jobs", "1", *where)
    return folder


@pytest.mark.slow
def test_it_writes_page_tables_and_figures(done):
    page = (done / "out" / "README.md").read_text()
    assert str(done) not in page
    for title in ("**Question.**", "**Protocol.**", "## Trainings", "## Lengths of paths in training", "## What was"):
        assert title in page
    for stem, columns in TABLES.items():
        assert columns <= set(read_table(done / "out" / f"{stem}.parquet").names)
        assert page.count(f"({stem}.csv)") == 1
    for stem in ("signals-tiny18", "epochs", "profiles", "expected", "moving"):
        assert (done / "out" / f"{stem}.png").stat().st_size > 10_000
        assert f"]({stem}.png)" in page
    for file in (done / "out").glob("*.json"):
        assert str(done) not in file.read_text()


@pytest.mark.slow
def test_numbers_are_those_of_the_runs(done):
    rows = {row["run"]: row for row in read_table(done / "out" / "runs.parquet").rows}
    assert len(rows) == len(kinds.KINDS)
    run = done / "runs" / "tiny18-plain-scaled-ws-seed0"
    (test,) = [row for row in read_table(run / "result.csv").rows if row["split"] == "test"]
    assert rows[run.name]["test_error"] == test["error"]
    for row in rows.values():
        if not row["diverged"]:
            beside = rows["tiny18-batchnorm-seed0"]["test_error"]
            assert row["lost"] - row["gained"] == round((row["test_error"] - beside) * row["test_images"])
    loaded = pathlens.load_model(kinds.spec("tiny18", kinds.STANDARDISED), run / "epochs" / "epoch-002.safetensors")
    data = pathlens.open_data("digits", limit=8)
    table = pathlens.path_gradients(
        loaded.model, data, method="exact", mode="train", batch_size=8, mean=loaded.mean, std=loaded.std
    )
    squares = {row["length"]: row["total_norm"] ** 2 for row in table.rows}
    mean = sum(length * square for length, square in squares.items()) / sum(squares.values())
    (own,) = [
        row
        for row in read_table(done / "out" / "profiles.parquet").rows
        if (row["kind"], row["epoch"], row["expected_length"]) == (kinds.STANDARDISED.name, 2, None)
    ]
    assert own["mean_length"] == pytest.approx(mean, rel=1e-5)
    agreed = {row["network"]: row["outcome"] for row in read_table(done / "out" / "claims.parquet").rows}
    assert {agreed[f"nfresnet18, {kind}"] for kind in ("batch norm", "ConvShort", "IdShort")} == {"agrees"}
    told = [row for row in read_table(done / "out" / "claims.parquet").rows if row["claim"] != "sizes"]
    assert {row["outcome"] for row in told} == {"cannot tell"}  # fewer than three seeds


@pytest.mark.parametrize("kind", [kinds.PLAIN, kinds.CONVSHORT, kinds.IDSHORT], ids=lambda kind: kind.name)
def test_expected_lengths_by_autograd(kind):
    data = pathlens.open_data("digits", limit=8)
    view = kinds.fresh("tiny18", kind, 3, data.batch(0, 2).images)
    batch, model = data.batch(0, 8), view.model.train()
    x = [model.stem(batch.images)]
    for block in model.blocks:
        x.append(block(x[-1]))
    loss = F.cross_entropy(model.linear(F.relu(x[-1]).mean((2, 3))), batch.labels, reduction="sum")
    squares = [float(gradient.square().sum()) for gradient in torch.autograd.grad(loss, x)]
    wanted = sum(1 - kind.factor * squares[i + 1] / squares[i] for i in range(len(squares) - 1))
    assert profiles.expected_length(view, kind.factor, data) == pytest.approx(wanted, rel=1e-4)


def test_wide_networks_have_the_expected_mean_length():
    """Where paths are uncorrelated the two agree: linear blocks x + W x, many units, float64."""
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = torch.nn.Linear(200, 200, bias=False)
            torch.nn.init.normal_(self.map.weight, std=math.sqrt(0.5 / 200))

        def forward(self, x):
            return x + self.map(x)

    model = torch.nn.Sequential(*(Block() for _ in range(12)), torch.nn.Linear(200, 10)).double()
    view = pathlens.find_blocks(model, torch.randn(2, 200).double())
    batches = [(torch.randn(16, 200).double(), torch.zeros(16, dtype=torch.int64))]
    table = pathlens.path_gradients(view, batches, method="exact")
    norms = [row["total_norm"] ** 2 for row in table.rows]
    # b = 1/2 beside a = 1: a third of the blocks
    assert profiles.mean_length([row["length"] for row in table.rows], norms) == pytest.approx(12 / 3, rel=0.05)


def test_a_training_that_diverges_is_a_result_where_it_may(tmp_path):
    study = common.StudySetting("civitelli2021", "smoke", tmp_path / "out", tmp_path / "runs", "cpu", 1)
    (one, *_) = [one for one in trained.trainings(study) if one.kind is kinds.BROCK]
    arguments = (*one.arguments, "--lr", "1e30")
    done = common.train_all({one.name: arguments}, study, may_diverge=True)
    assert "NaN or infinite" in (done[one.name] / common.DIVERGED).read_text()
    (row,) = trained.run_rows(study, "digits", [one], done)
    assert (row["diverged"], row["test_error"], row["lost"]) == (True, None, None)
    assert trained.epoch_rows([one], done) == []
    with pytest.raises(SystemExit, match="NaN or infinite"):
        common.train_all({one.name: arguments}, study)


def grown(*arguments, **more):
    return judged_growth(*arguments, **more).outcome


def judged_growth(claim, forward, backward, seeds=3):
    names = {"growth": forward, "gradient_growth": backward}
    row = {
        f"{name}{end}": value
        for name, three in names.items()
        for end, value in zip(("", "_low", "_high"), three, strict=True)
    }
    return judged._grown(claim, {**row, "seeds": seeds}, 10)


def test_verdicts_on_growth():
    up, flat, wide, none = (3.0, 2.5, 3.5), (1.0, 0.95, 1.05), (1.0, 0.8, 1.2), (None, None, None)
    down = (0.9, 0.88, 0.92)  # of ten blocks the last has at most 0.92^10 = 0.43 of what the first has
    kept = judged_growth(judged.KEEPS, flat, down)
    assert kept.outcome == "disagrees"
    assert (kept.value, kept.low) == pytest.approx((1.0, 0.95**10))
    assert "backward 0.349 over 10 blocks (0.279 to 0.434)" in kept.here
    assert "backward 0.9 a block" in judged_growth(judged.EXPLODES, flat, down).here
    assert grown(judged.EXPLODES, up, up) == grown(judged.KEEPS, flat, flat) == "agrees"
    assert grown(judged.EXPLODES, up, flat) == grown(judged.KEEPS, flat, up) == "disagrees"
    assert grown(judged.EXPLODES, up, none) == grown(judged.KEEPS, flat, wide) == "cannot tell"
    assert grown(judged.EXPLODES, up, up, seeds=2) == "cannot tell"
    # 0.925^10 = 0.46 is outside, and inside of the interval with half of the level for each direction
    assert grown(judged.KEEPS, flat, (0.9, 0.88, 0.925)) == "cannot tell"


def test_the_p_value_of_growth_is_that_of_its_logarithm():
    def three(slopes):
        return [math.exp(value) for value in (statistics.fmean(slopes), *sample_interval(slopes))]

    def ps(bounds, *directions):
        return [max(stats.ttest_1samp(slopes, bound).pvalue for bound in bounds) for slopes in directions]

    up = [0.5, 0.55, 0.6], [0.3, 0.32, 0.37]
    kept = [0.0, 0.002, -0.003], [0.01, 0.012, 0.009]
    grows, keeps = (math.log(1.1),), (-math.log(2) / 10, math.log(2) / 10)  # of ten blocks
    explodes = judged_growth(judged.EXPLODES, *map(three, up))
    assert (explodes.outcome, explodes.p) == ("agrees", pytest.approx(max(ps(grows, *up))))
    for claim, slopes, bounds in ((judged.EXPLODES, kept, grows), (judged.KEEPS, up, keeps)):
        found = judged_growth(claim, *map(three, slopes))
        assert (found.outcome, found.p) == ("disagrees", pytest.approx(2 * min(ps(bounds, *slopes))))
    keeping = judged_growth(judged.KEEPS, *map(three, kept))
    assert (keeping.outcome, keeping.p) == ("agrees", pytest.approx(max(ps(keeps, *kept))))


def test_claims_are_corrected_over_their_rows():
    folder = ROOT / "results" / "civitelli2021"
    tables = {stem: read_table(folder / f"{stem}.csv") for stem in ("costs", "runs", "profiles")}
    verdicts = judged.verdicts(tables)
    off = {}
    for row in tables["profiles"].rows:
        if row["expected_length"] is not None and row["kind"] != kinds.LEARNSCALAR.name:
            gap = (row["mean_length"] - row["expected_length"]) / row["blocks"]
            off.setdefault(f"{row['network']}, {row['kind']}", []).append(gap)
    ps = [max(stats.ttest_1samp(gaps, bound).pvalue for bound in (-0.05, 0.05)) for gaps in off.values()]
    found = {row["network"]: row["p"] for row in verdicts if row["claim"] == judged.GROWTH.name}
    assert found == pytest.approx(dict(zip(off, holm(ps), strict=True)))
    alone = (judged.FAILS, judged.COMPETES, judged.SCALE_END, judged.SHORTCUT_END, judged.COSTS)
    for row in verdicts:
        assert row["here"].count("Holm") == (row["claim"] not in [claim.name for claim in alone]), row["here"]


def test_verdicts_on_errors():
    def runs(kind, errors, lost=None, gained=None, images=1000):
        return [
            {"network": "n", "kind": kind.name, "seed": seed, "diverged": error is None, "test_error": error,
             "test_images": images, "lost": lost, "gained": gained}
            for seed, error in enumerate(errors)
        ]  # fmt: skip

    rows = [
        *runs(kinds.BROCK, (None, None, None)),
        *runs(kinds.IDSHORT, (0.5, 0.51, 0.52)),
        *runs(kinds.LEARNSCALAR, (0.5, 0.9, 0.7)),
        *runs(kinds.CONVSHORT, (0.40, 0.41, 0.42)),
        *runs(kinds.BATCH_NORM, (0.41, 0.42, 0.43)),
    ]
    found = {(row["claim"], row["network"]): row for row in judged._errors(rows)}
    # three that diverge alike have no spread, and so no interval
    assert found[judged.FAILS.name, "n, plain, Brock"]["outcome"] == "cannot tell"
    assert found[judged.FAILS.name, "n, plain, Brock"]["value_low"] is None
    assert "3 diverged" in found[judged.FAILS.name, "n, plain, Brock"]["here"]
    assert found[judged.TRAINS.name, "n, IdShort"]["outcome"] == "agrees"
    assert found[judged.TRAINS.name, "n, LearnScalar"]["outcome"] == "cannot tell"
    assert found[judged.COMPETES.name, "n"]["value"] == pytest.approx(-0.01)
    assert found[judged.COMPETES.name, "n"]["outcome"] == "cannot tell"  # which images are lost is not known

    plain = runs(kinds.PLAIN, (0.46, 0.44, 0.48))
    (told,) = judged.beside_plain([*rows, *plain])
    assert "which ends at 46.0%" in told
    assert "IdShort +5.00 points (+" in told  # 4, 7 and 4 points
    assert "ConvShort -5.00 points (-" in told

    def competes(images, lost, gained):
        conv = runs(kinds.CONVSHORT, (0.40, 0.41, 0.421), lost, gained, images)
        rows = [*conv, *runs(kinds.BATCH_NORM, (0.41, 0.42, 0.43), images=images)]
        (row,) = [one for one in judged._errors([*rows, *runs(kinds.BROCK, (0.5,)), *others]) if one["claim"] == name]
        return row

    name = judged.COMPETES.name
    others = [one for kind in kinds.SCHEMES[:2] for one in runs(kind, (0.5,))]
    many, few = competes(100_000, 3000, 4000), competes(100, 20, 21)
    assert many["value"] == few["value"] == pytest.approx(-0.029 / 3)
    assert (many["outcome"], few["outcome"]) == ("agrees", "cannot tell")  # few images: the same errors tell nothing
    assert few["value_low"] < many["value_low"] < many["value"] < many["value_high"] < few["value_high"]


def lengths(kind, values, epoch=0, expected=None):
    return [
        {"network": "n", "kind": kind.name, "seed": seed, "epoch": epoch, "blocks": 10, "mean_length": value,
         "expected_length": expected}
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_verdicts_on_lengths():
    def outcome(rows):
        (row,) = rows
        return row["outcome"]

    assert outcome(judged._growth(lengths(kinds.PLAIN, (5.0, 5.1, 5.2), expected=5.05))) == "agrees"
    assert outcome(judged._growth(lengths(kinds.PLAIN, (5.0, 5.1, 5.2), expected=3.0))) == "disagrees"
    assert outcome(judged._growth(lengths(kinds.PLAIN, (4.0, 5.1, 6.2), expected=5.05))) == "cannot tell"
    two = [*lengths(kinds.CONVSHORT, (7.0, 7.1, 7.2)), *lengths(kinds.IDSHORT, (5.0, 5.2, 5.1))]
    assert outcome(judged._between(judged.SHORTCUT_START, two, kinds.CONVSHORT, kinds.IDSHORT)) == "agrees"
    assert outcome(judged._between(judged.SHORTCUT_START, two, kinds.IDSHORT, kinds.CONVSHORT)) == "disagrees"
    assert outcome(judged._between(judged.SCALE_START, two, kinds.IDSHORT, kinds.CONVSHORT, within=True)) == "disagrees"
    alone = two[:3]
    assert outcome(judged._between(judged.SCALE_END, alone, kinds.CONVSHORT, kinds.IDSHORT)) == "cannot tell"
    shorter = [*lengths(kinds.PLAIN, (5.0, 5.1, 5.2)), *lengths(kinds.PLAIN, (4.0, 4.11, 4.21), epoch=9)]
    assert outcome(judged._shortens(shorter)) == "agrees"
    noisy = [*lengths(kinds.PLAIN, (5.0, 5.1, 5.2)), *lengths(kinds.PLAIN, (4.0, 6.11, 5.21), epoch=9)]
    assert outcome(judged._shortens(noisy)) == "cannot tell"


def test_tables_of_several_networks_as_one():
    columns = (Column("network", "", "which"), Column("block", "", "index"))
    part = Table(columns, ({"network": "NFResNet", "block": 0},), {"warnings": ["overflows"]})
    whole = signals.together([part, part], ["one", "two"])
    assert [row["network"] for row in whole.rows] == ["one", "two"]
    assert whole.provenance["warnings"] == ["one: overflows", "two: overflows"]
