"""``pathlens train`` on the command line: what it writes and prints, and every bad input as one line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pathlens.cli import main
from pathlens.cli.training import TrainingOptions
from pathlens.cli.training import _open as opened_for_training
from pathlens.data import open_data
from pathlens.models import load_model, state_sha256
from tests.helpers.data_files import noise, png, write
from tests.helpers.failing_commands import DATA, MODEL, NUMBERS, RUN, USAGE, WEIGHTS, Failure
from tests.helpers.training_oracle import USER_FILE

MORE = """
import torch

class NoLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network().float()

    def forward(self, x):
        return self.net.conv1(x)

class Unfoldable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x):
        return self.fc((x + torch.relu(self.conv(x))).flatten(1))

def plain():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*layers)
"""
TINY = ["--limit", "60", "--validation", "10", "--epochs", "1", "--batch-size", "25"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "net.py").write_text(USER_FILE + MORE)

    def images(name: str, split: str, labels: list[int], seed: int = 0) -> str:
        pngs = [png(image) for image in noise(len(labels), 8, 8, seed=seed)]
        return write(folder / name / f"{split}.parquet", list(pngs), labels)

    made = {"folder": str(folder), "user": f"{folder / 'net.py'}", "net": f"{folder / 'net.py'}:build"}
    ten = [row % 10 for row in range(40)]
    images("alone", "train", ten)
    made["train alone"] = f"parquet:{folder / 'alone'}"
    made["file"] = images("file", "images", ten)
    images("twelve", "train", [row % 12 for row in range(48)])
    images("twelve", "test", ten, seed=1)
    made["twelve classes"] = f"parquet:{folder / 'twelve'}"
    images("test12", "train", ten)
    images("test12", "test", [row % 12 for row in range(24)], seed=1)
    made["twelve in the test"] = f"parquet:{folder / 'test12'}"
    images("lonely", "train", [*ten, 10])
    made["lonely"] = f"parquet:{folder / 'lonely'}"
    images("watched", "train", ten)
    write(folder / "watched" / "validation.parquet", [b"no image"] * 4, [0, 1, 2, 3])
    made["bad validation"] = f"parquet:{folder / 'watched'}"
    return made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NET = ["-m", "{net}", "-d", "digits", *TINY]

# arguments after the verb, exit code, words that the message must hold
CASES: dict[str, tuple[list[str], int, list[str]]] = {
    # paths
    "too many blocks": ([*NET, "--blocks-per-batch", "4"], USAGE, ["--blocks-per-batch 4", "3 blocks", "1 to 3"]),
    "no blocks": ([*NET, "--blocks-per-batch", "0"], USAGE, ["--blocks-per-batch 0", "1 to 3"]),
    "lengths outside": ([*NET, "--path-lengths", "2:4"], USAGE, ["path lengths 2:4", "0 to 3 blocks"]),
    "lengths backwards": ([*NET, "--path-lengths", "2:1"], USAGE, ["path lengths 2:1"]),
    "lengths of words": (["--path-lengths", "short"], USAGE, ["--path-lengths 'short'", "FIRST:LAST"]),
    "depth outside": ([*NET, "--effective-depth", "9"], USAGE, ["0:9", "0 to 3"]),
    "depth below": ([*NET, "--effective-depth", "-1"], USAGE, ["0:-1"]),
    "probability above": (["--stochastic-depth", "linear:1.5"], USAGE, ["1.5", "outside [0, 1]"]),
    "probability below": (["--stochastic-depth", "uniform:-1"], USAGE, ["-1", "outside [0, 1]"]),
    "probability zero": ([*NET, "--stochastic-depth", "linear:0"], USAGE, ["never trains the last block"]),
    "no probability": (["--stochastic-depth", "linear"], USAGE, ["'linear'", "linear:P or uniform:P"]),
    "unknown decay": (["--stochastic-depth", "cubic:0.5"], USAGE, ["'cubic'", "linear:P or uniform:P"]),
    "two rules": (
        ["--blocks-per-batch", "2", "--path-lengths", "0:2"], USAGE, ["--blocks-per-batch and --path-lengths exclude"]
    ),
    "three rules": (
        ["--effective-depth", "0", "--stochastic-depth", "linear:1", "--blocks-per-batch", "1"],
        USAGE, ["exclude", "give one"],
    ),
    "rule and short form": (["--rule", "full", "--blocks-per-batch", "2"], USAGE, ["--rule and --blocks-per-batch"]),
    "unknown rule": (["--rule", "shake"], USAGE, ["--rule 'shake' is unknown", "shake-shake", "randomdrop", "resdrop"]),
    "unknown setting": (["--rule", "shakedrop:depth=1"], USAGE, ["'depth=1'", "last=NUMBER", "alpha=A:B"]),
    "one branch": ([*NET, "--rule", "shake-shake"], USAGE, ["none of the 3 blocks", "two branches", "shakedrop"]),
    "unknown paths": (["--paths", "short"], USAGE, ["--paths 'short'", "give full"]),
    "per sample alone": (["--per", "sample"], USAGE, ["--per sample belongs to --stochastic-depth"]),
    "unknown rescaling": (["--rescale", "later"], USAGE, ["'later'", "none"]),
    "no place for the factor": (
        ["-m", "{user}:Unfoldable", "-d", "digits", *TINY, "--stochastic-depth", "linear:0.5"],
        USAGE, ["block 0", "survival probability", "--rescale train"],
    ),
    "paths of a plain network": (
        ["-m", "{user}:plain", "-d", "digits", *TINY, "--path-lengths", "0:1"], USAGE, ["plain network", "residual"]
    ),
    # recipe
    "no epochs": (["--epochs", "0"], USAGE, ["--epochs"]),
    "empty batches": (["--batch-size", "0"], USAGE, ["--batch-size"]),
    "batches of one": ([*NET, "--batch-size", "1"], USAGE, ["a batch of 1 images", "larger batch"]),
    "learning rate of none": (["--lr", "0"], USAGE, ["lr 0: give a number above 0"]),
    "endless learning rate": (["--lr", "inf"], USAGE, ["lr inf"]),
    "learning rate of words": (["--lr", "high"], USAGE, ["--lr", "valid"]),
    "momentum of one": (["--momentum", "1"], USAGE, ["momentum 1", "below 1"]),
    "Nesterov without momentum": (["--momentum", "0"], USAGE, ["momentum 0 has no Nesterov form"]),
    "negative decay": (["--weight-decay", "-1"], USAGE, ["weight_decay -1", "at least 0"]),
    "unknown optimizer": (["--optimizer", "lbfgs"], USAGE, ["'lbfgs'", "adamw"]),
    "unknown schedule": (["--schedule", "linear"], USAGE, ["'linear'", "cosine"]),
    "milestones of words": (
        ["--milestones", "half"], USAGE, ["--milestones 'half'", "give ascending shares", "such as 0.5,0.75"]
    ),
    "milestones backwards": (["--milestones", "0.7,0.5"], USAGE, ["milestones (0.7, 0.5)", "ascending"]),
    "milestones in epochs": (["--milestones", "100,150"], USAGE, ["milestones", "between 0 and 1"]),
    "gamma of a cosine": (["--gamma", "0.5", "--schedule", "cosine"], USAGE, ["--gamma is of --schedule step"]),
    "milestones of none": (["--milestones", "0.5", "--schedule", "constant"], USAGE, ["--milestones is of"]),
    "nesterov of adamw": (["--nesterov", "--optimizer", "adamw"], USAGE, ["adamw has no Nesterov form"]),
    "gamma of none": (["--gamma", "0"], USAGE, ["gamma 0", "above 0"]),
    "endless warm-up": (["--warmup", "61"], USAGE, ["warmup 61", "below 60"]),
    "negative warm-up": (["--warmup", "-1"], USAGE, ["warmup -1"]),
    "negative crop": (["--crop", "-1"], USAGE, ["--crop"]),
    "all smooth": (["--label-smoothing", "1"], USAGE, ["label_smoothing 1", "below 1"]),
    # network and data
    "no data": (["-m", "resnet20"], USAGE, ["no data given for resnet20", "--data digits"]),
    "unknown network": (["-m", "resnet21", "-d", "digits"], MODEL, ["'resnet21'"]),
    "unknown data": (["-d", "digit"], DATA, ["did you mean digits"]),
    "other channels": (["-m", "torchvision:resnet18", "-d", "digits"], DATA, ["1 channel", "takes 3"]),
    "too many classes": (
        ["-m", "{net}", "-d", "{twelve classes}", "--validation", "12"], DATA,
        ["label 1", "10 classes (0 to 9)", "a model with 12"],
    ),
    "classes of the test": (
        ["-m", "{net}", "-d", "{twelve in the test}", "--validation", "10"], DATA, ["row 10 has label 10"]
    ),
    "no logits": (["-m", "{user}:NoLogits", "-d", "digits", *TINY], USAGE, ["only classifiers", "(N, classes)"]),
    "no test split": (["-m", "{net}", "-d", "{train alone}", "--validation", "10"], DATA, ["'test'", "--no-test"]),
    "one file for all": (
        ["-m", "{net}", "-d", "{file}", "--validation", "10"], DATA, ["no images of the split 'test'", "--no-test"]
    ),
    "damaged validation images": (["-m", "{net}", "-d", "{bad validation}", "--no-test"], DATA, ["not an image"]),
    "too many held out": ([*NET, "--validation", "55"], USAGE, ["--validation 55", "60 training images", "10 to 50"]),
    "too few held out": ([*NET, "--validation", "3"], USAGE, ["--validation 3", "10 classes"]),
    "a class of one": (
        ["-m", "{net}", "-d", "{lonely}", "--validation", "12", "--no-test"], USAGE,
        ["cannot be divided by class", "--validation 0"],
    ),
    "weights missing": ([*NET, "-w", "{folder}/none.safetensors"], WEIGHTS, ["no such file"]),
    "mean alone": (["--mean", "0.5"], USAGE, ["--mean and --std belong together"]),
    "mean of three": ([*NET, "--mean", "1,2,3", "--std", "1,1,1"], DATA, ["mean has 3 numbers", "1 channel"]),
    # run
    "epochs outside": ([*NET, "--keep-epochs", "0:2"], USAGE, ["--keep-epochs 2", "epochs 0 to 1"]),
    "epochs of words": (["--keep-epochs", "last"], USAGE, ["--keep-epochs 'last'"]),
    "endless checkpoints": (
        [*NET, "--checkpoint-seconds", "inf"], USAGE, ["--checkpoint-seconds inf", "give a finite number of seconds"]
    ),
    "half precision": ([*NET, "--dtype", "float16"], USAGE, ["float16", "loss scaling"]),
    "diverges": ([*NET, "--lr", "1e38", "--warmup", "0"], NUMBERS, ["NaN or infinite", "smaller --lr"]),
    "huge seed": ([*NET, "--seed", "9" * 30], USAGE, ["64 bits"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, files: dict[str, str], fails: Failure, tmp_path: Path) -> None:
    arguments, code, words = CASES[case]
    out = tmp_path / "out"
    fails(["train", *(part.format(**files) for part in arguments), "--quiet", "--out", str(out)], code, words)
    assert not out.exists()
    assert not list((tmp_path / "here").iterdir())
    assert not (tmp_path / "cache").exists()


def command(files: dict[str, str], *more: str) -> list[str]:
    return ["train", *(part.format(**files) for part in NET), *more]


@pytest.mark.slow
def test_what_a_run_writes_and_prints(files: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    more = ["--blocks-per-batch", "2", "--keep-epochs", "0:1", "--out", str(out), "--seed", "2"]
    assert main(command(files, *more)) == 0
    printed = capfd.readouterr()
    headings, _rule, *rows = printed.out.splitlines()
    assert [line.split()[0] for line in (headings, *rows)] == ["split", "validation", "test"]
    for line in printed.err.splitlines():
        assert line.startswith("pathlens: ")
    assert "blocks-per-batch 2; 1 epochs, batches of 25, sgd, learning rate 0.1" in printed.err
    assert "epoch 1 of 1: loss " in printed.err
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    tables = {f"{table}.{kind}" for table in ("history", "result") for kind in ("csv", "parquet", "meta.json")}
    assert names - {".lock"} == tables | {
        "manifest.json", "history.png", "history.pdf", "weights.safetensors", "checkpoint.safetensors",
        "epochs/epoch-000.safetensors", "epochs/epoch-001.safetensors",
    }  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["verb"], manifest["rule"], manifest["seed"], manifest["blocks"]) == (
        "train", "blocks-per-batch 2", 2, 3
    )  # fmt: skip
    assert manifest["arguments"]["blocks_per_batch"] == 2
    assert manifest["recipe"]["batch_size"] == 25
    assert manifest["test_sha256"] == open_data("digits", split="test").fingerprint
    history = pd.read_csv(out / "history.csv")
    assert history["blocks"].tolist() == [2.0]
    assert history["step"].tolist() == [2]

    # the other verbs take the weights by their path, and find the same error
    result = pd.read_csv(out / "result.csv").set_index("split")
    loaded = load_model(files["net"], out / "weights.safetensors")
    batch = open_data("digits", split="test").batch(0, 360, mean=loaded.mean, std=loaded.std)
    with torch.no_grad():
        wrong = int((loaded.model(batch.images).argmax(1) != batch.labels).sum())
    assert result.loc["test", "error"] == wrong / 360
    assert result.loc["test", "error_low"] < wrong / 360 < result.loc["test", "error_high"]
    assert main(["blocks", "-m", files["net"], "-w", str(out / "weights.safetensors"), "--input-shape", "1,8,8"]) == 0
    capfd.readouterr()

    # another start from these weights, and the same command again
    fails = Failure(capfd)
    fails([*command(files, *more), "--quiet"], RUN, ["holds a run of 1 epochs", "--resume"])
    fails(
        [*command(files, *more), "--quiet", "--resume", "--lr", "0.05"],
        RUN,
        ["other arguments", '"lr": 0.1', '"lr": 0.05'],
    )
    assert main([*command(files, *more), "--quiet", "--resume"]) == 0
    assert (
        pd.read_csv(out / "history.csv")
        .drop(columns=["seconds", "images_per_second"])
        .equals(history.drop(columns=["seconds", "images_per_second"]))
    )
    start = ["-w", str(out / "weights.safetensors"), "--out", str(tmp_path / "next"), "--quiet", "--no-test"]
    assert main(command(files, *start, "--mean", "0.3", "--std", "0.7")) == 0
    assert json.loads((tmp_path / "next" / "manifest.json").read_text())["weights_at_start"].endswith(
        "weights.safetensors"
    )


def test_weights_are_trained_on_images_as_they_state(files: dict[str, str], tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    quiet = ["--quiet", "--no-test"]
    assert main(command(files, "--mean", "0.3", "--std", "0.7", "--out", str(first), *quiet)) == 0
    start = ["-w", str(first / "weights.safetensors"), "--keep-epochs", "0", *quiet]
    assert main(command(files, *start, "--out", str(second))) == 0
    assert main(command(files, *start, "--mean", "0.5", "--std", "0.25", "--out", str(third))) == 0
    before, after, given = (
        load_model(files["net"], path)
        for path in (
            first / "weights.safetensors",
            second / "epochs" / "epoch-000.safetensors",
            third / "weights.safetensors",
        )
    )
    assert (before.mean, before.std) == (after.mean, after.std) == ((0.3,), (0.7,))
    assert state_sha256(before.model) == state_sha256(after.model)
    assert (given.mean, given.std) == ((0.5,), (0.25,))


def test_json_and_the_default_folder(files: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        main(command(files, "--json", "--quiet", "--seed", "7", "--effective-depth", "2", "--dtype", "bfloat16")) == 0
    )
    printed = capfd.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert [row["split"] for row in found["table"]] == ["validation", "test"]
    assert [row["n"] for row in found["table"]] == [10, 360]
    assert found["provenance"]["rule"] == "path-lengths 0:2"
    assert all(math.isfinite(row["loss"]) for row in found["table"])
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    assert folder.name.endswith("-seed7")
    assert (folder / "weights.safetensors").exists()


def test_the_live_line_counts_epochs(files: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    more = ["--epochs", "2", "--out", str(tmp_path / "out"), "--no-test", "--validation", "0"]
    assert main(command(files, *more)) == 0
    printed = capfd.readouterr()
    assert printed.err.count("pathlens: epoch ") == 2
    assert "validation error" not in printed.err
    assert len(printed.out.splitlines()) == 2  # headings and a rule: no images to test on


def test_splits_of_masks_of_other_sizes(tmp_path: Path) -> None:
    for split, size in (("train", 8), ("test", 6)):
        for kind, shape in (("images", (size, size, 3)), ("masks", (size, size))):
            (tmp_path / "scenes" / split / kind).mkdir(parents=True)
            for number, pixels in enumerate(noise(4, *shape) // 128):
                (tmp_path / "scenes" / split / kind / f"{number}.png").write_bytes(png(pixels))
    parts = opened_for_training(TrainingOptions(data=f"masks:{tmp_path / 'scenes'}"))
    assert [(part.n, part.split, part.width) for part in parts] == [
        (3, "train", 8), (1, "validation", 8), (4, "test", 6)
    ]  # fmt: skip


def test_a_folder_that_holds_something_else(files: dict[str, str], fails: Failure, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"verb": "delete-blocks"}))
    fails(command(files, "--quiet", "--out", str(out)), RUN, ["results of delete-blocks, not of train"])
    assert {path.name for path in out.iterdir()} <= {"manifest.json", ".lock"}
    shutil.rmtree(out)
    out.write_text("precious")
    fails(command(files, "--quiet", "--out", str(out)), RUN, ["out is a file"])
    assert out.read_text() == "precious"


def test_tensorboard_is_optional(
    files: dict[str, str], fails: Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments: list[Any] = command(files, "--quiet", "--out", str(tmp_path / "out"), "--tensorboard")
    fails(arguments, USAGE, ["--tensorboard needs the package tensorboard", "pip install tensorboard"])
    assert not (tmp_path / "out").exists()
