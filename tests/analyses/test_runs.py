"""Layers exchanged, side by side, and again, against plain loops over the network's own modules."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import pathlens
from pathlens import figures, plans
from pathlens.cli import lesions, main
from pathlens.errors import UsageError
from pathlens.models.llama import Llama, Sizes
from pathlens.models.resnet_cifar import CifarResNet
from pathlens.plans.rewired import WAYS
from pathlens.residual import ResidualView
from pathlens.results.runs import RUNS
from pathlens.results.runs import WAYS as SAID
from tests.helpers.texts import BASE, llama_file, vocabulary_file

LAYERS = 4
SIZES = Sizes(width=8, hidden=12, layers=LAYERS, heads=2, groups=1, vocabulary=len(BASE), context=8)
TOKENS = torch.arange(24).reshape(3, 8) * 11 % len(BASE)


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of four layers, its vocabulary, and a text."""
    folder = tmp_path_factory.mktemp("runs")
    llama_file(folder / "net.bin", SIZES, seed=3)
    vocabulary_file(folder / "tokens.bin", {})
    (folder / "text.txt").write_bytes(b"ab ba abba b a \xc3\xa9 ab a b b a a ab ab abba")
    return folder


@pytest.fixture(scope="module", name="model")
def _model(folder: Path) -> Llama:
    model: Any = pathlens.load_model("llama2", folder / "net.bin").model.double()
    return model


@pytest.fixture(scope="module", name="view")
def _view(model: Llama) -> ResidualView:
    return pathlens.find_blocks(model, TOKENS)


def layer_of(model: Llama, number: int, x: Tensor) -> Tensor:
    return model.layers[number](x, model.rotation[: x.shape[1]])


