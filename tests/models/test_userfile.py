"""Networks from a user's own Python file."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch
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
    # at the end, for what the network imports when it runs
    assert sys.path.index(str(Path(user).resolve().parent)) == len(sys.path) - 1
    assert len(sys.path) <= len(path_before) + 1
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


# --- modules beside the file ------------------------------------------------------------------------------------------


def net_beside(folder: Path, file: str, width: int) -> str:
    """A file that takes the width of its network from another beside it."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(f"WIDTH = {width}\n")
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    code = f"from torch import nn\nfrom {module} import WIDTH\ndef make():\n    return nn.Linear(WIDTH, 1)\n"
    (folder / "net.py").write_text(code)
    return f"{folder / 'net.py'}:make"


@pytest.mark.parametrize("file", ["near_by.py", "near_by/__init__.py", "near_by/wide.py"])
def test_neighbours_are_those_of_the_file_as_they_are_now(tmp_path: Path, file: str) -> None:
    first, second = (net_beside(tmp_path / name, file, width) for name, width in (("a", 3), ("b", 5)))
    assert [load_model(spec).model.in_features for spec in (first, second, first)] == [3, 5, 3]
    net_beside(tmp_path / "a", file, 1000)  # edited between two calls, as in a notebook
    assert load_model(first).model.in_features == 1000


def test_neighbours_that_a_network_imports_when_it_runs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        textwrap.dedent("""
        from torch import nn
        class Net(nn.Module):
            def forward(self, x):
                from imported_late import FACTOR
                return FACTOR * x
        def make():
            return Net()
    """)
    )
    for factor in (3, 1000):
        (tmp_path / "imported_late.py").write_text(f"FACTOR = {factor}\n")
        assert load_model(f"{tmp_path / 'net.py'}:make").model(torch.ones(1)).item() == factor


def test_modules_that_were_there_before_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = net_beside(tmp_path, "known_before.py", 3)
    stated = importlib.util.spec_from_file_location("known_before", tmp_path.resolve() / "known_before.py")
    assert stated is not None
    known = importlib.util.module_from_spec(stated)
    known.WIDTH = 7
    monkeypatch.setitem(sys.modules, "known_before", known)
    for _ in range(2):
        assert load_model(spec).model.in_features == 7
        assert sys.modules["known_before"] is known


# --- what networks come in --------------------------------------------------------------------------------------------


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


def test_neighbours_that_have_not_changed_are_imported_once(tmp_path, monkeypatch):
    registry = ModuleType("registry_of_another_package")
    registry.names = []
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    (tmp_path / "registers.py").write_text(
        "import registry_of_another_package as registry\n"
        "assert 'own' not in registry.names, 'twice'\nregistry.names.append('own')\nSIZE = 3\n"
    )
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom registers import SIZE\ndef make():\n    return nn.Linear(SIZE, 1)\n"
    )
    spec = f"{tmp_path / 'net.py'}:make"
    assert [load_model(spec, "random").model.in_features for _ in range(3)] == [3, 3, 3]
    registry.names.clear()
    (tmp_path / "registers.py").write_text("SIZE = 25\n")
    assert load_model(spec, "random").model.in_features == 25
