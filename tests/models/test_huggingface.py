"""Language models of transformers: what is loaded, their blocks against transformers' own modules, and bad folders."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pathlens
from pathlens.errors import CheckpointError, ModelError, PathlensError, ResourceError
from pathlens.models import huggingface, load_model, state_sha256
from tests.helpers.published import save_published, tiny

pytest.importorskip("transformers")

TOKENS = torch.arange(2 * 9).reshape(2, 9) * 7 % 40


@pytest.fixture(scope="module", name="gpt2")
def _gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_published(folder := tmp_path_factory.mktemp("hf") / "gpt2", "gpt2")
    return folder


def test_a_folder_is_loaded(gpt2: Path, tmp_path: Path) -> None:
    loaded = load_model(f"hf:{gpt2}")
    model = tiny("gpt2")
    assert loaded.sha256 == state_sha256(model)
    assert (loaded.weights, loaded.trained, loaded.num_classes, loaded.context) == ("pretrained gpt2", True, 40, 32)
    assert set(loaded.model(TOKENS)) == {"logits"}  # no cache
    assert loaded.example is not None
    assert loaded.example.shape == (2, 16)
    assert load_model(f"hf:{gpt2}", "pretrained").sha256 == loaded.sha256
    # a file holds the embedding, which is the head as well, under one of its names
    shutil.copy(gpt2 / "model.safetensors", tmp_path / "w.safetensors")
    from_file = load_model(f"hf:{gpt2}", tmp_path / "w.safetensors")
    assert (from_file.sha256, from_file.weights) == (loaded.sha256, "w.safetensors")
    one, same, other = (load_model(f"hf:{gpt2}", "random", seed=seed) for seed in (1, 1, 2))
    assert one.sha256 == same.sha256 != other.sha256
    assert not one.trained


def test_several_files_in_half_precision(tmp_path: Path) -> None:
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = load_model(f"hf:{tmp_path}").model
    wanted = tiny("llama").to(torch.bfloat16).float()
    assert state_sha256(model) == state_sha256(wanted)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-', '"../model-', 1))
    with pytest.raises(CheckpointError, match=r"index.json names '\.\./model-.*which is no file of the folder"):
        load_model(f"hf:{tmp_path}")


def test_a_name_is_found_in_the_cache(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"hf:org/gone: neither a folder nor in the cache.*check the name and the co"):
        load_model("hf:org/gone")
    place = tmp_path / "models--org--net"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(gpt2, place / "snapshots" / ("0" * 40))
    loaded = load_model("hf:org/net")
    assert (loaded.sha256, loaded.weights) == (load_model(f"hf:{gpt2}").sha256, "pretrained org/net")


@torch.no_grad()
def test_deleting_blocks_of_gpt2_by_hand() -> None:
    """Every set of up to two of its four blocks, from transformers' own modules."""
    model = tiny("gpt2", use_cache=False).double()
    view = pathlens.find_blocks(model, TOKENS)
    assert [block.name for block in view] == [f"transformer.h.{n}.{part}" for n in (0, 1) for part in ("attn", "mlp")]
    body = model.transformer
    for deleted in itertools.chain.from_iterable(itertools.combinations(range(4), count) for count in range(3)):
        x = body.wte(TOKENS) + body.wpe(torch.arange(9))
        for number, layer in enumerate(body.h):
            if 2 * number not in deleted:
                x = x + layer.attn(layer.ln_1(x))[0]
            if 2 * number + 1 not in deleted:
                x = x + layer.mlp(layer.ln_2(x))
        with pathlens.deleted(view, deleted):
            found = model(TOKENS).logits
        torch.testing.assert_close(found, model.lm_head(body.ln_f(x)), rtol=1e-10, atol=1e-10)


#: what a layer of each family adds, block by block; GPT-NeoX adds attention and MLP at once
FAMILIES: dict[str, list[list[str]]] = {
    "llama": [["self_attn"], ["mlp"]],
    "qwen2": [["self_attn"], ["mlp"]],
    "gemma2": [["self_attn"], ["mlp"]],
    "opt": [["self_attn"], ["fc2"]],
    "gpt_neox": [["attention", "mlp"]],
}


