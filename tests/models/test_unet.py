"""The plain U-Net: sizes, layers and parameters of the paper, and what its concatenations are as blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pathlens
from pathlens.models import load_model
from pathlens.models.unet import UNet


@pytest.mark.parametrize("shape", [(16, 16), (19, 22)])
def test_logits_have_the_size_of_the_image(shape: tuple[int, int]) -> None:
    net = UNet(2, 4, num_classes=3, in_channels=1)
    assert net(torch.randn(2, 1, *shape)).shape == (2, 3, *shape)


def test_layers_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        convs = [module for module in UNet().modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convs) == 23  # "In total the network has 23 convolutional layers"
    down = [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
    assert [conv.out_channels for conv in convs[:10]] == down
    assert [conv.out_channels for conv in convs if isinstance(conv, nn.ConvTranspose2d)] == [512, 256, 128, 64]
    assert convs[-1].kernel_size == (1, 1)


def test_names() -> None:
    loaded = load_model("unet16", "random", num_classes=5, in_channels=1)
    assert loaded.model(torch.randn(1, 1, 16, 16)).shape == (1, 5, 16, 16)


def test_deleting_a_concatenation_takes_away_what_comes_from_below() -> None:
    torch.manual_seed(0)
    net, x = UNet(2, 3, 3, 1).double().eval(), torch.randn(2, 1, 11, 8).double()
    view = pathlens.find_blocks(net, x, concat=True)

    def by_hand(without: int | None) -> torch.Tensor:
        first = net.down[0](x)
        second = net.down[1](F.max_pool2d(first, 2))
        third = net.down[2](F.max_pool2d(second, 2))
        grown = net.grow[0](third)
        grown = F.pad(grown, (0, 0, 0, second.shape[2] - grown.shape[2]))
        up = net.up[0](torch.cat([second, grown * (without != 0)], 1))
        grown = net.grow[1](up)
        grown = F.pad(grown, (0, 0, 0, first.shape[2] - grown.shape[2]))
        return net.head(net.up[1](torch.cat([first, grown * (without != 1)], 1)))

    assert len(view) == 2
    torch.testing.assert_close(net(x), by_hand(None), rtol=0, atol=1e-12)
    for block in range(2):
        with pathlens.deleted(view, block):
            torch.testing.assert_close(net(x), by_hand(block), rtol=0, atol=1e-12)
