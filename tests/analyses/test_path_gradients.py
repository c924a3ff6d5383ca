"""The path-gradient tables and their command, against sums over enumerated paths."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pathlens
from pathlens.analyses import profiles
from pathlens.cli import main
from pathlens.cli.show import show
from pathlens.errors import DataError, NumericsError, UsageError
from pathlens.estimators.sampled import Sampler
from pathlens.metrics.units import IGNORED
from pathlens.paths import ChainPaths
from pathlens.results.path_profile import PATH_GRADIENTS
from pathlens.tables import read_table

torch.manual_seed(0)


class Small(torch.nn.Module):
    """Five linear-plus-tanh blocks."""

    def __init__(self, blocks=5, width=6):
        super().__init__()
        self.stem = torch.nn.Linear(4, width)
        self.branches = torch.nn.ModuleList([torch.nn.Linear(width, width) for _ in range(blocks)])
        self.out = torch.nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + torch.tanh(branch(x))
        return self.out(x)


@pytest.fixture
def small():
    torch.manual_seed(5)
    return Small().double().eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(n, 4, generator=generator).double(), torch.randint(3, (n,), generator=generator)) for n in (7, 3)
    ]


def path_norms(net, images, labels):
    """Norms of the gradient of each example's loss through each path, and of the sum of each length."""
    norms, sums = path_sums(net, images, labels)
    return norms, {k: [one.norm().item() for one in own] for k, own in sums.items()}


def path_sums(net, images, labels):
    """Norms of the gradient of each example's loss through each path, and the sum of each length."""
    count = len(net.branches)
    norms = {k: [] for k in range(count + 1)}
    sums = {k: [] for k in range(count + 1)}
    for image, label in zip(images, labels, strict=True):
        points = [net.stem(image)]
        jacobians = []
        for branch in net.branches:
            jacobians.append(torch.autograd.functional.jacobian(lambda x, b=branch: torch.tanh(b(x)), points[-1]))
            points.append(points[-1] + torch.tanh(branch(points[-1])))
        last = points[-1].detach().requires_grad_()
        (seed,) = torch.autograd.grad(F.cross_entropy(net.out(last)[None], label[None]), last)
        for k in range(count + 1):
            through = []
            for path in combinations(range(count), k):
                gradient = seed
                for index in reversed(path):
                    gradient = gradient @ jacobians[index]
                through.append(gradient @ net.stem.weight)
            norms[k].append([g.norm().item() for g in through])
            sums[k].append(torch.stack(through).sum(0))
    return norms, sums


def test_exact_and_sampled_columns_equal_enumerated_paths(small, batches):
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    norms, sums = path_norms(small, images, labels)
    table = pathlens.path_gradients(small, batches, draws=400, max_samples=200, rel_error=0.001)
    assert [row["n_paths"] for row in table.rows] == [1, 5, 10, 10, 5, 1]
    total = math.fsum(np.mean(sums[k]) for k in sums)
    for k, row in enumerate(table.rows):
        assert row["total_norm"] == pytest.approx(np.mean(sums[k]), rel=1e-10)
        assert row["total_share"] == pytest.approx(np.mean(sums[k]) / total, rel=1e-10)
        exact_mean = np.mean(norms[k])
        assert row["path_norm_mean"] == pytest.approx(exact_mean, rel=0.05)
        if row["stopped"] == "all paths":
            assert row["path_norm_mean"] == pytest.approx(exact_mean, rel=1e-10)
        rms = math.sqrt(np.mean(np.square(norms[k])))
        assert abs(row["path_norm_rms"] - rms) <= 5 * row["path_norm_rms_error"] + 1e-12 * rms
        assert row["contribution"] == pytest.approx(row["n_paths"] * row["path_norm_mean"])
    assert math.fsum(row["contribution_share"] for row in table.rows) == pytest.approx(1)
    assert table.provenance["relative_difference_to_autograd"] < 1e-12


def test_norms_do_not_depend_on_the_batch_size(small, batches):
    merged = [tuple(torch.cat(parts) for parts in zip(*batches, strict=True))]
    apart = pathlens.path_gradients(small, batches, method="exact")
    together = pathlens.path_gradients(small, merged, method="exact")
    for one, other in zip(apart.rows, together.rows, strict=True):
        assert one["total_norm"] == pytest.approx(other["total_norm"], rel=1e-12)