@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_blocks_of_other_families(kind: str) -> None:
    """Deleting a block is transformers' own forward with the outputs of its modules set to zero."""
    model = tiny(kind, num_hidden_layers=1, use_cache=False).double()
    view = pathlens.find_blocks(model, TOKENS)
    layers: Any = next(part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    blocks = [[layer.get_submodule(name) for name in block] for layer in layers for block in FAMILIES[kind]]
    assert len(view) == len(blocks)

    def zero(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        return (0 * output[0], *output[1:]) if isinstance(output, tuple) else 0 * output

    for number, modules in enumerate(blocks):
        handles = [module.register_forward_hook(zero) for module in modules]
        wanted: Tensor = model(TOKENS).logits
        for handle in handles:
            handle.remove()
        assert not torch.allclose(wanted, model(TOKENS).logits)
        with pathlens.deleted(view, [number]):
            torch.testing.assert_close(model(TOKENS).logits, wanted, rtol=1e-9, atol=1e-9)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _pickles(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


#: what is done to a folder, the error, and what is said
BAD: dict[str, tuple[Any, type[PathlensError], str]] = {
    "no configuration": (lambda f: (f / "config.json").unlink(), ModelError, "the folder has no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), ModelError, "its config.json is no JSON"),
    "no kind": (lambda f: (f / "config.json").write_text("[]"), ModelError, "names no model_type"),
    "pickles": (_pickles, CheckpointError, r"its weights are pickles \(pytorch_model.bin\), which could run code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "no model.safetensors in it"),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
        CheckpointError,
        "truncated or damaged",
    ),
    "code": (
        lambda f: _config(f, model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        ModelError,
        r"model_type 'mine' asks for code of its own \(auto_map\), which is never run",
    ),
    "kernel": (lambda f: _config(f, attn_implementation="org/kernel"), ModelError, "asks for attn_impl.* 'org/kernel'"),
    "unknown": (lambda f: _config(f, model_type="mine"), ModelError, "model_type 'mine' is unknown"),
    "images": (lambda f: _config(f, model_type="vit"), ModelError, "vit is no language model"),
    "another head": (
        lambda f: _config(f, architectures=["GPT2ForSequenceClassification"]),
        ModelError,
        "GPT2ForSequenceClassification is no language model that predicts the next token.* such as GPT2LMHeadModel",
    ),
    "quantised": (lambda f: _config(f, quantization_config={"quant_method": "gptq"}), ModelError, "are quantised"),
    "sizes": (lambda f: _config(f, n_head=3), ModelError, "cannot be built"),
    "kinds": (lambda f: _config(f, n_embd="many"), ModelError, "cannot be (used|built)"),
    "layers": (lambda f: _config(f, n_layer=10**9), ModelError, "states 1000000000 layers"),
    "memory": (lambda f: _config(f, vocab_size=10**12), ResourceError, "do not fit in memory"),
    "deeper": (lambda f: _config(f, n_layer=3), CheckpointError, "12 of the tensors of GPT2LMHeadModel are not among"),
    "wider": (lambda f: _config(f, n_embd=32), CheckpointError, "its weights cannot be read"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), CheckpointError, "holds an adapter"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(gpt2: Path, tmp_path: Path, name: str) -> None:
    change, kind, said = BAD[name]
    shutil.copytree(gpt2, folder := tmp_path / "net")
    change(folder)
    with pytest.raises(kind, match=said) as caught:
        load_model(f"hf:{folder}")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_is_left_alone(gpt2: Path, tmp_path: Path) -> None:
    """A folder of a kind that transformers has: its own code is not run, with random weights neither."""
    shutil.copytree(gpt2, folder := tmp_path / "net")
    _config(folder, auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for weights in ("pretrained", "random"):
        load_model(f"hf:{folder}", weights)
    assert not (tmp_path / "ran").exists()


def test_names_and_limits(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("./gone", str(tmp_path / "gone"), "a/b/c"):
        with pytest.raises(ModelError, match="there is no such folder"):
            load_model(f"hf:{name}")
    with pytest.raises(ModelError, match="hf: names no model"):
        load_model("hf:")
    with pytest.raises(ModelError, match="is a file: give the folder"):
        load_model(f"hf:{gpt2 / 'config.json'}")
    monkeypatch.setattr(huggingface, "DEFAULT_MAX_BYTES", 9)
    with pytest.raises(CheckpointError, match="of weights are more than the limit"):
        load_model(f"hf:{gpt2}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'pip install "pathlens\[hf\]"'):
        load_model(f"hf:{gpt2}")
