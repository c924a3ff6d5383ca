"""Plans are frozen, checked in one line, and drawn as they say."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kendalltau

from pathlens import find_layers, plans
from pathlens.errors import UsageError
from pathlens.plans import Deletion, Reordering, SkipDeletion
from tests.helpers.nets_tokens import CASES, ODD, found

ALL = st.sampled_from(sorted(CASES))


def generator(seed=0):
    return np.random.default_rng(seed)


# construction


@given(st.sets(st.integers(-50, 50)))
def test_blocks_are_sorted_and_kept(blocks):
    for make, kind in ((plans.delete, Deletion), (plans.delete_skips, SkipDeletion)):
        plan = make(blocks)
        assert plan == kind(tuple(sorted(blocks)))
        assert hash(plan) == hash(make(sorted(blocks, reverse=True)))
        assert make(np.array(sorted(blocks), dtype=np.int64)) == plan
        assert all(type(block) is int for block in plan.blocks)
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.blocks = ()


@given(st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))))
def test_an_order_is_kept(order):
    plan = plans.reorder(order)
    assert plan == Reordering(tuple(order)) == plans.reorder(np.array(order))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.order = ()


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=12))
def test_what_is_no_order_is_refused(order):
    if sorted(order) == list(range(len(order))):
        assert plans.reorder(order).order == tuple(order)
    else:
        with pytest.raises(UsageError, match="each block from 0 to") as caught:
            plans.reorder(order)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["3", "12", None, 1.5, [1.0], [None], ["a"], [True], [[1]], object()])
def test_what_are_no_integers_is_refused(wrong):
    for make in (plans.delete, plans.delete_skips, plans.reorder):
        with pytest.raises(UsageError, match="must be integers; found") as caught:
            make(wrong)
        assert "\n" not in str(caught.value)


def test_a_length_may_be_an_integer_of_numpy():
    assert plans.restrict(np.int64(3)) == plans.restrict(3)


def test_long_lists_are_shortened_in_messages():
    with pytest.raises(UsageError, match=r"named twice in \(0, 1, 2, .*\.\.\.\)") as caught:
        plans.delete([*range(1000), 5])
    assert len(str(caught.value)) < 200


# checks against a network


@given(data=st.data(), name=ALL)
def test_indices_count_from_both_ends(data, name):
    view = found(name)[1]
    n = len(view)
    wanted = data.draw(st.sets(st.integers(0, n - 1)))
    written = [block - n if data.draw(st.booleans()) else block for block in wanted]
    assert plans.delete(written).check(view) == Deletion(tuple(sorted(wanted)))
    assert plans.delete_skips(written).check(view) == SkipDeletion(tuple(sorted(wanted)))
    outside = data.draw(st.integers(n, n + 9) | st.integers(-n - 9, -n - 1))
    with pytest.raises(UsageError, match=f"block {outside} does not exist: the network has {n} blocks"):
        plans.delete([*written, outside]).check(view)


def test_one_block_named_from_both_ends_is_named_twice():
    with pytest.raises(UsageError, match="named twice"):
        plans.delete([4, -1]).check(found("cifar")[1])


def test_skips_of_plain_layers_are_refused():
    view = find_layers(ODD["plain"].model(), ODD["plain"].input())
    with pytest.raises(UsageError, match="is a plain layer and has no shortcut to delete"):
        plans.delete_skips(0).check(view)
    assert plans.delete(0).check(view) == Deletion((0,))


WANTED_GROUPS = {
    "cifar": ((0, 1), (3, 4)),
    "preact": ((2, 3),),
    "norm_free": (),
    "repvgg": ((0, 1),),
    "mobile": (),
    "inplace": (),
    "edsr": (),
    "unet": (),
    "arithmetic": (tuple(range(8)),),
    "encoder_post": ((0, 1, 2, 3),),
    "windows": ((0, 1, 2, 3),),
}


@pytest.mark.parametrize("name", WANTED_GROUPS)
def test_which_blocks_can_be_exchanged(name):
    view = found(name)[1]
    groups = plans.interchangeable(view)
    # blocks 1 of mobile and unet and 4 of windows follow a layer between the blocks, and stay in their place
    assert groups == WANTED_GROUPS[name]


@pytest.mark.parametrize("order", [(0, 0, 2, 3, 4), (1, 1, 2, 4, 3), (0, 1, 2, 3, 5), (-1, 1, 2, 3, 0)])
def test_an_order_of_blocks_that_are_named_twice_or_not_at_all_is_refused_of_a_plan_too(order):
    view = found("cifar")[1]
    with pytest.raises(UsageError, match=r"each block from 0 to 4 once; found"):
        Reordering(order).check(view)
    with pytest.raises(UsageError, match=r"each block from 0 to 4 once; found"):
        Reordering(order).lift(range(5), 7, "a part")


@given(data=st.data(), name=ALL)
def test_orders_are_accepted_inside_groups_alone(data, name):
    view = found(name)[1]
    order = list(range(len(view)))
    for group in plans.interchangeable(view):
        for place, block in zip(group, data.draw(st.permutations(group)), strict=True):
            order[place] = block
    assert plans.reorder(order).check(view).order == tuple(order)
    a, b = data.draw(st.integers(0, len(view) - 1)), data.draw(st.integers(0, len(view) - 1))
    together = any(a in group and b in group for group in plans.interchangeable(view))
    swapped = list(range(len(view)))
    swapped[a], swapped[b] = swapped[b], swapped[a]
    if a == b or together:
        plans.reorder(swapped).check(view)
    else:
        with pytest.raises(UsageError, match="only blocks of equal shapes inside a stage"):
            plans.reorder(swapped).check(view)


# random plans


@given(
    name=st.sampled_from(["cifar", "preact", "arithmetic", "encoder_pre"]),
    swaps=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_random_swaps_are_orders_that_fit(name, swaps, seed):
    view = found(name)[1]
    plan = plans.random_swaps(view, swaps, generator(seed))
    assert plan.check(view) == plan
    assert plan == plans.random_swaps(view, swaps, generator(seed))
    assert sorted(plan.order) == list(range(len(view)))
    for stage in view.stages:
        assert sorted(plan.order[i] for i in stage) == list(stage)
    # each swap is one transposition: parity is that of their number
    inversions = sum(plan.order[i] > plan.order[j] for i, j in combinations(range(len(view)), 2))
    assert inversions % 2 == swaps % 2
    assert len([i for i, block in enumerate(plan.order) if i != block]) <= 2 * swaps
    tau = kendalltau(range(len(view)), plan.order).statistic
    assert tau == pytest.approx(1 - 4 * inversions / (len(view) * (len(view) - 1)))


def test_one_swap_takes_every_pair_equally_often():
    view = found("arithmetic")[1]
    rng = generator(1)
    seen = Counter(plans.random_swaps(view, 1, rng).order for _ in range(2800))
    assert len(seen) == comb(8, 2)
    assert chisquare(list(seen.values())).pvalue > 1e-3


def test_no_swap_is_the_trained_order():
    assert plans.random_swaps(found("cifar")[1], 0, generator()).order == (0, 1, 2, 3, 4)


def test_swaps_that_cannot_be_drawn():
    with pytest.raises(UsageError, match="must not be negative; found -1"):
        plans.random_swaps(found("cifar")[1], -1, generator())
    with pytest.raises(UsageError, match="nothing can be reordered"):
        plans.random_swaps(found("edsr")[1], 1, generator())


@given(data=st.data(), name=ALL, seed=st.integers(0, 9))
def test_random_deletions_are_sets_of_the_asked_size(data, name, seed):
    view = found(name)[1]
    count = data.draw(st.integers(1, len(view)))
    for draw, kind in ((plans.random_deletion, Deletion), (plans.random_skip_deletion, SkipDeletion)):
        plan = draw(view, count, generator(seed))
        assert type(plan) is kind
        assert len(set(plan.blocks)) == len(plan.blocks) == count
        assert plan.check(view) == plan == draw(view, count, generator(seed))


@pytest.mark.parametrize("draw", [plans.random_deletion, plans.random_skip_deletion])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_set_is_drawn_equally_often(draw, count):
    view, rng = found("cifar")[1], generator(count)
    seen = Counter(draw(view, count, rng).blocks for _ in range(300 * comb(5, count)))
    assert set(seen) == set(combinations(range(5), count))
    assert chisquare(list(seen.values())).pvalue > 1e-3


@pytest.mark.parametrize("count", [-1, 0, 6, 1000])
def test_counts_that_cannot_be_drawn(count):
    for draw in (plans.random_deletion, plans.random_skip_deletion):
        with pytest.raises(UsageError, match=f"{count} blocks cannot be drawn: the network has 5"):
            draw(found("cifar")[1], count, generator())
