"""What the tests of networks and of their files share: small networks, and oracles without modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathlens.models import state_sha256
from pathlens.models.load import LoadedModel


class Small(nn.Module):
    """A network with convolution, batch norm and a linear layer, built from a seed."""

    def __init__(self, seed: int = 0, classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.conv = nn.Conv2d(1, 2, 3)
            self.bn = nn.BatchNorm2d(2)
            self.fc = nn.Linear(2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))


def one_line(caught: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def assert_ready(loaded: LoadedModel) -> None:
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.sha256 == state_sha256(loaded.model)
    assert loaded.weights


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def v1_parameters(n: int, classes: int = 10, widths: tuple[int, ...] = (16, 32, 64), channels: int = 3) -> int:
    """Count from the table of the paper: convolutions 3x3 without bias, two numbers a channel of batch norm."""
    total = 9 * channels * widths[0] + 2 * widths[0]
    before = widths[0]
    for width in widths:
        total += 9 * before * width + 9 * width * width * (2 * n - 1) + 2 * width * 2 * n
        before = width
    return total + widths[-1] * classes + classes


def batch_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    return (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + state[f"{name}.bias"].view(-1, 1, 1)


def _pad(x: Tensor, width: int) -> Tensor:
    if x.shape[1] == width:
        return x
    x = x[:, :, ::2, ::2]
    zeros = torch.zeros(x.shape[0], (width - x.shape[1]) // 2, *x.shape[2:], dtype=x.dtype)
    return torch.cat([zeros, x, zeros], 1)


def v1_forward(state: dict[str, Tensor], x: Tensor, n: int, shortcuts: bool = True) -> Tensor:
    """Apply the equations of the first paper to a state dict, with no module; option B where it has the weights."""
    x = F.relu(batch_norm(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1"))
    for stage in (1, 2, 3):
        for i in range(n):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(F.relu(batch_norm(out, state, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
            side = _pad(x, 8 * 2**stage)
            if f"{name}.shortcut.0.weight" in state:
                side = F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=2)
                side = batch_norm(side, state, f"{name}.shortcut.1")
            x = F.relu(side * shortcuts + batch_norm(out, state, f"{name}.bn2"))
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def preact_forward(state: dict[str, Tensor], x: Tensor, n: int, base: int) -> Tensor:
    """Apply the equations of the second paper to a state dict, with no module."""
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for i in range(n):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = F.relu(batch_norm(x, state, f"{name}.bn1"))
            out = F.conv2d(out, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(F.relu(batch_norm(out, state, f"{name}.bn2")), state[f"{name}.conv2.weight"], padding=1)
            x = _pad(x, base * 2 ** (stage - 1)) + out
    x = F.relu(batch_norm(x, state, "bn"))
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
