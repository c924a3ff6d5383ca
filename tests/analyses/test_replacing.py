"""Branches that are replaced by their mean or by another image's, against networks written by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pathlens
from pathlens import plans
from pathlens.analyses.replacing import other_images
from pathlens.errors import DataError, UsageError
from pathlens.models import preresnet
from pathlens.residual import find_blocks
from tests.helpers.lesion_oracle import indices, plain_loop, small_batches, small_net
from tests.helpers.odd_nets import Net


def intact_branches(net: Net, x: Tensor) -> list[Tensor]:
    x, branches = net.stem(x), []
    for block in net.blocks:
        branches.append(block.branch(x))
        x = F.relu(block.shortcut(x) + branches[-1])
    return branches


def by_hand(net: Net, replaced: list[int], replace: str, seed: int = 0) -> tuple[float, float]:
    """Error and loss of one lesioned network, one batch after the other."""
    batches = small_batches()
    with torch.no_grad():
        sums = [sum(items) for items in zip(*(
            [branch.sum(0) for branch in intact_branches(net, images)] for images, _ in batches
        ), strict=True)]  # fmt: skip
        means = [total / sum(len(labels) for _, labels in batches) for total in sums]
    number = iter(range(len(batches)))

    def forward(x: Tensor) -> Tensor:
        batch, count = next(number), len(x)
        x = net.stem(x)
        for index, block in enumerate(net.blocks):
            branch = block.branch(x)
            if index in replaced and replace == "mean":
                branch = means[index].expand_as(branch)
            elif index in replaced:
                others = other_images(seed, batch, index, count).tolist()
                branch = torch.stack([branch[other] for other in others])
            x = F.relu(block.shortcut(x) + branch)
        return net.fc(x.mean((2, 3)))

    return plain_loop(forward, batches)


@pytest.mark.parametrize("replace", ["mean", "resample"])
@pytest.mark.parametrize("options", [{"count": [1, 3, 6], "samples": 2}, {"engine": "folded-5x2"}])
def test_error_and_loss_equal_a_loop_by_hand(replace: str, options: dict[str, Any]) -> None:
    net = small_net()
    given: dict[str, Any] = {"dtype": "float64", "seed": 3, **options}
    table = pathlens.delete_blocks(net, small_batches(), replace=replace, **given)
    assert table.provenance["replace"] == replace
    zero = pathlens.delete_blocks(net, small_batches(), **given)
    assert "replace" not in zero.provenance
    rows = [row for row in table.rows if row["blocks"]]
    assert len(rows) >= 5
    for row, deleted in zip(rows, [row for row in zero.rows if row["blocks"]], strict=True):
        assert row["blocks"] == deleted["blocks"]
        error, loss = by_hand(net, indices(row["blocks"]), replace, 3)
        assert row["error"] == error
        assert row["loss"] == pytest.approx(loss, rel=1e-10)
        assert row["loss"] != pytest.approx(deleted["loss"], rel=1e-6)
    (intact,) = (row for row in table.rows if row["count"] == 0)
    assert intact["loss"] == zero.rows[0]["loss"]


def test_other_images_are_other_images_and_all_as_likely() -> None:
    drawn = np.stack([other_images(0, batch, 2, 5) for batch in range(4000)])
    assert (drawn != np.arange(5)).all()
    counts = np.stack([(drawn == other).mean(0) for other in range(5)])
    assert np.abs(counts[~np.eye(5, dtype=bool)] - 0.25).max() < 4.5 * (0.25 * 0.75 / 4000) ** 0.5
    assert not np.array_equal(other_images(0, 0, 2, 50), other_images(0, 0, 3, 50))
    assert not np.array_equal(other_images(0, 0, 2, 50), other_images(1, 0, 2, 50))


class Replaced(nn.Module):
    """The last layer of a branch, with its output replaced."""

    def __init__(self, layer: nn.Module, others: Tensor | None, mean: Tensor | None) -> None:
        super().__init__()
        self.layer, self.others, self.mean = layer, others, mean
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        self.seen.append(out)
        if self.mean is not None:
            return self.mean.expand_as(out)
        return out if self.others is None else out[self.others]


def test_branches_of_a_trained_network() -> None:
    """The network that comes with the package; its branches end in a convolution."""
    model = pathlens.load_model().model.double()
    data = pathlens.open_data("digits", limit=24)
    batch = data.batch(0, 24)
    images, labels = batch.images.double(), batch.labels
    view = find_blocks(model, images)
    name = view[7].name
    for replace in ("mean", "resample"):
        table = pathlens.delete_blocks(view, [(images, labels)], blocks=7, replace=replace, dtype="float64", seed=2)
        twin = copy.deepcopy(model).eval()
        block: Any = twin.get_submodule(name)
        last = block.conv2
        block.conv2 = look = Replaced(last, None, None)
        with torch.no_grad():
            twin(images)
            others = torch.from_numpy(other_images(2, 0, 7, 24)) if replace == "resample" else None
            mean = look.seen[0].mean(0) if replace == "mean" else None
            block.conv2 = Replaced(last, others, mean)
            loss = float(F.cross_entropy(twin(images), labels))
        assert table.rows[1]["loss"] == pytest.approx(loss, rel=1e-8)
        assert table.rows[1]["loss"] != table.rows[0]["loss"]


def test_a_resampled_sweep_goes_on_with_its_own_seed_alone(tmp_path: Path) -> None:
    """What is in the journal of one seed is not read by another."""
    data, network = pathlens.open_data("digits", limit=30), preresnet(8, in_channels=1, widths=(4, 4, 6))

    def sweep(seed: int, stop: int | None = None) -> Any:
        def progress(done: int, total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        return pathlens.delete_blocks(
            network, data, blocks=[1], replace="resample", batch_size=10, seed=seed, journal=tmp_path,
            progress=progress, engine="folded",
        )  # fmt: skip

    whole = sweep(1)
    with pytest.raises(KeyboardInterrupt):
        sweep(1, stop=2)
    assert sweep(2).provenance["resumed_batches"] == 0
    again = sweep(1)
    assert again.provenance["resumed_batches"] == 2
    assert again.rows == whole.rows


def forbidden(done: int, _total: int) -> None:
    assert not done


def test_what_cannot_be_replaced() -> None:
    batches = small_batches(17)  # the last one has a single image
    with pytest.raises(DataError, match="batch 1 has one image, so there is no other"):
        pathlens.delete_blocks(small_net(), batches, replace="resample")
    # of an opened data set that is known before anything runs
    digits, net = pathlens.open_data("digits", limit=17), pathlens.load_model().model
    with pytest.raises(DataError, match="batch 2 has one image, so there is no other"):
        pathlens.delete_blocks(net, digits, replace="resample", batch_size=8, progress=forbidden)
    with pytest.raises(UsageError, match="cannot be replaced by 'one'; give one of zero, mean, resample"):
        pathlens.delete_blocks(small_net(), batches, replace="one")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(UsageError, match="replace 'mean': the layers of a plain network have no shortcut"):
        pathlens.delete_blocks(plain.double(), batches, replace="mean")
    with (
        pytest.raises(UsageError, match=r"replaced by 'mean' in pathlens\.delete_blocks alone"),
        pathlens.applied(small_net(), plans.delete(1, "mean")),
    ):
        pass
