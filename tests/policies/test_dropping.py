"""``blockdrop`` against plain forward passes, from Python and on the command line, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathlens
from pathlens import figures
from pathlens.cli import main
from pathlens.data import ImageData, open_data
from pathlens.data.images import Normalisation
from pathlens.data.sources import ArraySource
from pathlens.errors import DataError, ModelError, NumericsError, ResourceError, UsageError
from pathlens.metrics import holm, mcnemar_p, wilson_interval
from pathlens.models import preresnet, state_sha256
from pathlens.policies import BlockDrop, Settings, dropping
from pathlens.policies import network as policies
from pathlens.policies.network import PolicyNetwork
from pathlens.residual import ResidualView
from pathlens.results.blockdrop import bits, usage
from pathlens.tables import Column, Table, read_table
from tests.helpers.data_files import image_folder
from tests.helpers.nets_tokens import found

# networks are so small here that threads only wait for each other
pytestmark = pytest.mark.usefixtures("one_thread")

EXACT: dict[str, Any] = {"dtype": "float64", "engine": "plain", "batch_size": 16}


@pytest.fixture(scope="module")
def test() -> ImageData:
    return open_data("digits", limit=40)


@pytest.fixture(scope="module")
def train() -> ImageData:
    return open_data("digits", split="train", limit=48)


@pytest.fixture(scope="module")
def view(test: ImageData) -> ResidualView:
    """Six blocks, trained on few digits for a moment, so that blocks matter."""
    torch.manual_seed(2)
    model, batch = preresnet(14, in_channels=1, widths=(4, 6, 8)), open_data("digits", split="train").batch(0, 128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(batch.images), batch.labels).backward()
        optimizer.step()
    return pathlens.find_blocks(model.eval().double(), test.batch(0, 2, dtype=torch.float64).images)


@pytest.fixture(scope="module")
def policy(view: ResidualView) -> PolicyNetwork:
    """One that was not trained, with choices of two kinds; three of the blocks always run, and one never."""
    own = policies.fresh(view, 5)
    nn.init.normal_(own.network.linear.weight, std=2.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own.network.linear.bias.copy_(torch.tensor([99.0, 0.0, -99.0, 99.0, 0.3, 99.0]))
    return own.eval()


@pytest.fixture(scope="module")
def result(view: ResidualView, test: ImageData, train: ImageData, policy: PolicyNetwork) -> BlockDrop:
    return pathlens.blockdrop(view, test, train, policy=policy, samples=2, selection=16, **EXACT)


@pytest.fixture(scope="module")
def right(view: ResidualView, test: ImageData, result: BlockDrop) -> dict[tuple[int, ...], Tensor]:
    """Whether each image is classified correctly with some blocks alone, by plain forward passes."""
    batch = test.batch(0, test.n, dtype=torch.float64)
    fixed = [tuple(map(int, row["kept"].split(","))) for row in result.table.rows if row["kept"] is not None]
    chosen = [tuple(np.flatnonzero(bits(row["choice"])).tolist()) for row in result.choices.rows]
    answers = {}
    for kept in {tuple(range(6)), *fixed, *chosen}:
        with torch.no_grad(), pathlens.deleted(view, sorted(set(range(6)) - set(kept))) as model:
            answers[kept] = model(batch.images).argmax(1) == batch.labels
    return answers


def test_choices_are_those_of_the_policy_image_by_image(result, policy, right, test):
    batch = test.batch(0, test.n, dtype=torch.float64)
    with torch.no_grad():
        kept = policy(test.batch(0, test.n).images.double()) > 0
    assert len(kept.unique(dim=0)) > 1
    assert len(result.choices.rows) == test.n
    for image, row in enumerate(result.choices.rows):
        assert bits(row["choice"]) == kept[image].int().tolist()
        assert row["blocks"] == int(kept[image].sum())
        assert row["label"] == int(batch.labels[image])
        own = tuple(np.flatnonzero(kept[image]).tolist())
        assert row["correct"] == int(right[own][image])
        assert row["intact_correct"] == int(right[0, 1, 2, 3, 4, 5][image])
    assert usage(result.choices.rows) == pytest.approx(kept.double().mean(0).tolist())


def test_a_given_policy_stays_in_its_mode(view, test, train, policy):
    own = copy.deepcopy(policy).train()
    pathlens.blockdrop(view, test, train, policy=own, samples=2, selection=16, **EXACT)
    assert own.training
    assert all(module.training for module in own.modules())


def test_a_mean_over_all_sets_that_exist_has_no_interval(view, test, train, policy):
    for samples, is_sample in ((2, True), (20, False)):
        found = pathlens.blockdrop(view, test, train, policy=policy, samples=samples, selection=16, **EXACT)
        drawn = [row for row in found.table.rows if row["network"] == "random"]
        (mean,) = [row for row in drawn if row["sample"] is None]
        assert len(drawn) - 1 == (samples if is_sample else math.comb(6, len(drawn[0]["kept"].split(","))))
        assert (mean["error_low"] is not None) == is_sample


def test_rows_are_those_of_plain_forward_passes(result, right, view, policy):
    rows, images = result.table.rows, len(result.choices.rows)
    choices = [tuple(np.flatnonzero(bits(row["choice"])).tolist()) for row in result.choices.rows]
    chosen = torch.tensor([bool(right[own][image]) for image, own in enumerate(choices)])
    whole = tuple(range(6))
    assert [row["network"] for row in rows] == ["intact", "policy", "random", "random", "random", "single", "greedy"]
    kept = round(np.mean([len(own) for own in choices]))
    family = {}
    for row in rows:
        if row["network"] == "random" and row["sample"] is None:
            drawn = [other["error"] for other in rows if other["sample"] is not None]
            assert row["error"] == pytest.approx(np.mean(drawn))
            continue
        fixed = None if row["kept"] is None else tuple(map(int, row["kept"].split(",")))
        correct = chosen if row["network"] == "policy" else right[fixed or whole]
        runs = choices if row["network"] == "policy" else [fixed or whole] * images
        assert fixed is None or len(fixed) == kept
        assert row["error"] == 1 - int(correct.sum()) / images
        assert row["blocks"] == pytest.approx(np.mean([len(own) for own in runs]))
        assert row["blocks_sd"] == pytest.approx(np.std([len(own) for own in runs]))
        assert row["choices"] == len(set(runs))
        lost, gained = int((right[whole] & ~correct).sum()), int((~right[whole] & correct).sum())
        behind, before = int((chosen & ~correct).sum()), int((~chosen & correct).sum())
        if row["network"] != "intact":
            assert (row["lost"], row["gained"], row["p"]) == (lost, gained, mcnemar_p(lost, gained))
            family[fixed] = row["p"], row["p_holm"]
        if row["network"] != "policy":
            assert (row["policy_lost"], row["policy_gained"]) == (behind, before)
            assert row["policy_p"] == mcnemar_p(behind, before)
            assert row["policy_difference"] == pytest.approx((behind - before) / images)
        left_out = np.mean([sum(view[block].multiply_adds for block in range(6) if block not in own) for own in runs])
        own = pathlens.find_blocks(policy, torch.zeros(2, *view.input_shape).double()).totals.multiply_adds
        expected = view.totals.multiply_adds - left_out + (own if row["network"] == "policy" else 0)
        assert row["multiply_adds"] == pytest.approx(expected)
        assert (row["seconds"] is None) == (row["network"] not in ("intact", "policy"))
    single, corrected = zip(*family.values(), strict=True)
    assert list(corrected) == pytest.approx(holm(single))


def test_fixed_blocks_are_chosen_on_training_images(result, view, train):
    picked = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(train.n)[:16]))
    part = train.subset(picked, "train")
    by_network = {row["network"]: row["kept"] for row in result.table.rows}
    kept = len(by_network["greedy"].split(","))
    greedy = pathlens.delete_blocks_greedy(view, part, count=6 - kept, **EXACT).rows[-1]["blocks"]
    single = sorted(pathlens.delete_blocks(view, part, **EXACT).rows[1:], key=lambda row: (-row["error"], -row["loss"]))
    assert by_network["greedy"] == ",".join(str(b) for b in range(6) if str(b) not in greedy.split(","))
    assert by_network["single"] == ",".join(map(str, sorted(row["block"] for row in single[:kept])))


def test_classes_are_the_sums_of_images(result):
    images = result.choices.to_frame()
    for row in result.classes.rows:
        here = images[images.label == row["label"]]
        assert (row["n"], row["choices"]) == (len(here), here.choice.nunique())
        assert row["blocks"] == pytest.approx(here.blocks.mean())
        assert row["blocks_sd"] == pytest.approx(here.blocks.std(ddof=0))
        assert row["error"] == pytest.approx(1 - here.correct.mean())
        assert row["intact_error"] == pytest.approx(1 - here.intact_correct.mean())
        assert (row["error_low"], row["error_high"]) == wilson_interval(int((1 - here.correct).sum()), len(here))
    assert sum(row["n"] for row in result.classes.rows) == len(images)


def test_pictures_and_charts(result):
    assert len(figures.draw("blockdrop", result.table).axes) == 1
    left, right = figures.draw("blockdrop-choices", result.choices).axes
    assert sum(bar.get_height() for bar in left.patches) == len(result.choices.rows)
    assert [bar.get_height() / 100 for bar in right.patches] == pytest.approx(usage(result.choices.rows))


def test_tables_of_searches_stand_in_for_measuring(view, test, train, policy, result):
    single, greedy = pathlens.delete_blocks(view, test, **EXACT), pathlens.delete_blocks_greedy(view, test, **EXACT)
    kept = {row["network"]: row["kept"] for row in result.table.rows}["greedy"].split(",")
    more = {"policy": policy, "samples": 1, **EXACT}
    rows = pathlens.blockdrop(view, test, train, single=single, greedy=greedy, **more).table.rows
    deleted = greedy.rows[6 - len(kept)]["blocks"].split(",")
    assert rows[-1]["kept"] == ",".join(str(block) for block in range(6) if str(block) not in deleted)
    with pytest.raises(UsageError, match="single: a table of 0 blocks"):
        pathlens.blockdrop(view, test, train, single=greedy.__class__(single.columns, ()), **more)
    few = greedy.__class__(greedy.columns, greedy.rows[:1])
    with pytest.raises(UsageError, match="greedy: the table has no row of"):
        pathlens.blockdrop(view, test, train, single=single, greedy=few, **more)


def test_joint_training_leaves_the_network_that_was_given(view, test, train, tmp_path):
    before = state_sha256(view.model)
    settings = Settings(epochs=1, joint_epochs=1, batch_size=16, curriculum=0, joint_lr=1e-2)
    result = pathlens.blockdrop(
        view, test, train, settings=settings, samples=1, selection=8, out=tmp_path, **{**EXACT, "batch_size": 40}
    )
    assert state_sha256(view.model) == before
    batch = test.batch(0, test.n, dtype=torch.float64)
    with torch.no_grad():
        errors = [
            1 - float((model(batch.images).argmax(1) == batch.labels).double().mean())
            for model in (view.model, result.model.eval())
        ]
    rows = {row["network"]: row for row in result.table.rows}
    assert [rows["intact"]["error"], rows["tuned"]["error"]] == pytest.approx(errors)
    assert [row["phase"] for row in result.history.rows] == ["frozen", "joint"]
    assert result.table.provenance["networks_evaluated"] == len(result.table.rows)  # also the tuned one
    loaded = preresnet(14, in_channels=1, widths=(4, 6, 8)).double()
    loaded.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert state_sha256(loaded) == state_sha256(result.model)


def test_two_ways_to_one_network_are_counted_once(view, test, train, policy):
    alone = [{"block": block, "error": 0.0, "loss": 0.0} for block in range(6)]
    steps = [{"count": count, "blocks": ",".join(map(str, range(6 - count, 6)))} for count in range(1, 6)]
    single, greedy = (Table(tuple(map(Column, rows[0])), tuple(rows)) for rows in (alone, steps))
    table = pathlens.blockdrop(view, test, train, policy=policy, samples=2, single=single, greedy=greedy, **EXACT).table
    tested = [row for row in table.rows if row["p"] is not None]
    kept = {row["network"]: row["kept"] for row in tested}
    assert kept["single"] == kept["greedy"]
    networks = {row["kept"] or row["network"]: row for row in tested}
    compared = table.provenance["comparison"]
    assert compared["networks"] == len(networks) < len(tested)
    assert f"over the {len(networks)} different" in compared["correction"]
    assert compared["differ"] == sum(row["p"] <= 0.05 for row in networks.values())
    assert compared["differ_corrected"] == sum(row["p_holm"] <= 0.05 for row in networks.values())


def test_a_policy_that_keeps_no_block(view, test, train, policy):
    empty = policies.fresh(view, 0)
    nn.init.constant_(empty.network.linear.bias, -50.0)
    with pytest.raises(NumericsError, match=r"keeps no block of any of the 40 images.*--penalty"):
        pathlens.blockdrop(view, test, train, policy=empty, **EXACT)


class OneBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + F.relu(self.conv(x))).mean((2, 3)))


class Segments(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(2))

    def forward(self, x):
        for conv in self.convs:
            x = x + F.relu(conv(x))
        return x


def test_what_it_refuses(view, test, train):
    with pytest.raises(UsageError, match="OneBlock has 1; give a network of 2 or more"):
        pathlens.blockdrop(OneBlock().eval(), test, train)
    with pytest.raises(ModelError, match="there is one label for each image, and the network gives"):
        pathlens.blockdrop(Segments().eval(), test, train)
    with pytest.raises(UsageError, match="no training images"):
        pathlens.blockdrop(view, test)
    with pytest.raises(UsageError, match="the images to train on are those to test on"):
        pathlens.blockdrop(view, test, open_data("digits", limit=8))
    with pytest.raises(UsageError, match="found list"):
        pathlens.blockdrop(view, test, [(torch.zeros(1), torch.zeros(1))])
    with pytest.raises(ModelError, match="and the task segmentation wants logits"):
        pathlens.blockdrop(view, test, train, task="segmentation")
    with pytest.raises(UsageError, match="samples 0"):
        pathlens.blockdrop(view, test, train, samples=0)
    with pathlens.deleted(view, 1), pytest.raises(UsageError, match="outside of its with block"):
        pathlens.blockdrop(view, test, train)


class RowsFirst(nn.Module):
    """The rows of an image are a sequence, which comes before the batch."""

    def __init__(self):
        super().__init__()
        self.maps, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, 10)

    def forward(self, x):
        x = x[:, 0].transpose(0, 1)
        for layer in self.maps:
            x = x + F.relu(layer(x))
        return self.head(x.mean(0))


def test_examples_without_rows_of_their_own(test, train):
    for network in (RowsFirst().eval(), found("folded_windows")[1]):
        with pytest.raises(UsageError, match=r"blockdrop: at block 0 .* the network has no row for each example"):
            pathlens.blockdrop(network, test, train, batch_size=8)  # as many as rows of an image


def test_examples_that_change_the_answers_to_others(test, train):
    model = preresnet(14, in_channels=1, widths=(4, 6, 8)).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean = norm.running_var = None
    with pytest.raises(UsageError, match="statistics of the batch in eval mode too"):
        pathlens.blockdrop(model, test, train, batch_size=8)


def test_a_folder_without_splits_is_one_set_of_images(tmp_path):
    folder = image_folder(tmp_path / "photos", {"ape": 4, "bat": 4})
    test, train = open_data(folder, split="test", limit=3, image_size=8), open_data(folder, split="train", image_size=8)
    assert (test.split, train.split) == ("test", "train")
    network = pathlens.find_blocks(preresnet(8, 2, widths=(2, 2, 2)).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(UsageError, match="the images to train on are those to test on"):
        pathlens.blockdrop(network, test, train)
    others = dataclasses.replace(train, _source=ArraySource(255 - train.rows(torch.arange(8))[0], 255))
    assert not dropping._are_same(others, test)  # of the same classes in the same order


def test_training_images_of_other_channels(view, test, train):
    pixels, _ = train.rows(torch.arange(train.n))
    colour = dataclasses.replace(train, _source=ArraySource(pixels.expand(-1, 3, -1, -1), train.scale))
    with pytest.raises(DataError, match=r"images of shape \(3, 8, 8\) and the network was traced with \(1, 8, 8\)"):
        pathlens.blockdrop(view, test, colour, **EXACT)


def test_memory_that_runs_out_in_the_training(view, test, train, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("pathlens.policies.learning.Learner._step", run_out)
    with pytest.raises(ResourceError, match=r"a batch of 32 images does not fit.*--train-batch-size"):
        pathlens.blockdrop(view, test, train, settings=Settings(batch_size=32), **EXACT)


def test_the_baselines_see_images_as_the_policy_does(view, test, train, policy, monkeypatch):
    """Images of a split have a mean of their own, where the data set states none."""
    seen = {}

    def chosen_on(view, data, examples, options):
        seen.update(options)
        return original(view, data, examples, options)

    original = dropping.chosen_on
    monkeypatch.setattr(dropping, "chosen_on", chosen_on)
    own = dataclasses.replace(train, _normalisation=Normalisation((0.9,), (0.1,), "its own"))
    pathlens.blockdrop(view, test, own, policy=policy, samples=1, selection=8, **EXACT)
    assert (seen["mean"], seen["std"]) == (test.mean, test.std) != (own.mean, own.std)


def test_on_the_command_line(tmp_path, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    few = ["-m", "preresnet20", "-w", "random", "-d", "digits", "--limit", "20", "--samples", "2", "--selection", "8"]
    trained = ["--epochs", "1", "--train-limit", "32", "--train-batch-size", "16", "--engine", "plain"]
    assert main(["blockdrop", *few, *trained, "--out", str(out)]) == 0
    printed, said = capsys.readouterr()
    assert "policy" in printed
    assert "the policy runs" in printed
    assert "epoch 1 of 1, frozen" in said
    stems = ("blockdrop", "blockdrop-choices", "blockdrop-classes", "blockdrop-training")
    assert {f"{stem}.csv" for stem in stems} <= {path.name for path in out.iterdir()}
    assert {"blockdrop.png", "blockdrop-choices.png", "policy.safetensors", "checkpoint.safetensors"} <= {
        path.name for path in out.iterdir()
    }
    assert json.loads((out / "manifest.json").read_text())["settings"]["epochs"] == 1
    given = ["--policy", str(out / "policy.safetensors"), "--engine", "plain"]
    assert main(["blockdrop", *few, *given, "--out", str(again), "-q"]) == 0
    first, second = (read_table(folder / "blockdrop-choices.csv").rows for folder in (out, again))
    assert first == second
    page = pathlens.report_page(out, tmp_path / "page.html").read_text()
    assert "blocks chosen for each image" in page
    assert "Images for which each block runs" in page
    capsys.readouterr()
    assert main(["blockdrop", *few, "--alpha", "0.4", "--out", str(tmp_path / "none")]) == 2
    assert "alpha 0.4" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_policy_learns():
    """On the network that comes with the package: far better than random sets of as many blocks."""
    loaded = pathlens.load_model()
    test, train = open_data("digits", limit=120), open_data("digits", split="train", limit=256)
    # these two are of no interest here, and long to find
    alone = [{"block": block, "error": 0.0, "loss": 0.0} for block in range(54)]
    steps = [{"count": count, "blocks": ",".join(map(str, range(count)))} for count in range(1, 54)]
    result = pathlens.blockdrop(
        loaded.model,
        test,
        train,
        settings=Settings(epochs=12, batch_size=64, lr=3e-3, penalty=2.0),
        samples=3,
        single=Table(tuple(map(Column, alone[0])), tuple(alone)),
        greedy=Table(tuple(map(Column, steps[0])), tuple(steps)),
        mean=loaded.mean,
        std=loaded.std,
    )
    policy = next(row for row in result.table.rows if row["network"] == "policy")
    random = next(row for row in result.table.rows if row["network"] == "random" and row["sample"] is None)
    assert policy["blocks"] < 50
    assert policy["error"] < 0.05
    assert random["error"] > policy["error"] + 0.1
