"""The lesion verbs against a plain loop over lesioned networks that are written out by hand."""

from __future__ import annotations

import gc
import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

import pathlens
from pathlens import plans
from pathlens.analyses.sources import batch_source
from pathlens.analyses.sweep import evaluate, routes_of
from pathlens.data import open_data
from pathlens.errors import DataError, ModelError, NumericsError, ResourceError, UsageError
from pathlens.residual import ResidualView, find_blocks
from pathlens.residual.chain import Chain
from pathlens.residual.inference import Inference
from pathlens.residual.routes import Part
from pathlens.runtime import processes
from tests.helpers.data_files import noise, png, write
from tests.helpers.lesion_oracle import (
    Cancels,
    CifarLoop,
    decoded,
    indices,
    near,
    plain_loop,
    small_batches,
    small_forward,
    small_net,
)
from tests.helpers.odd_nets import Net, drawn

RGB = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def view() -> ResidualView:
    return find_blocks(small_net(), small_batches()[0][0])


def test_delete_blocks_one_by_one(view: ResidualView) -> None:
    batches = small_batches()
    table = pathlens.delete_blocks(view, batches, dtype="float64")
    assert [row["block"] for row in table.rows] == [None, 0, 1, 2, 3, 4, 5]
    assert [row["stage"] for row in table.rows] == [None, 0, 0, 0, 1, 1, 1]
    assert [row["name"] for row in table.rows] == [None, *(f"blocks.{i}" for i in range(6))]
    assert [row["kind"] for row in table.rows][4] == "padding"
    assert {row["n"] for row in table.rows} == {40}
    for row in table.rows:
        near(row, plain_loop(lambda x, row=row: small_forward(view.model, x, indices(row["blocks"])), batches))
    # a lesion that changes nothing would show nothing
    assert len({row["loss"] for row in table.rows}) == 7


def test_delete_skips(view: ResidualView) -> None:
    batches = small_batches()
    table = pathlens.delete_skips(view, batches, dtype="float64", blocks=[5, 0, 3])
    assert [row["block"] for row in table.rows] == [None, 0, 3, 5]
    for row in table.rows:
        near(row, plain_loop(lambda x, row=row: small_forward(view.model, x, no_skip=indices(row["blocks"])), batches))


@pytest.mark.parametrize("verb", ["delete_blocks", "delete_skips"])
def test_random_sets(view: ResidualView, verb: str) -> None:
    batches = small_batches()
    table = getattr(pathlens, verb)(view, batches, dtype="float64", count=range(1, 4), samples=3, seed=7)
    drawn_rows = [row for row in table.rows if row["sample"] is not None]
    means = [row for row in table.rows if row["sample"] is None and row["count"]]
    assert [(row["count"], row["sample"]) for row in drawn_rows] == [(c, s) for c in (1, 2, 3) for s in range(3)]
    lost = "deleted" if verb == "delete_blocks" else "no_skip"
    for row in drawn_rows:
        blocks = indices(row["blocks"])
        assert len(set(blocks)) == len(blocks) == row["count"]
        assert (row["block"] is None) == (row["count"] > 1)
        assert row["kinds"].split(",") == [view[block].kind for block in blocks]
        near(row, plain_loop(lambda x, b=blocks: small_forward(view.model, x, **{lost: b}), batches))
    for row in means:
        errors = [other["error"] for other in drawn_rows if other["count"] == row["count"]]
        assert row["error"] == pytest.approx(np.mean(errors))
        spread = scipy.stats.sem(errors)
        low, high = scipy.stats.t.interval(0.95, 2, np.mean(errors), spread) if spread else (errors[0], errors[0])
        assert row["error_low"] == pytest.approx(max(low, 0))
        assert row["error_high"] == pytest.approx(min(high, 1))
    assert [row["count"] for row in means] == [1, 2, 3]