def test_examples_without_a_target_that_counts_are_left_out():
    torch.manual_seed(5)
    net = Small(blocks=2).double().eval()
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, 5, 4, generator=generator).double()  # sequences of five
    targets = torch.randint(3, (6, 5), generator=generator)
    targets[1] = targets[4:] = IGNORED
    targets[2, 3:] = IGNORED
    pairs, kept = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])], [0, 2, 3]
    alone = [(inputs[kept], targets[kept])]
    for verb, counted in ((pathlens.path_gradients, "images_measured"), (pathlens.lattice, "examples")):
        found, wanted = verb(net, pairs), verb(net, alone)
        for row, own in zip(found.rows, wanted.rows, strict=True):
            text = {name for name, value in own.items() if isinstance(value, str)}
            assert {name: row[name] for name in text} == {name: own[name] for name in text}
            numbers = {name: value for name, value in own.items() if name not in text}
            assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-12)
        assert (found.provenance[counted], found.provenance["images_left_out"]) == (3, 3)
        assert "images_left_out" not in wanted.provenance
        with pytest.raises(DataError, match=r"batches from list: no target counts \(all are -100\)"):
            verb(net, pairs[1:])
    x = inputs[kept].requires_grad_()
    losses = F.cross_entropy(net(x).movedim(-1, 1), targets[kept], reduction="none", ignore_index=IGNORED).sum(1)
    (gradient,) = torch.autograd.grad((losses / (targets[kept] != IGNORED).sum(1)).sum(), x)
    exact = pathlens.path_gradients(net, pairs, method="exact").provenance["gradient_norm"]
    assert exact == pytest.approx(gradient.flatten(1).norm(dim=1).mean().item(), rel=1e-12)


def test_where_examples_mix_or_the_loss_is_a_function_fewer_are_left_out():
    alone = Small(blocks=2).double()
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(5), alone).double()
    inputs, targets = torch.randn(4, 5, 4).double(), torch.randint(3, (4, 5))
    targets[1:] = IGNORED
    pairs = [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])]
    mixed, first = (pathlens.path_gradients(net, data, method="exact", mode="train") for data in (pairs, pairs[:1]))
    assert mixed.rows == first.rows
    assert mixed.provenance["images_measured"] == 2
    by_mode = [pathlens.path_gradients(alone, pairs, method="exact", mode=mode) for mode in ("train", "eval")]
    assert [found.provenance["images_measured"] for found in by_mode] == [1, 1]
    assert by_mode[0].rows == by_mode[1].rows
    own = pathlens.path_gradients(net, pairs, method="exact", loss=lambda outputs, _: outputs.square().mean((1, 2)))
    assert own.provenance["images_measured"] == 4


@pytest.mark.parametrize("method", ["exact", "sampled", "signed"])
def test_one_method_fills_its_columns_alone(small, batches, method):
    row = pathlens.path_gradients(small, batches, method=method).rows[2]
    assert (row["total_norm"] is not None) == (method == "exact")
    assert (row["path_norm_mean"] is not None) == (method == "sampled")
    assert (row["path_norm_rms"] is not None) == (method == "signed")


def test_seeds_decide_what_is_drawn(small, batches):
    def drawn(seed):
        table = pathlens.path_gradients(small, batches, seed=seed, draws=2, max_samples=4)
        return [(row["path_norm_mean"], row["path_norm_rms"]) for row in table.rows]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_lengths_left_out_are_measured(small, batches):
    whole = pathlens.path_gradients(small, batches, method="exact")
    cut = pathlens.path_gradients(small, batches, method="exact", max_length=2)
    assert [row["total_norm"] for row in cut.rows] == [row["total_norm"] for row in whole.rows[:3]]
    assert cut.provenance["lengths_kept"] == [0, 2]
    merged = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    _, sums = path_sums(small, *merged)

    def missing(kept):
        """What lengths that are left out have of the gradients of all examples together."""
        left, all_of_it = (
            sum(sum(own).square().sum().item() for own in zip(*(sums[k] for k in lengths), strict=True))
            for lengths in ([k for k in sums if k not in kept], sums)
        )
        return math.sqrt(left / all_of_it)

    assert cut.provenance["relative_difference_to_autograd"] == pytest.approx(missing(range(3)), rel=1e-9)
    trimmed = pathlens.path_gradients(small, [merged], method="exact", tolerance=0.2)
    first, last = trimmed.provenance["lengths_kept"]
    assert (first, last) != (0, 5)
    due = missing(range(first, last + 1))
    # what is trimmed on the way is missing in the lengths that are kept, too
    assert trimmed.provenance["relative_difference_to_autograd"] == pytest.approx(due, rel=0.05)


