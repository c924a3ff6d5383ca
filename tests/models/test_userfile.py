"""Networks from a user's own Python file."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from torch import nn

from pathlens.errors import ModelError, NumericsError, UsageError
from pathlens.models import (
    PreActResNet,
    load_model,
    save_weights,
)
from tests.helpers.model_helpers import assert_ready, one_line

USER = """
import sys
import torch
from torch import nn
from helper_beside import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(WIDTH, 2)
    def forward(self, x):
        return self.fc(x.flatten(1))

def model():
    print("noise")
    return Net()

def pair():
    return Net().train(), torch.zeros(4, 1, 2, 2)

def flat_pair():
    return [Net(), torch.zeros(4, 4)]

def raises():
    raise KeyError("first line\\nsecond line")

def leaves():
    sys.exit(3)

def nothing():
    pass

def three():
    return Net(), 1, 2

def bad_example():
    return Net(), "x"

def diverged():
    net = Net()
    with torch.no_grad():
        net.fc.bias[0] = float("nan")
    return net

def lazy():
    return nn.LazyLinear(3)

def hidden():
    with torch.device("meta"):
        return Net()

def wrapped():
    return nn.DataParallel(Net())

def compiled():
    return torch.compile(Net())

ready = Net()
number = 3
"""


@pytest.fixture
def user(tmp_path: Path) -> str:
    (tmp_path / "helper_beside.py").write_text("WIDTH = 4\n")
    (tmp_path / "net.py").write_text(USER)
    return str(tmp_path / "net.py")


@pytest.mark.usefixtures("rng_untouched")
def test_users_callable(user: str, capsys: pytest.CaptureFixture[str]) -> None:
    path_before = list(sys.path)
    loaded = load_model(f"{user}:model", num_classes=77)
    assert_ready(loaded)
    assert loaded.weights == f"as returned by {user}:model"
    assert loaded.trained
    assert (loaded.example, loaded.input_shape, loaded.num_classes) == (None, None, None)
    assert sys.path == path_before
    captured = capsys.readouterr()
    assert captured.out == "", "stdout is for results"
    assert "noise" in captured.err
    pair = load_model(f"{user}:pair")
    assert_ready(pair)
    assert pair.example is not None
    assert pair.example.shape == (4, 1, 2, 2)
    assert pair.input_shape == (1, 2, 2)
    flat = load_model(f"{user}:flat_pair")
    assert flat.input_shape is None
    assert isinstance(load_model(f"{user}:ready").model, nn.Module)


def test_users_callable_random_and_with_a_file(user: str, tmp_path: Path) -> None:
    first, again, other = (load_model(f"{user}:model", "random", seed=seed) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    assert not first.trained
    assert "under seed 1" in first.weights
    save_weights(tmp_path / "w.safetensors", other.model, {"mean": "[0.5]", "std": "[0.25]"})
    loaded = load_model(f"{user}:pair", tmp_path / "w.safetensors")
    assert loaded.sha256 == other.sha256
    assert loaded.example is not None
    assert (loaded.mean, loaded.std) == ((0.5,), (0.25,))
    with pytest.raises(UsageError, match="pretrained"):
        load_model(f"{user}:model", "pretrained")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "raised KeyError: 'first line"),
        ("leaves", "raised SystemExit: 3"),
        ("nothing", "returned None"),
        ("three", "returned a tuple of Net, int, int"),
        ("bad_example", "returned a str as example input"),
        ("modle", "it has model"),
        ("number", "is a int, not a callable"),
        ("lazy", "no values yet"),
        ("hidden", "no values yet"),
        ("Net.x", "has no 'Net.x'"),
    ],
)
def test_users_mistakes_are_one_line(user: str, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(f"{user}:{name}")
    assert "net.py" in one_line(caught)


def test_users_file_that_does_not_import(tmp_path: Path) -> None:
    for code, words in (("def f(:\n", "SyntaxError"), ("import nothing_of_this_name\n", "ModuleNotFoundError")):
        (tmp_path / "broken.py").write_text(code)
        with pytest.raises(ModelError, match=words) as caught:
            load_model(f"{tmp_path / 'broken.py'}:f")
        one_line(caught)
    assert not [name for name in sys.modules if name.startswith("pathlens_user_broken")]


def test_users_weights_that_diverged(user: str) -> None:
    with pytest.raises(NumericsError, match=r"fc\.bias holds NaN"):
        load_model(f"{user}:diverged")


@pytest.mark.parametrize(
    ("name", "note"), [("wrapped", "unwrapped a data-parallel wrapper"), ("compiled", "unwrapped torch.compile")]
)
def test_wrappers_around_a_users_network(user: str, name: str, note: str) -> None:
    loaded = load_model(f"{user}:{name}")
    assert type(loaded.model).__name__ == "Net"
    assert loaded.notes == (note,)


def test_colons_in_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "C:"
    folder.mkdir()
    (folder / "net.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def make():
            return nn.Linear(1, 1)
    """)
    )
    assert isinstance(load_model(f"{folder}/net.py:make").model, nn.Linear)


def test_result_is_frozen() -> None:
    loaded = load_model("preresnet20", "random")
    assert isinstance(loaded.model, PreActResNet)
    with pytest.raises(AttributeError):
        loaded.trained = True  # type: ignore[misc]
