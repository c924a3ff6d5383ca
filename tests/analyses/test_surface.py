"""The verb ``loss-surface`` against a loop that loads weights from scratch, and what it refuses."""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import pathlens
from pathlens import ResidualView, figures, plans
from pathlens.analyses import surface
from pathlens.cli import main
from pathlens.data import ImageData, open_data
from pathlens.errors import CheckpointError, DataError, ModelError, NumericsError, PathlensError, UsageError
from pathlens.models import load_model, preresnet, save_weights
from pathlens.results import surface as results
from pathlens.results.surface import LOSS_SURFACE
from tests.helpers.processes import two_processes
from tests.helpers.progress import Progress

EXACT: dict[str, Any] = {"dtype": "float64", "batch_size": 8, "curvature": "none"}


# products with Hessians of small networks are many small operations, in which threads wait for each other
pytestmark = pytest.mark.usefixtures("one_thread")


def trained(seed: int) -> nn.Module:
    """Three blocks, trained on few digits for a moment, so that there is something like a minimum."""
    torch.manual_seed(seed)
    model = preresnet(8, in_channels=1, widths=(3, 4, 5))
    batch = open_data("digits", split="train", limit=64).batch(0, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model.train()(batch.images), batch.labels).backward()
        optimizer.step()
    return model.eval().double()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained(2)


@pytest.fixture(scope="module")
def view(net: nn.Module) -> ResidualView:
    """Found once, because to trace takes longer than all else."""
    return pathlens.find_blocks(net, torch.zeros(2, 1, 8, 8, dtype=torch.float64))


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data("digits", limit=24)


def drawn(net: nn.Module, generator: torch.Generator, one_dimensional: str) -> dict[str, Tensor]:
    """A filter-normalised direction, filter by filter, as in net_plotter.py of the published script."""
    direction = {}
    for name, weight in net.named_parameters():
        d, w = torch.randn(weight.shape, generator=generator).to(weight.dtype), weight.detach()
        if w.dim() > 1:
            for mine, theirs in zip(d, w, strict=True):
                mine.mul_(theirs.norm() / (mine.norm() + 1e-10))
        elif one_dimensional == "moved":
            d.mul_(w.norm() / (d.norm() + 1e-10))
        elif one_dimensional == "copied":
            d.copy_(w)
        else:
            d.zero_()
        direction[name] = d
    return direction


def at(net: nn.Module, directions: list[dict[str, Tensor]], place: tuple[float, ...]) -> nn.Module:
    """A new network, with weights loaded."""
    twin = copy.deepcopy(net)
    state = dict(twin.state_dict())
    for name, weight in net.named_parameters():
        steps = (coordinate * direction[name] for direction, coordinate in zip(directions, place, strict=True))
        state[name] = weight.detach() + sum(steps)
    twin.load_state_dict(state)
    return twin


