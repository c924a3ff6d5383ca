"""The rules of the studies, on numbers made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pathlens.estimators.resampling import whole_interval
from pathlens.estimators.sampled import decay
from pathlens.metrics import holm, mcnemar_p, paired_interval
from pathlens.paths import effective_paths, path_counts
from pathlens.tables import Column, Table
from studies.rules import claims, networks, paths, veit
from studies.rules import lesions as rules


def table(rows, **facts):
    return Table(tuple(Column(name) for name in rows[0]), tuple(rows), facts)


def lesions(costs, kinds=None, n=1000, intact=0.1):
    """A table of delete-blocks in which each block loses so many images of n, and gains one for every ten."""
    names = ("name", "kind", "error", "difference", "difference_low", "difference_high", "p", "p_holm")
    rows = [{"block": None, "count": 0, "sample": None, "n": n, **dict.fromkeys(names), "error": intact}]
    ps = [mcnemar_p(lost, lost // 10) for lost in costs]
    for block, (lost, p) in enumerate(zip(costs, holm(ps), strict=True)):
        gained = lost // 10
        low, high = paired_interval(lost, gained, n)
        difference = (lost - gained) / n
        row = {"block": block, "count": 1, "sample": None, "n": n, "name": f"block{block}", "p_holm": p, "p": ps[block]}
        row |= {"kind": (kinds or {}).get(block, "identity"), "error": intact + difference}
        rows.append({**row, "difference": difference, "difference_low": low, "difference_high": high})
    return table(rows)


def test_outcomes_of_intervals():
    assert claims.decide(1, 2, below=3) == "agrees"
    assert claims.decide(4, 5, below=3) == "disagrees"
    assert claims.decide(2, 4, below=3) == "cannot tell"
    assert claims.decide(4, 5, above=3) == "agrees"
    assert claims.decide(1, 2, above=3) == "disagrees"
    assert claims.decide(None, 2, below=3) == claims.decide(math.nan, math.nan, above=3) == "cannot tell"


def test_the_p_value_of_an_outcome_is_that_of_its_interval():
    def beyond(values, bound):
        """One-sided, of the side of the bound on which their mean lies."""
        return min(stats.ttest_1samp(values, bound, alternative=side).pvalue for side in ("less", "greater"))

    rng, told = np.random.default_rng(0), set()
    for _ in range(150):
        values = rng.normal(rng.uniform(-1, 1.2), rng.uniform(0.02, 0.6), size=rng.integers(2, 9)).tolist()
        found = claims.paired(values)
        ends = found.low, found.high
        # of two bounds both where the mean lies between them, else the nearer one
        bounds = [-0.4] if found.mean < -0.4 else [0.6] if found.mean > 0.6 else [-0.4, 0.6]
        one, two = beyond(values, 0.3), max(beyond(values, bound) for bound in bounds)
        for name, bound, p_by_hand, by_hand in (
            ("above", 0.3, one, claims.decide(*ends, above=0.3)),
            ("below", 0.3, one, claims.decide(*ends, below=0.3)),
            ("within", (0.1, 0.5), two, claims.near(*ends, 0.1, 0.5)),
        ):
            outcome, p = claims.by_interval(*ends, found.pairs - 1, **{name: bound})
            assert p == pytest.approx(2 * p_by_hand, rel=1e-6)
            assert outcome == by_hand
            assert (p < 0.05) == (outcome != "cannot tell")
            told.add((name, outcome))
    assert len(told) == 9
    # nothing varies, or there is one number alone
    assert claims.by_interval(0.5, 0.5, 4, above=0) == ("cannot tell", None)
    assert claims.by_interval(None, None, 0, within=(0, 1)) == ("cannot tell", None)


def test_the_rows_of_a_claim_are_corrected_together():
    def row(name, network, p):
        claim = claims.Claim(name, "says", "ours", "rule", "test", revised="Before." if name == "many" else "")
        return claims.row(claim, network, claims.Verdict("agrees", "so", 1.0, 0.5, 1.5, p))

    rows = [row("many", "a", 0.001), row("one", "a", 0.04), row("many", "b", 0.03), row("two", "a", 0.02)]
    rows += [row("many", "c", 0.04), row("two", "b", 0.04)]
    found = claims.corrected_by_claim(rows, "since then")
    assert [(one["claim"], one["network"]) for one in found] == [(one["claim"], one["network"]) for one in rows]
    # the smallest of three times three, the next one times two, and the last one is no smaller than that
    assert [one["p"] for one in found] == pytest.approx([0.003, 0.04, 0.06, 0.04, 0.06, 0.04])
    assert [one["network"] for one in found if one["outcome"] == "cannot tell"] == ["b", "c"]
    assert found[2]["here"] == "so, p 0.06 after Holm's correction"
    assert found[1] == rows[1]
    said = {(one["claim"], one["revised"]) for one in found}
    lost = "Before. Since then: without it b agrees; c agrees."
    assert said == {("many", lost), ("one", None), ("two", "since then, which changed no verdict.")}
    assert claims.corrected_by_claim(rows)[0]["revised"] == "Before."
    # what does not vary is not shown
    assert {one["outcome"] for one in claims.corrected_by_claim([row("many", "a", None)] * 2)} == {"cannot tell"}


def test_more_than_half_have_to_be_shown():
    few, most = [0.01] * 4 + [0.5] * 5, [0.01] * 4 + [0.04] + [0.5] * 4
    none = [1.0] * 9
    assert claims.majority(most, none) == ("agrees", 0.04)
    assert claims.majority(few, most) == ("disagrees", 0.04)
    assert claims.majority(few, none) == ("cannot tell", 0.5)
    assert claims.majority([0.01, 0.5], [1, 1])[0] == "cannot tell"
    assert claims.shown(most) == 5


def test_trained_networks_need_three_seeds_that_show_the_same():
    def over(*outcomes):
        return claims.over_networks(
            {f"seed {i}": claims.Verdict(one, f"n{i}", float(i)) for i, one in enumerate(outcomes)}
        )

    assert over("agrees", "agrees").outcome == "cannot tell"
    assert over("agrees", "agrees", "agrees").outcome == "agrees"
    assert over("disagrees", "disagrees", "disagrees").outcome == "disagrees"
    mixed = over("agrees", "agrees", "cannot tell")
    assert mixed.outcome == "cannot tell"
    assert (mixed.value, mixed.low, mixed.high, mixed.seeds) == (1, 0, 2, 3)
    assert "agrees in 2, cannot tell in 1 of 3 trained networks; seed 1, the median: n1" in mixed.here
    assert "agrees in 2 of 2 trained networks; seed 0, the lower median: n0" in over("agrees", "agrees").here
    assert over("agrees").here == "agrees in 1 trained network: n0"
    unknown = claims.over_networks({f"seed {i}": claims.Verdict("agrees", f"n{i}", i or None) for i in range(3)})
    assert "seed 1, the lower median of the 2 with a number: n1" in unknown.here
    assert claims.of_seeds(claims.Verdict("agrees", ""), 2).outcome == "cannot tell"


def test_what_the_paper_says_of_other_designs_is_a_claim_of_ours():
    moved = veit.elsewhere(veit.SINGLE)
    assert (moved.source, moved.name) == ("ours", "single deletions, other designs")
    assert veit.SINGLE.says in moved.says
    assert "only in whose claim it is" in moved.revised
    assert veit.elsewhere(veit.ORDERS).revised.startswith(veit.ORDERS.revised)
    assert veit.elsewhere(veit.EXACT) is veit.EXACT


def test_paired_differences():
    gaps = [0.1, 0.3, 0.2, 0.25]
    found = claims.paired(gaps)
    test = stats.ttest_1samp(gaps, 0)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
    assert claims.paired([0.1, 0.1, 0.1]).p is None
    assert claims.paired([0.1]).low is None


def test_a_cost_is_noticeable_where_a_test_against_five_points_says_so():
    found = rules.costs(lesions([5, 60, 120, 400]))
    assert [cost.is_small for cost in found] == [True, False, False, False]
    assert [cost.is_noticeable for cost in found] == [False, False, True, True]
    # 120 lost and 12 gained of 1000: 10.8 points; the score test at 5 points by hand, of four
    one = found[2]
    z = (one.difference - 0.05) / ((one.difference - one.low) / 1.959964)
    assert one.noticeable == pytest.approx(3 * stats.norm.sf(z), rel=1e-3)
    assert one.difference == pytest.approx(0.108)


def test_an_interval_that_is_students_is_tested_by_students():
    of_images = lesions([9, 14], n=40)
    said = "lower end of its 95 % interval: Student's over sequences, paired"
    columns = tuple(Column(one.name, "", said if one.name == "difference_low" else "") for one in of_images.columns)
    found = rules.costs(Table(columns, of_images.rows))
    errors = [(one.difference - one.low) / stats.t.ppf(0.975, 39) for one in found]
    ps = [stats.t.sf((one.difference - 0.05) / error, 39) for one, error in zip(found, errors, strict=True)]
    assert [one.noticeable for one in found] == pytest.approx(list(holm(ps)))
    # surer where the interval is that of the normal distribution
    assert all(normal.noticeable < one.noticeable for normal, one in zip(rules.costs(of_images), found, strict=True))


def test_single_deletions():
    assert rules.single(lesions([5, 5, 5, 400])).outcome == "agrees"
    assert rules.single(lesions([5, 400, 400, 400])).outcome == "disagrees"
    assert rules.single(lesions([5, 60, 60, 400])).outcome == "cannot tell"
    told = rules.single(lesions([0, 5, 5, 400])).here
    assert "3 of 4 deletions are shown to cost less than 5 points and 1 to cost more; 1 differ" in told
    assert "median +0.50 points, largest +36.00 (block 3)" in told


def test_no_other_block_is_noticed():
    down = {1: "projection"}
    assert rules.others(lesions([5, 400, 5], down)).outcome == "agrees"
    assert rules.others(lesions([400, 5, 5], down)).outcome == "disagrees"
    assert rules.others(lesions([60, 400, 5], down)).outcome == "cannot tell"


def test_downsampling_blocks_are_compared_with_all_others():
    down = {1: "padding", 2: "projection"}
    assert rules.downsampling(lesions([5, 400, 300, 10], down)).outcome == "agrees"
    assert rules.downsampling(lesions([500, 400, 300, 10], down)).outcome == "disagrees"
    assert rules.downsampling(lesions([290, 400, 300, 10], down)).outcome == "cannot tell"
    found = rules.downsampling(lesions([500, 30, 300, 10], down))
    assert "rank 3 and 2 of 4" in found.here
    assert rules.downsampling(lesions([5, 6])).outcome == "cannot tell"


def test_a_plain_network_is_at_chance():
    def plain(*errors, n=1000):
        return table([{"count": 1, "error": error, "n": n} for error in errors])

    assert rules.at_chance(plain(0.9, 0.91, 0.89)).outcome == "agrees"
    assert rules.at_chance(plain(0.9, 0.6, 0.89)).outcome == "disagrees"
    assert rules.at_chance(plain(0.9, 0.85, 0.89)).outcome == "cannot tell"
    assert rules.at_chance(plain(0.9, 0.91, n=10)).outcome == "cannot tell"


def sets(critical, jump, sizes=range(1, 7), samples=8):
    """Random sets of 20 blocks whose error rises by a point a block, and by a jump where they hold a critical block."""
    rng = np.random.default_rng(1)
    rows = [{"count": 0, "sample": None, "blocks": None, "error": 0.1}]
    for size in sizes:
        for sample in range(samples):
            blocks = sorted(int(block) for block in rng.choice(20, size=size, replace=False))
            error = 0.1 + 0.01 * size + jump * bool(critical & set(blocks)) + 0.001 * rng.standard_normal()
            rows.append({"count": size, "sample": sample, "blocks": ",".join(map(str, blocks)), "error": error})
    return table(rows)


def test_growth_is_smooth_unless_critical_blocks_make_it():
    one_critical = lesions([400, *[5] * 19])

    def smooth(jump, single=one_critical, critical=frozenset({0})):
        return rules.smooth(rules.distinct_sets(sets(critical, jump)), single, "sets", "hold")

    even, mixture = smooth(0.0), smooth(0.7)
    assert (even.outcome, mixture.outcome) == ("agrees", "disagrees")
    assert mixture.value == pytest.approx(0.7, abs=0.01)
    assert "within the two kinds the rank correlation is 0.9" in mixture.here  # within both it grows
    assert mixture.low <= mixture.value <= mixture.high
    assert even.value == pytest.approx(0, abs=0.01)
    assert smooth(0.05).outcome == "cannot tell"
    assert "no block is critical" in smooth(0.0, lesions([5] * 20)).here
    every = smooth(0.0, lesions([400] * 20))
    assert every.outcome == "cannot tell"
    assert "no size has two of both" in every.here


def test_a_caption_says_of_kinds_only_where_there_are_two():
    both = sets(frozenset({0}), 0.0)
    assert rules.apart("sets", both, [0]).startswith("; sets that hold a critical block apart")
    assert rules.apart("sets", both, []) == rules.apart("sets", both, range(20)) == "."


def test_sets_of_one_block_do_not_tell_kinds_apart():
    drawn = rules.distinct_sets(sets(frozenset({0}), 0.0))
    drawn += [rules.Drawn(1, 1, frozenset({0}), 0.9), rules.Drawn(1, 1, frozenset({0}), 0.91)]
    drawn += [rules.Drawn(1, 1, frozenset({block}), 0.1 + 0.001 * block) for block in (3, 4)]
    found = rules.smooth(drawn, lesions([400, *[5] * 19]), "sets", "hold")
    assert found.value == pytest.approx(0, abs=0.01)


def test_error_that_falls_is_no_growth():
    falling = [rules.Drawn(size, size, frozenset({size}), 0.9 - 0.01 * size) for size in range(1, 9)]
    assert rules.smooth(falling, lesions([5] * 20), "sets", "hold").outcome == "disagrees"


def test_repeated_draws_count_once():
    rows = [{"count": 0, "sample": None, "blocks": None, "error": 0.1}]
    rows += [{"count": 2, "sample": number, "blocks": "0,1", "error": 0.2} for number in range(10)]
    rows += [{"count": 2, "sample": None, "blocks": None, "error": 0.2}]
    assert rules.distinct_sets(table(rows)) == [rules.Drawn(2, 2, frozenset({0, 1}), 0.2)]
    row = {"swaps": 1, "sample": 0, "kendall_tau": 0.5, "moved": 2, "blocks": "3,4", "order": "0,1,2,4,3", "error": 0.2}
    same = {**row, "moved": 0, "blocks": None, "order": "0,1,2,3,4", "kendall_tau": 1.0}
    drawn = rules.distinct_orders(table([row, {**row, "sample": 1}, same]))
    assert drawn == [rules.Drawn(1, 0.5, frozenset({3, 4}), 0.2)]
    split = rules.split_rows(drawn, lesions([5, 5, 5, 400, 5]))
    assert [(one["critical"], one["n"], one["median"]) for one in split] == [("with", 1, 0.2), ("without", 0, None)]


def gradients(blocks, decades, noise=0.0, share=0.95, dead=(), rare=()):
    """A table of path-gradients whose mean norms fall by so many decades a block, with sums that are a hundredth.

    Of lengths that are ``dead`` no sampled path has a gradient, of those that are ``rare`` few have. Other samples have
    the same noise, and 5 % more.
    """
    rng = np.random.default_rng(0)
    rows = []
    for length, count in enumerate(path_counts(blocks)):
        norm = 10 ** (decades * length + noise * rng.standard_normal())
        total = 0.01 * count * norm
        row = {"length": length, "n_paths": count, "path_norm_mean": norm, "path_norm_low": 0.9 * norm}
        row["path_norm_median"] = 0.0 if length in rare else norm
        row |= {"path_norm_high": 1.1 * norm, "path_norm_rms": 2 * norm, "path_norm_rms_error": 0.1 * norm}
        rows.append({**row, "total_norm": total, "total_low": 0.8 * total, "total_high": 1.2 * total})
        if length in dead:
            rows[-1] |= {"path_norm_mean": 0.0, "path_norm_median": 0.0}
    means = np.array([row["path_norm_mean"] for row in rows])
    others = means * 10 ** (noise * rng.standard_normal((200, len(rows)))) * rng.normal(1, 0.05, (200, len(rows)))
    said = {"decay": vars(decay(rows, others)), "effective": effective(rows, others, share)}
    peak = max(rows, key=lambda row: row["total_norm"])["length"]
    said["cancellation"] = {"length": peak, "left": 0.01, "low": 0.008, "high": 0.012}
    return table(rows, share=share, images_measured=64, **said)


def effective(rows, others, share):
    """What provenance says of effective lengths: of sampled contributions in other samples, twice these, and exact."""
    counts = np.array([float(row["n_paths"]) for row in rows])
    totals = np.array([row["total_norm"] for row in rows])
    means = np.array([row["path_norm_mean"] for row in rows])
    found = {}
    sampled = means * counts, others * counts
    for name, weights, drawn in (("sampled", *sampled), ("signed", *sampled), ("exact", totals, totals[None])):
        ranges = [effective_paths(one.tolist(), share) for one in drawn]
        ends = {end: np.array([getattr(one, end) for one in ranges]) for end in ("first", "last", "share_of_paths")}
        found[name] = vars(effective_paths(weights.tolist(), share))
        for end, values in ends.items():
            found[name] |= whole_interval(end, values)
    return found


def test_norms_of_paths_decay_exponentially():
    falls = paths.decay(gradients(20, -0.5))
    assert falls.outcome == "agrees"
    assert falls.value == pytest.approx(-0.5)
    assert paths.decay(gradients(20, 0.2)).outcome == "disagrees"
    assert paths.decay(gradients(20, 0.0, noise=0.3)).outcome == "cannot tell"
    ragged = paths.decay(gradients(20, -0.1, noise=0.5))
    assert (ragged.high < 0, ragged.outcome) == (True, "cannot tell")  # it falls, but on no straight line
    ends = paths.decay(gradients(20, -0.5, dead=(18, 19, 20)))
    assert ends.value == pytest.approx(-0.5)
    assert "3 lengths of which no sampled path has a gradient are left out" in ends.here
    assert "half" not in ends.here
    rare = paths.decay(gradients(20, -0.5, dead=(20,), rare=(17, 18, 19)))
    assert "at 3 lengths more than half of the sampled gradients are zero" in rare.here


def test_effective_lengths_with_their_intervals():
    rows = {row["contribution"]: row for row in paths.range_rows("n", gradients(20, -0.5))}
    weights = [math.comb(20, length) * 10 ** (-0.5 * length) for length in range(21)]
    own = rows["sampled"]
    assert sum(weights[own["first"] : own["last"] + 1]) >= 0.95 * sum(weights)
    assert own["last_low"] <= own["last"] <= own["last_high"]
    assert own["blocks_per_batch"] == own["first"] + own["last"]
    assert own["share_of_paths"] == sum(math.comb(20, k) for k in range(own["first"], own["last"] + 1)) / 2**20
    assert paths.short(own).outcome == "agrees"
    assert paths.short({**own, "blocks": 2 * own["last_low"] - 1}).outcome == "disagrees"
    assert paths.few({**own, "share_low": 0.01, "share_high": 0.04}).outcome == "agrees"
    assert paths.few({**own, "share_low": 0.01, "share_high": 0.06}).outcome == "cannot tell"
    assert paths.few({**own, "share_low": 0.1, "share_high": 0.2}).outcome == "disagrees"
    assert (rows["exact"]["peak"], rows["exact"]["last_low"]) == (own["peak"], rows["exact"]["last"])


def test_what_a_table_lacks_is_drawn_from_its_lengths():
    measured = gradients(20, -0.5)
    assert paths.with_intervals(measured).provenance["on_their_own"] == []
    known = {"share": 0.95, "effective": {"exact": measured.provenance["effective"]["exact"]}}
    older = paths.with_intervals(Table(measured.columns, measured.rows, known)).provenance
    assert set(older["on_their_own"]) == {"effective", "decay", "cancellation"}
    assert older["effective"]["exact"] == known["effective"]["exact"]
    sampled = older["effective"]["sampled"]
    assert sampled["last_low"] <= measured.provenance["effective"]["sampled"]["last"] <= sampled["last_high"]
    assert older["decay"]["low"] < -0.5 < older["decay"]["high"]
    # the ratio is of a norm with 20 % to either side, and of one with 10 %
    left = older["cancellation"]
    assert left["left"] == pytest.approx(0.01)
    assert (left["low"], left["high"]) == pytest.approx((0.0079, 0.0125), rel=0.05)
    only = [
        {name: row[name] for name in ("length", "n_paths", "total_norm", "total_low", "total_high")}
        for row in measured.rows
    ]
    (row,) = paths.range_rows("n", table(only, share=0.95))
    assert (row["contribution"], row["first_low"] <= row["first"] <= row["first_high"]) == ("exact", True)
    assert paths.cancellation(table(only, share=0.95)).outcome == "cannot tell"


def test_the_ratio_that_a_table_states_is_judged():
    found = paths.cancellation(gradients(20, -0.5))
    assert found.value == pytest.approx(0.01)
    assert (found.low, found.high) == pytest.approx((0.008, 0.012))
    assert found.outcome == "agrees"


def test_a_sum_is_compared_with_that_of_independent_directions():
    told = gradients(20, -0.5)
    peak = told.provenance["cancellation"]["length"]
    row = told.rows[peak]
    norms = 0.01 * row["n_paths"] * row["path_norm_mean"], 0.2 * 0.01 * row["n_paths"] * row["path_norm_mean"] / 1.96
    # the standard error of a mean of 64 norms tells their variance; squares of independent directions add up
    total = math.sqrt(norms[0] ** 2 + 63 * norms[1] ** 2)
    alone = math.sqrt(row["n_paths"]) * 2 * row["path_norm_mean"]
    assert paths.beside_independent(told, row) == pytest.approx((total, alone))
    assert f"it is {total / alone:.2g} times that of {row['n_paths']:,} paths" in paths.cancellation(told).here
    unknown = Table(told.columns, tuple({**one, "path_norm_rms": None} for one in told.rows), told.provenance)
    assert "independent" not in paths.cancellation(unknown).here


def test_shortcut_and_branch():
    low, high = lesions([20, 20, 400]), lesions([600, 700, 400])
    assert networks.shortcuts(low, high).outcome == "agrees"
    assert networks.shortcuts(high, low).outcome == "disagrees"
    assert networks.shortcuts(low, low).outcome == "cannot tell"
    assert networks.worse(low, high) == {0: "shortcut", 1: "shortcut", 2: None}


def test_costs_are_compared_by_their_difference_over_both_directions_of_all_pairs():
    first, second = rules.costs(lesions([100, 130, 60])), rules.costs(lesions([60, 100, 100]))
    ps = []
    for one, other in zip(first, second, strict=True):
        gap = one.difference - other.difference
        for sign, a, b in ((1, one.low, other.high), (-1, one.high, other.low)):
            error = math.hypot(one.difference - a, b - other.difference) / stats.norm.ppf(0.975)
            ps.append(stats.norm.sf(sign * gap / error))
    more, less = rules.costlier(first, second)
    assert np.transpose([more, less]) == pytest.approx(np.reshape(holm(ps), (3, 2)))
    assert ([p < 0.05 for p in more], [p < 0.05 for p in less]) == ([True, False, False], [False, False, True])
    # what one costs against the sum of two others
    for lost, signs in ((100, (False, False)), (300, (True, False)), (20, (False, True))):
        told = rules.costlier(rules.costs(lesions([lost])), second[:1], second[:1])
        assert tuple(p < 0.05 for (p,) in told) == signs, lost


def test_every_claim_has_all_that_it_needs_and_one_name():
    found = [value for value in vars(veit).values() if isinstance(value, claims.Claim)]
    assert len({claim.name for claim in found}) == len(found) > 10
    for claim in found:
        assert all((claim.says, claim.source, claim.rule, claim.test)), claim.name
        assert claim.source == "ours" or "section" in claim.source, claim.name
        assert claim.says.count('"') % 2 == 0


@pytest.mark.parametrize("claim", [veit.FEW, veit.SHORT], ids=lambda claim: claim.name)
def test_what_is_said_of_effective_paths_is_the_papers_of_its_own_depth_alone(claim):
    assert veit.in_depth(claim, 54) is claim
    assert claim.source.startswith("Veit et al.")
    other = veit.in_depth(claim, 27)
    assert (other.source, other.rule) == ("ours", claim.rule)
    assert other.name == f"{claim.name} in networks of other depths"


def test_what_is_said_of_whole_trainings_is_the_papers_of_as_long_ones_alone():
    assert veit.trained_for(veit.RETRAINED, 200) is veit.RETRAINED
    short = veit.trained_for(veit.RETRAINED, 60)
    assert (short.source, short.name, short.rule) == ("ours", veit.RETRAINED.name, veit.RETRAINED.rule)
    assert short.says.startswith("after fewer epochs than the paper's 200: a network")
    assert veit.RETRAINED.revised in short.revised


def test_a_rule_that_was_changed_says_so():
    changed = claims.row(veit.in_depth(veit.FEW, 27), "a", claims.Verdict("agrees", "so"))
    assert changed["revised"].startswith("on 29 November 2026")
    assert "On 30 November 2026, when the numbers were known, only in whose claim it is" in changed["revised"]
    assert f"Revised: {changed['revised']}\n- a: **agrees**" in claims.listing([changed])
    assert "Revised" not in claims.listing([claims.row(veit.HIGHWAY, "a", claims.Verdict("agrees", "so"))])


def test_a_page_says_what_a_table_of_claims_holds():
    rows = [claims.row(veit.SINGLE, "a", claims.Verdict("agrees", "so it is", 0.1))]
    rows += [claims.row(veit.HIGHWAY, "b", claims.Verdict("disagrees", "not so"))]
    text = claims.listing(rows)
    assert "- a: **agrees**. So it is." in text
    assert text.index(veit.SINGLE.rule) < text.index("- a:") < text.index(veit.HIGHWAY.says)
    told = "Claims of others: 1, with 1 verdicts (networks): agrees 1, disagrees 0, cannot tell 0. Claims of our own: 1"
    assert claims.tally(rows).startswith(told)
    again = [*rows, claims.row(veit.SINGLE, "c", claims.Verdict("agrees", "so it is"))]
    assert claims.in_short(again) == (
        "Claims of others: *agrees* on single deletions (a; c). Claims of our own: *disagrees* on highway network (b)."
    )
    # two claims on one observation are counted once beside the others
    mixed = [claims.row(claim, "a", claims.Verdict("disagrees", "")) for claim in (veit.SETS, veit.ORDERS)]
    assert "agrees 1, disagrees 2, cannot tell 0. Some rest on one observation" in claims.tally(rows + mixed)
    assert "each network and observation: agrees 1, disagrees 1, cannot tell 0." in claims.tally(rows + mixed)
    other = claims.row(veit.ORDERS, "a", claims.Verdict("cannot tell", ""))
    counted = "Counted once for each network and observation: agrees 1, disagrees 0, cannot tell 0, mixed 1."
    assert counted in claims.tally([*rows, mixed[0], other])
    own = claims.row(veit.EXACT, "a", claims.Verdict("agrees", ""))
    assert claims.tally([own]) == "Claims of our own: 1, which are no evidence for or against a paper."
    found = claims.table([{**row, "data": "d"} for row in rows])
    assert found.values("claim") == ("single deletions", "highway network")
