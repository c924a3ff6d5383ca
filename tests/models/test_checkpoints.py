"""State dicts into networks, their hash, and back to disk."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pathlens.errors import CheckpointError, ModelError, NumericsError, ResourceError
from pathlens.models import load_into, load_state_dict_file, save_weights, state_sha256
from pathlens.models.checkpoints import check_finite
from tests.helpers.model_helpers import Small, one_line

# --- into a network --------------------------------------------------------------------------------------------------


def test_another_network_says_what_differs_and_changes_nothing() -> None:
    model = Small()
    before = state_sha256(model)
    state = dict(Small(seed=1).state_dict())
    state["fc.weight"] = torch.zeros(7, 2)
    del state["conv.bias"]
    state["head.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_into(model, state, "w.pt")
    text = one_line(caught)
    assert "1 missing: conv.bias" in text
    assert "1 unexpected: head.weight" in text
    assert "1 of another shape: fc.weight is (7, 2) in the file and (3, 2) in the network" in text
    assert text.startswith("w.pt: ")
    assert "Small" in text
    assert state_sha256(model) == before


def test_long_lists_are_shortened_with_counts() -> None:
    state = {**Small().state_dict(), **{f"x{i}": torch.zeros(1) for i in range(50)}}
    with pytest.raises(CheckpointError, match="50 unexpected: x0, x1, x2 and 47 more"):
        load_into(Small(), state, "w.pt")


def test_names_of_a_hostile_file_cannot_break_the_line() -> None:
    with pytest.raises(CheckpointError) as caught:
        load_into(Small(), {**Small().state_dict(), "a\nb\x1b[31m": torch.zeros(1)}, "w.pt")
    assert "\x1b" not in one_line(caught)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
@pytest.mark.parametrize("name", ["conv.weight", "bn.running_var"])
def test_weights_that_are_not_finite(value: float, word: str, name: str) -> None:
    model = Small()
    before = state_sha256(model)
    state = {k: v.clone() for k, v in Small(seed=1).state_dict().items()}
    state[name].view(-1)[1] = value
    with pytest.raises(NumericsError, match=rf"{name} holds {word} values \(1 of"):
        load_into(model, state, "w.pt")
    assert state_sha256(model) == before
    with torch.no_grad():
        model.get_parameter("conv.weight").view(-1)[0] = value
    with pytest.raises(NumericsError, match=r"net: conv\.weight"):
        check_finite(model, "net")


def test_infinite_masks_in_buffers_are_legal() -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(model, "net")
    assert load_into(model, model.state_dict(), "w.pt") == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_types_are_converted_and_reported(dtype: torch.dtype) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in Small(seed=1).state_dict().items()}
    model = Small()
    notes = load_into(model, state, "w.pt")
    assert notes == (f"converted {str(dtype).removeprefix('torch.')} to float32",)
    assert torch.equal(model.fc.weight, state["fc.weight"].float())


def test_overflow_in_conversion_is_found() -> None:
    state = {k: v.double() if v.is_floating_point() else v for k, v in Small().state_dict().items()}
    state["fc.bias"][0] = 1e300
    with pytest.raises(NumericsError, match=r"fc\.bias"):
        load_into(Small(), state, "w.pt")


def test_integer_weights_are_refused() -> None:
    state = {**Small().state_dict(), "fc.weight": torch.zeros(3, 2, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"fc\.weight holds int8 where the network holds float32"):
        load_into(Small(), state, "w.pt")


def test_counters_of_batch_norm_may_be_missing_but_nothing_else() -> None:
    state = dict(Small(seed=1).state_dict())
    del state["bn.num_batches_tracked"]
    model = Small()
    load_into(model, state, "w.pt")
    assert state_sha256(model) == state_sha256(Small(seed=1))
    del state["bn.running_mean"]
    with pytest.raises(CheckpointError, match=r"1 missing: bn\.running_mean"):
        load_into(Small(), state, "w.pt")


def test_network_that_is_itself_wrapped() -> None:
    wrapped = nn.Sequential(OrderedDict(module=Small()))  # all its names begin with module.
    load_into(wrapped, Small(seed=1).state_dict(), "w.pt")
    assert state_sha256(wrapped.get_submodule("module")) == state_sha256(Small(seed=1))


def test_tied_weights_load(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        model = nn.Module()
        model.a = Small(seed).fc
        model.b = model.a
        return model

    save_weights(tmp_path / "w.safetensors", tied(1), {})
    model = tied(2)
    load_into(model, load_state_dict_file(tmp_path / "w.safetensors")[0], "w")
    assert model.a.weight is model.b.weight
    assert torch.equal(model.a.weight, Small(1).fc.weight)


def test_tied_weights_that_differ_in_the_file() -> None:
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Linear(3, 3)))
    model.b.weight = model.a.weight
    untied = nn.Sequential(OrderedDict(a=nn.Linear(3, 3), b=nn.Linear(3, 3))).state_dict()
    before = state_sha256(model)
    with pytest.raises(CheckpointError, match="differ in the file and are one weight in Sequential"):
        load_into(model, untied, "w.pt")
    assert state_sha256(model) == before
    load_into(model, {**untied, "b.weight": untied["a.weight"].clone()}, "w.pt")


def test_a_network_without_values_takes_no_weights() -> None:
    with pytest.raises(ModelError, match=r"Sequential: 0.weight has no values yet \(lazy or meta\)"):
        load_into(nn.Sequential(nn.LazyLinear(3)), nn.Sequential(nn.Linear(2, 3)).state_dict(), "w.pt")


def test_parametrizations_of_a_network_s_own_are_saved_as_they_are(tmp_path: Path) -> None:
    def normed() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        nn.utils.parametrizations.weight_norm(model[0])
        nn.utils.parametrizations.spectral_norm(model[2])
        return model

    model, other = normed().train(), normed()
    before = state_sha256(model)
    save_weights(tmp_path / "w.safetensors", model, {})
    assert state_sha256(model) == before  # in train mode a spectral norm would go on by a step where it is asked
    load_into(other, load_state_dict_file(tmp_path / "w.safetensors")[0], "w")
    assert state_sha256(other) == before


# --- versions of modules ---------------------------------------------------------------------------------------------


class Turned(nn.Module):
    """Its weight was the transpose before version 2."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, local_metadata: dict[str, Any], *more: Any
    ) -> None:
        version = local_metadata.get("version")
        if version not in (None, 1, 2):
            raise ValueError(f"version {version}")
        if version != 2:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].t()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *more)


