"""``blockdrop`` of tokens, pixels and numbers against plain loops, its files, and the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch import Tensor, nn

import pathlens
from pathlens import figures
from pathlens.cli import main
from pathlens.data import ArrayData, DataSet
from pathlens.errors import CheckpointError, DataError, ModelError, UsageError
from pathlens.metrics import task_named
from pathlens.models import save_weights, state_sha256
from pathlens.models.llama import Llama, Sizes
from pathlens.models.reading import read_metadata
from pathlens.policies import Settings, learning
from pathlens.policies import network as policies
from pathlens.policies.learning import Learner
from pathlens.policies.routing import chosen_logits
from pathlens.residual import ResidualView
from pathlens.residual.inference import Inference
from pathlens.results import named
from pathlens.results.blockdrop import bits
from pathlens.tables import read_table
from tests.helpers.texts import BASE, llama_file, vocabulary_file

# networks are so small here that threads only wait for each other
pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = b"a short text, in which a short word comes again and again, and in the end again. " * 4
SCENES = """
import torch
from torch import nn


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 4, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2))
        self.head = nn.ConvTranspose2d(4, 11, 4, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def segmenter():
    torch.manual_seed(1)
    return Segmenter()
"""


class Regressor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(6, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@dataclass(frozen=True)
class Case:
    """A network that was trained for a moment, so that blocks matter, with data to train and to test on."""

    task: str
    view: ResidualView
    train: DataSet
    test: DataSet

    def inputs(self, data: DataSet, n: int) -> tuple[Tensor, Tensor]:
        batch = data.batch(0, n, mean=self.test.mean, std=self.test.std, dtype=torch.float64)
        return batch.images, batch.labels

    def outputs(self, inputs: Tensor, kept: Tensor) -> Tensor:
        """By plain forward passes, an example at a time, with the other blocks deleted."""
        rows = []
        for example, choice in zip(inputs, kept.tolist(), strict=True):
            deleted = [block for block, keep in enumerate(choice) if not keep]
            with torch.no_grad(), pathlens.deleted(self.view, deleted) as model:
                rows.append(model(example[None]))
        return torch.cat(rows)

    def right(self, outputs: Tensor, targets: Tensor) -> list[float]:
        """The share of each example that is right, by a plain loop."""
        shares = []
        for given, asked in zip(outputs, targets, strict=True):
            if self.task == "regression":
                error = float((given - asked).square().mean())
                own = self.train.batch(0, self.train.n, dtype=torch.float64).labels
                shares.append(max(0.0, 1 - error / float((own - own.mean(0)).square().mean())))
                continue
            best = given.argmax(-1 if self.task == "next-token" else 0)
            answers = [int(b == a) for b, a in zip(best.flatten(), asked.flatten(), strict=True) if a != -100]
            shares.append(sum(answers) / len(answers) if answers else 1.0)
        return shares


def language(folder: Path) -> tuple[nn.Module, DataSet, DataSet]:
    path = folder / "text.txt"
    path.write_bytes(TEXT)
    train, test = pathlens.open_text(path, length=8).hold_out(9)
    return Llama(Sizes(width=8, hidden=12, layers=1, heads=2, groups=1, vocabulary=256, context=8)), train, test


def scenes(folder: Path) -> tuple[nn.Module, DataSet, DataSet]:
    train, test = (pathlens.open_data("digit-scenes", split=split, limit=6) for split in ("train", "test"))
    for data in (train, test):
        data.labels[:, :5] = -100
        data.labels[1] = -100
    space: dict = {}
    exec(SCENES, space)
    return space["segmenter"](), train, test


def numbers(folder: Path) -> tuple[nn.Module, DataSet, DataSet]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, 4)).astype("f4")
    targets = np.stack([inputs[:, 0] * inputs[:, 1], 3 + inputs[:, 2] ** 2], 1)
    np.savez(folder / "numbers.npz", inputs=inputs, targets=targets)
    return Regressor(), *pathlens.open_arrays(folder / "numbers.npz").hold_out(10)


@pytest.fixture(scope="module", params=[language, scenes, numbers], ids=lambda make: make.__name__)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    model, train, test = request.param(tmp_path_factory.mktemp("case"))
    task = {language: "next-token", scenes: "segmentation", numbers: "regression"}[request.param]
    model = model.double()
    batch = train.batch(0, train.n, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(12):
        optimizer.zero_grad()
        task_named(task).losses(model(batch.images), batch.labels).mean().backward()
        optimizer.step()
    return Case(task, pathlens.find_blocks(model.eval(), batch.images[:2]), train, test)


def test_a_network_in_half_precision_is_left_in_its_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, train, test = numbers(tmp_path)
    model.half().train()
    model.get_submodule(next(name for name, _ in model.named_modules() if name)).eval()
    before = [part.training for part in model.modules()]
    found = pathlens.blockdrop(model, test, train, settings=Settings(epochs=1, batch_size=8))
    assert {parameter.dtype for parameter in found.policy.parameters()} == {torch.float32}
    assert [part.training for part in model.modules()] == before


class Drawn:
    """In the place of a generator: numbers that lead to one choice."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept

    def random(self, size: tuple[int, int]) -> np.ndarray:
        assert size == tuple(self.kept.shape)
        return (~self.kept).double().numpy()


def test_the_gradient_of_a_step_is_that_of_the_expected_reward(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean of the steps over all choices of two examples, each with its probability, against plain forward passes."""
    view, blocks = case.view, len(case.view)
    settings = Settings(batch_size=2, penalty=1.5, alpha=0.8, curriculum=0)
    task = task_named(case.task)
    variance = learning_variance(case)
    trained = Learner(
        view, case.train, task, variance, settings, tuple(case.test.mean), tuple(case.test.std), torch.device("cpu")
    )
    monkeypatch.setattr(trained._optimizer, "step", lambda: None)
    for parameter in trained.policy.parameters():  # away from the start, where most gradients are nearly 0
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    inputs, targets, _ = trained._batches(0)
    logits = trained.policy.train()(inputs)
    chances = 0.8 * logits.sigmoid() + 0.2 * (1 - logits.sigmoid())
    choices = torch.tensor(list(product((False, True), repeat=blocks)))
    rewards = []
    for choice in choices:
        right = case.right(case.outputs(inputs, choice.expand(2, -1)), targets)
        rewards.append([c * (1 - float(choice.double().mean()) ** 2) - (1 - c) * 1.5 for c in right])
    weights = torch.where(choices[:, None], chances, 1 - chances).prod(2)
    expected = (weights * torch.tensor(rewards, dtype=torch.float64)).sum(0).mean()
    exact = torch.autograd.grad(-expected, list(trained.policy.parameters()))
    mean = [torch.zeros_like(parameter) for parameter in trained.policy.parameters()]
    for one, other in product(range(len(choices)), repeat=2):
        kept = torch.stack([choices[one], choices[other]])
        monkeypatch.setattr(learning, "generator", lambda *_, kept=kept: Drawn(kept))
        sums = trained._step(0)
        assert float(sums[1]) == pytest.approx(rewards[one][0] + rewards[other][1])
        for total, parameter in zip(mean, trained.policy.parameters(), strict=True):
            total.add_(parameter.grad, alpha=float((weights[one, 0] * weights[other, 1]).detach()))
    assert max(float(gradient.abs().max()) for gradient in exact) > 1e-3
    for estimated, gradient in zip(mean, exact, strict=True):
        torch.testing.assert_close(estimated, gradient, atol=1e-12, rtol=1e-9)


def learning_variance(case: Case) -> float | None:
    if not isinstance(case.train, ArrayData):
        return None
    return float(case.train.targets.double().var(0, correction=0).mean())


@pytest.fixture(scope="module")
def policy(case: Case) -> nn.Module:
    """One that was not trained, with choices of several kinds."""
    own = policies.fresh(case.view, 5)
    last = own.network.linear if hasattr(own, "network") else own.linear
    inputs, _ = case.inputs(case.test, case.test.n)
    nn.init.normal_(last.weight, std=2.0, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        last.bias -= own.eval()(inputs).mean(0)
    return own


def test_answers_are_those_of_a_plain_loop(case: Case, policy: nn.Module) -> None:
    result = pathlens.blockdrop(
        case.view, case.test, case.train, policy=policy, samples=1, selection=4, dtype="float64", engine="plain",
        batch_size=4,
    )  # fmt: skip
    inputs, targets = case.inputs(case.test, case.test.n)
    with torch.no_grad():
        kept = policy(inputs) > 0
    assert len(kept.unique(dim=0)) > 1
    everything = torch.ones_like(kept)
    outputs = {"policy": case.outputs(inputs, kept), "intact": case.outputs(inputs, everything)}
    right = {name: case.right(given, targets) for name, given in outputs.items()}
    rows = result.choices.rows
    assert [bits(row["choice"]) for row in rows] == kept.int().tolist()
    assert [row["correct"] for row in rows] == pytest.approx(right["policy"])
    assert [row["intact_correct"] for row in rows] == pytest.approx(right["intact"])
    assert {row["label"] for row in rows} == {None}
    assert result.classes is None
    task = task_named(case.task)
    row = {row["network"]: row for row in result.table.rows if row["sample"] is None}
    answers = {name: task.answers(given, targets) for name, given in outputs.items()}
    pairs = task.compare(torch.stack([answers["intact"][1], answers["policy"][1]]))
    counts, pair = task.measured([*answers["policy"][0].tolist(), *pairs[1].tolist()])
    for name, value in counts.columns().items():
        assert row["policy"][name] == pytest.approx(value), name
    assert row["policy"]["difference"] == pytest.approx(pair.difference)
    assert row["policy"]["p"] == pytest.approx(pair.p)
    assert row["intact"]["policy_difference"] == pytest.approx(-pair.difference)
    assert row["intact"]["policy_p"] == pytest.approx(pair.p)
    if case.task != "segmentation":  # where not all examples have as many pixels that count
        wrong = list(right.values())
        if case.task == "regression":
            wrong = [(given - targets).square().mean(1) for given in outputs.values()]
        assert pair.p == pytest.approx(ttest_rel(*wrong).pvalue)
    deleted = pathlens.delete_blocks(case.view, case.test, dtype="float64", engine="plain", batch_size=4)
    for name, value in deleted.rows[0].items():
        if name in row["intact"] and name not in ("blocks", "count", "sample"):
            assert row["intact"][name] == value, name
    kept_by = {row["network"]: row["kept"] for row in result.table.rows if row["kept"] is not None}
    for name, fixed in kept_by.items():
        assert len(fixed.split(",")) == round(float(kept.sum(1).double().mean()))
        assert row.get(name, row["policy"])["n"] == case.test.n
    assert result.table.provenance["task"] == case.task
    assert result.table.provenance["comparison"]["policy"] == f"{task.test}, not corrected"
    for stem, table in (("blockdrop", result.table), ("blockdrop-choices", result.choices)):
        assert named(stem).fits(table)
        words = " ".join(f"{column.unit} {column.description}" for column in table.columns)
        assert ("image" in words) == (case.task == "segmentation")
        assert (
            figures.draw(stem, table)
            .axes[0]
            .get_xlabel()
            .startswith(f"blocks that run for a{'n' * (case.task != 'next-token')} {task.example}")
        )
    assert named("blockdrop").charts(result.table.rows, result.table.provenance)[0]["y"]["label"] == {
        "next-token": "token error (%)",
        "segmentation": "pixel error (%)",
        "regression": "relative squared error (%)",
    }[case.task]  # fmt: skip


@torch.no_grad()
def test_sequences_of_a_trained_network_run_together_as_one_by_one(shared_models: Path) -> None:
    model = pathlens.load_model("llama2", shared_models / "llama2" / "stories260K.bin").model
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(512, (3, 12), generator=rng)
    view = pathlens.find_blocks(model, tokens[:2])
    kept = torch.rand(3, len(view), generator=rng) < 0.7
    (together,) = chosen_logits(Inference(view), tokens, [kept])
    for sequence, row in enumerate(kept.tolist()):
        with pathlens.deleted(view, [block for block, keep in enumerate(row) if not keep]) as lesioned:
            torch.testing.assert_close(together[sequence], lesioned(tokens[sequence : sequence + 1])[0])


def test_training_and_files(case: Case, tmp_path: Path) -> None:
    before = state_sha256(case.view.model)
    settings = Settings(epochs=1, joint_epochs=1, batch_size=4, curriculum=0, joint_lr=1e-2)
    options = {"samples": 1, "selection": 4, "dtype": "float64", "engine": "plain"}
    result = pathlens.blockdrop(case.view, case.test, case.train, settings=settings, out=tmp_path, **options)
    assert state_sha256(case.view.model) == before
    inputs, targets = case.inputs(case.test, case.test.n)
    rows = {row["network"]: row for row in result.table.rows}
    task = task_named(case.task)
    for name, model in (("intact", case.view.model), ("tuned", result.model.eval())):
        with torch.no_grad():
            values, answers = task.answers(model(inputs), targets)
        error = task.measured([*values.tolist(), *task.compare(answers[None])[0].tolist()])[0].error
        assert rows[name]["error"] == pytest.approx(error)
    assert rows["tuned"]["loss"] != rows["intact"]["loss"]
    stated = read_metadata(tmp_path / "weights.safetensors")
    assert (stated["mean"] == "[]", stated["std"] == "[]") == (case.task != "segmentation",) * 2  # not normalised
    units = {column.name: column.unit for column in result.history.columns}
    assert units["loss"] == ("targets^2" if case.task == "regression" else "nats")
    tuned = pathlens.find_blocks(result.model, inputs[:2])
    assert state_sha256(policies.read(tmp_path / "policy.safetensors", tuned)) == state_sha256(result.policy)
    # files of earlier versions are of images, and do not say so
    stated = {"blocks": len(tuned), "network_sha256": state_sha256(result.model)}
    save_weights(tmp_path / "old.safetensors", result.policy, {"pathlens_policy": json.dumps(stated)})
    if case.task == "segmentation":
        assert state_sha256(policies.read(tmp_path / "old.safetensors", tuned)) == state_sha256(result.policy)
    else:
        with pytest.raises(CheckpointError, match="a policy that looks at images, and the network looks at"):
            policies.read(tmp_path / "old.safetensors", tuned)


def test_what_does_not_fit(case: Case) -> None:
    view, train, test = case.view, case.train, case.test
    with pytest.raises(ModelError if case.task != "regression" else DataError):
        pathlens.blockdrop(view, test, train, task="classification")
    with pytest.raises(UsageError, match=f"the {test.rows_are} to train on are those to test on"):
        pathlens.blockdrop(view, train, train)
    if case.task != "segmentation":
        with pytest.raises(UsageError, match=r"trains on images \(digits\) and tests on"):
            pathlens.blockdrop(view, test, pathlens.open_data("digits", limit=4))
    if case.task == "next-token":
        foreign = replace(train, tokens=train.tokens + 200)
        with pytest.raises(DataError, match="is outside the vocabulary of the model, 256 tokens"):
            pathlens.blockdrop(view, test, foreign)


def test_a_language_model_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = Sizes(width=8, hidden=12, layers=2, heads=2, groups=1, vocabulary=len(BASE), context=8)
    llama_file(tmp_path / "net.bin", sizes, seed=3)
    vocabulary_file(tmp_path / "tokens.bin", {})
    for name, text in (
        ("train", b"ab ba abba b a bb ab a b b a a ab aa abba"),
        ("test", b"b ab abba a b bba ba b a b"),
    ):
        (tmp_path / f"{name}.txt").write_bytes(text)
    given = [
        "blockdrop", "--model", "llama2", "--weights", str(tmp_path / "net.bin"), "--engine", "plain", "--quiet",
        "--data", f"text:{tmp_path / 'test.txt'}", "--tokenizer", str(tmp_path / "tokens.bin"),
        "--sequence-length", "8", "--selection", "2", "--samples", "2",
    ]  # fmt: skip
    assert main(given) == 2
    assert "is one file without a split to train on; give another with --train-data" in capsys.readouterr().err
    given += ["--train-data", f"text:{tmp_path / 'train.txt'}"]
    out = tmp_path / "out"
    assert main([*given, "--epochs", "1", "--train-batch-size", "2", "--out", str(out)]) == 0
    assert not (out / "blockdrop-classes.csv").exists()
    page = pathlens.report_page(out, tmp_path / "page.html").read_text()
    assert "blocks chosen for each sequence" in page
    assert "Sequences for which each block runs" in page


def test_a_segmentation_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(SCENES)
    out = tmp_path / "out"
    given = ["blockdrop", "--model", f"{tmp_path / 'net.py'}:segmenter", "--data", "digit-scenes", "--limit", "4"]
    given += ["--train-limit", "4", "--train-batch-size", "4", "--epochs", "1", "--selection", "2", "--engine", "plain"]
    assert main([*given, "--loss", "soft-iou", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "the policy runs" in printed
    table = read_table(out / "blockdrop.csv")
    assert {"iou", "iou_class_0"} <= {column.name for column in table.columns}
    assert table.provenance["loss"] == "soft-iou"
