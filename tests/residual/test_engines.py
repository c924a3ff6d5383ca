"""Engines: every way to run a network gives the same results, and which one it was is chosen, said and kept."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import pathlens
from pathlens.analyses import evaluation, sweep, tuning
from pathlens.analyses.provenance import EngineProvenance
from pathlens.analyses.runner import Runner
from pathlens.analyses.sources import batch_source
from pathlens.errors import DataError, UsageError
from pathlens.residual import ResidualView, engines, find_blocks
from pathlens.residual.engines import Engine
from pathlens.residual.inference import Inference
from pathlens.residual.routes import Part
from tests.helpers.lesion_oracle import small_batches, small_net
from tests.helpers.odd_nets import ODD, drawn, random_images

CPU = torch.device("cpu")
EVERY = ["plain", "plain-3", "plain-3x2", "folded", "folded-4", "folded-3x2", "packed", "packed-4", "packed-3x2"]


@pytest.fixture(scope="module")
def view() -> ResidualView:
    return find_blocks(small_net(), small_batches()[0][0])


@pytest.fixture
def nothing_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without oneDNN, or a CPU that it has nothing for."""
    monkeypatch.setattr(engines, "_onednn_convolves", lambda dtype: False)


def has(name: str, dtype: torch.dtype = torch.float32) -> bool:
    return not name.startswith("packed") or engines.packs(CPU, dtype)


def test_bfloat16_is_packed_only_by_a_cpu_with_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for unit in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, unit, lambda: False)
    convolves = engines._onednn_convolves.__wrapped__  # which is asked once in a process
    assert not convolves(torch.bfloat16)
    assert convolves(torch.float32) == engines.packs(CPU, torch.float32)


