"""Lesioned networks against the intact one: counts by a look at every image, and random lesions drawn once each."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

import pathlens
from pathlens import plans
from pathlens.analyses.drawing import existing_orders
from pathlens.data import open_data
from pathlens.metrics import holm, paired_interval
from pathlens.residual import ResidualView, find_blocks
from tests.helpers.lesion_oracle import Batches, Cancels, indices, small_batches, small_forward, small_net
from tests.helpers.odd_nets import Net, drawn


def right(forward: Callable[[Tensor], Tensor], batches: Batches) -> list[bool]:
    """Whether each image is classified correctly, one image at a time."""
    with torch.no_grad():
        return [
            bool(logits.isfinite().all()) and int(logits.argmax()) == int(label)
            for images, labels in batches
            for logits, label in zip(map(forward, images.split(1)), labels, strict=True)
        ]


def check(rows: Sequence[Any], forward: Callable[[Any], Callable[[Tensor], Tensor]], batches: Batches) -> None:
    """Every row against the answers of its network and the intact one, image by image."""
    intact, *lesioned = rows
    before = right(forward(intact), batches)
    blank = dict.fromkeys(("difference", "difference_low", "difference_high", "lost", "gained", "p", "p_holm"))
    assert intact == {**intact, **blank}
    single = [row for row in lesioned if row["p"] is not None]
    for row in single:
        after = right(forward(row), batches)
        counts = Counter(zip(before, after, strict=True))
        lost, gained = counts[True, False], counts[False, True]
        assert (row["lost"], row["gained"]) == (lost, gained)
        assert row["difference"] == pytest.approx(row["error"] - intact["error"], abs=1e-12)
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        assert (row["difference_low"], row["difference_high"]) == paired_interval(lost, gained, len(before))
        assert row["p"] == pytest.approx(binomtest(lost, lost + gained).pvalue if lost + gained else 1.0)
    family = {(row.get("order"), row["blocks"]): row["p"] for row in single}
    adjusted = dict(zip(family, holm(list(family.values())), strict=True))
    for row in single:
        assert row["p_holm"] == adjusted[row.get("order"), row["blocks"]]
    for mean in lesioned[len(single) :]:
        assert (mean["sample"], mean["lost"], mean["gained"], mean["p"], mean["p_holm"]) == (None,) * 5
        name = "count" if "count" in mean else "swaps"
        differences = [row["difference"] for row in single if row[name] == mean[name]]
        assert mean["difference"] == pytest.approx(np.mean(differences))


@pytest.fixture(scope="module")
def view() -> ResidualView:
    """Of a network that gives every class to some images."""
    net = small_net()
    ((images, _),) = small_batches(50, size=50)
    with torch.no_grad():
        net.fc.bias -= net(images).mean(0)
    return find_blocks(net, images)


@pytest.fixture(scope="module")
def batches(view: ResidualView) -> Batches:
    """Images with the labels that the network gives four in five of them, so that there is something to lose."""
    found = []
    for images, labels in small_batches(50, size=23):
        with torch.no_grad():
            answers = view.model(images).argmax(1)
        found.append((images, torch.where(labels == 0, labels, answers)))
    return found


@pytest.mark.parametrize("engine", ["auto", "folded-7x2"])
def test_deletions_image_by_image(view: ResidualView, batches: Batches, engine: str) -> None:
    table = pathlens.delete_blocks(view, batches, dtype="float64", engine=engine)
    check(table.rows, lambda row: lambda x: small_forward(view.model, x, indices(row["blocks"])), batches)
    assert {row["lost"] > 0 for row in table.rows[1:]} == {True}
    assert any(row["gained"] for row in table.rows[1:])
    compared = table.provenance["comparison"]
    assert compared["networks"] == 6
    assert compared["differ"] == sum(row["p"] <= 0.05 for row in table.rows[1:])
    assert compared["differ_corrected"] == sum(row["p_holm"] <= 0.05 for row in table.rows[1:])


def test_random_lesions_image_by_image(view: ResidualView, batches: Batches) -> None:
    options = {"dtype": "float64", "samples": 3}
    table = pathlens.delete_skips(view, batches, count=[1, 2], **options)
    check(table.rows, lambda row: lambda x: small_forward(view.model, x, no_skip=indices(row["blocks"])), batches)
    table = pathlens.reorder_blocks(view, batches, swaps=[1, 3], **options)
    check(table.rows, lambda row: lambda x: small_forward(view.model, x, order=indices(row["order"])), batches)


def test_a_network_that_is_not_finite_answers_nothing() -> None:
    net = drawn(lambda: Net(Cancels()))
    with torch.no_grad():
        net.stem.weight.mul_(1e36)
        net.fc.weight.mul_(1e9)
        images = small_batches(8, dtype=torch.float32)[0][0]
        labels = net(images).argmax(1)
    (_, row) = pathlens.delete_blocks(net, [(images, labels)]).rows
    assert (row["nonfinite"], row["lost"], row["gained"], row["difference"]) == (8, 8, 0, 1.0)


def test_the_packaged_network_image_by_image() -> None:
    loaded = pathlens.load_model()
    data = open_data("digits", limit=12)
    table = pathlens.delete_blocks(loaded.model, data, blocks=[0, 2, 18, 40], mean=loaded.mean, std=loaded.std)
    net = loaded.model
    blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(18)]
    batches = [(batch.images, batch.labels) for batch in data.batches(12, mean=loaded.mean, std=loaded.std)]

    def forward(row: Any) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            hooks = []
            for name in (blocks[block] for block in indices(row["blocks"])):
                block = net.get_submodule(name)
                shortcut = block.shortcut
                hooks.append(block.register_forward_hook(lambda _, given, __, s=shortcut: s(given[0])))
            try:
                return net(x)
            finally:
                for hook in hooks:
                    hook.remove()

        return call

    net.eval()
    check(table.rows, forward, batches)
    assert table.rows[3]["lost"] > 0


# Random lesions


def by_swapping(view: ResidualView, swaps: int) -> set[tuple[int, ...]]:
    """All orders that so many exchanges can give."""
    pairs = [pair for group in plans.interchangeable(view) for pair in itertools.combinations(group, 2)]
    orders = {tuple(range(len(view)))}
    for _ in range(swaps):
        orders = {
            tuple(order[b] if i == a else order[a] if i == b else order[i] for i in range(len(view)))
            for order in orders
            for a, b in pairs
        }
    return orders - {tuple(range(len(view)))}


@pytest.mark.parametrize("swaps", range(1, 8))
def test_orders_that_exist(view: ResidualView, swaps: int) -> None:
    wide = find_blocks(drawn(lambda: Net(*(Cancels() for _ in range(5)))), torch.zeros(2, 3, 8, 8))
    for network in (view, wide):
        assert existing_orders(network, swaps) == len(by_swapping(network, swaps))


def test_no_order_is_measured_twice(view: ResidualView) -> None:
    table = pathlens.reorder_blocks(view, small_batches(8), swaps=range(1, 6), samples=8, seed=2)
    for swaps in range(1, 6):
        rows = [row for row in table.rows if row["swaps"] == swaps and row["sample"] is not None]
        assert [row["sample"] for row in rows] == list(range(len(rows)))
        assert {tuple(indices(row["order"])) for row in rows} <= by_swapping(view, swaps)
        exist = len(by_swapping(view, swaps))
        assert len({row["order"] for row in rows}) == len(rows) == min(8, exist)
        (mean,) = [row for row in table.rows if row["swaps"] == swaps and row["sample"] is None]
        assert (mean["error_low"] is None) == (mean["difference_high"] is None) == (exist <= 8)
    assert "numbers of swaps: 1 (4), 2 (5), 3 (6), 4 (5), 5 (6)" in table.provenance["few"]
    assert table.provenance["few"] in table.provenance["notes"]


def test_two_exchanges_of_the_only_two_blocks() -> None:
    net = drawn(lambda: Net(Cancels(), Cancels()))
    table = pathlens.reorder_blocks(net, small_batches(8, dtype=torch.float32), swaps=[1, 2], samples=2)
    assert [(row["swaps"], row["sample"]) for row in table.rows] == [(0, None), (1, 0), (1, None)]
    assert "1 (1), 2 (0)" in table.provenance["few"]


def test_no_set_is_measured_twice(view: ResidualView) -> None:
    table = pathlens.delete_blocks(view, small_batches(8), count=range(1, 7), samples=7)
    for count in range(1, 7):
        rows = [row for row in table.rows if row["count"] == count and row["sample"] is not None]
        exist = math.comb(6, count)
        assert len({row["blocks"] for row in rows}) == len(rows) == min(7, exist)
        (mean,) = [row for row in table.rows if row["count"] == count and row["sample"] is None]
        assert (mean["error_low"] is None) == (mean["difference_low"] is None) == (exist <= 7)
    assert "numbers of blocks: 1 (6), 5 (6), 6 (1);" in table.provenance["few"]
    few = pathlens.delete_blocks(view, small_batches(8), count=[2, 3], samples=7)
    assert "few" not in few.provenance
    # what is not drawn again are the draws of plain sampling
    rng = np.random.default_rng(0)
    first = [plans.random_deletion(view, 2, rng).blocks for _ in range(3)]
    assert [tuple(indices(row["blocks"])) for row in few.rows[1:4]] == list(dict.fromkeys(first))


def test_one_network_in_several_rows_is_one_test(view: ResidualView, batches: Batches) -> None:
    rows = pathlens.reorder_blocks(view, batches, swaps=[1, 3], samples=10, dtype="float64").rows
    single = [row for row in rows if row["p"] is not None]
    orders = {row["order"]: row for row in single}
    assert len(orders) < len(single)
    smallest = min(single, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, len(orders) * smallest["p"]))
