"""Language models: deleted layers, gradients by path length, and the command line, against the network taken apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import pathlens
from pathlens import figures
from pathlens.analyses.grouping import GROUPS, units_of
from pathlens.cli import lesions, main
from pathlens.errors import UsageError
from pathlens.metrics.tasks import TASKS
from pathlens.models.llama import Llama, Sizes
from tests.helpers.texts import BASE, llama_file, vocabulary_file

SIZES = Sizes(width=8, hidden=12, layers=3, heads=2, groups=1, vocabulary=len(BASE), context=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, its vocabulary, and a text."""
    folder = tmp_path_factory.mktemp("language")
    llama_file(folder / "net.bin", SIZES, seed=3)
    vocabulary_file(folder / "tokens.bin", {})
    (folder / "text.txt").write_bytes(b"ab ba abba b a \xc3\xa9 ab a b b a a ab ab abba")
    return folder


def options(folder: Path) -> list[str]:
    return [
        "--model", "llama2", "--weights", str(folder / "net.bin"), "--data", f"text:{folder / 'text.txt'}",
        "--tokenizer", str(folder / "tokens.bin"), "--sequence-length", "8", "--batch-size", "2", "--json", "--quiet",
    ]  # fmt: skip


def without(model: Llama, tokens: Tensor, deleted: tuple[int, ...]) -> Tensor:
    """The model's own layers, without some."""
    x, rotation = model.embedding(tokens), model.rotation[: tokens.shape[1]]
    for number, layer in enumerate(model.layers):
        if number not in deleted:
            x = layer(x, rotation)
    return model.head(model.norm(x))


def measured(logits: Tensor, targets: Tensor) -> dict[str, float]:
    loss = cross_entropy(logits.flatten(0, 1).double(), targets.flatten())
    return {"error": (logits.argmax(-1) != targets).double().mean().item(), "loss": loss.item()}


