"""Language models of transformers on the command line, with the tokenizer that they come with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from pathlens.cli import main
from tests.helpers.published import save_published, tiny, tiny_tokenizer

pytest.importorskip("transformers")

TEXT = "ab ba ab\nb é ab ab ba a b ab ab"


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and a text beside it."""
    folder = tmp_path_factory.mktemp("published")
    save_published(folder / "net", "gpt2")
    (folder / "text.txt").write_text(TEXT)
    return folder


def options(folder: Path) -> list[str]:
    return [
        "--model", f"hf:{folder / 'net'}", "--data", f"text:{folder / 'text.txt'}", "--sequence-length", "6",
        "--dtype", "float64", "--json", "--quiet",
    ]  # fmt: skip


@torch.no_grad()
def test_layers_are_deleted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete-blocks", *options(folder), "--group", "layer"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert output.err == ""
    steps = tiny_tokenizer()
    steps.no_truncation()
    tokens = torch.tensor(steps.encode(TEXT).ids)
    count = (len(tokens) - 1) // 6
    inputs, targets = tokens[: 6 * count].reshape(-1, 6), tokens[1 : 6 * count + 1]
    model = tiny("gpt2").double()
    body = model.transformer
    wanted = []
    for deleted in (None, 0, 1):
        x = body.wte(inputs) + body.wpe(torch.arange(6))
        for number, layer in enumerate(body.h):
            x = x if number == deleted else layer(x)
        logits = model.lm_head(body.ln_f(x))
        wanted.append(cross_entropy(logits.flatten(0, 1), targets).item())
    assert [row["loss"] for row in result["table"]] == pytest.approx(wanted, rel=1e-8)
    assert [row["name"] for row in result["table"]] == [None, "transformer.h.0", "transformer.h.1"]
    said = result["provenance"]
    assert (said["weights"], said["tokenizer"], said["images"]) == ("pretrained net", "net", count)


def test_its_blocks_need_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blocks", "--model", f"hf:{folder / 'net'}", "--weights", "random", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["table"]] == [
        f"transformer.h.{layer}.{part}" for layer in (0, 1) for part in ("attn", "mlp")
    ]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--sequence-length", "33"], 5, "sequences of 33 tokens are longer than the context of the model, 32"),
        (["--tokenizer", "bytes"], 5, "token 195 of bytes is outside the vocabulary of the model, 40 tokens"),
        (["--tokenizer", "{folder}"], 5, "no tokenizer.json in it"),
        (["--model", "hf:{folder}"], 3, "the folder has no config.json"),
        (["--weights", "{folder}/text.txt"], 4, "not a checkpoint by its content"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], code: int, said: str
) -> None:
    arguments = [*options(folder), *(word.replace("{folder}", str(folder)) for word in given)]
    longer = Path(folder / "long.txt")
    longer.write_text(TEXT * 3)
    assert main(["delete-blocks", *arguments, "--data", f"text:{longer}"]) == code
    output = capsys.readouterr()
    assert said in output.err
    assert (output.err.count("\n"), output.out) == (1, "")
