"""The study of a language model, at a size that tests can afford, and its verdicts by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pathlens
from pathlens.tables import read_table
from studies.common import ROOT, setting, start_fresh
from studies.language import judged, stories, trained
from studies.language.subjects import given
from studies.record import Tables
from studies.rules.claims import AGREES, CANNOT_TELL, DISAGREES
from studies.rules.lesions import Cost
from tests.helpers.nets_tokens import CASES
from tests.helpers.study_modules import run_study

KINDS = ("lesions", "skips", "layers", "runs", "sets", "orders", "gradients")
NAMES = ("stories260K", "bytes24-seed0")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one smoke run, without any file from outside."""
    out = tmp_path_factory.mktemp("language")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PATHLENS_MODELS", raising=False)
        where = ("--out", str(out), "--runs", str(tmp_path_factory.mktemp("runs")))
        run_study("language", "--scale", "smoke", "--device", "cpu", *where)
    return out


@pytest.mark.slow
def test_it_writes_page_tables_and_figures(done: Path) -> None:
    page = (done / "README.md").read_text()
    assert "Its numbers mean nothing" in page
    for stem in (*(f"{kind}-{name}" for kind in KINDS for name in NAMES), "claims"):
        assert f"({stem}.csv)" in page
        assert (done / f"{stem}.csv").is_file()
    for kind in ("lesions", "layers", "skips", "sets", "orders", "gradients"):
        assert all(f"({kind}-{name}.png)" in page for name in NAMES)
    assert "(beside-lesions.png)" in page
    assert "4 sequences of stories that the network wrote" in page
    claims = read_table(done / "claims.csv").rows
    assert {row["network"] for row in claims} == {"stories260K", "bytes24"}
    assert all(row["outcome"] == CANNOT_TELL for row in claims if row["network"] == "bytes24")  # one seed
    assert {judged.MLP.name, judged.BEYOND.name} < {row["claim"] for row in claims}


@pytest.mark.slow
def test_its_numbers_are_those_of_the_package(done: Path) -> None:
    model = pathlens.load_model("llama2", "random", num_classes=32, seed=0).model
    tokens = stories.written(model, 4, 8, 0)
    table = pathlens.delete_blocks(model, [(tokens[:, :-1], tokens[:, 1:])], group="layer")
    found = read_table(done / "layers-stories260K.csv")
    assert found.values("blocks") == table.values("blocks")
    for name in ("error", "loss", "difference"):
        assert found.values(name)[1:] == pytest.approx(table.values(name)[1:], rel=1e-5), name


@torch.no_grad()
def test_stories_are_drawn_from_what_the_network_predicts() -> None:
    model = pathlens.load_model("llama2", "random", num_classes=6, seed=1).model
    some = stories.written(model, 40, 2, seed=3)
    assert torch.equal(some, stories.written(model, 40, 2, seed=3))
    assert some.shape == (40, 3)
    tokens = stories.written(model, 4000, 1, seed=3)
    assert tokens.shape == (4000, 2)
    assert set(tokens[:, 0].tolist()) == {stories.BEGIN}
    wanted = model(torch.tensor([[stories.BEGIN]]))[0, 0].softmax(-1)
    shares = torch.bincount(tokens[:, 1], minlength=6) / 4000
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.04)  # five standard deviations


def cost(low: float, high: float) -> Cost:
    middle = (low + high) / 2
    return Cost(0, "", "identity", middle, low, high, p_holm=1, noticeable=1, small=1, freedom=95)


def test_networks_of_any_seeds_are_judged() -> None:
    known = Tables(ROOT / "results" / "language")
    tables = {f"{kind}-mine-seed{n}": known[f"{kind}-bytes24-seed{n}"] for kind in judged.JUDGED for n in (1, 2)}
    two = judged.verdicts(tables, ["mine-seed1", "mine-seed2"])
    assert {(row["network"], row["seeds"], row["outcome"]) for row in two} == {("mine", 2, CANNOT_TELL)}
    whole = judged.verdicts({f"{kind}-mine": known[f"{kind}-bytes24-seed1"] for kind in judged.JUDGED}, ["mine"])
    assert {(row["network"], row["seeds"]) for row in whole} == {("mine", None)}
    assert AGREES in {row["outcome"] for row in whole}


def test_layers_are_compared_by_tests() -> None:
    small, large = cost(0.0, 0.1), cost(0.2, 0.3)
    assert judged.mlp_against_attention([small] * 2, [large] * 2).outcome == AGREES
    assert judged.mlp_against_attention([large] * 2, [small] * 2).outcome == DISAGREES
    assert judged.mlp_against_attention([small, large], [large, small]).outcome == CANNOT_TELL
    assert judged.beyond_its_blocks([cost(0.5, 0.6)] * 3, [small] * 3, [large] * 3).outcome == AGREES
    assert judged.beyond_its_blocks([cost(0.3, 0.5)] * 3, [small] * 3, [large] * 3).outcome == CANNOT_TELL
    verdict = judged.beyond_its_blocks([cost(0.05, 0.15)] * 3, [small] * 3, [large] * 3)
    assert verdict.outcome == DISAGREES
    assert verdict.value == pytest.approx(0.1 - 0.05 - 0.25)


@pytest.mark.slow
def test_any_other_network_is_asked_the_same(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("What is said of one network is not said of its kind. " * 20)
    model = tmp_path / "small.py"
    model.write_text("from pathlens.models.llama import llama\ndef net():\n    return (m := llama(2, 32)), m.example\n")
    where = ("--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--scale", "smoke", "--device", "cpu")
    own = ("--model", f"{model}:net", "--weights", "random", "--text", str(tmp_path / "text.txt"))
    run_study("language", *own, "--length", "16", "--sequences", "6", "--name", "small", *where)
    claims = read_table(tmp_path / "out" / "claims.csv").rows
    assert {(row["network"], row["data"]) for row in claims} == {("small", "text.txt")}
    assert "6 sequences of text.txt" in (tmp_path / "out" / "README.md").read_text()
    # another text of that name is another text, and other weights are another network
    measured = tmp_path / "out" / "lesions-small.csv"
    before = measured.read_bytes()
    again = ("--length", "16", "--sequences", "6", "--name", "small", *where)
    run_study("language", *own, *again)
    assert measured.read_bytes() == before
    (tmp_path / "text.txt").write_text("Another text says other things of the same network. " * 20)
    run_study("language", *own, *again)
    assert measured.read_bytes() != before


def test_a_folder_of_others_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("a thesis")
    with pytest.raises(SystemExit, match="no results of the study language, and would be deleted"):
        start_fresh(setting("language", "x", ["--scale", "smoke", "--out", str(tmp_path)]))
    assert (tmp_path / "mine.txt").read_text() == "a thesis"
    with pytest.raises(SystemExit):
        given(["--model", "net.py:net", "--text", "text.txt"])
    assert "give --out" in capsys.readouterr().err


def test_layers_of_one_block_are_not_compared_with_their_parts() -> None:
    case = CASES["parallel"]
    net, data = case.model(0).eval(), [(case.input(4), torch.arange(4))]
    tables = {"lesions": pathlens.delete_blocks(net, data), "layers": pathlens.delete_blocks(net, data, group="layer")}
    assert judged.layers(tables) is None


def test_the_text_has_each_paragraph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "documents", lambda _: iter(["one\n\ntwo", "two\n\nthree", "one\n\ntwo"]))
    assert sorted(trained.text().split("\n\n")) == ["one", "three", "two"]
    assert trained.text() == trained.text()
