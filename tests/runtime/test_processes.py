"""Several processes give the table of one, and none is left waiting for another that failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import run as torchrun

import pathlens
from pathlens.cli import main
from pathlens.data import open_data
from pathlens.errors import DataError, RunError
from pathlens.residual import find_blocks
from pathlens.runtime import processes
from tests.helpers import ROOT, process_worker
from tests.helpers.cli_files import USER_FILE
from tests.helpers.data_files import noise, png, write
from tests.helpers.lesion_oracle import small_batches, small_net
from tests.helpers.process_worker import RGB
from tests.helpers.processes import PATIENCE, forked, two_processes
from tests.helpers.progress import Progress


def images(folder: Path, **labels: int) -> str:
    kinds = [labels.get(f"row{row}", row % 5) for row in range(40)]
    return write(folder / "test.parquet", [png(image) for image in noise(40, 8, 8, 3)], kinds)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return images(tmp_path / "data")


@pytest.fixture
def user(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(USER_FILE)
    return f"{tmp_path / 'net.py'}:build"


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes(spec: str, user: str, tmp_path: Path) -> None:
    bad = images(tmp_path / "bad", row12=9)
    view, data = find_blocks(small_net(torch.float32), torch.zeros(2, 3, 8, 8)), open_data(spec)
    alone = pathlens.delete_blocks(view, data, batch_size=5, **RGB)
    gradients = pathlens.path_gradients(view, data, batch_size=7, max_samples=6, **RGB)
    lattice = pathlens.lattice(view, data, batch_size=7, **RGB)
    with pytest.raises(KeyboardInterrupt):
        pathlens.delete_blocks(view, data, batch_size=5, **RGB, journal=tmp_path / "journal", progress=Progress(3))
    printed, said = two_processes(lambda: process_worker.work(spec, bad, user, tmp_path), tmp_path)
    first, second = map(json.loads, printed)

    assert (first["rank"], second["rank"]) == (0, 1)
    for found in (first, second):
        assert found["table"] == [dict(row) for row in alone.rows]  # to the last bit
        assert found["again"] == found["table"]
        assert found["list of batches"] == [
            dict(row) for row in pathlens.delete_blocks(view, small_batches(dtype=torch.float32)).rows
        ]
        assert found["gradients"] == json.loads(json.dumps([dict(row) for row in gradients.rows]))
        assert found["lattice"] == json.loads(json.dumps([dict(row) for row in lattice.rows]))
        assert (found["world"], found["processes"]) == (2, 2)
        assert found["computed"] == 4
        assert found["resumed"] == 3
        assert found["one failed"] == ["NumericsError", "one process is out of sorts (in process 1 of 2)"]
        kind, message, seconds = found["early"]
        assert (kind, message) == ("NumericsError", "at once (in process 1 of 2)")
        assert seconds < 3  # its own half of the batches would have taken 6
        assert found["all failed"][0] == "UsageError"
        assert "process" not in found["all failed"][1]
        assert found["shuffled"][0] == "UsageError"
        assert found["exit codes"] == [5, 3, 2]
    assert first["other is gone"][0] == "RunError"
    # each failure is said once, by the first process
    label, model, blocks = [line for line in said[0].splitlines() if "pathlens: error" in line]
    assert "1 of 10 labels are outside the classes" in label
    assert "(in process 1 of 2)" in label
    assert "unknown model 'nosuch'" in model
    assert "process" not in model
    assert "--blocks 'x'" in blocks
    assert "pathlens" not in said[1]
    assert not (tmp_path / "journal").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_torchrun(spec: str, user: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "delete-blocks",
        "-m",
        user,
        "-d",
        spec,
        "--mean",
        "0,0,0",
        "--std",
        "1,1,1",
        "--batch-size",
        "7",
        "--json",
    ]
    launcher = ["--standalone", "--nproc-per-node", "2", "-m", "pathlens", *command, "--out", str(tmp_path / "many")]
    printed, said_by = tmp_path / "printed", tmp_path / "said"
    many = forked(lambda: torchrun.main(launcher), printed, said_by, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    many.join(PATIENCE)
    many.kill()
    assert many.exitcode == 0, said_by.read_text()
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    found, wanted = json.loads(printed.read_text()), json.loads(capsys.readouterr().out)
    assert found["table"] == wanted["table"]  # to the last bit
    assert (found["provenance"]["processes"], wanted["provenance"]["processes"]) == (2, 1)
    said = [line for line in said_by.read_text().splitlines() if line.startswith("pathlens:")]
    assert len(said) == len(set(said))
    assert any("wrote" in line for line in said)
    assert json.loads((tmp_path / "many" / "manifest.json").read_text())["processes"] == 2
    assert not (tmp_path / "many" / ".journal").exists()


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(RunError, match="start them with torchrun"), processes.joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(RunError, match="start them with torchrun"), processes.joined():
        pass


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "gloo"), (2, "cpu:gloo,cuda:nccl")])
def test_nccl_where_each_process_has_a_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int, backend: str) -> None:
    joined: list[str] = []
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **_: joined.append(name))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with processes.joined():
        assert joined == [backend]


def test_one_process_alone() -> None:
    with processes.joined() as group:
        assert (group.rank, group.world, group.is_main) == (0, 1, True)
        assert group.gather("part") == ["part"]
        with group.agreed() as look:
            assert look() is None
        with pytest.raises(DataError, match="mine"), group.agreed():
            raise DataError("mine")
