"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The networks of the tests are small: more threads than this only wait for each other. Test processes side by side
# (pytest -n) share the cores.
_BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // _BESIDE)))
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # programs that tests start likewise

# Traces are many small objects that live long; to look through all of them as often as by default takes a tenth of the
# time of the tests.
gc.set_threshold(100_000, 50, 100)

# One slow example on a busy machine is no failure.
settings.register_profile("pathlens", deadline=None)
settings.load_profile("pathlens")


# Test files that take longest, longest first: side by side (pytest -n) with each file in one process, a long file that
# comes last would be waited for by all others. Files that are not named come after these, in their usual order.
_LONGEST = (
    "project/test_docs.py",
    "studies/test_civitelli2021.py",
    "project/test_api_reference.py",
    "studies/test_veit2016.py",
    "studies/test_li2018.py",
    "studies/test_strict_resnets.py",
    "project/test_tutorial.py",
    "studies/test_language.py",
    "project/test_contributing.py",
    "studies/test_wider_or_deeper.py",
    "studies/test_depth_in_training.py",
    "runtime/test_processes.py",
    "pages/test_page_browser.py",
    "figures/test_figures.py",
    "figures/test_path_figures.py",
    "studies/test_critics.py",
    "studies/test_pretrained_resnets.py",
    "analyses/test_resume.py",
    "training/test_processes.py",
    "training/test_resume.py",
    "training/test_network.py",
    "studies/test_gpu.py",
    "residual/test_find_errors.py",
    "cli/test_commands.py",
    "analyses/test_sweep.py",
    "analyses/test_path_gradients.py",
    "studies/test_blockdrop.py",
    "studies/test_udl11.py",
    "studies/benchmarks/test_first_table.py",
    "residual/test_gradients.py",
    "residual/test_plain.py",
    "cli/test_training.py",
    "training/test_loop.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would start with the files of most tests, which are not those that take longest
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: index for index, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def _folder_named_by(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"the environment does not set {variable}")
    if not Path(value).is_dir():
        pytest.skip(f"{variable} names {value}, which is no folder")
    return Path(value)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the shared data sets (``PATHLENS_DATA``)."""
    return _folder_named_by("PATHLENS_DATA")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of the shared checkpoints (``PATHLENS_MODELS``)."""
    return _folder_named_by("PATHLENS_MODELS")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Computations of a file that are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _usual_dpi() -> Iterator[int]:
    """Figures are coarse in tests, since fine ones take longer than most results; the resolution that users get."""
    from pathlens.figures import style

    usual = style._DPI
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "_DPI", 100)
        yield usual


@pytest.fixture
def fine_figures(_usual_dpi: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are as fine as those of users."""
    monkeypatch.setattr("pathlens.figures.style._DPI", _usual_dpi)


@pytest.fixture(autouse=True)
def _global_modes_untouched() -> Iterator[None]:
    """No test leaves torch's global modes changed, so no test depends on the one before it."""

    def modes() -> dict[str, object]:
        return {
            "default dtype": torch.get_default_dtype(),
            "gradients enabled": torch.is_grad_enabled(),
            "inference mode": torch.is_inference_mode_enabled(),
            "threads": torch.get_num_threads(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "float32 matmul precision": torch.get_float32_matmul_precision(),
        }

    before = modes()
    yield
    assert modes() == before


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """The test must leave torch's global random state as it found it."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before), "the global random state of torch was changed"