@torch.no_grad()
def test_layers_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["delete-blocks", *options(folder), "--group", "layer", "--count", "1:2", "--contiguous"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = pathlens.load_model("llama2", folder / "net.bin").model
    data = pathlens.open_text(folder / "text.txt", tokenizer=folder / "tokens.bin", length=8)
    batch = data.batch(0, data.n)
    sets = [(), (0,), (1,), (2,), (0, 1), (1, 2)]
    rows = [row for row in found["table"] if row["blocks"] or row["count"] == 0]
    assert [row["count"] for row in rows] == [len(deleted) for deleted in sets]
    for row, deleted in zip(rows, sets, strict=True):
        wanted = measured(without(model, batch.images, deleted), batch.labels)
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
        blocks = ",".join(str(block) for layer in deleted for block in (2 * layer, 2 * layer + 1))
        assert row["blocks"] == (blocks or None)
    assert [row["name"] for row in rows] == [None, "layers.0", "layers.1", "layers.2", None, None]
    said = found["provenance"]
    assert (said["task"], said["group"], said["contiguous"], said["examples"]) == (
        "next-token",
        "layer",
        True,
        "sequences",
    )
    assert (said["tokenizer"], said["sequence_length"], said["images"]) == ("tokens.bin", 8, data.n)


def test_gradients_at_the_first_block(folder: Path) -> None:
    model = pathlens.load_model("llama2", folder / "net.bin").model.double()
    data = pathlens.open_text(folder / "text.txt", tokenizer=folder / "tokens.bin", length=8, limit=2)
    table = pathlens.path_gradients(model, data, method="exact")
    assert table.provenance["at"] == "stem"
    batch = data.batch(0, 2)
    norms = []
    for length in range(7):
        total = torch.zeros(2, 8, 8, dtype=torch.float64)
        for path in itertools.combinations(range(6), length):
            x = model.embedding(batch.images).detach().requires_grad_()
            y = x
            for block in range(6):
                layer = model.layers[block // 2]
                at = y if block in path else y.detach()
                if block % 2:
                    branch = layer.mlp(layer.mlp_norm(at))
                else:
                    branch = layer.attention(layer.attention_norm(at), model.rotation[:8])
                y = branch + (y.detach() if block in path else y)
            logits = model.head(model.norm(y))
            loss = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum") / 8
            total += torch.autograd.grad(loss, x)[0]
        norms.append(total.flatten(1).norm(dim=1).mean().item())
    assert [row["total_norm"] for row in table.rows] == pytest.approx(norms, rel=1e-8)


def test_blocks_of_one_module_are_a_layer(folder: Path) -> None:
    view = pathlens.find_blocks(pathlens.load_model("llama2", folder / "net.bin").model, torch.zeros(2, 4).long())
    assert units_of(view, "layer") == [(0, 1), (2, 3), (4, 5)]
    assert units_of(view, "block") == [(block,) for block in range(6)]
    with pytest.raises(UsageError, match="group 'stage' is unknown; give block or layer"):
        units_of(view, "stage")

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for part in self.parts:
                x = x + part(x).tanh()
            return x

    with pytest.raises(UsageError, match=r"Flat makes the sums of all its 2 blocks in one module.*leave --group out"):
        units_of(pathlens.find_blocks(Flat(), torch.zeros(2, 3)), "layer")


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--sequence-length", "300"], 5, "make no sequence of 300"),
        (["--sequence-length", "9"], 3, "sequences of 9 tokens are longer than the context of the network, 8"),
        (["--image-size", "8"], 2, "--image-size 8 is of images"),
        (["--data", "digits"], 2, "--tokenizer, --sequence-length and --stride are of texts"),
        (["--task", "classification"], 3, "and the task classification wants logits [batch, classes]"),
        (["--task", "segmentation"], 3, "the task segmentation wants logits [batch, classes, height, width]"),
        (["--contiguous"], 2, "give count (--count) with contiguous"),
        (
            ["--count", "9", "--contiguous", "--group", "layer"],
            2,
            "9 layers in a row cannot be deleted: the network has 3",
        ),
        (["--search", "greedy", "--group", "layer"], 2, "leave --group and --contiguous out"),
        (["--group", "layer", "--blocks", "3"], 2, "layer 3 does not exist: the network has 3"),
        (["--mean", "0.5", "--std", "0.5"], 5, "tokens are not normalised"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str], code: int, said: str
) -> None:
    assert main(["delete-blocks", *options(folder), *given]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_task_of_images_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loss-surface", *options(folder), "--points", "3", "--task", "classification"]) == 3
    assert "and the task classification wants logits [batch, classes]" in capsys.readouterr().err


def test_the_command_line_names_what_there_is() -> None:
    assert [task.value for task in lesions.Task] == list(TASKS)
    assert [group.value for group in lesions.Group] == list(GROUPS)


def test_a_vocabulary_that_does_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary_file(folder / "large.bin", {b"ab": -1.0})
    arguments = options(folder)
    arguments[arguments.index("--tokenizer") + 1] = str(folder / "large.bin")
    assert main(["delete-blocks", *arguments]) == 5
    assert f"is outside the vocabulary of the model, {len(BASE)} tokens" in capsys.readouterr().err


@torch.no_grad()
def test_deleting_layers_of_the_published_network(shared_models: Path, tmp_path: Path) -> None:
    """The losses that its README states, on text that it wrote itself."""
    model = pathlens.load_model("llama2", shared_models / "llama2" / "stories260K.bin").model
    tokens = torch.tensor([[1]])
    while tokens.shape[1] < 129:
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    pairs = [(tokens[:, :-1], tokens[:, 1:])]
    table = pathlens.delete_blocks(model, pairs, group="layer")
    wanted = [
        measured(without(model, *pairs[0][:1], deleted), pairs[0][1]) for deleted in [(), *((n,) for n in range(5))]
    ]
    assert [row["loss"] for row in table.rows] == pytest.approx([row["loss"] for row in wanted], rel=1e-4)
    (axes,) = figures.deletion(table).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("deleted layer", "token error (%)")
    units = {column.name: column.unit for column in table.columns}
    assert (units["n"], units["lost"]) == ("sequences", "tokens")
    assert table.rows[0]["loss"] < 0.7
    assert min(row["loss"] for row in table.rows[1:]) > 1
