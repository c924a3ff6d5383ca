"""Checkerboards: how many weights reach each place, and the power at the frequency of the stride."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens.models import StrictUNet
from pathlens.tables import Table
from studies.common import StudySetting, say
from studies.record import images as about
from studies.record import make_table
from studies.strict_resnets.nets import NETWORKS, sampled_name
from studies.strict_resnets.trained import DATA, NETS, SAMPLING, seeds_of, ways_of

#: pixels at each side of a map that are left out, since padding is no checkerboard
BORDER = 4
#: bins of the spectrum up to this distance that count as one frequency, and up to this as what is around it
NEAR, FAR = 1, 4

SIZES = (
    ("kernel", "", "side of the kernel"),
    ("stride", "", "in both directions"),
    ("sizes", "", "weights that reach an output of a transposed convolution, by its place modulo the stride, sorted"),
    ("counted", "", "the same, counted: outputs of ones through a kernel of ones"),
    ("counted_backward", "", "places of the output that an input of a strided convolution reaches, by its place: "
     "gradients through a kernel of ones"),
)  # fmt: skip
SPECTRA = (
    ("way", "", "of up- or downsampling"),
    ("measured", "", "up: output of the upsampling; down: gradient of the loss by the input of the downsampling, "
     "through it alone"),
    ("weights", "", "initial, or trained"),
    ("seed", "", "of the weights"),
    ("excess", "dB", "power at the frequencies of the stride over that of the bins around them"),
    ("share", "fraction", "power at the frequencies of the stride of all but the mean"),
)  # fmt: skip


def subkernels(kernel: int, stride: int) -> list[int]:
    """How many weights reach an output of a transposed convolution, for each place modulo the stride.

    In one dimension the output at place p gets the weights p, p + stride, p + 2 stride, ... of the kernel. The input of
    a strided convolution at place p has as many outputs to get a gradient from.

    Args:
        kernel: side of the kernel.
        stride: in both directions.

    Returns:
        ``stride ** 2`` numbers, sorted; they add up to ``kernel ** 2``.
    """
    one = [len(range(place, kernel, stride)) for place in range(stride)]
    return sorted(down * across for down in one for across in one)


def _by_place(map_: Tensor, stride: int) -> list[int]:
    """The values of a map that repeats with the stride, from its middle, sorted."""
    middle = map_.shape[-1] // 2 // stride * stride
    return sorted(int(value) for value in map_[middle : middle + stride, middle : middle + stride].flatten().round())


def counted(kernel: int, stride: int) -> list[int]:
    """The sizes of :func:`subkernels`, counted at the outputs of a transposed convolution."""
    ones = torch.ones(1, 1, 4 * kernel, 4 * kernel)
    return _by_place(F.conv_transpose2d(ones, torch.ones(1, 1, kernel, kernel), stride=stride)[0, 0], stride)


def counted_backward(kernel: int, stride: int) -> list[int]:
    """The same, counted at the gradients of the inputs of a strided convolution."""
    places = torch.ones(1, 1, 8 * kernel * stride, 8 * kernel * stride, requires_grad=True)
    F.conv2d(places, torch.ones(1, 1, kernel, kernel), stride=stride).sum().backward()
    assert places.grad is not None
    return _by_place(places.grad[0, 0], stride)


def stride_power(maps: Tensor, stride: int = 2) -> tuple[float, float]:
    """How much of a spectrum lies at the frequencies of a stride.

    The power spectrum of each map, without its mean and in a Hann window, is averaged over images and channels. The
    frequencies of the stride are all pairs of multiples of 1 / stride but (0, 0): what repeats with the stride has no
    others. The window spreads each over the bins next to it, which count as its own, and keeps the edges of the map out
    of it.

    Args:
        maps: shape (N, C, H, W); sides that the stride does not divide are cut.
        stride: in both directions.

    Returns:
        Mean power at these frequencies over that of the bins around them, in decibels, and their share of all power.
    """
    height, width = (size // stride * stride for size in maps.shape[-2:])
    cut = maps[..., :height, :width].double()
    window = torch.outer(*(torch.hann_window(size, dtype=torch.float64) for size in (height, width)))
    power = torch.fft.fft2((cut - cut.mean((-2, -1), keepdim=True)) * window).abs().square().mean((0, 1))
    at, beside = [], []
    for down in range(stride):
        for across in range(stride):
            if down or across:
                middle = power.roll((FAR - height * down // stride, FAR - width * across // stride), (0, 1))
                bins = middle[: 2 * FAR + 1, : 2 * FAR + 1]
                own = torch.zeros_like(bins, dtype=torch.bool)
                own[FAR - NEAR : FAR + NEAR + 1, FAR - NEAR : FAR + NEAR + 1] = True
                at.append(bins[own])
                beside.append(bins[~own])
    own_power, other = torch.cat(at), torch.cat(beside)
    return float(10 * (own_power.mean() / other.mean()).log10()), float(own_power.sum() / power.sum())


def spectra(net: StrictUNet, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """The maps to look at: ``up`` and ``down`` -> outputs and gradients, without their borders."""
    maps: dict[str, Tensor] = {}
    downsampling = net.shrink[0][-1]
    hooks = [
        net.grow[0].register_forward_hook(lambda _, __, output: maps.update(up=output.detach())),
        downsampling.register_full_backward_hook(lambda _, gradients, __: maps.update(down=gradients[0])),
    ]
    net.zero_grad()
    F.cross_entropy(net(images), masks).backward()
    for hook in hooks:
        hook.remove()
    return {name: of[..., BORDER:-BORDER, BORDER:-BORDER] for name, of in maps.items()}


def measure(study: StudySetting, done: Mapping[str, Path]) -> dict[str, Table]:
    """The tables of this part by stem.

    Args:
        study: what was asked for.
        done: run folders by name.
    """
    say("checkerboards")
    data = pathlens.open_data(DATA, limit=study.pick(4, 32, 500))
    batch = data.batch(0, data.n)
    seeds = seeds_of(SAMPLING, study)
    rows = []
    for measured, ways in ways_of(study).items():
        for way in ways:
            name = sampled_name(measured, way)
            for seed in range(study.pick(1, 6, 10)):
                torch.manual_seed(seed)
                nets: dict[str, nn.Module] = {"initial": NETWORKS[name]()}
                if seed < seeds:
                    weights = done[f"{SAMPLING}-{name}-seed{seed}"] / "weights.safetensors"
                    nets["trained"] = pathlens.load_model(f"{NETS}:{name}", weights).model
                for kind, net in nets.items():
                    assert isinstance(net, StrictUNet)
                    maps = spectra(net.train(kind == "initial"), batch.images, batch.labels)
                    excess, share = stride_power(maps[measured])
                    rows.append({"way": way, "measured": measured, "weights": kind, "seed": seed} |
                                {"excess": excess, "share": share})  # fmt: skip
    sizes: list[dict[str, Any]] = [
        {
            "kernel": kernel,
            "stride": stride,
            "sizes": _listed(subkernels(kernel, stride)),
            "counted": _listed(counted(kernel, stride)),
            "counted_backward": _listed(counted_backward(kernel, stride)),
        }
        for kernel, stride in ((2, 2), (3, 2), (4, 2), (5, 2), (3, 3), (5, 3), (7, 4))
    ]
    facts = {"study": study.name, "scale": study.scale}
    return {
        "subkernels": make_table(SIZES, sizes, **facts),
        "checkerboards": make_table(SPECTRA, rows, **facts, **about(data)),
    }


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
