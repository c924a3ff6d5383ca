"""Two processes train as one does at the same global batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pathlens.errors import DataError, RunError
from pathlens.training import Full
from tests.helpers.processes import two_processes
from tests.helpers.training_worker import (
    RULES,
    UNEVEN,
    curve,
    fails,
    normed,
    trained,
    weights,
    with_a_spare_layer,
    work,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes say."""
    folder = tmp_path_factory.mktemp("processes")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    printed, _ = two_processes(lambda: work(folder), folder)
    torch.set_num_threads(before)
    first, second = (json.loads(lines.splitlines()[-1]) for lines in printed)
    assert (first["rank"], second["rank"]) == (0, 1)
    return [first, second]


def close(one: Any, two: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        torch.tensor(one, dtype=torch.float64),
        torch.tensor(two, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_the_curve_of_one_process(name: str, found: list[dict[str, Any]]) -> None:
    alone = trained(RULES[name], stranger=name == "per sample")
    first, second = (part[name] for part in found)
    assert first["sha256"] == second["sha256"]
    assert first["curve"] == second["curve"]
    assert first["result"] == second["result"]
    for one, two in zip(first["curve"], curve(alone), strict=True):
        assert one.keys() == two.keys()
        assert one == {key: pytest.approx(value, rel=1e-9) for key, value in two.items()}
    for key, value in weights(alone).items():
        close(first["weights"][key], value)


@pytest.mark.slow
def test_sub_networks_are_the_same_everywhere(found: list[dict[str, Any]]) -> None:
    for name in ("blocks", "per batch"):
        first, second = (part[name]["drawn"] for part in found)
        assert first == second
        assert len(first) == 8
        assert len(set(first)) > 1
    assert all(draw.count("1") == 2 for draw in found[0]["blocks"]["drawn"])


@pytest.mark.slow
def test_batch_norms_over_all_processes(found: list[dict[str, Any]]) -> None:
    first, second = (part["norms"] for part in found)
    wanted = normed(slice(None))
    close(first["out"] + second["out"], wanted["out"], 1e-12)
    close(first["grad"] + second["grad"], wanted["grad"], 1e-12)
    for name, value in wanted["parameters"].items():
        close([a + b for a, b in zip(first["parameters"][name], second["parameters"][name], strict=True)], value, 1e-12)
    for name, value in wanted["buffers"].items():
        close(first["buffers"][name], value, 1e-12)
        close(second["buffers"][name], value, 1e-12)


@pytest.mark.slow
def test_what_several_processes_cannot_do(found: list[dict[str, Any]]) -> None:
    for part in found:
        kind, message = part["path lengths"]
        assert kind == "UsageError"
        assert message.startswith("path-lengths 1:2: several processes cannot share the statistics of batch norms")
        assert "give --no-sync-batch-norm" in message
        kind, message = part["small batch"]
        assert (kind, "a batch of 3 images cannot be divided among 2 processes" in message) == ("UsageError", True)
        kind, message = part["not resumed"]
        assert (kind, "give --resume" in message) == ("RunError", True)
        kind, message = part["diverged"]
        assert (kind, "NaN or infinite in step" in message) == ("NumericsError", True)
    first, second = found
    assert first["unsynced"] == second["unsynced"]
    assert all(row["train_loss"] > 0 for row in first["unsynced"][1])
    assert first["digest"] == second["digest"]


@pytest.mark.slow
def test_a_layer_that_is_not_in_use_changes_nothing(found: list[dict[str, Any]]) -> None:
    (one, values), (two, _) = (part["spare"] for part in found)
    assert one == two
    for key, value in weights(with_a_spare_layer()).items():
        close(values[key], value)


@pytest.mark.slow
def test_the_error_of_one_process_is_said(tmp_path: Path) -> None:
    printed, said = two_processes(lambda: fails(tmp_path), tmp_path)
    assert [text.split()[-1] for text in printed] == [str(RunError.exit_code), str(DataError.exit_code)]
    first, second = ([line for line in text.splitlines() if "pathlens: error" in line] for text in said)
    assert second == ["pathlens: error: image 7 of the digits is damaged (process 1 of 2)"]
    assert len(first) == 1
    assert "another process ended before the work was done; see what it said" in first[0]


@pytest.mark.slow
def test_a_run_of_several_processes_is_taken_up(found: list[dict[str, Any]]) -> None:
    assert {digest for part in found for digest in part["resumed"]} == {found[0]["resumed"][0]}


@pytest.mark.slow
def test_one_clock_says_when_a_checkpoint_is_due(found: list[dict[str, Any]]) -> None:
    assert [part["clocks"] for part in found] == [[1, 2, 3, 4], []]


@pytest.mark.slow
def test_a_run_with_fewer_steps_is_not_taken_up_by_one_process(found: list[dict[str, Any]]) -> None:
    with pytest.raises(RunError, match="steps_per_epoch was 6 and is null"):
        trained(Full(), out=found[0]["uneven"], recipe=UNEVEN, resume=True)
