"""Headlines of the pages, computed again from the measured tables by other means than the studies'."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats

from tests.helpers.headlines import by_seed, claim, contributions, left, line, read, rises, shortest_interval

PUBLISHED = ("resnet20", "resnet56", "resnet56b")
TRAINED = [
    stem.removeprefix("gradients-")
    for network in ("digits54", "preresnet110")
    for stem in by_seed("veit2016", f"gradients-{network}-full").values()
]
GRADIENTS = [("pretrained_resnets", name) for name in PUBLISHED] + [("veit2016", name) for name in TRAINED]


@pytest.mark.parametrize("network", PUBLISHED)
def test_what_single_deletions_cost(network: str) -> None:
    own, told = (
        rises("pretrained_resnets", f"lesions-{network}"),
        claim("pretrained_resnets", "single deletions", network),
    )
    assert told["value"] == pytest.approx(own.median())
    assert f"largest {100 * own.max():+.2f} (block {own.idxmax():.0f})" in told["here"]
    small, large = (
        int(count) for count in re.findall(r"(\d+) of \d+ deletions.* and (\d+) to cost more", told["here"])[0]
    )
    # Holm's correction shows fewer than single intervals do, and not fewer than Bonferroni's
    table = read("pretrained_resnets", f"lesions-{network}").dropna(subset="block")
    for count, gap, half in (
        (small, 0.05 - table["difference"], table["difference_high"] - table["difference"]),
        (large, table["difference"] - 0.05, table["difference"] - table["difference_low"]),
    ):
        p = stats.norm.sf(gap * stats.norm.ppf(0.975) / half)
        assert (p < 0.05 / len(p)).sum() <= count <= (p < 0.05).sum()


def test_twins_differ_by_their_shortcuts() -> None:
    told = claim("pretrained_resnets", "deletions cost more without shortcuts", "resnet56b and plain56")
    without, with_them = rises("pretrained_resnets", "twin-plain56"), rises("pretrained_resnets", "lesions-resnet56b")
    assert f"median {100 * without.median():+.1f} points against {100 * with_them.median():+.1f}" in told["here"]
    assert (without > with_them).sum() >= told["value"] * len(without)


@pytest.mark.parametrize(("study", "network"), GRADIENTS)
def test_the_shortest_interval_of_lengths_that_holds_the_gradient(study: str, network: str) -> None:
    table = read(study, f"gradients-{network}")
    if study == "veit2016":
        effective = read(study, "effective").query("network == @network and contribution == 'sampled'").iloc[0]
        first, last, share = effective["first"], effective["last"], effective["share_of_paths"]
        numbers = table["n_paths"].astype(float)
        assert share == pytest.approx(numbers[first : last + 1].sum() / numbers.sum())
    else:
        told = claim(study, "effective paths are short in networks of other depths", network)["here"]
        first, last = (int(end) for end in re.findall(r"^(\d+) to (\d+) of", told)[0])
    assert (first, last) == shortest_interval(contributions(table))


@pytest.mark.parametrize("network", PUBLISHED)
def test_decay_and_cancellation(network: str) -> None:
    table = read("pretrained_resnets", f"gradients-{network}")
    told, found = claim("pretrained_resnets", "gradient of single paths", network), line(table)
    assert told["value"] == pytest.approx(found.slope)
    assert f"explains {found.rvalue**2:.1%} of the variance" in told["here"]
    assert claim("pretrained_resnets", "cancellation", network)["value"] == pytest.approx(left(table))


def test_shares_of_the_gradient_by_projection_sum_to_one() -> None:
    for study, network in GRADIENTS:
        assert read(study, f"gradients-{network}")["share"].sum() == pytest.approx(1, abs=1e-4), network


@pytest.mark.parametrize("blocks", ["m7", "m15", "m23", "m31", "m39"])
def test_retraining_is_the_difference_of_runs_with_the_same_seed(blocks: str) -> None:
    runs = read("veit2016", "runs").set_index(["network", "trained", "seed"]).loc["digits54"]
    own, gaps = runs.loc[blocks], runs["test_error"][blocks] - runs["test_error"]["full"]
    name = "training on effective paths" if blocks in ("m15", "m23") else "training on other numbers of blocks"
    told = claim("veit2016", name, f"digits54, {blocks}")
    assert told["value"] == pytest.approx(gaps.mean())
    assert told["seeds"] == len(gaps) == 5
    # lost minus gained images are the difference, and their variance joins that of the seeds
    assert ((own["lost"] - own["gained"]) / 360).to_numpy() == pytest.approx(gaps.to_numpy())
    counts = own[["lost", "gained"]].astype(int).to_numpy()
    changes = [np.repeat([1, -1, 0], [lost, gained, 360 - lost - gained]) for lost, gained in counts]
    seeds, images = gaps.var() / 5, np.mean([change.var() / 360 for change in changes])
    freedom = (seeds + images) ** 2 / (seeds**2 / 4)
    interval = stats.t.interval(0.95, freedom, gaps.mean(), (seeds + images) ** 0.5)
    assert (told["value_low"], told["value_high"]) == pytest.approx(interval)


def test_robustness_after_training_on_few_blocks_is_that_of_critical_blocks() -> None:
    claims = read("veit2016", "claims").set_index(["claim", "network"])["value"]["training on few blocks hardens"]
    for blocks in ("m15", "m23"):
        gaps: dict[str, list[float]] = {"": [], ", sets without a critical block": []}
        for seed in range(1, 5):
            single = rises("veit2016", f"lesions-digits54-full-seed{seed}")
            large = {int(block) for block in single[single > 0.1].index}  # far from five points: none is in doubt
            for kind, mean in gaps.items():
                both = []
                for trained in (blocks, "full"):
                    table = read("veit2016", f"sets-digits54-{trained}-seed{seed}")
                    sets = table[(table["count"] == 6) & table["sample"].notna()].drop_duplicates("blocks")
                    touched = [bool(large & set(map(int, listed.split(",")))) for listed in sets["blocks"]]
                    kept = sets[~np.array(touched)] if kind else sets
                    both.append(kept["error"].mean() - table.loc[table["count"] == 0, "error"].item())
                mean.append(both[0] - both[1])
        for kind, mean in gaps.items():
            assert claims[f"digits54, {blocks}{kind}"] == pytest.approx(np.mean(mean)), (blocks, kind)


def test_the_mean_length_shrinks_from_the_tenth_epoch_on() -> None:
    means = read("depth_in_training", "by-epoch")
    trained = means[(means["mode"] == "train") & (means["weight_decay"] > 0) & (means["contribution"] == "sampled")]
    by_epoch = trained.set_index("epoch")["mean_length"]
    told = claim("depth_in_training", "deeper with training", f"weight decay {trained['weight_decay'].iloc[0]:g}")
    assert told["value"] == pytest.approx(by_epoch.iloc[-1] - by_epoch[10])


def test_wide_networks_against_the_deep_one() -> None:
    runs = read("wider_or_deeper", "cifar-runs")
    for _, told in read("wider_or_deeper", "claims").query("claim == 'wider instead of deeper'").iterrows():
        wide, deep = told["network"].split(" against ")
        if {wide, deep} <= set(runs["network"]):
            by_seed = runs[runs["effective_depth"] == "all"].set_index(["network", "seed"])["test_error"]
            assert told["value"] == pytest.approx((by_seed[wide] - by_seed[deep]).mean())
