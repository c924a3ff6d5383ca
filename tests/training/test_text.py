"""Training on a text: losses and errors against a plain loop, what is held out, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import pathlens
from pathlens import training
from pathlens.__main__ import main
from pathlens.data import TextData
from pathlens.data.images import NOT_COUNTED
from pathlens.errors import DataError, ModelError, UsageError
from pathlens.models.llama import Llama, Sizes
from pathlens.models.reading import read_metadata
from pathlens.training.batches import ORDER, generator
from pathlens.training.configuration import recipe_name
from pathlens.training.recipe import TEXT, Recipe, recipe_for

WORDS = " ".join(f"{a} and {b} make {a + b}" for a, b in itertools.product(range(12), range(12)))
TINY = Sizes(8, 16, 2, 2, 1, 128, 32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sums.txt"
    path.write_text(WORDS)
    return path


def text(file: Path, **given: Any) -> TextData:
    return pathlens.open_text(file, **{"length": 16, "limit": 10, **given})


def tiny() -> Llama:
    torch.manual_seed(0)
    return Llama(TINY)


def test_losses_and_errors_of_an_epoch_against_a_plain_loop(file: Path) -> None:
    data, watched = text(file, stride=12, limit=14).hold_out(3)
    net, twin = tiny().double(), tiny().double()
    recipe = Recipe(
        epochs=2, batch_size=4, lr=0.01, optimizer="adamw", schedule="constant", warmup=0, crop=0, flip=False
    )
    trained = training.train(net, data, validation=watched, recipe=recipe, seed=3, dtype="float64")
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=1e-4)
    for epoch, row in enumerate(trained.history.rows):
        losses, errors = [], []
        order = generator(3, ORDER, epoch).permutation(data.n).tolist()
        for batch in (order[start : start + 4] for start in range(0, len(order), 4)):
            each = []
            for number in batch:
                tokens = data.tokens[number * 12 : number * 12 + 17]
                logits = twin(tokens[None, :-1])[0]
                new = slice(4 if number else 0, None)  # what overlaps with the sequence before is not asked for again
                each.append(F.cross_entropy(logits[new], tokens[1:][new]))
                errors.append(float((logits[new].argmax(1) != tokens[1:][new]).double().mean()))
            losses += [float(loss.detach()) for loss in each]
            optimizer.zero_grad()
            (sum(each) / len(each)).backward()
            optimizer.step()
        assert row["train_loss"] == pytest.approx(np.mean(losses), rel=1e-9)
        assert row["train_error"] == pytest.approx(np.mean(errors), rel=1e-12)
    whole = watched.batch(0, 3)
    with torch.no_grad():
        logits, counted = twin(whole.images), whole.labels != NOT_COUNTED
    assert row["validation_loss"] == pytest.approx(float(F.cross_entropy(logits[counted], whole.labels[counted])))
    assert trained.result.provenance["task"] == "next-token"


@pytest.mark.parametrize("stride", [5, 16])
def test_what_is_held_out_is_the_end_and_shares_no_token(file: Path, stride: int) -> None:
    data = text(file, stride=stride, limit=None)
    first, last = data.hold_out(7)
    assert (first.split, last.split, last.n) == ("train", "validation", 7)
    assert len(first.tokens) + len(last.tokens) <= len(data.tokens)
    torch.testing.assert_close(first.batch(0, first.n).images, data.batch(0, first.n).images)
    torch.testing.assert_close(last.batch(0, 7).images, data.batch(0, data.n).images[-7:])
    assert (first.n - 1) * stride + 17 <= (data.n - 7) * stride


@pytest.mark.parametrize(
    "rule", [training.BlocksPerBatch(2), training.PathLengths(0, 2), training.parse_rule("shakedrop")]
)
def test_the_rules_train_language_models_too(file: Path, rule: training.Rule) -> None:
    recipe = recipe_for("text:", epochs=1, batch_size=5)
    trained = training.train(tiny(), text(file), rule=rule, recipe=recipe)
    assert trained.history.rows[0]["train_loss"] < 5


def test_the_command_trains_on_a_text_and_the_others_read_what_it_wrote(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "tiny.py"
    source.write_text(
        "from pathlens.models.llama import Llama, Sizes\n"
        f"def net():\n    return (model := Llama(Sizes{tuple(vars(TINY).values())})), model.example\n"
    )
    out, given = tmp_path / "run", ["--data", f"text:{file}", "--sequence-length", "16", "--quiet"]
    options = ["--epochs", "2", "--batch-size", "16", "--limit", "40", "--stride", "8", "--out", str(out)]
    assert main(["train", "--model", f"{source}:net", *given, *options]) == 0
    assert capsys.readouterr().out.split()[:2] == ["split", "examples"]
    rows = json.loads((out / "history.meta.json").read_text())["provenance"]
    assert (rows["train_images"], rows["validation_images"], rows["task"]) == (34, 4, "next-token")
    weights = str(out / "weights.safetensors")
    stated = read_metadata(Path(weights))
    assert stated["mean"] == stated["std"] == "[]"  # what is not normalised
    lesions = ["delete-blocks", "--model", f"{source}:net", "--weights", weights, *given, "--limit", "4", "--json"]
    assert main(lesions) == 0
    assert len(json.loads(capsys.readouterr().out)["table"]) == 5


def test_networks_for_bytes_have_names() -> None:
    model = pathlens.load_model("llama6_96", "random").model
    assert isinstance(model, Llama)
    assert (len(model.layers), model.sizes.width, model.sizes.vocabulary) == (6, 96, 256)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 256)


def test_a_text_has_a_recipe_of_its_own(file: Path) -> None:
    data = text(file)
    assert recipe_for(recipe_name(data)) == training.Configuration.of(data, {}).recipe == TEXT


def test_what_is_refused(file: Path) -> None:
    data = text(file)
    with pytest.raises(UsageError, match=r"sums.txt is a text, and crop, flip and augment are of images"):
        training.train(tiny(), data, recipe=recipe_for("text:", crop=2))
    with pytest.raises(ModelError, match=r"task next-token wants logits \[batch, tokens, vocabulary\]"):
        training.train(torch.nn.Sequential(torch.nn.Embedding(128, 4), torch.nn.Flatten()), data)
    several = torch.nn.Sequential(torch.nn.Embedding(128, 128))
    several.register_forward_hook(lambda _module, _given, logits: {"logits": logits})
    with pytest.raises(UsageError, match="return logits alone can be trained; found a dict; wrap the network"):
        training.train(several, data)
    with pytest.raises(DataError, match="outside the vocabulary of the model, 64 tokens"):
        training.train(Llama(Sizes(8, 16, 1, 2, 1, 64, 32)), data)
    with pytest.raises(UsageError, match="a batch of 1 sequences cannot be divided among 1 processes"):
        training.train(tiny(), text(file, limit=1))
    for count in (0, 10):
        with pytest.raises(DataError, match=f"{count} of 10 sequences cannot be held out"):
            training.hold_out(data, count)
