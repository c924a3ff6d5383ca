"""Llama 2 against a loop over heads and positions in float64, and the files of llama2.c."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

import pathlens
from pathlens.errors import CheckpointError, ModelError, NumericsError
from pathlens.models import save_weights, state_sha256
from pathlens.models.llama import Llama, Sizes, read_llama2c
from tests.helpers.texts import llama_file

SIZES = Sizes(width=8, hidden=12, layers=2, heads=4, groups=2, vocabulary=11, context=9)


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-5).sqrt() * weight


def turned(x: Tensor, position: int) -> Tensor:
    """Pairs of channels as complex numbers, turned by an angle."""
    pairs = torch.view_as_complex(x.reshape(-1, 2))
    angles = torch.tensor([position * 10000 ** (-2 * pair / len(x)) for pair in range(len(pairs))], dtype=x.dtype)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def by_hand(model: Llama, tokens: list[int]) -> Tensor:
    """Token by token and head by head, from the papers."""
    sizes, state = model.sizes, model.state_dict()
    head, shared = sizes.width // sizes.heads, sizes.heads // sizes.groups
    xs = [state["embedding.weight"][token] for token in tokens]
    for layer in range(sizes.layers):
        own = {name.removeprefix(f"layers.{layer}."): value for name, value in state.items()}
        inner = [normed(x, own["attention_norm.weight"]) for x in xs]
        queries, keys, values = (
            [(own[f"attention.{name}.weight"] @ x).split(head) for x in inner] for name in ("query", "key", "value")
        )
        for at in range(len(xs)):
            mixed = []
            for number in range(sizes.heads):
                scores = [
                    turned(queries[at][number], at) @ turned(keys[before][number // shared], before) / math.sqrt(head)
                    for before in range(at + 1)
                ]
                weights = torch.stack(scores).softmax(0)
                mixed.append(sum(weights[before] * values[before][number // shared] for before in range(at + 1)))
            xs[at] = xs[at] + own["attention.out.weight"] @ torch.cat(mixed)
        for at, x in enumerate(xs):
            inner_x = normed(x, own["mlp_norm.weight"])
            gate = own["mlp.gate.weight"] @ inner_x
            xs[at] = x + own["mlp.down.weight"] @ (gate * gate.sigmoid() * (own["mlp.up.weight"] @ inner_x))
    return torch.stack([state["head.weight"] @ normed(x, state["norm.weight"]) for x in xs])


@pytest.mark.parametrize("tied", [True, False])
def test_the_network_is_that_of_the_papers(tmp_path: Path, tied: bool) -> None:
    written = llama_file(tmp_path / "net.bin", SIZES, tied)
    loaded = pathlens.load_model("llama2", tmp_path / "net.bin")
    assert (loaded.num_classes, loaded.weights, loaded.trained) == (11, "net.bin", True)
    assert (loaded.model.head.weight is loaded.model.embedding.weight) == tied
    model = loaded.model.double()
    assert all(torch.equal(value, written.double().state_dict()[name]) for name, value in model.state_dict().items())
    tokens = [3, 1, 4, 1, 5, 9, 2]
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([tokens]))[0], by_hand(model, tokens), rtol=1e-10, atol=1e-10)


def test_every_layer_has_two_blocks_that_can_be_deleted(tmp_path: Path) -> None:
    model = llama_file(tmp_path / "net.bin", SIZES).double()
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    view = pathlens.find_blocks(model, tokens)
    assert [(block.name, block.module, block.kind) for block in view] == [
        (f"layers.{layer}.{part}", f"layers.{layer}", "identity") for layer in range(2) for part in ("attention", "mlp")
    ]
    with torch.no_grad():
        x, rotation = model.embedding(tokens), model.rotation[:6]
        first, second = model.layers
        x = x + first.mlp(first.mlp_norm(x))
        x = x + second.attention(second.attention_norm(x), rotation)
        wanted = model.head(model.norm(x))
        with pathlens.deleted(view, [0, 3]):
            torch.testing.assert_close(model(tokens), wanted, rtol=1e-10, atol=1e-10)


def test_the_published_network(shared_models: Path) -> None:
    model = pathlens.load_model("llama2", shared_models / "llama2" / "stories260K.bin").model
    assert sum(parameter.numel() for parameter in model.parameters()) == 260_032
    tokens = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(24):
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
        # "Once upon a time, there was a little girl"
        assert tokens[0, :9].tolist() == [1, 403, 407, 261, 378, 432, 383, 286, 261]
        other = model.double()
        # its table of angles is of float32
        torch.testing.assert_close(other(tokens)[0], by_hand(other, tokens[0].tolist()), rtol=1e-5, atol=1e-5)


def test_random_weights_and_long_sequences() -> None:
    model = pathlens.load_model("llama2", "random", num_classes=7).model
    assert model(torch.zeros(1, 5, dtype=torch.long)).shape == (1, 5, 7)
    with pytest.raises(ModelError, match="sequences of 513 tokens are longer than the context of the network, 512"):
        model(torch.zeros(1, 513, dtype=torch.long))


def test_weights_that_were_saved_are_read_again(tmp_path: Path) -> None:
    model = pathlens.load_model("llama2", "random", seed=3).model
    save_weights(tmp_path / "w.safetensors", model, {})
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        again = pathlens.load_model("llama2", tmp_path / name).model
        assert state_sha256(again) == state_sha256(model)


@pytest.mark.parametrize("width", [128, 640])
def test_a_width_that_begins_as_a_pickle_does(tmp_path: Path, width: int) -> None:
    path = tmp_path / "net.bin"
    llama_file(path, Sizes(width=width, hidden=4, layers=1, heads=4, groups=2, vocabulary=5, context=3))
    assert path.read_bytes()[:1] == b"\x80"
    assert pathlens.load_model("llama2", path).model.embedding.weight.shape == (5, width)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    llama_file(path, SIZES)
    whole = path.read_bytes()
    header = list(struct.unpack("<7i", whole[:28]))

    def changed(**numbers: int) -> bytes:
        names = ("width", "hidden", "layers", "heads", "groups", "vocabulary", "context")
        given = [numbers.get(name, value) for name, value in zip(names, header, strict=True)]
        return struct.pack("<7i", *given) + whole[28:]

    for content, said in (
        (b"", "the file is empty"),
        (whole[:20], "it is shorter than a header"),
        (whole[:-4], "bytes, and its header says"),
        (whole + b"1234", "bytes, and its header says"),
        (changed(layers=0), "holds sizes that are none"),
        (changed(width=-8), "holds sizes that are none"),
        (changed(hidden=2**31 - 1), "holds sizes that are none"),
        (changed(heads=3), "width 8, 3 heads and 2 groups do not fit"),
        (changed(groups=3), "4 heads and 3 groups do not fit"),
        (changed(vocabulary=-11), "bytes, and its header says"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            read_llama2c(path)
    path.write_bytes(whole[:28] + struct.pack("<f", math.nan) + whole[32:])
    with pytest.raises(NumericsError, match=r"embedding\.weight"):
        pathlens.load_model("llama2", path)
    with pytest.raises(CheckpointError, match="no such file"):
        pathlens.load_model("llama2", tmp_path / "gone.bin")
