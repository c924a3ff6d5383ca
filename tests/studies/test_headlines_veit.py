"""Headlines of the page of veit2016 over all seeds, and of the read-me, computed again from the measured tables."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.helpers import ROOT
from tests.helpers.headlines import (
    RESULTS,
    SPREAD,
    by_seed,
    claim,
    claims,
    contributions,
    holm,
    intact,
    left,
    line,
    read,
    rises,
    shortest_interval,
    shown,
    single,
    spread,
    unprinted,
)

STUDY = "veit2016"
NETWORKS = ("digits54", "preresnet110")
CIFAR = "preresnet110"


def members(listed: str) -> frozenset[int]:
    return frozenset(map(int, listed.split(",")))


@pytest.mark.parametrize("network", NETWORKS)
def test_single_deletions(network: str) -> None:
    stems = by_seed(STUDY, f"lesions-{network}-full")
    medians = pd.Series({seed: rises(STUDY, stem).median() for seed, stem in stems.items()})
    told = claim(STUDY, "single deletions", network)
    assert list(told[SPREAD]) == pytest.approx(spread(medians))
    assert told["seeds"] == len(medians)
    # the sentence is of the network in the middle
    middle = stems[medians.sort_values(kind="stable").index[(len(medians) - 1) // 2]]
    assert not unprinted(told["here"], *(len(shown(STUDY, middle, less)) for less in (True, False)))


@pytest.mark.parametrize("network", NETWORKS)
def test_critical_blocks(network: str) -> None:
    singles = read(STUDY, "singles").set_index("run")
    stems = by_seed(STUDY, f"lesions-{network}-full")
    for stem in stems.values():
        told = singles.loc[stem.removeprefix("lesions-")]
        assert told["critical"] == (", ".join(map(str, shown(STUDY, stem))) or "none"), stem
        assert told["median"] == pytest.approx(rises(STUDY, stem).median()), stem
    largest = []
    for stem in stems.values():
        kept = ~single(STUDY, stem)["kind"].isin(["projection", "padding"])
        largest.append(rises(STUDY, stem)[kept].max())
    told = claim(STUDY, "no block but those that downsample", network)
    assert list(told[SPREAD]) == pytest.approx(spread(largest))


def test_the_read_me_says_what_deletions_cost() -> None:
    stems = by_seed(STUDY, f"lesions-{CIFAR}-full")
    paragraphs = [" ".join(one.split()) for one in (ROOT / "README.md").read_text().split("\n\n")]
    (figure,) = (place for place, one in enumerate(paragraphs) if f"lesions-{CIFAR}-seeds.png" in one)
    caption = paragraphs[figure + 1]
    medians = [100 * rises(STUDY, stem).median() for stem in stems.values()]
    assert not unprinted(caption, f"{min(medians):.1f}", f"{max(medians):.1f}")
    times = {"all": len(stems), "two": 2, "one": 1}
    said = {
        int(block): times[word]
        for blocks, word in re.findall(r"(\d+(?:(?:, | and )\d+)*) in (all|two|one)\b", caption)
        for block in re.findall(r"\d+", blocks)
    }
    assert said == dict(Counter(block for stem in stems.values() for block in shown(STUDY, stem)))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("name", "kind", "size", "drawn"),
    [("deleting many blocks", "sets", "count", "blocks"), ("reordering", "orders", "swaps", "order")],
)
def test_a_critical_block_is_what_sets_and_orders_cost(
    network: str, name: str, kind: str, size: str, drawn: str
) -> None:
    gaps = []
    for stem in by_seed(STUDY, f"{kind}-{network}-full").values():
        critical = set(shown(STUDY, stem.replace(kind, "lesions")))
        table = read(STUDY, stem)
        own = table[table["sample"].notna() & table["blocks"].notna()].drop_duplicates(drawn)
        blocks = [members(listed) for listed in own["blocks"]]
        own = own.assign(touched=[bool(one & critical) for one in blocks])[[len(one) > 1 for one in blocks]]
        kinds = own.groupby(size)["touched"].agg(["sum", "size"])
        own = own[own[size].isin(kinds[(kinds["sum"] > 1) & (kinds["size"] - kinds["sum"] > 1)].index)]
        # a regression with a constant for each size
        design = pd.get_dummies(own[size]).assign(touched=own["touched"]).to_numpy(float)
        gaps.append(np.linalg.lstsq(design, own["error"].to_numpy(), rcond=None)[0][-1])
    assert list(claim(STUDY, name, network)[SPREAD]) == pytest.approx(spread(gaps))


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_by_length(network: str) -> None:
    tables = [read(STUDY, stem) for stem in by_seed(STUDY, f"gradients-{network}-full").values()]
    for name, values in (
        ("gradient of single paths", [line(table).slope for table in tables]),
        ("cancellation", [left(table) for table in tables]),
        ("effective paths are short", [shortest_interval(contributions(table))[1] for table in tables]),
        ("short paths survive cancellation", [shortest_interval(table["total_norm"])[1] for table in tables]),
    ):
        told = claim(STUDY, name, network)
        assert list(told[SPREAD]) == pytest.approx(spread(values)), name
        assert told["seeds"] == len(values), name


def test_retraining_on_cifar10() -> None:
    runs = read(STUDY, "runs")
    runs = runs[runs["network"] == CIFAR]
    errors = runs.pivot(index="seed", columns="trained", values="test_error")
    gaps = {
        rule: (errors[rule] - errors["full"]).dropna() for rule in errors.columns if re.fullmatch(r"m\d+", str(rule))
    }
    assert gaps
    above, below = (
        holm(np.array([stats.ttest_1samp(own, 0.005, alternative=side).pvalue for own in gaps.values()]))
        for side in ("greater", "less")
    )
    told = claims(STUDY, "training on effective paths").set_index("network")
    for place, (rule, own) in enumerate(gaps.items()):
        one = told.loc[f"{CIFAR}, {rule}"]
        assert one["value"] == pytest.approx(own.mean())
        assert one["seeds"] == len(own)
        assert one["p"] == pytest.approx((above if own.mean() > 0.005 else below)[place])
        # over the seeds alone, and with the images, of which each is lost, gained or neither: the wider of the two
        freedom, seeds = len(own) - 1, own.var() / len(own)
        lost, gained = (runs[runs["trained"] == rule].set_index("seed")[name][own.index] for name in ("lost", "gained"))
        n = runs["test_images"].iloc[0]
        images = ((lost + gained) / n - ((lost - gained) / n) ** 2).mean() / n
        both = seeds + images
        ends = np.array(
            [
                stats.t.interval(0.95, freedom, own.mean(), seeds**0.5),
                stats.t.interval(0.95, both**2 / (seeds**2 / freedom), own.mean(), both**0.5),
            ]
        )
        assert (one["value_low"], one["value_high"]) == pytest.approx((ends[:, 0].min(), ends[:, 1].max()))


def rises_of_six(run: str) -> dict[frozenset[int], float]:
    """Rise of error of each set of six blocks, by the tables that there are."""
    found = {}
    for stem in (f"sets-{run}", f"hurt-{run}"):
        if (RESULTS / STUDY / f"{stem}.csv").exists():
            table = read(STUDY, stem)
            sets = table[(table["count"] == 6) & table["sample"].notna()]
            found |= dict(zip(map(members, sets["blocks"]), sets["error"] - intact(table), strict=True))
    return found


def test_robustness_after_training_on_few_blocks_on_cifar10() -> None:
    wholes = by_seed(STUDY, f"lesions-{CIFAR}-full")
    rules = {path.stem.split("-")[2] for path in RESULTS.joinpath(STUDY).glob(f"hurt-{CIFAR}-m*.csv")}
    told = claims(STUDY, "training on few blocks hardens").set_index("network")
    assert rules
    for rule in rules:
        seeds = sorted(by_seed(STUDY, f"hurt-{CIFAR}-{rule}").keys() & wholes.keys())
        seeds = [seed for seed in seeds if seed or len(seeds) < 4]
        means: dict[str, list[float]] = {"": [], ", sets without a critical block": []}
        for seed in seeds:
            own, whole = (rises_of_six(f"{CIFAR}-{trained}-seed{seed}") for trained in (rule, "full"))
            both, critical = own.keys() & whole.keys(), set(shown(STUDY, wholes[seed]))
            for kind, mean in means.items():
                mean.append(np.mean([own[one] - whole[one] for one in both if not kind or not one & critical]))
        for kind, mean in means.items():
            one = told.loc[f"{CIFAR}, {rule}{kind}"]
            assert one["value"] == pytest.approx(np.mean(mean)), (rule, kind)
            assert one["seeds"] == len(seeds), (rule, kind)