def test_what_is_of_all_lengths_is_not_said_where_some_are_left_out(small, batches, capsys):
    options = {"draws": 1, "max_samples": 4}
    cut = pathlens.path_gradients(small, batches, max_length=3, **options)
    assert cut.provenance.keys().isdisjoint({"effective", "cancellation"})
    assert (cut.provenance["max_length"], cut.provenance["all_paths"]) == (3, 32)
    for row in cut.rows:
        assert row["contribution_share"] is row["total_share"] is None
        assert row["contribution"] == pytest.approx(row["n_paths"] * row["path_norm_mean"])
    show(cut, "path-gradients")
    printed = capsys.readouterr().out
    assert "paths of more than 3 branches were left out" in printed
    assert not any(words in printed for words in ("effective lengths by", "a batch centre", "share %", "█"))
    (told,) = [h for h in PATH_GRADIENTS.headlines(cut.rows, cut.provenance) if h.label.startswith("Effective")]
    assert told.value == "not known"
    assert PATH_GRADIENTS.figure_options(cut.provenance) == {"effective": None}
    for max_length in (3, 5):
        cells = pathlens.lattice(small, batches, max_length=max_length)
        assert all((row["share"] is None) == (max_length == 3) for row in cells.rows)
        assert cells.provenance.get("max_length") == (3 if max_length == 3 else None)
    whole = pathlens.path_gradients(small, batches, max_length=5, **options)
    assert whole.provenance["effective"].keys() == {"exact", "sampled", "signed"}
    assert "max_length" not in whole.provenance
    assert math.fsum(row["total_share"] for row in whole.rows) == pytest.approx(1)


def test_the_number_of_all_paths_is_stated_at_any_size():
    assert profiles._stated(2**63 - 1) == 2**63 - 1
    assert profiles._stated(2**63) == str(2**63)
    assert profiles._stated(2**20_000) is None  # Python prints no number of so many digits


@pytest.mark.parametrize("measure", [pathlens.path_gradients, pathlens.lattice])
def test_float16_is_refused(small, batches, measure):
    words = "float16 .*give dtype bfloat16 or float32"
    with pytest.raises(UsageError, match=words):
        measure(small, batches, dtype="float16")
    small.half()
    with pytest.raises(UsageError, match=words):
        measure(small, batches)
    assert measure(small, batches, dtype="float32").rows


def test_places_count_the_blocks_after_them(small, batches):
    at_block = pathlens.path_gradients(small, batches, method="exact", at="block:3")
    assert [row["n_paths"] for row in at_block.rows] == [1, 2, 1]
    stem = pathlens.path_gradients(small, batches, method="exact", at="stem")
    assert len(stem.rows) == 6


def test_lattice_ends_in_the_exact_norms(small, batches):
    grid = pathlens.lattice(small, batches)
    exact = pathlens.path_gradients(small, batches, method="exact")
    at_input = {row["length"]: row for row in grid.rows if row["boundary"] == -1}
    for row in exact.rows:
        assert at_input[row["length"]]["norm"] == pytest.approx(row["total_norm"], rel=1e-12)
        assert at_input[row["length"]]["n_paths"] == row["n_paths"]
    assert {row["boundary"] for row in grid.rows} == set(range(-1, 6))
    assert [row["length"] for row in grid.rows if row["boundary"] == 5] == [0]


def test_the_model_is_left_as_it_was(small, batches):
    small.train()
    small.out.weight.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in small.named_parameters()}
    pathlens.path_gradients(small, batches, method="exact", dtype="float32")
    assert small.training
    for name, parameter in small.named_parameters():
        needed, value = before[name]
        assert parameter.requires_grad == needed
        assert parameter.grad is None
        assert torch.equal(parameter, value)


def test_bad_requests(small, batches):
    for options, words in (
        ({"method": "guess"}, "exact, sampled, signed"),
        ({"at": "middle"}, "input, stem or block"),
        ({"at": "block:5"}, "0 to 4"),
        ({"max_length": 6}, r"0\.\.5"),
        ({"max_samples": 0}, "1 or more"),
        ({"draws": 0}, "1 or more"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"rel_error": 0.0}, "rel-error"),
        ({"rel_error": float("inf")}, "rel-error inf must be above 0 and finite"),
        ({"share": 0.0}, "share"),
        ({"mode": "test"}, "eval or train"),
    ):
        with pytest.raises(UsageError, match=words):
            pathlens.path_gradients(small, batches, **options)
    with torch.no_grad():
        small.out.weight.zero_()
    with pytest.raises(NumericsError, match="does not depend"):
        pathlens.path_gradients(small, batches, method="exact")


