"""What float32 products are computed in, and that the settings of the caller count before and afterwards alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import pathlens
from pathlens.runtime.precision import precision
from tests.helpers.lesion_oracle import small_batches, small_net

BACKENDS: Any = torch.backends
EVERY = [("generic", "all"), *((kind, of) for kind in ("cuda", "mkldnn") for of in ("all", "matmul", "conv", "rnn"))]


@pytest.fixture(autouse=True)
def _as_torch_has_it() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for place in (BACKENDS, BACKENDS.cudnn, BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul):
        place.fp32_precision = "none"


def settings() -> dict[tuple[str, str], str]:
    """All of the newer interface, each as it applies."""
    return {place: torch._C._get_fp32_precision_getter(*place) for place in EVERY}


def older_settings() -> list[Any]:
    """All of the older interface, which refuses to be read where the newer one says otherwise."""
    found: list[Any] = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        lambda: BACKENDS.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    return found


CALLERS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "newer, all": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "newer, GPUs": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "tf32"),
    "newer, matmul of GPUs": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
    "newer, matmul of GPUs, exact": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "ieee"),
    "newer, matmul of CPUs": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "older, high": lambda: torch.set_float32_matmul_precision("high"),
    "older, medium": lambda: torch.set_float32_matmul_precision("medium"),
    "older, allowed": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "older, forbidden": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", False),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("name", "on_gpus"), [("float32", "ieee"), ("tf32", "tf32"), ("float64", "ieee")])
def test_products_are_what_the_name_says_and_settings_come_back(name: str, on_gpus: str, caller: str) -> None:
    CALLERS[caller]()
    before = settings(), older_settings()
    with precision(name):
        found = settings()
        assert {found["cuda", operation] for operation in ("matmul", "conv", "rnn")} == {on_gpus}
        assert {found["mkldnn", operation] for operation in ("matmul", "conv", "rnn")} == {"ieee"}
        assert older_settings() == (["high", True, True] if name == "tf32" else ["highest", False, False])
    assert (settings(), older_settings()) == before
    if caller.startswith("older"):
        assert "refused" not in older_settings()
    if caller == "older, medium":
        assert torch.get_float32_matmul_precision() == "medium"


def test_what_inherits_a_setting_still_does() -> None:
    for name in ("float32", "tf32"):
        with precision(name):
            pass
    BACKENDS.fp32_precision = "tf32"
    found = settings()
    assert {found[place] for place in EVERY if place[0] == "mkldnn" or place[1] in ("all", "matmul")} == {"tf32"}


def test_an_analysis_where_the_newer_interface_is_used() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    batches = small_batches(8, dtype=torch.float32)
    assert len(pathlens.delete_blocks(small_net(torch.float32), batches, blocks=1).rows) == 2
    assert BACKENDS.cuda.matmul.fp32_precision == "tf32"


def test_autocast_is_off() -> None:
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with precision("float32"):
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16
