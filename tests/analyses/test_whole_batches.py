"""Networks whose answer to an image depends on the others of its batch run whole batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from tests.helpers.lesion_oracle import indices, near, plain_loop, small_batches, small_net
from tests.helpers.odd_nets import Net, drawn


class Centred(nn.Module):
    """A block whose branch is of what an image has beyond the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(x - x.mean(0, keepdim=True)))


@pytest.mark.parametrize("engine", ["plain", "plain-5", "folded-4x2", "auto"])
def test_batches_run_whole_where_answers_depend_on_them(engine: str) -> None:
    net, batches = drawn(lambda: Net(Centred(), Centred())).double(), small_batches()

    def forward(x: Tensor, deleted: list[int]) -> Tensor:
        x = net.stem(x)
        for index, block in enumerate(net.blocks):
            x = x if index in deleted else block(x)
        return net.fc(x.mean((2, 3)))

    table = pathlens.delete_blocks(net, batches, dtype="float64", engine=engine)
    assert len(table.rows) == 3
    for row in table.rows:
        near(row, plain_loop(lambda x, row=row: forward(x, indices(row["blocks"])), batches))
    assert table.provenance["engine"] == ("plain" if engine.startswith("plain") else "folded")
    said = [note for note in table.provenance["notes"] if "depends on the others of its batch" in note]
    assert len(said) == 1
    options: dict[str, Any] = {"dtype": "float64", "replace": "mean"}
    means = [pathlens.delete_blocks(net, batches, engine=name, **options).rows for name in ("plain", engine)]
    for row, wanted in zip(means[1], means[0], strict=True):
        near(row, (wanted["error"], wanted["loss"]))
    other = pathlens.delete_blocks(small_net(), batches, dtype="float64", blocks=[], engine=engine).provenance["notes"]
    assert not any("depends on the others of its batch" in note for note in other)


class Squeezed(nn.Module):
    """Answers to a single image in another shape than to several."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze()


@pytest.mark.parametrize("size", [2, 3])
def test_batches_whose_half_is_a_single_image(size: int) -> None:
    net, ((images, labels), *_) = Squeezed(), small_batches(6)
    batches = list(zip(images[:6].split(size), labels[:6].split(size), strict=True))
    near(pathlens.delete_blocks(net, batches, dtype="float64").rows[0], plain_loop(net, batches))


def test_a_first_batch_of_one_image() -> None:
    class Normed(Centred):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(F.batch_norm(x, None, None, training=True))

    net, ((images, labels), *_) = drawn(lambda: Net(Normed(), Normed())).double(), small_batches()
    first = pathlens.delete_blocks(net, [(images[:1], labels[:1]), (images[1:], labels[1:])], dtype="float64")
    assert any("depends on the others of its batch" in note for note in first.provenance["notes"])