def test_sampling_stops_for_a_reason():
    sampler = Sampler(paths=ChainPaths(tuple(range(10))), longest=10, rel_error=0.05, max_samples=40, seed=0)
    rng = np.random.default_rng(0)
    while sampler.open_lengths:
        step = sampler.next_round(2)
        results = {}
        for unit in step.units:
            drawn = step.paths_for(unit)
            assert all(len(path) == length for length in drawn for path in drawn[length])
            # length 3 is steady, length 5 has a heavy tail
            results[unit] = {
                str(k): [
                    [1 + 0.001 * rng.random() if k != 5 else float(rng.pareto(0.8)) for _ in range(3)] for _ in drawn[k]
                ]
                for k in drawn
            }
        sampler.take(step, results)
    assert sampler.stopped[3] == "interval"
    assert sampler.stopped[5] == "budget"
    assert sampler.stopped[0] == sampler.stopped[10] == "all paths"
    assert sampler.samples(5) == 2 * 40
    for length in (3, 5):
        low, high = sampler.intervals[length]
        assert low <= sampler.mean(length) <= high


def test_a_killed_run_goes_on_where_it_stopped(small, batches, tmp_path):
    data = pathlens.open_data("digits", limit=48)
    model = pathlens.load_model("preresnet20", "random", in_channels=1, num_classes=10).model
    options = {"batch_size": 16, "journal": tmp_path / "journal", "draws": 1, "max_samples": 4, "max_length": 3}
    whole = pathlens.path_gradients(model, data, **{**options, "journal": None})

    def stop(done, _total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pathlens.path_gradients(model, data, progress=stop, **options)
    again = pathlens.path_gradients(model, data, **options)
    assert again.provenance["resumed_units"] == 4
    assert again.rows == whole.rows
    assert not list(tmp_path.rglob("*.jsonl"))


def test_random_signs_have_a_second_name(small, batches, capsys):
    tables = [pathlens.path_gradients(small, batches, method=name, seed=2) for name in ("signed", "rademacher")]
    assert tables[0].rows == tables[1].rows
    assert {table.provenance["method"] for table in tables} == {"signed"}
    arguments = ["path-gradients", "--limit", "2", "--max-length", "2", "--draws", "1", "--json", "-q"]
    assert main([*arguments, "--method", "rademacher"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["provenance"]["method"] == "signed"
    assert found["table"][1]["path_norm_rms"] > 0
    assert found["table"][1]["total_norm"] is None


def test_the_command_writes_table_lattice_and_figures(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["path-gradients", "--limit", "4", "--batch-size", "2", "--draws", "1", "--max-samples", "4"]
    assert main([*arguments, "--max-length", "4", "--lattice", "--json", "-q", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    columns = {
        "length", "n_paths", "total_norm", "path_norm_mean", "path_norm_low", "path_norm_high", "path_norm_median",
        "path_norm_rms", "contribution", "contribution_share", "total_share", "samples",
    }  # fmt: skip
    assert columns <= found["table"][0].keys()
    assert found["table"][4]["n_paths"] == math.comb(54, 4)
    assert found["provenance"]["max_length"] == 4
    assert found["provenance"]["all_paths"] == 2**54
    names = found["provenance"]["block_names"]
    assert names == [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(18)]
    assert read_table(out / "lattice.parquet").provenance["block_names"] == names
    assert json.loads((out / "manifest.json").read_text())["block_names"] == names
    for stem in ("path-gradients", "lattice"):
        for suffix in ("csv", "parquet", "png", "pdf"):
            assert (out / f"{stem}.{suffix}").stat().st_size > 0
    assert read_table(out / "path-gradients.parquet").rows == tuple(found["table"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--at", "block:54"], 2, "0 to 53"),
        (["--max-length", "55"], 2, "0..54"),
        (["--limit", "0"], 2, "limit"),
        (["--method", "best"], 2, "method"),
        (["--tolerance", "2"], 2, "tolerance"),
    ],
)
def test_bad_input_is_one_line(arguments, code, words, capsys):
    assert main(["path-gradients", "-q", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert words in captured.err
