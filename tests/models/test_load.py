"""Networks by name, with weights from everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pathlens.data import open_data
from pathlens.errors import CheckpointError, ModelError, NumericsError, UsageError
from pathlens.models import (
    load_model,
    load_state_dict_file,
    reference_names,
    resnet,
    save_weights,
    state_sha256,
)
from pathlens.models.strict_unet import NORMS
from tests.helpers import ROOT
from tests.helpers.model_helpers import assert_ready, one_line, preact_forward, v1_forward

# --- published weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "spec", "n"), [("resnet20-12fca82f.th", "resnet20", 3), ("resnet56-4bfd9763.th", "resnet56", 9)]
)
@torch.no_grad()
def test_published_files_load_as_they_are(shared_models: Path, file: str, spec: str, n: int) -> None:
    path = shared_models / "pytorch_resnet_cifar10" / file
    raw = torch.load(path, map_location="cpu", weights_only=True)
    loaded = load_model(spec, path, num_classes=100, in_channels=1)  # the file decides, not the hints
    assert_ready(loaded)
    # The files are older than the counters of batch norm; all else is theirs, in their order.
    own = {k: v for k, v in loaded.model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert [f"module.{name}" for name in own] == list(raw["state_dict"])
    assert all(torch.equal(value, raw["state_dict"][f"module.{name}"]) for name, value in own.items())
    assert loaded.weights == file
    assert loaded.trained
    assert loaded.num_classes == 10
    assert loaded.input_shape == (3, 32, 32)
    assert (loaded.mean, loaded.std, loaded.normalisation_source) == (None, None, None)
    assert loaded.notes == ("unwrapped state_dict (left aside: best_prec1)", "stripped prefix module.")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    state = {k.removeprefix("module."): v for k, v in raw["state_dict"].items()}
    torch.testing.assert_close(loaded.model(x), v1_forward(state, x, n), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("file", "spec"), [("resnet56.t7", "resnet56b"), ("resnet56_noshort.t7", "plain56")])
@torch.inference_mode()
def test_published_twins_with_and_without_shortcuts(
    shared_models: Path, shared_data: Path, file: str, spec: str
) -> None:
    """No suffix that says what the files are, no counters of batch norm, and shortcuts of another kind."""
    path = shared_models / "loss_landscape" / file
    loaded = load_model(spec, path)
    raw = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    own = {k: v for k, v in loaded.model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert set(own) == set(raw)
    assert all(torch.equal(value, raw[name]) for name, value in own.items())
    assert loaded.notes == ("unwrapped state_dict (left aside: acc, epoch)",)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = v1_forward(raw, x, 9, shortcuts=spec == "resnet56b")
    torch.testing.assert_close(loaded.model(x), expected, rtol=1e-4, atol=1e-4)
    data = open_data(f"parquet:{shared_data / 'cifar10-jpeg' / 'test.parquet'}", limit=300)
    mean, std = (tuple(v / 255 for v in values) for values in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    batch = data.batch(0, 300, mean=mean, std=std)
    right = (loaded.model(batch.images).argmax(1) == batch.labels).float().mean()
    assert right > 0.6  # JPEG costs some ten points of the 94 and 87 % on the original images


def test_published_file_in_the_wrong_network(shared_models: Path) -> None:
    path = shared_models / "pytorch_resnet_cifar10" / "resnet20-12fca82f.th"
    for spec, missing in (("resnet56", "layer1.3.conv1.weight"), ("preresnet20", "bn.weight"), ("vgg15", "features.0")):
        with pytest.raises(CheckpointError, match="another network") as caught:
            load_model(spec, path)
        assert missing in one_line(caught)


# --- the embedded default --------------------------------------------------------------------------------------------


def test_embedded_default_states_what_it_is() -> None:
    loaded = load_model()
    assert_ready(loaded)
    assert (loaded.spec, loaded.trained, loaded.num_classes, loaded.input_shape) == ("digits54", True, 10, (1, 8, 8))
    assert loaded.weights == "digits54.safetensors (comes with pathlens)"
    assert loaded.mean is not None
    assert loaded.std is not None
    assert loaded.normalisation_source == "metadata of digits54.safetensors"
    assert any(note.startswith("test error stated by the file: ") for note in loaded.notes)
    for spec, weights in (("digits54", None), ("digits54", "pretrained"), (None, "pretrained")):
        assert load_model(spec, weights).sha256 == loaded.sha256
    assert (ROOT / "pathlens/models/weights/digits54.safetensors").stat().st_size < 4e6


@torch.inference_mode()
def test_embedded_default_has_the_stated_test_error() -> None:
    """The oracle reads the data from scikit-learn and computes the network by its equations."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    path = ROOT / "pathlens/models/weights/digits54.safetensors"
    header = path.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    digits = load_digits()
    rest, test = train_test_split(np.arange(1797), test_size=360, random_state=0, stratify=digits.target)
    train, _ = train_test_split(rest, test_size=180, random_state=0, stratify=digits.target[rest])
    pixels = digits.images / 16
    mean, std = pixels[train].mean(), pixels[train].std()
    assert json.loads(metadata["mean"]) == pytest.approx([mean])
    assert json.loads(metadata["std"]) == pytest.approx([std])
    x = torch.from_numpy((pixels[test] - mean) / std).float().unsqueeze(1)
    logits = preact_forward(load_state_dict_file(path)[0], x, 18, 8)
    wrong = int((logits.argmax(1).numpy() != digits.target[test]).sum())
    assert float(metadata["test_error"]) == pytest.approx(wrong / 360, abs=1e-6)
    assert wrong / 360 < 0.03
    torch.testing.assert_close(load_model().model(x), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_training_script_runs_and_repeats(tmp_path: Path) -> None:
    """A reduced run, twice; in a process of its own because the script sets torch's global modes."""
    code = (
        "import sys, embedded_default as script\n"
        "few = script.open_data\n"
        "script.open_data = lambda name, split: few(name, split=split, limit=90)\n"
        "for out in sys.argv[1:]:\n"
        "    script.main(['--epochs', '1', '--warmup', '0', '--batch-size', '45', '--out', out])\n"
    )
    outs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, outs)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'studies'}", "OMP_NUM_THREADS": "1"},
    )
    assert outs[0].read_bytes() == outs[1].read_bytes()
    loaded = load_model("digits54", outs[0])
    assert done.stdout.count(loaded.sha256) == 2
    assert loaded.sha256 != load_model().sha256
    for split in ("train", "validation", "test"):
        assert f"{split} error 0." in done.stdout


