"""Headlines of the other pages, and numbers of the benchmarks, computed again from the measured tables."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.helpers.headlines import (
    RESULTS,
    SPREAD,
    by_seed,
    claim,
    claims,
    contributions,
    costlier,
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

CRITICS = ("digits54", "resnet56")
DESIGNS = ("vit", "convnext")


def student(values: pd.Series) -> tuple[float, float]:
    return stats.t.interval(0.95, len(values) - 1, values.mean(), values.sem())


@pytest.mark.parametrize("network", CRITICS)
def test_shortcuts_against_branches(network: str) -> None:
    branches, shortcuts = (single("critics", f"{kind}-{network}") for kind in ("lesions", "skips"))
    told = read("critics", "shortcuts").set_index(["network", "which"]).loc[network, "all"]
    assert told["error_branch"] == pytest.approx(branches["error"].mean())
    assert told["error_skip"] == pytest.approx(shortcuts["error"].mean())
    assert told["difference"] == pytest.approx((shortcuts["error"] - branches["error"]).mean())
    assert (told["shortcut_worse"], told["branch_worse"]) == costlier(shortcuts, branches)


@pytest.mark.parametrize("network", CRITICS)
def test_harm_against_the_size_of_the_response(network: str) -> None:
    lesions, deviations = single("critics", f"lesions-{network}"), read("critics", f"deviations-{network}")
    response = (deviations["branch_std"] / deviations["shortcut_std"]).to_numpy()
    kept = (lesions["kind"] == "identity").to_numpy()
    by_loss, by_error = (
        stats.spearmanr(response[kept], lesions[harm].to_numpy()[kept]).statistic for harm in ("loss", "error")
    )
    told = claim("critics", "harm rises with the response", network)
    assert told["value"] == pytest.approx(by_loss)
    assert not unprinted(told["here"], int(kept.sum()), f"{by_loss:.2f}", f"{by_error:.2f}")


@pytest.mark.parametrize("network", CRITICS)
def test_tails_within_the_effective_lengths(network: str) -> None:
    table, tails = read("critics", f"path-gradients-{network}"), read("critics", "tails")
    first, last = shortest_interval(table["total_norm"])
    own = tails.loc[(tails["network"] == network) & tails["length"].between(first, last), "tail_example"]
    told = claim("critics", "heavy tails", network)
    assert told["value"] == pytest.approx(own.median())
    assert not unprinted(told["here"], *(f"{one:.2f}" for one in own))


def test_the_packaged_network_among_the_critics() -> None:
    table, lesions = read("critics", "path-gradients-digits54"), "lesions-digits54"
    told = read("critics", "claims").query("network == 'digits54'").set_index("claim")
    assert told["value"]["single deletions"] == pytest.approx(rises("critics", lesions).median())
    counts = (len(shown("critics", lesions, less)) for less in (True, False))
    assert not unprinted(told["here"]["single deletions"], *counts)
    assert told["value"]["gradient of single paths"] == pytest.approx(line(table).slope)
    assert told["value"]["cancellation"] == pytest.approx(left(table))
    assert told["value"]["effective paths are short"] == shortest_interval(contributions(table))[1]


@pytest.mark.parametrize("network", DESIGNS)
def test_transformers_and_convnexts(network: str) -> None:
    blocks, lengths = (read("critics", f"beyond-{kind}") for kind in ("blocks", "lengths"))
    costs = blocks.assign(cost=blocks["error_branch"] - blocks["error_intact"])
    medians = costs[costs["network"] == network].groupby("seed")["cost"].median()
    longest = [
        shortest_interval(own["total_norm"])[1] for _, own in lengths[lengths["network"] == network].groupby("seed")
    ]
    for name, values in (
        ("single deletions, other designs", medians),
        ("short paths survive cancellation", longest),
    ):
        told = claim("critics", name, network)
        assert list(told[SPREAD]) == pytest.approx(spread(values)), name
        assert told["seeds"] == len(values), name


def test_growth_at_initialisation() -> None:
    rates, growth = (read("udl11", stem).groupby("network") for stem in ("rates", "growth"))
    for name, word, column in (
        ("variance-doubles", "", "forward"),
        ("gradient-doubles", "", "backward"),
        ("stable", "variance", "forward"),
        ("stable", "gradient", "backward"),
        ("linear-growth", "", "second_moment_slope"),
        ("linear-growth-of-a-unit", "", "unit_variance_slope"),
        ("unit-variance", "variance of", "branch_unit_variance"),
        ("unit-variance", "squared mean of", "branch_unit_mean_square"),
    ):
        told = claims("udl11", name)
        told = told[told["network"].str.contains(word)]
        assert len(told), (name, word)
        for _, one in told.iterrows():
            own = rates.get_group(one["network"].split(":")[0])[column]
            assert one["value"] == pytest.approx(own.mean()), (name, word)
            assert one["seeds"] == len(own), (name, word)
    # the slope of a mean over networks is the mean of their slopes
    for network, own in growth:
        if network.startswith("residual"):
            rate = rates.get_group(network)
            for column, slopes in (
                ("log2_variance", np.log2(rate["forward"])),
                ("log2_gradient", -np.log2(rate["backward"])),
                ("second_moment", rate["second_moment_slope"]),
            ):
                assert stats.linregress(own["block"], own[column]).slope == pytest.approx(slopes.mean())


def test_shattered_gradients() -> None:
    lags = read("udl11", "autocorrelation-networks").set_index(["network", "seed"])
    for name in ("autocorrelation", "nearby-unrelated"):
        for _, told in claims("udl11", name).iterrows():
            network, _, lag = told["network"].rpartition(", lag ")
            assert told["value"] == pytest.approx(lags[f"lag_{lag}"][network].mean()), told["network"]
    for name in ("deeper-less-alike", "residual-more-alike"):
        for _, told in claims("udl11", name).iterrows():
            one, other, lag = re.fullmatch(r"(.+), minus (.+); lag (\d+)", told["network"]).groups()
            gaps = lags[f"lag_{lag}"][one] - lags[f"lag_{lag}"][other]
            assert told["value"] == pytest.approx(gaps.mean()), told["network"]


def test_56_layers_against_20() -> None:
    runs = read("udl11", "runs")
    for name, shortcuts in (("deep-plain-worse", False), ("deep-residual-better", True)):
        for split in ("train", "test"):
            errors = runs[runs["shortcuts"] == shortcuts].pivot(index="seed", columns="layers", values=f"{split}_error")
            gaps = errors[max(errors)] - errors[min(errors)]
            assert claim("udl11", name, f"{split} error")["value"] == pytest.approx(gaps.mean())


def test_growth_without_normalisation() -> None:
    for name in ("Brock's weights explode", "the schemes keep the signal"):
        for _, told in claims("civitelli2021", name).iterrows():
            network, _, kind = told["network"].partition(", ")
            table = read("civitelli2021", f"signals-{network}")
            own = table[(table["network"] == kind) & (table["place"] == "output")]
            over = 1 if name == "Brock's weights explode" else len(own)
            assert told["value"] == pytest.approx(own["growth"].iloc[0] ** over), told["network"]
            # a mean over networks weighs large ones more than the mean of their rates does
            centred = pd.DataFrame({"block": own["block"], "log": np.log(own["second_moment"])})
            centred = centred - centred.groupby(own["stage"]).transform("mean")
            rate = np.exp((centred["block"] * centred["log"]).sum() / (centred["block"] ** 2).sum())
            assert told["value"] ** (1 / over) == pytest.approx(rate, rel=0.03), told["network"]


def test_trainings_without_normalisation() -> None:
    runs = read("civitelli2021", "runs")
    runs["error"] = runs["test_error"].where(~runs["diverged"], 0.9)
    errors = runs.set_index(["network", "kind", "seed"]).sort_index()["error"]
    for name in ("the schemes train", "Brock's weights fail to train"):
        for _, told in claims("civitelli2021", name).iterrows():
            network, _, kind = told["network"].partition(", ")
            assert told["value"] == pytest.approx(errors[network, kind].mean()), told["network"]
    for _, told in claims("civitelli2021", "ConvShort competes with batch norm").iterrows():
        own = errors[told["network"]]
        assert told["value"] == pytest.approx((own["ConvShort"] - own["batch norm"]).mean())


def test_lengths_without_normalisation() -> None:
    profiles = read("civitelli2021", "profiles")
    profiles["part"] = profiles["mean_length"] / profiles["blocks"]
    is_fresh = profiles["expected_length"].notna()
    fresh, trained = (
        own.set_index(["network", "kind"]).sort_index() for own in (profiles[is_fresh], profiles[~is_fresh])
    )
    for _, told in claims("civitelli2021", "growth sets the effective length at initialisation").iterrows():
        own = fresh.loc[tuple(told["network"].split(", ", 1)), :]
        gaps = (own["mean_length"] - own["expected_length"]) / own["blocks"]
        assert told["value"] == pytest.approx(gaps.mean()), told["network"]
    ends = trained["epoch"].min(), trained["epoch"].max()
    for _, told in claims("civitelli2021", "training shortens effective paths").iterrows():
        own = trained.loc[tuple(told["network"].split(", ", 1)), :].set_index(["epoch", "seed"])["mean_length"]
        assert told["value"] == pytest.approx((own.xs(ends[1]) - own.xs(ends[0])).mean()), told["network"]
    last = trained[trained["epoch"] == ends[1]].set_index("seed", append=True)["part"]
    for name, longer, shorter in (
        ("1/sqrt(2) and paths after training", "plain, He", "IdShort"),
        ("convolutions as shortcuts and paths after training", "ConvShort", "IdShort"),
    ):
        for _, told in claims("civitelli2021", name).iterrows():
            own = last[told["network"]]
            assert told["value"] == pytest.approx((own[longer] - own[shorter]).mean()), name


def of_line(points: pd.DataFrame) -> pd.Series:
    losses = points["loss"].fillna(np.inf).to_numpy()
    return pd.Series(
        {
            "basin": (losses <= losses.min() + 0.1).mean(),
            "concave": (losses[:-2] - 2 * losses[1:-1] + losses[2:] < 0).mean(),
            "rise": np.minimum(losses, 10).mean() - losses[len(losses) // 2],
        }
    )


def test_loss_surfaces() -> None:
    lines, which = read("li2018", "lines"), ["network", "one_dimensional", "batch_norm", "draw"]
    found = lines[lines["seed"].isna()].groupby(which)[["loss"]].apply(of_line)
    for name, column, sign in (
        ("shortcuts make the minimum flat", "basin", 1),
        ("without shortcuts the surface is not convex", "concave", -1),
    ):
        for _, told in claims("li2018", name).iterrows():
            both = [found[column][network, "still", "kept"].mean() for network in told["network"].split(" and ")]
            assert told["value"] == pytest.approx(sign * (both[0] - both[1]))
            assert not unprinted(told["here"], *(f"{100 * one:.1f}" for one in both))
    for name, more, less in (
        ("kept statistics make the surface steeper", ("still", "kept"), ("still", "re-estimated")),
        ("biases and norms make the surface steeper", ("moved", "kept"), ("still", "kept")),
    ):
        for _, told in claims("li2018", name).iterrows():
            gaps = found["rise"][told["network"]][more] - found["rise"][told["network"]][less]
            assert told["value"] == pytest.approx(gaps.mean()), told["network"]
            assert (told["value_low"], told["value_high"]) == pytest.approx(student(gaps)), told["network"]
    own = lines[lines["seed"].notna()].groupby(["kind", "seed", "draw"])[["loss"]].apply(of_line)["basin"]
    gaps = (own["with shortcuts"] - own["trained without"]).groupby(level="seed").mean()
    (told,) = claims("li2018", "shortcuts make the minimum flat, trained here")["value"]
    assert told == pytest.approx(gaps.mean())


def test_curvature_and_the_cut_network() -> None:
    curvature = read("li2018", "curvature").set_index("kind")["trace"]
    (told,) = claims("li2018", "without shortcuts the loss curves more")["value"]
    assert told == pytest.approx(curvature["trained without"] - curvature["with shortcuts"])
    for _, cut in claims("li2018", "a cut network is no plain network").iterrows():
        surface = read("li2018", f"surface-{cut['network']}")
        assert cut["value"] == surface.loc[(surface["x"] == 0) & (surface["y"] == 0), "error"].item()


@pytest.mark.parametrize("network", ["bytes24", "stories260K"])
def test_language_models(network: str) -> None:
    def stems(kind: str) -> list[str]:
        return list(by_seed("language", f"{kind}-{network}").values()) or [f"{kind}-{network}"]

    deleted = [rises("language", stem) for stem in stems("lesions")]
    tables = [read("language", stem) for stem in stems("gradients")]
    # intervals over sequences are Student's
    law = stats.t(read("language", stems("lesions")[0])["n"].iloc[0] - 1)
    shares = []
    for both, alone in zip(stems("layers"), stems("lesions"), strict=True):
        parts = [listed.split(",") for listed in single("language", both)["blocks"]]
        attention, mlp = (single("language", alone).loc[list(map(int, own))] for own in zip(*parts, strict=True))
        shares.append(costlier(mlp, attention, law)[0] / len(parts))
    for name, values in (
        ("single deletions, other designs", [own.median() for own in deleted]),
        ("no block is noticed alone", [own.max() for own in deleted]),
        ("MLP against attention", shares),
        ("gradient of single paths, other designs", [line(table).slope for table in tables]),
        ("cancellation", [left(table) for table in tables]),
        (
            "effective paths are short in networks of other depths",
            [shortest_interval(contributions(table))[1] for table in tables],
        ),
        ("short paths survive cancellation", [shortest_interval(table["total_norm"])[1] for table in tables]),
    ):
        told = claim("language", name, network)
        assert told["value"] == pytest.approx(np.median(values)), name
        assert len(values) == 1 or list(told[SPREAD]) == pytest.approx(spread(values)), name
    # the sentence is of the network in the middle
    largest = [own.max() for own in deleted]
    middle = stems("lesions")[np.argsort(largest, kind="stable")[(len(largest) - 1) // 2]]
    noticed = shown("language", middle, law=law)
    told = claim("language", "no block is noticed alone", network)
    assert not unprinted(told["here"], len(noticed), len(deleted[0]), *noticed)


@pytest.mark.parametrize(("network", "start"), [("resnet56", "blockdrop"), ("digits54", "blockdrop-digits54")])
def test_policies_against_fixed_sets_of_as_many_blocks(network: str, start: str) -> None:
    gaps: dict[str, list[pd.Series]] = {"random": [], "single": [], "greedy": []}
    for stem in by_seed("blockdrop", start).values():
        table, choices = read("blockdrop", stem), read("blockdrop", stem.replace("blockdrop", "blockdrop-choices"))
        (policy,) = (one for _, one in table.iterrows() if one["network"] == "policy")
        assert policy["error"] == pytest.approx(1 - choices["correct"].mean())
        assert policy["blocks"] == pytest.approx(choices["blocks"].mean())
        sets = table[table["kept"].notna()]
        for kind, found in gaps.items():
            if (sets["network"] == kind).any():
                found.append(100 * (sets.loc[sets["network"] == kind, "error"] - policy["error"]).sort_values())
    for kind, name in (("single", "policy against single lesions"), ("greedy", "policy against greedy deletion")):
        told = claim("blockdrop", name, network)
        assert list(told[SPREAD]) == pytest.approx(spread([own.item() for own in gaps[kind]])), name
    told = claim("blockdrop", "policy against random sets", network)
    assert list(told[SPREAD]) == pytest.approx(spread([own.median() for own in gaps["random"]]))


def test_shares_of_strict_networks() -> None:
    networks = read("strict_resnets", "shares-networks").set_index(["network", "norms", "init"]).sort_index()
    for name, norms, column, power in (
        ("norms shrink the first blocks, in variance", "block", "factor", 1),
        ("norms shrink the first blocks, in norm", "block", "factor", 0.5),
        ("the shrinking is geometric", "block", "r_squared", 1),
        ("a norm at the end alone leaves no trend over the blocks", "end", "factor", 1),
    ):
        for _, told in claims("strict_resnets", name).iterrows():
            level, _, init = told["network"].rpartition(", ")
            own = networks.loc[(level, norms, init), column] ** power
            assert told["value"] == pytest.approx(own.mean()), (name, told["network"])
            assert told["seeds"] == len(own), (name, told["network"])
    for name in ("Glorot leaves more to the stem", "normal or uniform does not matter"):
        for _, told in claims("strict_resnets", name).iterrows():
            level, norms, one, other = re.fullmatch(r"(.+), norms: (.+), (.+) against (.+)", told["network"]).groups()
            stems = [networks.loc[(level, norms, init), :].set_index("seed")["stem_share"] for init in (one, other)]
            assert told["value"] == pytest.approx((stems[0] - stems[1]).mean()), (name, told["network"])
    # the slope of a mean over networks is the mean of their slopes
    shares = read("strict_resnets", "shares")
    for which, own in shares[shares["block"] >= 0].groupby(["network", "norms", "init"]):
        slope = stats.linregress(own["block"], own["log_variance_ratio"]).slope
        assert slope == pytest.approx(np.log(networks.loc[which, "factor"]).mean()), which


def test_trainings_and_checkerboards_of_strict_networks() -> None:
    runs = read("strict_resnets", "runs").set_index(["part", "network", "seed"]).sort_index()
    for name, part, column in (
        ("deep against wide", "depth", "test_loss"),
        ("more blocks do better", "depth", "test_loss"),
        ("training starts on a plateau", "plateau", "plateau_steps"),
    ):
        for _, told in claims("strict_resnets", name).iterrows():
            one, other = (runs[column][part, network] for network in told["network"].split(" against "))
            assert told["value"] == pytest.approx((one - other).mean()), told["network"]
    excess = read("strict_resnets", "checkerboards").set_index(["way", "weights", "seed"]).sort_index()["excess"]
    for name in (
        "uneven sub-kernels show in outputs",
        "uneven sub-kernels show in gradients",
        "interpolation and pooling leave less",
    ):
        for _, told in claims("strict_resnets", name).iterrows():
            one, other, weights = re.fullmatch(r"(\S+) against (\S+), (\S+)", told["network"]).groups()
            gaps = excess[one, weights] - excess[other, weights]
            assert told["value"] == pytest.approx(gaps.mean()), told["network"]


def test_numbers_of_the_benchmarks() -> None:
    text = (RESULTS / "README.md").read_text()
    _, said = text.split("`benchmarks/avx2/` holds")
    _, *parts = re.split(r"`(\w+)\.md`", said.split("```")[0])
    said = dict(zip(parts[::2], parts[1::2], strict=True))
    ways = ["method", "dtype"]
    sweeps = read("benchmarks/avx2", "sweep-runs").query("benchmark == 'sweep'").dropna(subset="dtype")
    seconds = sweeps.pivot(index="repeat", columns=ways, values="seconds")
    times = seconds.rdiv(seconds["obvious loop", "float32"], axis=0).median()
    faster = [("pathlens", "float32"), ("prefix sharing", "float32"), ("pathlens", "bfloat16")]
    assert not unprinted(said["sweep"], *(f"{times[way]:.1f}" for way in faster))
    ratios = read("benchmarks/avx2", "paths").set_index(["benchmark", "method"])["ratio"]
    exact, general = ratios["profile", "exact, all lengths"], ratios["engines", "polynomials of any graph"]
    assert not unprinted(said["paths"], f"{exact:.1f}", f"{general:.1f}")
    first = read("benchmarks/avx2", "first_table-runs").pivot(
        index=["benchmark", "repeat"], columns="version", values="seconds"
    )
    shares = 100 * (first["now"] / first["before"]).groupby(level="benchmark").median()
    assert not unprinted(said["first_table"], f"{shares['delete-blocks']:.0f}", f"{shares['find_blocks']:.0f}")
    surface = read("benchmarks/avx2", "surface").set_index("method").loc["pathlens"]
    ends = ("ratio", "ratio_min", "ratio_max")
    assert not unprinted(said["surface"], *(f"{surface[end]:.2f}" for end in ends))