VALUES = torch.arange(4.0).view(2, 2)
WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda model: model,
    "parallel": lambda model: nn.Sequential(OrderedDict(module=model)),
    "compiled": lambda model: nn.Sequential(OrderedDict(_orig_mod=model)),
    "averaged": AveragedModel,
}


def turned() -> Any:
    return nn.Sequential(OrderedDict(part=Turned()))


def stating(about: object, wrap: Callable[[nn.Module], nn.Module] = WRAPPERS["none"]) -> Any:
    """A state dict of ``VALUES``, and what it says of the module that they are of."""
    model = turned()
    with torch.no_grad():
        model.part.weight.copy_(VALUES)
    state: Any = wrap(model).state_dict()
    (place,) = (name for name in state._metadata if name.endswith("part"))
    state._metadata[place] = about
    return state


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_modules_are_told_the_version_that_the_file_states(
    tmp_path: Path, version: int, zipped: bool, wrapper: str
) -> None:
    wrap, path = WRAPPERS[wrapper], tmp_path / "w.pt"
    torch.save(stating({"version": version}, wrap), path, _use_new_zipfile_serialization=zipped)
    model, by_torch = turned(), wrap(turned())
    by_torch.load_state_dict(torch.load(path, weights_only=True))
    load_into(model, load_state_dict_file(path)[0], "w.pt")
    assert torch.equal(model.part.weight, VALUES if version == 2 else VALUES.t())
    (wanted,) = (value for name, value in by_torch.state_dict().items() if name.endswith("weight"))
    assert torch.equal(model.part.weight, wanted)