# --- random weights --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("spec", ["resnet20", "digits54", "vgg15", "torchvision:squeezenet1_1"])
def test_random_weights_follow_the_seed(spec: str) -> None:
    first, again, other = (load_model(spec, "random", seed=seed) for seed in (5, 5, 6))
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(123)
        assert load_model(spec, "random", seed=5).sha256 == first.sha256
    assert not first.trained
    assert first.weights == "random (seed 5): untrained"


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match="64 bits"):
        load_model("resnet20", "random", seed=seed)


NF_VARIANTS = ("batchnorm", "plain", "idshort", "learnscalar", "convshort")

WIDE = {10: (1,), 16: (1, 2, 4, 8, 10), 22: (8, 10), 28: (10, 12), 40: (1, 2, 4, 8)}


# --- names -----------------------------------------------------------------------------------------------------------


def test_reference_names_are_those_promised_and_need_no_torch() -> None:
    assert set(reference_names()) == {
        *(f"resnet{d}" for d in (20, 32, 44, 56, 110, 1202)),
        *(f"resnet{d}b" for d in (20, 32, 44, 56, 110, 1202)),
        *(f"plain{d}" for d in (20, 32, 44, 56, 110)),
        *(f"preresnet{d}" for d in (20, 32, 44, 56, 110, 164)),
        *(f"highway{d}" for d in (19, 31, 58)),
        *(f"shakeshake26_2x{w}d" for w in (32, 64, 96)),
        *(f"wrn{d}_{k}" for d, widths in WIDE.items() for k in widths),
        *("wideresnet38", "wideresnet38:a1", "wideresnet38:dilated"),
        *(f"strictunet{n}:{v}" for n in ("16", "12", "13x13-100", "13x13-200", "13x13-300") for v in NORMS),
        *("vgg15", "vgg15_narrow"),
        "llama2",
        *(f"unet{channels}" for channels in (16, 32, 64)),
        *(f"llama{n}_{w}" for n, w in ((6, 96), (12, 64), (12, 96), (12, 128), (24, 128), (24, 256))),
        *(f"nfresnet{d}:{v}" for d in (18, 50, 101) for v in NF_VARIANTS),
        "digits54",
    }
    code = "import sys, pathlens.models as m; m.reference_names(); assert 'torch' not in sys.modules; m.load_model"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet21", "did you mean .*resnet20"),
        ("resnet50", "did you mean torchvision:resnet50,"),
        ("", "unknown model ''"),
        ("resnet20:x", "unknown model"),
        ("torchvision:resnet19", "did you mean torchvision:resnet"),
        ("torchvision:", "torchvision has no network ''"),
        ("torchvision:raft_small", "not an image classifier, nor for segmentation"),
        ("nowhere/file.py:make", "no file nowhere/file.py"),
        ("nowhere/file.py", "which callable"),
    ],
)
def test_unknown_names(spec: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(spec, "random")
    one_line(caught)


@pytest.mark.parametrize(
    ("spec", "weights", "words"),
    [
        ("resnet20", None, "--weights FILE, --weights random or --weights pretrained"),
        ("torchvision:resnet18", None, "--weights FILE"),
        ("resnet20", "pretrained", "no published weights are known for resnet20"),
    ],
)
def test_weights_that_must_be_chosen(spec: str, weights: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        load_model(spec, weights)
    one_line(caught)


# --- weights files through load_model --------------------------------------------------------------------------------


def test_classes_and_channels_come_from_the_file(tmp_path: Path) -> None:
    model = resnet(20, num_classes=100, in_channels=1)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    loaded = load_model("resnet20", tmp_path / "w.pth", num_classes=10, in_channels=3)
    assert loaded.sha256 == state_sha256(model)
    assert (loaded.num_classes, loaded.input_shape) == (100, (1, 32, 32))
    assert loaded.notes[-2:] == ("num_classes taken from the weights: 100", "in_channels taken from the weights: 1")


def test_metadata_states_the_normalisation(tmp_path: Path) -> None:
    metadata = {"mean": "[0.1, 0.2, 0.3]", "std": "[1, 2, 3]", "input_shape": "[3, 16, 16]"}
    save_weights(tmp_path / "w.safetensors", resnet(20), metadata)
    loaded = load_model("resnet20", str(tmp_path / "w.safetensors"))
    assert (loaded.mean, loaded.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert loaded.normalisation_source == "metadata of w.safetensors"
    assert loaded.input_shape == (3, 16, 16)


@pytest.mark.parametrize("bad", ["x", "[]", "3", '["a"]', "[NaN]", "[Infinity]", "[true]", "[[1]]", "[" * 5000])
def test_metadata_that_is_not_understood_is_left_aside(tmp_path: Path, bad: str) -> None:
    save_weights(tmp_path / "w.safetensors", resnet(8), {"mean": "[0.5]", "std": bad})
    (tmp_path / "m.py").write_text("from pathlens.models import resnet\ndef make():\n    return resnet(8)\n")
    loaded = load_model(f"{tmp_path / 'm.py'}:make", tmp_path / "w.safetensors")
    assert (loaded.mean, loaded.std, loaded.normalisation_source) == (None, None, None)
    assert "metadata 'std' is not understood: left aside" in loaded.notes


def test_weights_that_state_that_there_is_no_normalisation(tmp_path: Path) -> None:
    """As those of networks that were trained on texts."""
    save_weights(tmp_path / "w.safetensors", resnet(20), {"mean": "[]", "std": "[]"})
    loaded = load_model("resnet20", tmp_path / "w.safetensors")
    assert (loaded.mean, loaded.std, loaded.normalisation_source, loaded.notes) == (None, None, None, ())


def test_nan_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    model = resnet(20)
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = torch.nan
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(NumericsError, match=r"w\.pt: layer2\.0\.conv1\.weight holds NaN values \(1 of 4608\)"):
        load_model("resnet20", tmp_path / "w.pt")


def test_torchvision_file_with_other_classes(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    model = resnet18(num_classes=7)
    torch.save({"model": model.state_dict()}, tmp_path / "w.pth")
    loaded = load_model("torchvision:resnet18", tmp_path / "w.pth")
    assert_ready(loaded)
    assert loaded.sha256 == state_sha256(model)
    assert (loaded.num_classes, loaded.input_shape, loaded.mean) == (7, (3, 224, 224), None)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvision_file_of_a_network_that_asks_for_its_version(tmp_path: Path, suffix: str) -> None:
    from torchvision.models import mnasnet0_5

    model, path = mnasnet0_5(num_classes=7), tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_weights(path, model, {})
    assert load_model("torchvision:mnasnet0_5", path).sha256 == state_sha256(model)


def test_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"torchvision:squeezenet1_1.*URLError.*--weights FILE") as caught:
        load_model("torchvision:squeezenet1_1", "pretrained")
    one_line(caught)


def test_pretrained_torchvision_states_its_normalisation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The download is replaced by a state dict of the right shapes; the rest is torchvision's own."""
    from torchvision.models import _api, squeezenet1_1

    state = squeezenet1_1().state_dict()
    monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    loaded = load_model("torchvision:squeezenet1_1", "pretrained")
    assert loaded.trained
    assert loaded.sha256 == state_sha256(state)
    assert (loaded.mean, loaded.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert "IMAGENET1K_V1" in str(loaded.normalisation_source)
    assert loaded.input_shape == (3, 224, 224)


# --- timm ------------------------------------------------------------------------------------------------------------


def test_timm_network(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    loaded = load_model("timm:resnet10t", "random", num_classes=5, in_channels=1)
    assert_ready(loaded)
    assert (loaded.num_classes, loaded.input_shape) == (5, (1, 176, 176))
    loaded = load_model("timm:resnet10t", "random")
    config = timm.create_model("resnet10t").pretrained_cfg
    assert loaded.input_shape == config["input_size"]
    assert (loaded.mean, loaded.std) == (config["mean"], config["std"])
    assert loaded.normalisation_source == "timm pretrained_cfg of resnet10t"
    model = timm.create_model("resnet10t", num_classes=4, in_chans=2)
    torch.save({"state_dict_ema": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth.ckpt")
    loaded = load_model("timm:resnet10t", tmp_path / "w.pth.ckpt")
    assert loaded.sha256 == state_sha256(model)
    assert (loaded.num_classes, loaded.input_shape) == (4, (2, 176, 176))
    save_weights(tmp_path / "w.safetensors", timm.create_model("resnet10t"), {"mean": "[]", "std": "[]"})
    loaded = load_model("timm:resnet10t", tmp_path / "w.safetensors")
    assert (loaded.mean, loaded.std, loaded.normalisation_source) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet10", "did you mean timm:resnet10"),
        ("resnet18.nonsense", "resnet18.nonsense"),
        ("hf-hub:x/y", "no network"),
    ],
)
def test_unknown_timm_names(name: str, words: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError, match=words) as caught:
        load_model(f"timm:{name}", "random")
    one_line(caught)


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # makes `import timm` raise ImportError
    with pytest.raises(ModelError, match=r'pip install "pathlens\[timm\]"'):
        load_model("timm:resnet18", "random")
