"""Every bad input on the command line: one line that names the thing, an exit code of its kind, and nothing written."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.cli_files import make_files
from tests.helpers.failing_commands import DATA, MODEL, NUMBERS, RESOURCE, RUN, USAGE, WEIGHTS, Failure

RESNET20 = ["-m", "resnet20", "-w", "{folder}/good.pt"]
CIFAR = ["-d", "{cifar}"]
USER = ["-d", "{images}", "-m"]
PLAIN = "{user}:Plain"
SMALL = [*USER, "{user}:build"]

# arguments after the verb delete-blocks, exit code, words that the message must hold
CASES: dict[str, tuple[list[str], int, list[str]]] = {
    # networks
    "unknown model": (["-m", "resnet21", *CIFAR], MODEL, ["unknown model 'resnet21'", "did you mean", "resnet20"]),
    "torchvision's name alone": (["-m", "resnet18", *CIFAR], MODEL, ["torchvision:resnet18"]),
    "unknown in torchvision": (["-m", "torchvision:resnet19"], MODEL, ["'resnet19'", "torchvision:resnet18"]),
    "unknown in timm": (["-m", "timm:resnet51"], MODEL, ["'resnet51'", "timm:resnet50"]),
    "no weights": (["-m", "resnet20", *CIFAR], USAGE, ["resnet20", "--weights"]),
    "no data": (RESNET20, USAGE, ["no data given", "--data"]),
    "user file missing": ([*USER, "{folder}/none.py:build"], MODEL, ["none.py", "check the path"]),
    "callable missing": ([*USER, "{user}:bild"], MODEL, ["'bild'", "build"]),
    "callable not named": ([*USER, "{user}"], MODEL, ["which callable", ":CALLABLE"]),
    "callable raises": ([*USER, "{user}:raises"], MODEL, ["RuntimeError: first line second line"]),
    "callable returns a number": ([*USER, "{user}:number"], MODEL, ["return a torch.nn.Module"]),
    "cannot be traced": ([*USER, "{user}:Branching"], MODEL, ["Branching cannot be traced", "control flow"]),
    "forward raises": ([*USER, "{user}:Fails"], MODEL, ["Fails fails on images of shape", "KeyError: 'not today'"]),
    "no logits": ([*USER, "{user}:Features"], MODEL, ["not logits", "classifies"]),
    "out of memory": ([*USER, "{user}:Huge"], RESOURCE, ["does not fit in memory", "smaller --batch-size"]),
    "no residual additions": ([*USER, "{user}:Dense"], MODEL, ["Dense has no residual addition", "concatenations"]),
    # weights
    "weights missing": (["-m", "resnet20", "-w", "{folder}/none.pt", *CIFAR], WEIGHTS, ["none.pt", "no such file"]),
    "no checkpoint": (["-m", "resnet20", "-w", "{folder}/text.pt", *CIFAR], WEIGHTS, ["text.pt", "not a checkpoint"]),
    "no safetensors": (["-m", "resnet20", "-w", "{folder}/noise.safetensors", *CIFAR], WEIGHTS, ["neither"]),
    "truncated": (["-m", "resnet20", "-w", "{folder}/cut.pt", *CIFAR], WEIGHTS, ["cut.pt", "truncated"]),
    "runs code": (["-m", "resnet20", "-w", "{folder}/runs.pt", *CIFAR], WEIGHTS, ["would run code", "mkdir"]),
    "runs code, bare pickle": (["-m", "resnet20", "-w", "{folder}/runs.pth", *CIFAR], WEIGHTS, ["runs.pth"]),
    "of a smaller network": (
        ["-m", "resnet32", "-w", "{folder}/good.pt", *CIFAR],
        WEIGHTS,
        ["another network than CifarResNet", "60 missing", "layer1.3.conv1.weight"],
    ),
    "of another network": (
        ["-m", "preresnet20", "-w", "{folder}/good.pt", *CIFAR],
        WEIGHTS,
        ["4 missing: bn.weight", "5 unexpected: bn1.weight", "8 of another shape", "is (32,) in the file and (16,)"],
    ),
    "NaN": (["-m", "resnet20", "-w", "{folder}/nan.pt", *CIFAR], NUMBERS, ["layer1.0.conv1.weight", "NaN", "9 of"]),
    # data
    "unknown data": (["-d", "digit"], DATA, ["'digit'", "did you mean digits"]),
    "data missing": ([*RESNET20, "-d", "parquet:{folder}/none"], DATA, ["none does not exist"]),
    "empty folder": ([*RESNET20, "-d", "{empty}"], DATA, ["no class folders"]),
    "empty parquet folder": ([*RESNET20, "-d", "{empty parquet}"], DATA, ["no parquet file"]),
    "labels outside": ([*RESNET20, "-d", "{cifar 12}"], DATA, ["row 10 has label 10", "10 classes (0 to 9)"]),
    "labels outside, seen late": (["-m", "{user}:build", "-d", "{many classes}"], DATA, ["are outside"]),
    "negative label": ([*RESNET20, "-d", "{negative}"], DATA, ["row 1", "label -1"]),
    "other channels": ([*RESNET20, "-d", "digits"], DATA, ["1 channel", "takes 3"]),
    "images of two sizes": (["-m", "{user}:build", "-d", "{sizes}"], DATA, ["row 1", "16x16", "--image-size"]),
    "images too small": (["-m", PLAIN, "-d", "{cifar}"], MODEL, ["Plain cannot be traced", "input shape"]),
    "undecodable": (["-m", "{user}:build", "-d", "{undecodable}"], DATA, ["row 1", "not an image"]),
    "unknown split": (["--split", "tset"], DATA, ["'tset'", "train, validation, test"]),
    "digits resized": (["--image-size", "32"], DATA, ["not resized"]),
    # requests
    "block outside": ([*SMALL, "--blocks", "6"], USAGE, ["block 6", "numbered 0 to 5"]),
    "block outside, negative": ([*SMALL, "--blocks", "-7"], USAGE, ["block -7"]),
    "malformed range": (["--blocks", "1:2:3:4"], USAGE, ["--blocks '1:2:3:4'", "FIRST:LAST"]),
    "range of words": (["--blocks", "all"], USAGE, ["--blocks 'all'"]),
    "range backwards": (["--blocks", "5:2"], USAGE, ["--blocks '5:2'"]),
    "endless range": (["--count", "1:99999999999"], USAGE, ["longer than"]),
    "count of none": ([*SMALL, "--count", "0"], USAGE, ["count must be 1 or more"]),
    "count too large": ([*SMALL, "--count", "7"], USAGE, ["7 blocks", "has 6"]),
    "blocks and counts": ([*SMALL, "--blocks", "1", "--count", "1"], USAGE, ["not both"]),
    "no samples": (["--count", "1", "--samples", "0"], USAGE, ["--samples"]),
    "samples of nothing drawn": ([*SMALL, "--samples", "5"], USAGE, ["--samples 5: nothing is drawn", "give --count"]),
    "samples of a search": ([*SMALL, "--search", "greedy", "--samples", "5"], USAGE, ["--samples 5", "or --search"]),
    "two engines": ([*SMALL, "--engine", "packed-32x2", "--plain-forward"], USAGE, ["two engines"]),
    "bad dtype": (["--dtype", "int8"], USAGE, ["'int8'", "float32"]),
    "bad device": (["--device", "toaster"], USAGE, ["'toaster'", "cpu"]),
    "limit of none": (["--limit", "0"], USAGE, ["--limit"]),
    "batch of none": (["--batch-size", "0"], USAGE, ["--batch-size"]),
    "mean alone": (["--mean", "0.5"], USAGE, ["--mean and --std belong together"]),
    "mean of words": (["--mean", "a", "--std", "1"], USAGE, ["--mean 'a'"]),
    "mean of three": ([*SMALL, "--mean", "1,2", "--std", "1,1"], DATA, ["mean has 2 numbers", "3 channels"]),
    "std of zero": ([*SMALL, "--mean", "0,0,0", "--std", "0,1,1"], DATA, ["std", "positive"]),
    "negative seed": ([*SMALL, "--seed", "-1", "--count", "1"], USAGE, ["seed", "-1"]),
    "huge seed": (["--seed", "9" * 30], USAGE, ["64 bits"]),
    "unknown option": (["--blcks", "1"], USAGE, ["--blcks", "--blocks", "--help"]),
    "extra argument": (["more"], USAGE, ["more", "--help"]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, files: dict[str, str], fails: Failure, tmp_path: Path) -> None:
    arguments, code, words = CASES[case]
    out = tmp_path / "out"
    fails(["delete-blocks", *(part.format(**files) for part in arguments), "--out", str(out)], code, words)
    assert not out.exists()
    assert not (tmp_path / "cache").exists()
    assert not Path(files["proof"]).exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(fails: Failure) -> None:
    fails(["delete-blocks", "--device", "cuda"], USAGE, ["device 'cuda'", "no usable GPU", "--device cpu"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["delete-block"], USAGE, ["'delete-block'", "delete-blocks"]),
        (["--nosuch"], USAGE, ["--nosuch"]),
        (["delete-skips", *USER, PLAIN], USAGE, ["plain network without shortcuts", "delete-blocks"]),
        (["delete-skips", "--blocks", "x"], USAGE, ["--blocks 'x'"]),
        (["reorder-blocks", *SMALL, "--swaps", "0"], USAGE, ["swaps must be 1 or more"]),
        (["reorder-blocks", "--swaps", "few"], USAGE, ["--swaps 'few'"]),
        (["reorder-blocks", *USER, PLAIN], USAGE, ["nothing can be reordered"]),
        (["reorder-blocks", *SMALL, "--runs", "reverse", "--samples", "5"], USAGE, ["--samples 5", "--runs reverse"]),
        (["blockdrop", "--policy", "p", "--epochs", "3", "--joint-lr", "1"], USAGE, ["leave --epochs, --joint-lr out"]),
        (["blocks", "-m", "x" * 300 + ".py:f"], MODEL, ["no file"]),
        (["report", "{folder}", "--out", "x" * 300 + ".html"], RUN, []),
        (["unravel", "--kind", "lattice", "--gradients", "x" * 5000], RUN, []),
        (["delete-blocks", "-m", "llama6_96", "-w", "random", "-d", "text:{user}", "--tokenizer", "x" * 300], DATA, []),
        (["blocks", "--input-shape", "3,x"], USAGE, ["--input-shape '3,x'", "3,224,224"]),
        (["blocks", "-m", "{user}:build", "--input-shape", "1,8,8"], MODEL, ["cannot be traced", "(2, 1, 8, 8)"]),
        (["blocks", "--out", ""], USAGE, ["'--out'", "the name is empty", "give a folder"]),
        (["train", "--out", ""], USAGE, ["'--out'", "the name is empty", "give a folder"]),
        (["blocks", "--picture", "picture.gif"], USAGE, ["picture.gif", ".png or .pdf"]),
        (["blocks", "-m", "{user}:pair", "--picture", "{folder}/text.pt/a.png"], RUN, ["text.pt/a.png"]),
    ],
)
def test_bad_input_of_other_verbs(
    arguments: list[str], code: int, words: list[str], files: dict[str, str], fails: Failure
) -> None:
    fails([part.format(**files) for part in arguments], code, words)


@pytest.fixture
def command(files: dict[str, str]) -> list[str]:
    return ["delete-blocks", "-m", f"{files['user']}:build", "-d", files["images"]]


def test_out_is_a_file(command: list[str], fails: Failure, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    fails([*command, "--out", f"{tmp_path}/out"], RUN, ["out is a file"])
    fails([*command, "--out", f"{tmp_path}/out/deeper"], RUN, ["out"])
    assert (tmp_path / "out").read_text() == "precious"


def test_out_holds_something_else(command: list[str], fails: Failure, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    manifest = tmp_path / "out" / "manifest.json"
    for content, words in ((json.dumps({"verb": "reorder-blocks"}), ["results of reorder-blocks"]), ("{", ["damaged"])):
        manifest.write_text(content)
        fails([*command, "--out", f"{tmp_path}/out"], RUN, words)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
        assert manifest.read_text() == content


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path / "out"


def test_out_is_in_use(command: list[str], fails: Failure, busy: Path) -> None:
    fails([*command, "--out", str(busy)], RUN, ["in use", "another folder"])
    assert [path.name for path in busy.iterdir()] == [".lock"]


def test_an_empty_folder_given_as_out_stays_empty_or_nearly_so(
    command: list[str], fails: Failure, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    fails([*command, "--blocks", "99", "--out", f"{tmp_path}/out"], USAGE, ["block 99"])
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}