def test_modules_are_told_the_version_that_a_state_dict_in_memory_states() -> None:
    for model in (turned(), nn.Sequential(OrderedDict(module=turned()))):
        load_into(model, stating({"version": 1}), "w.pt")
        (weight,) = model.parameters()
        assert torch.equal(weight, VALUES.t())


@pytest.mark.parametrize("about", [{}, {"version": "1"}, {"version": True}, [1], None])
def test_weights_of_no_stated_version_are_of_the_present_one(tmp_path: Path, about: object) -> None:
    model = turned()
    load_into(model, dict(stating({"version": 1})), "w.pt")
    assert torch.equal(model.part.weight, VALUES)
    save_weights(tmp_path / "w.safetensors", model, {})
    torch.save(stating(about), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = turned()
        load_into(model, load_state_dict_file(tmp_path / name)[0], name)
        assert torch.equal(model.part.weight, VALUES)


def test_a_file_states_versions_and_nothing_else(tmp_path: Path) -> None:
    torch.save(stating({"version": 2, "assign_to_params_buffers": True}), tmp_path / "w.pt")
    model = turned()
    weight = model.part.weight
    load_into(model, load_state_dict_file(tmp_path / "w.pt")[0], "w.pt")
    assert model.part.weight is weight
    assert torch.equal(weight, VALUES)
    with pytest.raises(CheckpointError, match=r"w\.pt: Sequential does not take these weights \(version 3\)") as caught:
        load_into(model, stating({"version": 3}), "w.pt")
    one_line(caught)


# --- hash and saving -------------------------------------------------------------------------------------------------


def test_hash_depends_on_name_shape_type_and_value_alone() -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    same = {"b": torch.tensor(1), "a": torch.arange(6.0).reshape(3, 2).reshape(2, 3)}
    assert state_sha256(base) == state_sha256(same)
    transposed = torch.arange(6.0).reshape(2, 3).t().contiguous().t()  # equal values, other memory layout
    assert state_sha256(base) == state_sha256({**base, "a": transposed})
    others = [
        {"c": base["a"], "b": base["b"]},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].double()},
        {**base, "a": base["a"].view(torch.int32)},
        {**base, "a": torch.nextafter(base["a"], torch.tensor(9.0))},
        {**base, "b": torch.tensor([1])},
        {"a": base["a"]},
    ]
    assert len({state_sha256(s) for s in [base, *others]}) == 8


def test_hash_against_the_definition() -> None:
    state = {"w": torch.tensor([1.5, -2.0], dtype=torch.bfloat16), "n": torch.tensor(7)}
    expected = hashlib.sha256(
        b"n int64 ()\n" + struct.pack("<q", 7) + b"w bfloat16 (2,)\n" + struct.pack("<2H", 0x3FC0, 0xC000)
    )
    assert state_sha256(state) == expected.hexdigest()


def test_saving_is_repeatable_and_leaves_nothing_beside(tmp_path: Path) -> None:
    metadata = {letter: letter for letter in "qwertyuiopasdf"}
    for name in ("a", "b"):
        save_weights(tmp_path / f"{name}.safetensors", Small(), metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    save_weights(tmp_path / "a.safetensors", Small(seed=1), {})
    assert state_sha256(load_state_dict_file(tmp_path / "a.safetensors")[0]) == state_sha256(Small(seed=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.safetensors")}
    assert len(modes) == 1


def test_failed_saving_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, Small(), {})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        save_weights(path, Small(seed=1), {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="cannot write weights"):
        save_weights(tmp_path / "no" / "w.safetensors", Small(), {})
