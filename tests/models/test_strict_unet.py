"""Strict residual U-Nets against a forward pass written out, and their sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import pathlens
from pathlens.models import StrictUNet, strictunet
from pathlens.models.registry import REFERENCES
from pathlens.models.strict_unet import NORMS


def by_hand(net: StrictUNet, x: Tensor, norms: str) -> Tensor:
    """Two levels of one block each, in eval mode."""

    def unit(module: object, x: Tensor) -> Tensor:
        units = list(module.children())  # type: ignore[attr-defined]
        first, *norm = units
        out = x
        for bn, conv in zip(first.norms, first.convs, strict=True):
            out = F.conv2d(F.relu(bn(out)), conv.weight, conv.bias, padding=1)
        return norm[0](x + out) if norms == "block" else x + out

    def convolved(layers: list[torch.nn.Module], x: Tensor) -> Tensor:
        for layer in layers:
            x = layer(x)
        return x

    above = unit(net.down[0], net.stem(x))
    below = unit(net.down[1], convolved(list(net.shrink[0]), above))
    grow = net.grow[0]
    missing = [side - (2 * small - 1) for side, small in zip(above.shape[2:], below.shape[2:], strict=True)]
    grown = F.conv_transpose2d(below, grow.weight, grow.bias, 2, 1, missing)
    out = unit(net.up[0], convolved(list(net.after[0]), grown) + above)
    return net.head(F.relu(net.norm(out)))


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("size", [(9, 12), (7, 7)])
def test_against_a_forward_pass_by_hand(norms: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = strictunet((1, 1), 4, num_classes=3, norms=norms).double().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), by_hand(net, x, norms))
    between = sum(isinstance(m, torch.nn.BatchNorm2d) for m in [*net.shrink.modules(), *net.after.modules()])
    assert between == (6 if norms == "each" else 0)


def test_odd_sizes_are_halved_upwards_and_restored() -> None:
    net = strictunet((0, 0, 0, 1), 2)
    sizes: list[int] = []
    hooks = [layer.register_forward_hook(lambda m, x, out: sizes.append(out.shape[-1])) for layer in net.shrink]
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 101, 101)).shape == (1, 1, 101, 101)
    assert sizes == [51, 26, 13]
    for hook in hooks:
        hook.remove()


def test_layouts_by_name_have_their_blocks_and_are_found() -> None:
    with torch.device("meta"):
        for name, blocks in (("16", 18 * 7), ("12", 28 * 7), ("13x13-200", 200)):
            net = REFERENCES[f"strictunet{name}:end"].build()
            units = [module for module in net.modules() if type(module).__name__ == "StrictUnit"]
            assert len(units) == blocks
    small = strictunet((2, 1), 4)
    view = pathlens.find_blocks(small, torch.zeros(2, 3, 16, 16), additions="all")
    assert len(view) == 2 + 1 + 2 + 1
    with pytest.raises(ValueError, match="'all'"):
        strictunet((1,), 4, norms="all")