def test_reorder(view: ResidualView) -> None:
    batches = small_batches()
    table = pathlens.reorder_blocks(view, batches, dtype="float64", swaps=[1, 4], samples=3, seed=3)
    assert [row["swaps"] for row in table.rows] == [0, 1, 1, 1, 4, 4, 4, 1, 4]
    for row in table.rows[:7]:
        order = indices(row["order"])
        assert {*order[:3]} == {0, 1, 2}
        assert order[3] == 3
        assert row["kendall_tau"] == pytest.approx(scipy.stats.kendalltau(range(6), order).statistic)
        assert row["moved"] == sum(position != block for position, block in enumerate(order))
        near(row, plain_loop(lambda x, order=order: small_forward(view.model, x, order=order), batches))
    assert any(row["moved"] for row in table.rows[1:7])
    assert table.rows[7]["kendall_tau"] == pytest.approx(np.mean([row["kendall_tau"] for row in table.rows[1:4]]))


def test_intervals_are_wilson_s(view: ResidualView) -> None:
    for row in pathlens.delete_blocks(view, small_batches()).rows:
        n, p, z = row["n"], row["error"], 1.959963984540054
        centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        assert row["error_low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-9)
        assert row["error_high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-9)


def test_seeds(view: ResidualView) -> None:
    def sets(seed: int) -> list[Any]:
        return [row["blocks"] for row in pathlens.delete_blocks(view, small_batches(8), count=[2, 3], seed=seed).rows]

    assert sets(1) == sets(1)
    assert sets(1) != sets(2)
    with pytest.raises(UsageError, match="seed"):
        sets(-1)


def test_batch_size_and_kind_of_data_do_not_matter(view: ResidualView, tmp_path: Path) -> None:
    pixels = noise(50, 8, 8, 3)
    labels = [row % 5 for row in range(50)]
    data = open_data(write(tmp_path / "test.parquet", [png(image) for image in pixels], labels))
    tables = [pathlens.delete_blocks(view, data, batch_size=size, dtype="float64", **RGB) for size in (7, 64)]
    mean, std = (torch.tensor(RGB[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=13)
    tables.append(pathlens.delete_blocks(view, loader, dtype="float64"))
    tables.append(pathlens.delete_blocks(view, list(loader), dtype="float64"))
    for table in tables[1:]:
        for row, first in zip(table.rows, tables[0].rows, strict=True):
            near(row, (first["error"], first["loss"]), 1e-6 if table is not tables[1] else 1e-10)
    assert tables[0].provenance["batch_size"] == 7
    assert tables[0].provenance["normalisation"] == "given"
    assert tables[2].provenance["data"] == "batches from DataLoader"
    limited = pathlens.delete_blocks(view, open_data(f"parquet:{tmp_path}/test.parquet", limit=20), blocks=[])
    assert [row["n"] for row in limited.rows] == [20]


def test_the_caller_s_batches_and_model_are_left_alone() -> None:
    net = small_net(torch.float32).train()
    net.stem = torch.nn.Sequential(torch.nn.ReLU(inplace=True), net.stem)  # writes into its input
    batches = small_batches(dtype=torch.float32)
    kept = [images.clone() for images, _ in batches]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    pathlens.delete_blocks(net, batches, blocks=1)
    assert all(torch.equal(images, before) for (images, _), before in zip(batches, kept, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert net.training
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("engine", ["plain", "plain-4x2"])
def test_autocast_around_a_sweep_changes_nothing(engine: str) -> None:
    net, batches = small_net(torch.float32), small_batches(dtype=torch.float32)
    wanted = pathlens.delete_blocks(net, batches, engine=engine)
    with torch.autocast("cpu", torch.bfloat16):
        assert pathlens.delete_blocks(net, batches, engine=engine).rows == wanted.rows


class ForTraining(torch.nn.Module):
    """Leaves everything out by a draw, or returns what an auxiliary loss is for, in train mode alone."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.net, self.draws = small_net(torch.float32), draws

    def forward(self, x: Tensor) -> Any:
        if self.training and self.draws and torch.rand(1) < 0.5:
            return x
        logits = self.net(x)
        return (logits, logits * 2) if self.training and not self.draws else logits


@pytest.mark.parametrize("draws", [False, True])
def test_what_a_network_does_in_train_mode_alone_ends_no_sweep(draws: bool) -> None:
    batches = small_batches(8, dtype=torch.float32)
    net = ForTraining(draws).eval()
    wanted = pathlens.delete_blocks(net, batches, blocks=1, engine="plain")
    view = find_blocks(net, batches[0][0])
    net.train()
    for model in (net, view):
        table = pathlens.delete_blocks(model, batches, blocks=1, engine="plain", additions="all")
        assert table.rows == wanted.rows
        assert table.provenance["notes"] == wanted.provenance["notes"]
        assert len(pathlens.delete_skips(model, batches, blocks=1).rows) == 2
        assert len(pathlens.delete_blocks_greedy(model, batches, count=1).rows) == 2
        assert len(pathlens.reorder_blocks(model, batches, swaps=1, samples=1).rows) == 2
        assert len(pathlens.reorder_blocks_runs(model, batches).rows) > 2
    lengths = pathlens.path_gradients(view, batches, method="exact", additions="all")
    assert len(lengths.rows) == len(view) + 1
    assert all(module.training for module in net.modules())


class Watched:
    """A prepared network that records which pieces run, and how many of their results are alive."""

    def __init__(self, network: Inference) -> None:
        self.network = network
        self.calls: list[tuple[str, int]] = []
        self.alive: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __len__(self) -> int:
        return len(self.network)

    @property
    def chain(self) -> Chain:
        return self.network.chain

    def prepare(self, images: Tensor) -> Tensor:
        return self.network.prepare(images)

    @property
    def stem(self) -> Callable[[Tensor], Tensor]:
        return self._watched(("stem", 0), self.network.stem)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        return self._watched(("head", 0), self.network.head)

    def step(self, part: Part, index: int) -> Callable[[Tensor], Tensor]:
        return self._watched((part, index), self.network.step(part, index))

    def _watched(self, name: tuple[str, int], piece: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            self.calls.append(name)
            result = piece(x)
            self.alive = [*(ref for ref in self.alive if ref() is not None), weakref.ref(result)]
            self.most = max(self.most, len(self.alive))
            return result

        return call


def test_single_deletions_cost_half_of_the_obvious_loop(view: ResidualView) -> None:
    n = len(view)
    watched = Watched(Inference(view))
    tried = [plans.delete([]), *(plans.delete([block]) for block in range(n))]
    gc.disable()
    try:
        with torch.inference_mode():
            indices_seen = [index for index, _ in evaluate(watched, routes_of(tried, n), small_batches()[0][0])]  # type: ignore[arg-type]
    finally:
        gc.enable()
    assert sorted(indices_seen) == list(range(n + 1))
    # block i runs intact once for all later lesions and the intact network, and once for each earlier lesion
    assert [watched.calls.count((Part.BLOCK, block)) for block in range(n)] == [1 + block for block in range(n)]
    assert [watched.calls.count((Part.SHORTCUT, block)) for block in range(n)] == [1] * n
    assert sum(what is Part.BLOCK for what, _ in watched.calls) == n * (n - 1) // 2 + n
    assert watched.calls.count(("stem", 0)) == 1
    assert watched.calls.count(("head", 0)) == n + 1
    # the state before the lesion, the one going into a block, the one coming out of it, and logits
    assert watched.most <= 4


def test_any_plans_share_what_they_have_in_common_and_few_states_are_alive(view: ResidualView) -> None:
    n = len(view)
    subsets = [s for size in range(n + 1) for s in itertools.combinations(range(n), size)]
    tried = [plans.delete([]), *map(plans.delete, subsets), *map(plans.delete_skips, subsets[1:])]
    tried += [plans.reorder([1, 0, 2, 3, 5, 4]), plans.reorder([2, 0, 1, 3, 4, 5])]
    watched = Watched(Inference(view))
    images = small_batches()[0][0]
    found: dict[int, Tensor] = {}
    gc.disable()
    try:
        with torch.inference_mode():
            for index, logits in evaluate(watched, routes_of(tried, n), images):  # type: ignore[arg-type]
                found[index] = logits
    finally:
        gc.enable()
    routes = set(routes_of(tried, n))
    prefixes = {route[: depth + 1] for route in routes for depth in range(n)}
    assert len(watched.calls) == len(prefixes) + 1 + len(routes)
    heads = len({id(logits) for logits in found.values()})
    assert watched.most - heads <= 4 + math.log2(len(tried))
    assert sorted(found) == list(range(len(tried)))
    for index, plan in list(enumerate(tried))[1::9]:
        with torch.no_grad(), pathlens.applied(view, plan) as model:
            torch.testing.assert_close(found[index].double(), model(images), rtol=1e-4, atol=1e-4)


class Stream:
    """Batches made on demand, that remembers which of them are still alive."""

    def __init__(self, count: int) -> None:
        self.count, self.made, self.most = count, [], 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(self.count):
            images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(index))
            self.made = [*(ref for ref in self.made if ref() is not None), weakref.ref(images)]
            self.most = max(self.most, len(self.made))
            yield images, torch.arange(4)


def test_memory_does_not_grow_with_the_data(view: ResidualView) -> None:
    stream = Stream(30)
    table = pathlens.delete_blocks(view, stream, blocks=[2])
    assert table.rows[0]["n"] == 120
    assert stream.most <= 2


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (iter([(torch.zeros(2, 3, 8, 8), torch.zeros(2))]), UsageError, "list_iterator"),
        (((x, y) for x, y in small_batches()), UsageError, "generator"),
        (5, UsageError, "int"),
        ([], DataError, "no images"),
        ([torch.zeros(2, 3, 8, 8)], DataError, "batch 0 is no pair"),
        ([(np.zeros((2, 3, 8, 8)), [0, 1])], DataError, "tuple of ndarray, list"),
        ([(torch.zeros(2, 3, 8, 8), ["cat", "dog"])], DataError, "labels of batch 0"),
        ([(torch.zeros(2, 3, 8, 8), [0, 1, 2])], DataError, "labels are"),
        ([(torch.zeros(2, 3, 8, 8), [0.5, 1])], DataError, "labels are"),
        ([(torch.zeros(2, 3, 8, 8), [0, 5])], DataError, "1 of 2 labels are outside"),
        ([(torch.zeros(2, 3, 8, 8), [0, -1])], DataError, "1 of 2 labels are outside"),
        ([(torch.zeros(2, 3, 9, 9), [0, 1])], DataError, r"batch 0 has images of shape \(3, 9, 9\)"),
        ([(torch.zeros(2, 3, 8, 8), [0, 1]), (torch.zeros(2, 1, 8, 8), [0, 1])], DataError, "batch 1 has images"),
        ([(torch.full((2, 3, 8, 8), torch.nan), [0, 1])], DataError, "batch 0 has pixels that are NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_data(view: ResidualView, data: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        pathlens.delete_blocks(view, data)
    assert "\n" not in str(caught.value)


class Streamed(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in small_batches(20):
            yield from zip(images, labels, strict=True)


def test_a_data_set_that_has_no_length(view: ResidualView) -> None:
    found = pathlens.delete_blocks(view, DataLoader(Streamed(), batch_size=16), blocks=1)
    assert found.rows == pathlens.delete_blocks(view, small_batches(20), blocks=1).rows


def test_another_part_of_the_data_in_each_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = TensorDataset(torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64))
    sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
    given: tuple[Any, ...] = DataLoader(data, 4, sampler=sampler), 4, None, None, torch.device("cpu")
    assert batch_source(*given).count == 1
    monkeypatch.setattr(processes, "current", lambda: processes.Processes(0, 2))
    with pytest.raises(UsageError, match=r"gives each process a part of the data.*without that sampler") as caught:
        batch_source(*given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": [6]}, "block 6 does not exist"),
        ({"blocks": [-7]}, "block -7 does not exist"),
        ({"blocks": ["one"]}, "integers"),
        ({"blocks": [1], "count": 2}, "either"),
        ({"count": 7}, "7 blocks cannot be drawn"),
        ({"count": 0}, "1 or more"),
        ({"count": []}, "1 or more"),
        ({"count": 1, "samples": 0}, "samples"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"device": "toaster"}, "toaster"),
        ({"mean": (0, 0, 0)}, "normalise your own batches"),
    ],
    ids=str,
)
def test_bad_requests(view: ResidualView, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pathlens.delete_blocks(view, small_batches(8), **options)


def test_the_caller_s_network_that_raises_or_takes_too_much_memory() -> None:
    class Moody(torch.nn.Module):
        def __init__(self, wrong: str) -> None:
            super().__init__()
            self.net, self.wrong = small_net(torch.float32), wrong

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting():
                if self.wrong == "raises":
                    raise KeyError("not today")
                x = x.repeat(1, 1, 2**22, 2**22)[..., :8, :8]
            return self.net(x)

    with pytest.raises(ModelError, match=r"Moody fails on images of shape .*KeyError: 'not today'"):
        pathlens.delete_blocks(Moody("raises"), small_batches(8))
    with pytest.raises(ResourceError, match="does not fit in memory"):
        pathlens.delete_blocks(Moody("memory"), small_batches(8))


def test_a_lesioned_network_that_is_not_finite_is_marked() -> None:
    net = drawn(lambda: Net(Cancels()))
    with torch.no_grad():
        net.stem.weight.mul_(1e36)
        net.fc.weight.mul_(1e9)
    rows = pathlens.delete_blocks(net, small_batches(8, dtype=torch.float32)).rows
    assert [row["nonfinite"] for row in rows] == [0, 8]
    assert rows[0]["loss"] is not None
    assert (rows[1]["error"], rows[1]["loss"]) == (1.0, None)
    with torch.no_grad():
        net.blocks[0].conv.weight[3] = torch.nan
    with pytest.raises(NumericsError, match="the intact network gives NaN or infinity for 8 of the first 8 images"):
        pathlens.delete_blocks(net, small_batches(8, dtype=torch.float32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "size", "compared", "many"),
    [
        # blocks inside a stage, changes of stage, and the last block
        ("resnet20-12fca82f.th", 20, (1, 3, 6, 8), 150),
        ("resnet56-4bfd9763.th", 56, (9, 13, 18, 26), 130),
    ],
    ids=["resnet20", "resnet56"],
)
def test_published_networks(
    file: str, size: int, compared: tuple[int, ...], many: int, shared_data: Path, shared_models: Path
) -> None:
    """Every block on a few images, and some blocks on many."""
    weights = shared_models / "pytorch_resnet_cifar10" / file
    images = shared_data / "cifar10-jpeg" / "test.parquet"
    view = find_blocks(pathlens.load_model(f"resnet{size}", weights).model, torch.zeros(2, 3, 32, 32))
    n = (size - 2) // 2
    for count, blocks in ((many, compared), (10, None)):
        data = open_data(f"parquet:{images}", limit=count)
        table = pathlens.delete_blocks(view, data, blocks=blocks, **RGB)
        assert [row["block"] for row in table.rows] == [None, *(range(n) if blocks is None else blocks)]
        assert {row["n"] for row in table.rows} == {count}
        assert table.provenance["largest_relative_logit_difference"] < 1e-4
        loop = CifarLoop(weights, n // 3, decoded(images, count))
        for row in table.rows:
            near(row, loop.result(row["block"]), 1e-4)
    if size == 20:
        for row in pathlens.delete_skips(view, data, **RGB, blocks=[1, 3, 8]).rows[1:]:
            near(row, loop.result(row["block"], branch=True, skip=False), 1e-4)
