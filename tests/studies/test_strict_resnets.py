"""The study of strict residual networks at a size that tests can afford, and its measures by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

import pathlens
from pathlens.metrics import holm
from pathlens.models import strictunet
from pathlens.tables import read_table
from studies.common import setting
from studies.record import make_table
from studies.strict_resnets import judged, nets, shares, trained
from studies.strict_resnets.checkerboard import counted, counted_backward, stride_power, subkernels
from tests.helpers.study_modules import ROOT, run_study

STEMS = ("shares", "shares-networks", "costs", "runs", "epochs", "subkernels", "checkerboards")


@pytest.mark.slow
def test_smoke(tmp_path):
    where = ("--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"))
    run_study("strict_resnets", "--scale", "smoke", "--device", "cpu", *where)
    out = tmp_path / "out"
    page, tables = (out / "README.md").read_text(), {stem: read_table(out / f"{stem}.csv") for stem in STEMS}
    assert str(tmp_path) not in page
    verdicts = judged.verdicts(tables)
    kept = read_table(out / "claims.csv").rows
    assert [(row["here"], row["outcome"]) for row in kept] == [(row["here"], row["outcome"]) for row in verdicts]
    for row in kept:  # one seed tells nothing; what is counted is exact
        assert row["outcome"] == ("agrees" if row["claim"] == judged.SUBKERNELS.name else "cannot tell")
    for stem in (*STEMS, "claims"):
        assert page.count(f"({stem}.csv)") == 1
    # the best constant answer is that for the images that a training saw
    study = setting("strict_resnets", "x", ["--scale", "smoke", *where])
    for training in trained.trainings(study):
        known = read_table(tmp_path / "runs" / training.name / "history.csv").provenance
        assert trained.trained_on(training.part, study).fingerprint == known["train_sha256"]
    for stem in ("shares", "trainings", "checkerboards"):
        assert (out / f"{stem}.png").stat().st_size > 10_000


def test_claims_are_corrected_over_their_rows():
    tables = {stem: read_table(ROOT / "results" / "strict_resnets" / f"{stem}.csv") for stem in STEMS}
    verdicts = judged.verdicts(tables)
    for claim, norms, bounds in ((judged.VARIANCE, "block", (1.22,)), (judged.END, "end", (0.98, 1.02))):
        factors = {}
        for row in tables["shares-networks"].rows:
            if row["norms"] == norms:
                factors.setdefault(f"{row['network']}, {row['init']}", []).append(row["factor"])
        ps = [max(stats.ttest_1samp(values, bound).pvalue for bound in bounds) for values in factors.values()]
        found = {row["network"]: row["p"] for row in verdicts if row["claim"] == claim.name}
        assert found == pytest.approx(dict(zip(factors, holm(ps), strict=True)))
    (wide,) = [row for row in verdicts if row["claim"] == judged.WIDE.name]
    assert "Holm" not in wide["here"] + wide["test"]
    for row in verdicts:
        if row["claim"] == judged.SUBKERNELS.name:
            assert (row["p"], row["outcome"]) == (None, "agrees")
        else:
            assert (row["p"] is not None and row["p"] < 0.05) == (row["outcome"] != "cannot tell")


@pytest.mark.parametrize("norms", ["end", "block"])
def test_a_row_of_blocks_is_broken_up_as_decompose_does(norms):
    images = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    net = strictunet((3,), 4, 5, norms=norms).double()
    pathlens.initialise(net, "glorot-uniform", example=images)
    table = pathlens.decompose(net, [(images, torch.zeros(3, 6, 6, dtype=torch.long))], mode="train")
    expected = [row for row in table.rows if row["block"] is not None]
    if norms == "block":  # the last sum of `decompose` is that before the norm behind it
        net.down[0] = net.down[0][:-1]
    own = shares.moments(shares.broken_up(net, images))
    assert [one["share"] for one in own] == pytest.approx([row["share"] for row in expected], rel=1e-9)
    ratios = [math.exp(one["log_variance_ratio"]) for one in own]
    assert ratios == pytest.approx([row["variance_ratio"] for row in expected], rel=1e-9)


@pytest.mark.parametrize("norms", ["each", "end", "block"])
def test_the_summands_of_a_unet_add_up_and_are_those_of_the_network(norms):
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    net = strictunet((1, 1, 2), 4, 5, norms=norms).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    last = []
    net.norm.register_forward_pre_hook(lambda _, given: last.append(given[0]))
    with torch.no_grad():
        stack = shares.broken_up(net, images)
        net(images)
        torch.testing.assert_close(stack.sum(0), last[0])
        assert len(stack) == 1 + 6
        if norms == "end":  # without norms on the way, the stem's summand is what is left without branches
            for level in (*net.down, *net.up):
                for place in range(len(level)):
                    level[place] = nn.Identity()
            net(images)
            torch.testing.assert_close(stack[0], last[1])


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (5, 2), (5, 3), (7, 4), (1, 2)])
def test_sizes_of_subkernels(kernel, stride):
    places = [0] * stride**2
    for row in range(kernel):
        for column in range(kernel):
            places[row % stride * stride + column % stride] += 1
    assert subkernels(kernel, stride) == sorted(places) == counted(kernel, stride) == counted_backward(kernel, stride)


def test_power_at_the_frequency_of_the_stride():
    torch.manual_seed(0)
    noise = torch.randn(20, 4, 24, 24, dtype=torch.float64)
    excess, share = stride_power(noise)
    assert abs(excess) < 0.5
    assert share == pytest.approx(27 / 24**2, rel=0.1)  # three frequencies of nine bins
    board = torch.ones(24, 24).double()
    board[::2, ::2] = 2
    assert stride_power(noise + 4 * board)[0] > 15
    assert stride_power(board[None, None])[1] == pytest.approx(1)
    both = noise + board
    assert stride_power(3 * both + 7) == pytest.approx(stride_power(both))  # neither contrast nor brightness counts
    thirds = torch.zeros(24, 24).double()
    thirds[::3, ::3] = 1
    assert stride_power(thirds[None, None], 3)[1] == pytest.approx(1)
    assert stride_power(thirds[None, None], 2)[1] < 0.01


def test_a_plateau_ends_where_the_loss_is_below_a_constant_answer():
    def history(*losses):
        columns = (("step", "", ""), ("train_loss", "", ""))
        return make_table(columns, [{"step": 8 * epoch, "train_loss": loss} for epoch, loss in enumerate(losses, 1)])

    assert trained.plateau(history(2.0, 0.91, 0.89, 0.95), 1.0) == (24, True)
    assert trained.plateau(history(2.0, 0.95), 1.0) == (16, False)
    data = pathlens.open_data("digit-scenes", limit=3)
    labels = torch.stack([data.batch(0, 3).labels]).flatten()
    logits = torch.bincount(labels, minlength=nets.CLASSES).double().log().expand(len(labels), -1)
    assert trained.constant_loss(data) == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_factor_of_a_geometric_row():
    rows = [{"share": 0.5, "log_variance_ratio": 0.0}]
    rows += [{"share": 0.1, "log_variance_ratio": -3 + 0.25 * block} for block in range(5)]
    summary = shares._summary(rows)
    assert summary["factor"] == pytest.approx(math.exp(0.25))
    assert (summary["blocks"], summary["r_squared"]) == (5, pytest.approx(1))
    assert summary["first_share"] == pytest.approx(0.2)  # two of five blocks


@pytest.mark.parametrize("scale", ["smoke", "cpu", "paper"])
def test_every_network_has_a_name(scale, tmp_path):
    study = setting("strict_resnets", "x", ["--scale", scale, "--out", str(tmp_path)])
    wanted = trained.trainings(study)
    assert {one.network for one in wanted} <= nets.NETWORKS.keys() & vars(nets).keys()
    assert len({one.name for one in wanted}) == len(wanted)
    assert not any(argument.startswith("/") for one in wanted for argument in one.arguments)


def test_a_network_of_another_cost_is_refused(monkeypatch, tmp_path):
    study = setting("strict_resnets", "x", ["--scale", "smoke", "--out", str(tmp_path)])
    monkeypatch.setattr(trained, "SAME", 1e-3)
    with pytest.raises(SystemExit, match=r"bottom1x4_each has 1\.00 times the multiply-adds of bottom20x2_each"):
        trained.costs(study)