def around(model: Llama, tokens: Tensor, layers: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits with something in the place of the layers."""
    return model.head(model.norm(layers(model.embedding(tokens))))


def by_loops(model: Llama, tokens: Tensor, run: range, how: str, times: int = 1) -> Tensor:
    """The run carried out by the words of the documentation."""

    def layers(x: Tensor) -> Tensor:
        for number in range(run.start):
            x = layer_of(model, number, x)
        if how == "parallel":
            for _ in range(times):
                x = torch.stack([layer_of(model, number, x) for number in run]).mean(0)
        elif how == "middle":
            for _ in run:
                x = layer_of(model, run[len(run) // 2], x)
        elif how == "repeat":
            for number in list(run) * times:
                x = layer_of(model, number, x)
        else:
            for number in reversed(run):
                x = layer_of(model, number, x)
        for number in range(run.stop, LAYERS):
            x = layer_of(model, number, x)
        return x

    return around(model, tokens, layers)


def units(run: range) -> list[tuple[int, int]]:
    return [(2 * layer, 2 * layer + 1) for layer in run]


@pytest.mark.parametrize(
    ("run", "how", "times"),
    [
        (range(1, 3), "parallel", 1),
        (range(4), "parallel", 3),
        (range(2), "middle", 1),
        (range(1, 4), "repeat", 2),
    ],
)
def test_a_run_in_a_with_block(model: Llama, view: ResidualView, run: range, how: str, times: int) -> None:
    """Logits and gradients, in float64."""
    weights = list(model.parameters())
    with pathlens.rewired(view, units(run), how, None if how == "middle" else times):
        logits = model(TOKENS)
        gradients = torch.autograd.grad(logits.square().sum(), weights, allow_unused=True)
    wanted = by_loops(model, TOKENS, run, how, times)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)
    by_hand = torch.autograd.grad(wanted.square().sum(), weights, allow_unused=True)
    for one, other in zip(gradients, by_hand, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert not torch.allclose(wanted, model(TOKENS))


@torch.no_grad()
def test_plans_add_up(model: Llama, view: ResidualView) -> None:
    """Blocks side by side, of which one is deleted, nested in any order; not with what counts the blocks of a path."""

    def layers(x: Tensor) -> Tensor:
        layer, rotation = model.layers[0], model.rotation[:8]
        attention = x + layer.attention(layer.attention_norm(x), rotation)
        x = (attention + x) / 2
        for number in range(1, LAYERS):
            x = layer_of(model, number, x)
        return x

    wanted = around(model, TOKENS, layers)
    with pathlens.rewired(view, [0, 1]), pathlens.deleted(view, 1):
        torch.testing.assert_close(model(TOKENS), wanted, rtol=1e-10, atol=1e-10)
        with pytest.raises(UsageError, match="two plans run blocks side by side"), pathlens.rewired(view, [2, 3]):
            model(TOKENS)
        with pytest.raises(UsageError, match="end one of the two"), pathlens.restrict_backward(view, 2):
            model(TOKENS)
    with pathlens.deleted(view, -7), pathlens.rewired(view, [-8, -7]):
        torch.testing.assert_close(model(TOKENS), wanted, rtol=1e-10, atol=1e-10)
    with pathlens.rewired(view, [0, 1]), pytest.raises(UsageError, match="make no paths of one length each"):
        pathlens.path_gradients(view, [(TOKENS, TOKENS)], method="exact")


def small_resnet() -> CifarResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return CifarResNet(3, num_classes=4, widths=(4, 6, 8)).double().eval()


@torch.no_grad()
def test_blocks_of_a_residual_network_of_images() -> None:
    """Averages are of what leaves the blocks, after their ReLU; stages are not crossed."""
    model, images = small_resnet(), torch.linspace(-1, 1, 2 * 3 * 64, dtype=torch.float64).reshape(2, 3, 8, 8)
    view = pathlens.find_blocks(model, images)
    wanted = small_resnet()

    class Side(nn.Module):
        def __init__(self, *blocks: nn.Module) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([block(x) for block in self.blocks]).mean(0)

    first, *others = wanted.layer2
    wanted.layer2 = nn.Sequential(first, Side(*others))
    with pathlens.rewired(view, [4, 5]):
        torch.testing.assert_close(model(images), wanted(images), rtol=1e-10, atol=1e-12)
    for blocks in ([2, 3], [3, 4], [6, 7, 8]):
        with pytest.raises(UsageError, match="cannot run in each other's place"), pathlens.rewired(view, blocks):
            pass
    labels = torch.tensor([0, 1])
    table = pathlens.reorder_blocks_runs(view, [(images, labels)], runs="parallel", dtype="float64", fast=False)
    assert [row["blocks"] for row in table.rows] == [None, "0,1", "1,2", "4,5", "7,8"]
    assert table.rows[3]["loss"] == pytest.approx(cross_entropy(wanted(images), labels).item(), rel=1e-8)
    model.train()
    with (
        pathlens.rewired(pathlens.find_blocks(model, images), [1, 2]),
        pytest.raises(UsageError, match=r"call model\.eval\(\)"),
    ):
        model(images)


def options(folder: Path) -> list[str]:
    return [
        "--model", "llama2", "--weights", str(folder / "net.bin"), "--data", f"text:{folder / 'text.txt'}",
        "--tokenizer", str(folder / "tokens.bin"), "--sequence-length", "8", "--group", "layer", "--dtype", "float64",
        "--plain-forward", "--json", "--quiet",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "how", "sizes", "times"),
    [
        ([], "reverse", (2,), 1),
        (["--count", "2:3", "--times", "2"], "parallel", (2, 3), 2),
    ],
)
@torch.no_grad()
def test_runs_on_the_command_line(
    folder: Path,
    model: Llama,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    how: str,
    sizes: tuple[int, ...],
    times: int,
    tmp_path: Path,
) -> None:
    arguments = ["reorder-blocks", *options(folder), "--runs", how, *given]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    data = pathlens.open_text(folder / "text.txt", tokenizer=folder / "tokens.bin", length=8)
    batch = data.batch(0, data.n)
    runs = [range(first, first + size) for size in sizes for first in range(LAYERS - size + 1)]
    wanted = [model(batch.images), *(by_loops(model, batch.images, run, how, times) for run in runs)]
    losses = [cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).item() for logits in wanted]
    rows = result["table"]
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-8)
    assert [(row["count"], row["first"]) for row in rows] == [(0, None), *((len(run), run.start) for run in runs)]
    assert [row["name"] for row in rows[1:]] == [f"layers.{run.start}" for run in runs]
    said = result["provenance"]
    assert (said["group"], said["runs"], said["counts"]) == ("layer", how, list(sizes))
    assert (tmp_path / "out" / "reorder-blocks-runs.png").is_file()


@torch.no_grad()
def test_layers_are_exchanged(folder: Path, model: Llama, view: ResidualView) -> None:
    data = pathlens.open_text(folder / "text.txt", tokenizer=folder / "tokens.bin", length=8)
    batch = data.batch(0, data.n)
    table = pathlens.reorder_blocks(view, data, swaps=[1], samples=9, group="layer", dtype="float64", fast=False)
    rows = [row for row in table.rows if row["sample"] is not None]
    orders = {tuple(map(int, row["order"].split(","))): row["loss"] for row in rows}
    wanted = {}
    for one, other in itertools.combinations(range(LAYERS), 2):
        order = list(range(LAYERS))
        order[one], order[other] = order[other], order[one]

        def layers(x: Tensor, order: list[int] = order) -> Tensor:
            for number in order:
                x = layer_of(model, number, x)
            return x

        logits = around(model, batch.images, layers)
        key = tuple(block for layer in order for block in (2 * layer, 2 * layer + 1))
        wanted[key] = cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).item()
    assert orders == pytest.approx(wanted, rel=1e-8)
    assert {row["moved"] for row in rows} == {4}
    assert table.provenance["group"] == "layer"


def test_figure_and_page(view: ResidualView) -> None:
    table = pathlens.reorder_blocks_runs(
        view, [(TOKENS, TOKENS)], runs="middle", count=[2, 3], group="layer", fast=False
    )
    (axes,) = figures.draw("reorder-blocks-runs", table).axes
    assert axes.get_ylabel() == "token error (%)"
    assert axes.get_legend_handles_labels()[1] == ["intact network", "runs of 2", "runs of 3"]
    (chart,) = RUNS.charts(table.rows, table.provenance)
    assert [series["x"] for series in chart["series"]] == [[0, 1, 2], [0, 1]]
    assert RUNS.title(table.rows, table.provenance) == "runs of neighbouring layers replaced by their middle one"
    said = RUNS.headlines(table.rows, table.provenance)
    assert [one.label for one in said[:3]] == ["Error of the intact network", "Smallest error", "Largest error"]


def test_the_command_line_names_what_there_is() -> None:
    assert [way.value for way in lesions.Runs] == list(SAID)
    assert set(SAID) == {"reverse", *WAYS}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--count", "2"], "--count and --times are of runs; give --runs with them"),
        (["--runs", "reverse", "--swaps", "2"], "--swaps 2: --runs reverse takes each run of neighbours"),
        (["--runs", "reverse", "--count", "1"], "a run of one is its own reverse"),
        (["--runs", "middle", "--times", "2"], "times 2: the middle layer runs as often as the run has layers"),
        (["--runs", "parallel", "--count", "5"], "no 5 layers in a row can run in each other's place"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert main(["reorder-blocks", *options(folder), *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": [0, 2]}, r"the blocks \[0, 2\] are no run of neighbours"),
        ({"layers": [(2, 3), (0, 1)]}, "are no run of neighbours"),
        ({"layers": [7, 8]}, "block 8 does not exist"),
        ({"layers": []}, "a run needs a layer"),
        ({"layers": [()]}, "each layer a block"),
        ({"layers": "ab"}, "layers must be block indices"),
        ({"layers": [0.5]}, "block indices must be integers"),
        ({"layers": [0], "times": 0}, "times 0: give a whole number of 1 or more"),
        ({"layers": [0], "how": "twice"}, "is not carried out by 'twice'; give one of parallel, middle, repeat"),
    ],
)
def test_plans_that_cannot_be_made(view: ResidualView, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plans.rewire(**given).check(view)
