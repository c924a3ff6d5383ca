"""Language models of transformers, from folders or by name: no code but the library's own, and no pickles.

A name is brought into the cache of the Hugging Face hub and is a folder from then on. The configuration is read first,
and what a network of it takes is known before any weight is fetched or read.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pathlens.errors import CheckpointError, ModelError, PathlensError, one_line
from pathlens.models.catalogs import Entry, InputSpec
from pathlens.models.reading import DEFAULT_MAX_BYTES, check_file, no_memory, read_metadata
from pathlens.runtime.memory import total_memory

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARDS = "model-*.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_LARGEST_CONFIG = 2**24  # bytes
_MOST_LAYERS = 10_000
_EXAMPLE = 16  # tokens to trace a network with


def huggingface_entry(name: str) -> Entry:
    """A language model of transformers, by its folder or its name on the hub.

    Args:
        name: a folder with ``config.json``, or a name such as ``openai-community/gpt2``, which is taken from the cache
            or downloaded.

    Raises:
        ModelError: transformers is not installed, there is no such folder or name, or it is no language model that
            transformers itself has.
        ResourceError: a network of these sizes does not fit in memory.
    """
    spec = f"hf:{name}"
    try:
        import transformers
    except ImportError as error:
        raise ModelError(f'{spec} needs transformers, which is not installed: pip install "pathlens[hf]"') from error
    config = _config(spec, _folder(spec, name, ["config.json"]))
    auto: Any = transformers.AutoModelForCausalLM

    def build(_classes: int | None, _channels: int | None) -> nn.Module:
        with _quietly(spec, ModelError, "cannot be built"):
            network = auto.from_config(
                copy.deepcopy(config), trust_remote_code=False, dtype=torch.float32, attn_implementation=None
            )
            return _without_padding(network)

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(None, None).parameters())
    if 4 * size > total_memory():
        raise no_memory(Path(name))

    def pretrained() -> tuple[nn.Module, str]:
        folder = _folder(spec, name, ["config.json", _WEIGHTS, _INDEX, _SHARDS])
        _check_weights(spec, folder)
        with _quietly(spec, CheckpointError, "its weights cannot be read"):
            model, report = auto.from_pretrained(
                folder,
                config=copy.deepcopy(config),
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            raise CheckpointError(
                f"{spec}: {len(missing)} of the tensors of {type(model).__name__} are not among its weights (the "
                f"first: {missing[0]}): give a folder with all of them"
            )
        aside = sorted(report["unexpected_keys"])
        own = folder.name if os.path.isdir(os.path.expanduser(name)) else name
        return _without_padding(model), f"pretrained {own}" + (
            f" (left aside: {len(aside)} tensors, {aside[0]})" if aside else ""
        )

    text = config.get_text_config()
    context = getattr(text, "max_position_embeddings", None)
    context = context if isinstance(context, int) and context > 0 else None
    example = torch.zeros(2, min(_EXAMPLE, context or _EXAMPLE), dtype=torch.long)

    def input_spec(model: nn.Module, weights: str | None) -> InputSpec:
        return InputSpec(example=example, vocabulary=text.vocab_size, context=context)

    return Entry(spec, build, input_spec, pretrained, names_weights=True)


def _without_padding(network: Any) -> nn.Module:
    """Sequences are whole; where the token that pads is in a text as well, transformers would warn of it."""
    network.config.pad_token_id = None
    model: nn.Module = network
    return model


@contextlib.contextmanager
def _quietly(spec: str, kind: type[PathlensError], what: str, remedy: str = "give another model") -> Iterator[None]:
    """Run transformers without its logs and bars, and say in a line what it raises."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    except PathlensError:
        raise
    except Exception as error:  # a configuration may say anything, and the network of it may raise anything
        raise kind(f"{spec}: {what} ({type(error).__name__}: {one_line(error, 200)}): {remedy}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _folder(spec: str, name: str, files: list[str]) -> Path:
    """The folder of a model, into which a name's files are fetched where they are not yet."""
    place = Path(os.path.expanduser(name))
    if not name:
        raise ModelError(f"{spec} names no model: give a folder, or a name such as hf:openai-community/gpt2")
    if os.path.isdir(place):
        if not (place / "config.json").is_file():
            raise ModelError(f"{spec}: the folder has no config.json: give one that save_pretrained has written")
        return place
    if os.path.exists(place):
        raise ModelError(f"{spec} is a file: give the folder of a model, with config.json and {_WEIGHTS}")
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"{spec}: there is no such folder: give one, or a name such as hf:openai-community/gpt2")
    from huggingface_hub import snapshot_download

    remedy = "check the name and the connection, or give a folder"
    with _quietly(spec, ModelError, "neither a folder nor in the cache, and it cannot be downloaded", remedy):
        place = Path(snapshot_download(name, allow_patterns=files))
    if not (place / "config.json").is_file():
        raise ModelError(f"{spec} has no config.json: give a model of transformers")
    return place