@pytest.mark.parametrize("name", EVERY)
def test_every_engine_gives_the_same_table(view: ResidualView, name: str) -> None:
    if not has(name):
        pytest.skip("this torch has no packed convolutions")
    batches = small_batches()
    wanted = pathlens.delete_blocks(view, batches, dtype="float64", engine="plain")
    found = pathlens.delete_blocks(view, batches, engine=name)
    assert found.provenance["engine"] == name
    assert found.provenance["engine_chosen"] == "given"
    for mine, theirs in zip(found.rows, wanted.rows, strict=True):
        assert (mine["error"], mine["n"]) == (theirs["error"], theirs["n"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert pathlens.delete_blocks(view, batches, engine=name).rows == found.rows


@pytest.mark.parametrize("name", sorted(ODD))
def test_lanes_and_parts_on_odd_networks(name: str) -> None:
    model, images = drawn(ODD[name]), random_images(7, 3, 8, 8)
    view = pathlens.analyses.view_of(model, images)
    with torch.no_grad():
        labels = model(images).argmax(1)
    for engine in ("folded-3x2", "packed-3x2"):
        if has(engine):
            row = pathlens.delete_blocks(view, [(images, labels)], blocks=[], engine=engine).rows[0]
            assert (row["error"], row["n"]) == (0, 7)


@pytest.mark.parametrize("engine", [Engine(), Engine("folded"), Engine("packed", 64), Engine("plain", 1, 12)])
def test_names_there_and_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "packs", lambda device, dtype: True)
    assert engines.named(engine.name, CPU, torch.float32) == engine


@pytest.mark.parametrize("name", ["", "fast", "packed-0", "packed-4x0", "packed-", "PLAIN", "plain-4x2x2", "plain-٣"])
def test_unknown_names(view: ResidualView, name: str) -> None:
    with pytest.raises(UsageError, match="is unknown; give auto, plain, folded, packed"):
        pathlens.delete_blocks(view, small_batches(), engine=name)


def test_a_packed_engine_where_there_is_none(view: ResidualView) -> None:
    with pytest.raises(UsageError, match=r"'packed-4': there are no packed convolutions in float64 on this CPU; give"):
        pathlens.delete_blocks(view, small_batches(), dtype="float64", engine="packed-4")


@pytest.mark.usefixtures("nothing_packed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_packed_convolutions(dtype: str) -> None:
    batches = small_batches(dtype=torch.float32)
    view = find_blocks(small_net(torch.float32), batches[0][0])
    table = pathlens.delete_blocks(view, batches, dtype=dtype)
    assert table.provenance["engine"] == "folded-16"
    notes = [note for note in table.provenance["notes"] if "computed in float32 and rounded" in note]
    assert len(notes) == (dtype != "float32")
    exact = pathlens.delete_blocks(view, batches, dtype="float64")
    for mine, theirs in zip(table.rows, exact.rows, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5 if dtype == "float32" else 0.05)


@pytest.mark.usefixtures("nothing_packed")
def test_half_types_are_computed_in_float32_and_rounded_after_every_product() -> None:
    """What a unit for the type would give, up to the order in which it adds."""
    images = random_images(3, 3, 8, 8)
    view = find_blocks(drawn(ODD["padded shortcut"]), images)
    network = Inference(view, dtype=torch.bfloat16)
    with torch.inference_mode():
        x = network.stem(network.prepare(images))
        fast = network.step(Part.BLOCK, 0)(x)
        slow = Inference(view, dtype=torch.bfloat16, engine=Engine("plain")).step(Part.BLOCK, 0)(x)
    assert fast.dtype == torch.bfloat16
    assert (fast.double() - slow.double()).abs().max() < 0.03 * slow.double().abs().max()


def test_with_the_capabilities_taken_away(tmp_path: Path) -> None:
    """The command of the README in a process that may use AVX2 alone."""
    command = ["delete-blocks", "--model", "preresnet20", "--weights", "random", "--data", "digits", "--limit", "8"]
    command += ["--blocks", "0:1", "--dtype", "bfloat16", "--quiet", "--json"]
    found = subprocess.run(
        [sys.executable, "-m", "pathlens", *command],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert '"engine": "' in found.stdout


def test_the_fastest_is_chosen_where_measuring_pays(view: ResidualView, monkeypatch: pytest.MonkeyPatch) -> None:
    source = batch_source([(torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.long))], 0, None, None, CPU)
    runner = Runner(source, CPU, torch.float32)
    offered = engines.candidates(CPU, torch.float32, 64)
    for winner in offered:
        monkeypatch.setattr(tuning, "_seconds", lambda network, *_, w=winner: 1.0 if network.engine == w else 2.0)
        with torch.inference_mode():
            network, said = tuning.choose(view, runner, 10_000)
            default, small = tuning.choose(view, runner, 2)
        assert network.engine == winner
        assert said.engine_chosen == "measured"
        assert said.engine_speeds[winner.name] == (1 if winner == offered[0] else 2)
        assert (default.engine, small) == (
            offered[0],
            EngineProvenance(engine=offered[0].name, engine_chosen="default"),
        )
    # a difference that may be noise changes nothing
    monkeypatch.setattr(tuning, "_seconds", lambda network, *_: 0.98 if network.engine == offered[-1] else 1.0)
    with torch.inference_mode():
        assert tuning.choose(view, runner, 10_000)[0].engine == offered[0]


def test_measuring_stops_where_setting_up_an_engine_is_what_takes_time(
    view: ResidualView, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = batch_source([(torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.long))], 0, None, None, CPU)
    runner = Runner(source, CPU, torch.float32)
    measured: list[Engine] = []

    def quick(network: Inference, *_: Any) -> float:
        measured.append(network.engine)
        return 0.0

    monkeypatch.setattr(tuning, "_seconds", quick)
    with torch.inference_mode():
        network, said = tuning.choose(view, runner, 10_000)
    assert said == EngineProvenance(engine=network.engine.name, engine_chosen="default")
    assert measured == [network.engine]


def test_measuring_runs_every_engine_that_is_offered(view: ResidualView, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_SHARE", 1e9)
    table = pathlens.delete_blocks(view, small_batches())
    offered = [engine.name for engine in engines.candidates(CPU, torch.float32, 16)]
    assert list(table.provenance["engine_speeds"]) == offered
    assert table.provenance["engine"] in offered
    assert table.provenance["engine_speeds"][offered[0]] == 1


def test_images_of_another_shape_are_named_before_anything_is_measured(
    view: ResidualView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_SHARE", 1e9)
    with pytest.raises(DataError, match="has images of shape"):
        pathlens.delete_blocks(view, [(torch.zeros(4, 3, 9, 9), torch.zeros(4, dtype=torch.long))])


def test_a_sweep_that_is_taken_up_again_keeps_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = pathlens.load_model("preresnet20", "random", num_classes=10, in_channels=1)
    digits = pathlens.open_data("digits", limit=24)
    choice: list[Any] = []

    def choose(view: ResidualView, runner: Runner, _networks: int) -> tuple[Inference, EngineProvenance]:
        choice.append(Inference(view, runner.device, runner.dtype, Engine("plain", 5)))
        return choice[-1], EngineProvenance(engine="plain-5", engine_chosen="measured")

    count, counted = sweep._count, []

    def interrupted(*given: Any) -> Any:
        if counted:
            raise KeyboardInterrupt
        counted.append(count(*given))
        return counted[0]

    call: dict[str, Any] = {"batch_size": 8, "blocks": [1], "journal": tmp_path}
    monkeypatch.setattr(evaluation.tuning, "choose", choose)
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_count", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pathlens.delete_blocks(loaded.model, digits, **call)
    table = pathlens.delete_blocks(loaded.model, digits, **call)
    assert len(choice) == 1
    assert (table.provenance["engine"], table.provenance["engine_chosen"]) == ("plain-5", "resumed")
    assert table.provenance["resumed_batches"] == 1
    assert not list(tmp_path.glob("*.jsonl"))
    again = pathlens.delete_blocks(loaded.model, digits, batch_size=8, blocks=[1], engine="plain-5")
    assert again.rows == table.rows


def test_lanes_have_the_mode_of_the_caller_and_end_with_the_network(view: ResidualView) -> None:
    before, alive = torch.get_num_threads(), threading.active_count()
    with Inference(view, engine=Engine("plain", 1, 3)) as network:
        assert network.each(lambda item: (item, torch.is_inference_mode_enabled()), [1, 2, 3]) == [
            (1, False), (2, False), (3, False)
        ]  # fmt: skip
        with torch.inference_mode():
            assert network.each(lambda _: torch.is_inference_mode_enabled(), [1, 2]) == [True, True]
        with pytest.raises(ZeroDivisionError):
            network.each(lambda item: 1 // item, [1, 0, 2])
    assert (torch.get_num_threads(), threading.active_count()) == (before, alive)


def test_memory_is_bounded_by_the_batch_size() -> None:
    for size in (1, 2, 7, 128):
        for engine in engines.candidates(CPU, torch.float32, size):
            assert (engine.images or size) * engine.lanes <= size