def measured(net: nn.Module, data: ImageData, lesion: plans.Plan | None, estimates: bool) -> tuple[float, float]:
    """Loss and error by plain forward passes of a network that may be changed."""
    kind = next(net.parameters()).dtype
    batches = [data.batch(index, 8) for index in range(data.num_batches(8))]
    if isinstance(lesion, plans.Deletion):
        assert lesion.blocks == (0,)  # the one whose shortcut is the identity
        net.layer1[0], lesion = nn.Identity(), None
    if estimates:
        assert lesion is None
        update_bn([batch.images.to(kind) for batch in batches], net)
    net.eval()
    with torch.no_grad(), pathlens.applied(net, lesion) if lesion else contextlib.nullcontext():
        logits = torch.cat([net(batch.images.to(kind)) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    wrong = (logits.argmax(1) != labels).double().mean()
    return float(F.cross_entropy(logits, labels)), float(wrong)


@pytest.mark.parametrize(
    ("dimensions", "one_dimensional", "batch_norm", "lesion"),
    [
        (2, "still", "kept", None),
        (1, "moved", "re-estimated", None),
        (1, "copied", "kept", plans.delete_skips([0, 2])),
        (1, "still", "re-estimated", plans.delete([0])),
    ],
)
def test_against_weights_loaded_from_scratch(
    net: nn.Module,
    view: ResidualView,
    data: ImageData,
    dimensions: int,
    one_dimensional: str,
    batch_norm: str,
    lesion: plans.Plan | None,
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    more = {"one_dimensional": one_dimensional, "batch_norm": batch_norm, "lesion": lesion or ()}
    table = pathlens.loss_surface(view, data, dimensions=dimensions, points=3, span=0.8, seed=5, **more, **EXACT)
    generator = torch.Generator().manual_seed(5)
    directions = [drawn(net, generator, one_dimensional) for _ in range(dimensions)]
    places = [place[::-1] for place in itertools.product((-0.8, 0.0, 0.8), repeat=dimensions)]
    assert [(row["x"], row["y"]) for row in table.rows] == [(*place, None)[:2] for place in places]
    for row, place in zip(table.rows, places, strict=True):
        twin = at(net, directions, place)
        loss, error = measured(twin, data, lesion, batch_norm == "re-estimated")
        assert row["loss"] == pytest.approx(loss, rel=1e-9)
        assert row["error"] == pytest.approx(error)
    assert len({row["loss"] for row in table.rows}) == len(places)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert table.provenance["batch_norm"] == batch_norm
    assert ("lesion" in table.provenance) == (lesion is not None)


def test_published_network(shared_models: Path) -> None:
    net = load_model("resnet20", shared_models / "pytorch_resnet_cifar10" / "resnet20-12fca82f.th").model
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6)
    table = pathlens.loss_surface(net, [(images, labels)], dimensions=1, points=3, span=0.5, curvature="none")
    direction = drawn(net, torch.Generator().manual_seed(0), "still")
    for row in table.rows:
        with torch.no_grad():
            loss = F.cross_entropy(at(net, [direction], (row["x"],))(images), labels)
        assert row["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_towards_other_networks(net: nn.Module, view: ResidualView, data: ImageData, tmp_path: Path) -> None:
    other = trained(3)
    save_weights(tmp_path / "other.safetensors", other, {})
    table = pathlens.loss_surface(view, data, towards=tmp_path / "other.safetensors", points=3, dimensions=1, **EXACT)
    assert (table.provenance["one_dimensional"], table.provenance["batch_norm"]) == ("moved", "re-estimated")
    assert table.rows[-1]["x"] == 1
    loss, error = measured(copy.deepcopy(other), data, None, True)
    assert (table.rows[-1]["loss"], table.rows[-1]["error"]) == (pytest.approx(loss), error)
    # two axes: the first leads to the network, the second is drawn; and both lead to networks
    grid = pathlens.loss_surface(view, data, towards=[other], points=3, seed=4, **EXACT)
    assert [row["loss"] for row in grid.rows if row["y"] == 0] == pytest.approx([row["loss"] for row in table.rows])
    between = pathlens.loss_surface(view, data, towards=[trained(4), other], points=3, **EXACT)
    assert [row["loss"] for row in between.rows if row["x"] == 0] == pytest.approx([r["loss"] for r in table.rows])
    # biases and norms that stay do not reach it
    still = pathlens.loss_surface(
        view, data, towards=other, points=3, dimensions=1, one_dimensional="still", batch_norm="kept", **EXACT
    )
    direction = {
        name: (other.get_parameter(name) - own).detach() * (own.dim() > 1) for name, own in net.named_parameters()
    }
    assert still.rows[-1]["loss"] == pytest.approx(measured(at(net, [direction], (1.0,)), data, None, False)[0])


def test_curvature_and_leading_directions(net: nn.Module, view: ResidualView) -> None:
    """Along a unit eigenvector the second difference is the eigenvalue."""
    step = 1e-5  # small, because ReLUs have kinks
    data = open_data("digits", limit=8)
    more: dict[str, Any] = {"points": 3, "one_dimensional": "moved", "seed": 1, "dimensions": 1, "probes": 2}
    table = pathlens.loss_surface(
        view, data, span=step, directions="hessian", **more, **{**EXACT, "curvature": "centre", "curvature_images": 99}
    )
    curvature = table.provenance["curvature"]
    assert curvature["weights"] == sum(parameter.numel() for parameter in net.parameters())
    before, centre, behind = (row["loss"] for row in table.rows)
    assert (before - 2 * centre + behind) / step**2 == pytest.approx(curvature["largest"], rel=1e-3)
    assert curvature["smallest"] < 0 < curvature["trace_standard_error"]
    # at every point of a line, and of the images that were asked for
    few = {**EXACT, "curvature": "grid", "curvature_images": 8}
    line = pathlens.loss_surface(view, open_data("digits", limit=12), span=0.5, **more, **few)
    assert line.rows[1]["largest_eigenvalue"] == pytest.approx(curvature["largest"], rel=1e-3)
    assert line.rows[1]["smallest_eigenvalue"] == pytest.approx(curvature["smallest"], rel=1e-3)
    assert len({row["largest_eigenvalue"] for row in line.rows}) == 3
    ratios = [abs(min(row["smallest_eigenvalue"], 0) / row["largest_eigenvalue"]) for row in line.rows]
    assert results.convexity_share(line.rows) == sum(ratio <= 0.1 for ratio in ratios) / 3


def stopped(net: nn.Module, view: ResidualView, data: ImageData, journal: Path, **more: Any) -> None:
    pointers = [parameter.data_ptr() for parameter in net.parameters()]
    with pytest.raises(KeyboardInterrupt):
        pathlens.loss_surface(view, data, points=3, journal=journal, progress=Progress(stop=9), **more)
    assert [parameter.data_ptr() for parameter in net.parameters()] == pointers


def test_taken_up_again(net: nn.Module, view: ResidualView, data: ImageData, tmp_path: Path) -> None:
    more: dict[str, Any] = {**EXACT, "curvature": "centre", "probes": 4, "directions": "hessian", "curvature_images": 4}
    before = copy.deepcopy(net.state_dict())
    whole = pathlens.loss_surface(view, data, points=3, **more)
    stopped(net, view, data, tmp_path / "journal", **more)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = pathlens.loss_surface(view, data, points=3, journal=tmp_path / "journal", **more)
    assert again.rows == whole.rows
    assert again.provenance["curvature"] == whole.provenance["curvature"]
    assert again.provenance["resumed_units"] == 9
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_directions_are_kept_to_the_bit(dtype: torch.dtype) -> None:
    vectors = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    text = surface._packed(vectors[1])
    assert torch.equal(surface._unpacked(text, vectors), vectors[1])
    if dtype != torch.bfloat16:  # as caches of earlier versions hold them
        assert base64.b64decode(text) == vectors[1].numpy().tobytes()


def test_two_processes(net: nn.Module, view: ResidualView, data: ImageData, tmp_path: Path) -> None:
    more: dict[str, Any] = {**EXACT, "points": 3}

    def work() -> None:
        from pathlens.runtime.processes import joined

        torch.set_num_threads(1)
        with joined():
            table = pathlens.loss_surface(view, data, **more)
        print(json.dumps([list(table.rows), table.provenance["processes"]]))

    printed, _ = two_processes(work, tmp_path)
    alone = pathlens.loss_surface(view, data, **more)
    for text in printed:
        rows, processes = json.loads(text)
        assert processes == 2
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in alone.rows], rel=1e-12)


def test_draws_basin_and_figures(net: nn.Module, view: ResidualView, data: ImageData) -> None:
    lines = pathlens.loss_surface(view, data, dimensions=1, points=5, draws=2, **EXACT)
    second = pathlens.loss_surface(view, data, dimensions=1, points=5, seed=1, **EXACT)
    by_draw = results.draws_of(lines.rows)
    assert [row["loss"] for row in by_draw[1]] == [row["loss"] for row in second.rows]
    losses = [row["loss"] for row in second.rows]
    assert results.basin_share(second.rows) == sum(loss <= min(losses) + 0.1 for loss in losses) / 5
    assert len(figures.draw("loss-surface", lines).axes) == 2
    assert len(figures.draw("loss-surface", second).axes) == 2
    grid = pathlens.loss_surface(view, data, points=3, **EXACT)
    assert LOSS_SURFACE.fits(grid)
    assert len(LOSS_SURFACE.listed(grid.rows)) == 5
    assert len(figures.loss_surface(grid).axes) == 3  # the last one is the bar of losses
    assert len(figures.surfaces({"one": grid, "two": grid}).axes) == 5
    with pytest.raises(UsageError, match="is no grid"):
        figures.surfaces({"line": lines})
    with pytest.raises(UsageError, match="no tables"):
        figures.surfaces({})
    assert {chart["title"] for chart in LOSS_SURFACE.charts(lines.rows, {})} == {
        "Loss around the weights",
        "Error around the weights",
    }


def test_no_basin(data: ImageData) -> None:
    model = trained(2)
    nn.init.zeros_(model.linear.weight)  # the smallest loss is as far as one goes from the first step on
    table = pathlens.loss_surface(
        model, data, dimensions=1, points=3, span=1e-2, one_dimensional="moved", towards=trained(2), **EXACT
    )
    (warning,) = table.provenance["warnings"]
    assert "no basin" in warning
    assert warning in LOSS_SURFACE.notes(table.provenance)
    assert any("no basin" in headline.detail for headline in LOSS_SURFACE.headlines(table.rows, table.provenance))


def broken(net: nn.Module) -> nn.Module:
    twin = copy.deepcopy(net)
    twin.linear.weight.data[0, 0] = float("nan")
    return twin


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (UsageError, "points 1: give an odd number from 3 on", {"points": 1}),
        (UsageError, "points 10", {"points": 10}),
        (UsageError, "dimensions 3", {"dimensions": 3}),
        (UsageError, "span nan", {"span": float("nan")}),
        (UsageError, "directions 'steep' is unknown; give one of random, hessian", {"directions": "steep"}),
        (UsageError, "several draws are for lines", {"draws": 2}),
        (UsageError, "copied' is for random", {"directions": "hessian", "one_dimensional": "copied"}),
        (UsageError, "has the very weights", {"towards": lambda net: net}),
        (UsageError, "3 networks are more than the 2 axes", {"towards": lambda net: [net] * 3}),
        (UsageError, "block 3", {"lesion": plans.delete_skips([3])}),
        (UsageError, "replaced by 'mean' in", {"lesion": plans.delete([0], replace="mean")}),
        (UsageError, "must be made of plans", {"lesion": plans.restrict([1])}),
        (CheckpointError, "weights of another network", {"towards": lambda net: preresnet(14, in_channels=1)}),
        (CheckpointError, "nowhere", {"towards": "nowhere.safetensors"}),
        (NumericsError, "NaN", {"towards": broken}),
        (UsageError, "batch 3 has one image", {"batch_norm": "re-estimated", "limit": 25}),
    ],
)
def test_refused(
    net: nn.Module, view: ResidualView, error: type[PathlensError], words: str, options: dict[str, Any]
) -> None:
    options = {name: value(net) if isinstance(value, Callable) else value for name, value in options.items()}
    data = open_data("digits", limit=options.pop("limit", 24))
    with pytest.raises(error, match=words) as caught:
        pathlens.loss_surface(view, data, **{"points": 3, **EXACT, **options})
    assert len(str(caught.value).splitlines()) == 1