def _config(spec: str, folder: Path) -> Any:
    """The configuration of a language model, which may name no code."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as MAPPING

    path = folder / "config.json"
    check_file(path, _LARGEST_CONFIG)
    try:
        stated = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{spec}: its config.json is no JSON ({one_line(error, 100)}): copy it again") from error
    if not isinstance(stated, dict) or not isinstance(stated.get("model_type"), str):
        raise ModelError(f"{spec}: its config.json names no model_type: give a model of transformers")
    kind = stated["model_type"]
    if kind not in CONFIG_MAPPING:
        why = "asks for code of its own (auto_map), which is never run" if "auto_map" in stated else "is unknown"
        raise ModelError(f"{spec}: model_type {kind!r} {why}: give a model that transformers itself has")
    if stated.get("quantization_config"):
        raise ModelError(f"{spec}: its weights are quantised: give those that are not")
    # it might name a kernel, which would be downloaded and run
    for choice in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        if stated.get(choice) not in (None, "eager", "sdpa"):
            raise ModelError(f"{spec}: its config.json asks for {choice} {stated[choice]!r}: take that line out of it")
    with _quietly(spec, ModelError, "its config.json cannot be used"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if type(config) not in MAPPING:
            raise ModelError(f"{spec}: {kind} is no language model: give one that predicts the next token")
        classes: Any = MAPPING[type(config)]
        names = {each.__name__ for each in (classes if isinstance(classes, tuple) else (classes,))}
        own = config.architectures or ()
        if own and names.isdisjoint(own):
            raise ModelError(
                f"{spec}: {', '.join(map(str, own))} is no language model that predicts the next token: give one, such "
                f"as {min(names)}"
            )
        text = config.get_text_config()
        if not 0 < getattr(text, "num_hidden_layers", 1) <= _MOST_LAYERS:
            raise ModelError(f"{spec}: its config.json states {text.num_hidden_layers} layers: give another model")
        # what is studied is a function from tokens to logits
        for each in {id(config): config, id(text): text}.values():
            each.use_cache = each.output_hidden_states = False
            each.return_dict = True
        config.output_attentions = False
    return config


def _check_weights(spec: str, folder: Path) -> None:
    """Check files and sizes before anything is read.

    Raises:
        CheckpointError: there are none, they are too large, damaged, or pickles.
    """
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{spec}: the folder holds an adapter: merge it into its model, and save that")
    if (folder / _WEIGHTS).exists():
        files = [_WEIGHTS]
    elif (folder / _INDEX).exists():
        check_file(folder / _INDEX, _LARGEST_CONFIG)
        try:
            files = sorted({str(file) for file in json.loads((folder / _INDEX).read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{spec}: {_INDEX} is no index of weights: copy it again") from error
        if odd := [file for file in files if Path(file).name != file]:
            raise CheckpointError(f"{spec}: {_INDEX} names {odd[0]!r}, which is no file of the folder: copy it again")
    else:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        how = f"its weights are pickles ({pickles[0]}), which could run code" if pickles else f"no {_WEIGHTS} in it"
        raise CheckpointError(f"{spec}: {how}: give safetensors, such as save_pretrained writes, or --weights random")
    for file in files:
        read_metadata(folder / file)  # checks the header, and that the tensors lie inside the file
    size = sum((folder / file).stat().st_size for file in files)
    if size > DEFAULT_MAX_BYTES:
        raise CheckpointError(
            f"{spec}: {size / 2**30:.3g} GiB of weights are more than the limit of {DEFAULT_MAX_BYTES / 2**30:.3g} GiB"
            ": give a smaller model"
        )
