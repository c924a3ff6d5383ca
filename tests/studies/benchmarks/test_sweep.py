"""The benchmark of the single-block sweep, at a size that tests can afford: it runs, and it notices a wrong result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pathlens
from pathlens.tables import read_table
from studies.benchmarks import sweep

# the networks are small, and threads that wait for each other on a busy machine are slower than one
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def random_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATHLENS_MODELS", raising=False)
    monkeypatch.delenv("PATHLENS_DATA", raising=False)


@pytest.mark.usefixtures("random_everything")
def test_the_whole_benchmark_at_small_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = ["--network", "resnet20", "--rows", "6", "--batch-size", "4", "--repeats", "1", "--threads", "1"]
    assert sweep.main([*small, "--out", str(tmp_path)]) == 0

    table = read_table(tmp_path / "sweep.csv")
    rows: dict[tuple[Any, ...], dict[str, Any]] = {
        (row["benchmark"], row["method"], row["dtype"]): dict(row) for row in table.rows
    }
    assert {("start-up", "import torch", None), ("start-up", "pathlens --help", None)} < set(rows)
    assert {("forward", "plain forward", "float32"), ("forward", "pathlens", "bfloat16")} < set(rows)
    loop, own = rows["sweep", "obvious loop", "float32"], rows["sweep", "pathlens", "float32"]
    assert loop["networks_evaluated"] == own["networks_evaluated"] == 10  # 9 blocks and the intact network
    assert loop["images"] == own["images"] == 6
    assert loop["speedup"] == 1
    assert rows["sweep", "prefix sharing", "float32"]["engine"] == "plain"
    assert own["engine"]
    assert own["speedup"] == pytest.approx(loop["seconds"] / own["seconds"])
    finding = rows["sweep", "finding the blocks", None]["seconds"]
    assert own["speedup_with_finding"] == pytest.approx(loop["seconds"] / (own["seconds"] + finding))
    assert own["largest_error_change"] == 0 or own["undecided_images"] > 0
    assert rows["sweep", "pathlens", "bfloat16"]["largest_error_change"] is not None

    runs = read_table(tmp_path / "sweep-runs.parquet")
    assert len(runs.rows) == len(rows)  # one repeat
    assert min(runs.values("seconds")) > 0
    facts = json.loads((tmp_path / "sweep.meta.json").read_text())["provenance"]
    assert (facts["seed"], facts["rows"], facts["repeats"], facts["threads"]) == (0, 6, 1, 1)
    assert "random (seed 0)" in facts["weights"]
    assert facts["hardware"]["cpu"]
    text = (tmp_path / "sweep.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| pathlens | float32 | 6 | 10 | {own['seconds']:.3g} (" in text


def test_the_gpu_benchmark_on_the_cpu():
    loaded = pathlens.load_model("preresnet20", "random")
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(2)]
    timings = sweep.compare("sweep on a GPU", loaded, batches, ("float32", "tf32"), repeats=1)
    methods = ["finding the blocks", *2 * ["obvious loop"], "prefix sharing", *2 * ["pathlens"]]
    assert [t.method for t in timings] == methods
    assert {t.networks_evaluated for t in timings} == {None, 10}
    assert {t.images for t in timings} == {8}


def test_the_loop_deletes_branches():
    """Against networks whose branch really is zero: the last batch norm or convolution of the block has no weights."""
    for name, last in (("resnet20", "bn2"), ("preresnet20", "conv2")):
        model = pathlens.load_model(name, "random").model
        view = pathlens.find_blocks(model, torch.zeros(2, 3, 16, 16))
        images = torch.randn(16, 3, 16, 16)
        labels = model(images).argmax(1)  # what the intact network says, so that any change is a mistake
        _, loop = sweep.obvious_loop(model, sweep.branch_ends(model, view), [(images, labels)])
        expected = []
        for block in [None, *view]:
            damaged = pathlens.load_model(name, "random").model
            if block is not None:
                for parameter in damaged.get_submodule(f"{block.name}.{last}").parameters():
                    torch.nn.init.zeros_(parameter)
            with torch.no_grad():
                expected.append(int((damaged(images).argmax(1) != labels).sum()))
        assert loop.wrong == expected
        assert max(expected) > 0
        assert not any(module._forward_hooks for module in model.modules())


def test_a_wrong_result_ends_the_benchmark(monkeypatch):
    loaded = pathlens.load_model("resnet20", "random", seed=0)
    other = pathlens.load_model("resnet20", "random", seed=1).model
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 3, 8, 8, generator=generator), torch.arange(32) % 10)]
    real = sweep.delete_blocks
    monkeypatch.setattr(sweep, "delete_blocks", lambda view, *args, **kwargs: real(other, *args, **kwargs))
    with pytest.raises(SystemExit, match=r"pathlens finds \d+ wrong and the loop \d+"):
        sweep.compare("sweep", loaded, batches, ("float32",), repeats=1)


def test_images_decided_by_rounding_are_counted():
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [3.0, 1.0, 2.0], [5.0, 5.0, 5.0]])

    _, loop = sweep.obvious_loop(Fixed(), [], [(torch.zeros(3, 1), torch.tensor([0, 0, 2]))])
    assert loop.undecided == [2]
    assert loop.wrong == [2]
    sweep.require_equal([1], loop)
    sweep.require_equal([0], loop)
    with pytest.raises(SystemExit, match="the intact network: pathlens finds 5 wrong and the loop 2"):
        sweep.require_equal([5], loop)


@pytest.mark.usefixtures("random_everything")
def test_trained_weights_and_real_images_are_taken_where_they_lie(shared_models: Path, shared_data: Path, monkeypatch):
    monkeypatch.setenv("PATHLENS_MODELS", str(shared_models))
    monkeypatch.setenv("PATHLENS_DATA", str(shared_data))
    loaded = sweep.open_network("resnet20", 0)
    assert loaded.weights == "resnet20-12fca82f.th"
    batches, what = sweep.open_batches(48, 20, 0)
    assert what == "first 48 rows of cifar10-jpeg, split test"
    assert [len(labels) for _, labels in batches] == [20, 20, 8]
    _, loop = sweep.obvious_loop(loaded.model, [], batches)
    assert loop.wrong[0] < 15  # a trained network, fed as it was trained; a guess would be wrong 43 times
    assert "untrained" in sweep.open_network("resnet32", 0).weights