def test_labels_outside_the_classes_are_refused_at_the_first_point(view: ResidualView, data: ImageData) -> None:
    other = dataclasses.replace(data, labels=torch.full_like(data.labels, 11))
    done: list[int] = []
    with pytest.raises(DataError, match="classes"):
        pathlens.loss_surface(view, other, points=5, progress=lambda steps, _: done.append(steps), **EXACT)
    assert max(done, default=0) == 0


def test_weights_that_are_not_finite(net: nn.Module, view: ResidualView, data: ImageData) -> None:
    with pytest.raises(NumericsError, match="NaN"):
        pathlens.loss_surface(broken(net), data, points=3, **EXACT)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(ModelError, match="no batch norm with running statistics"):
        pathlens.loss_surface(plain.double(), data, points=3, batch_norm="re-estimated", **EXACT)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["loss-surface", "-m", "preresnet20", "-w", "random", "-d", "digits", "--limit", "8", "-q"]
    out = tmp_path / "run"
    more = ["--points", "3", "--delete-skips", "all", "--curvature", "none", "--out", str(out)]
    assert main([*command, *more]) == 0
    printed = capsys.readouterr().out
    assert "5 of 9 rows" in printed
    assert "batch norm statistics: kept" in printed
    assert (out / "loss-surface.pdf").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["lesion"]["deleted_shortcuts"] == list(range(9))
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--out", str(page)]) == 0
    assert "Loss around the weights" in page.read_text()
    capsys.readouterr()
    for wrong, code, words in (
        (["--points", "1"], 2, "points 1: give an odd number"),
        (["--towards", str(tmp_path / "none.th")], 4, "none.th"),
        (["--delete-skips", "9"], 2, "block 9"),
    ):
        assert main([*command, *wrong]) == code
        error = capsys.readouterr().err.strip()
        assert words in error
        assert len(error.splitlines()) == 1
