"""The verb ``signal-propagation``: curves side by side, intervals, warnings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pathlens
from pathlens import figures
from pathlens.__main__ import main
from pathlens.errors import DataError, ModelError, NumericsError, PathlensError, UsageError
from pathlens.metrics.units import IGNORED
from pathlens.propagation import growth_of
from pathlens.results.signal import GRADIENTS, QUANTITIES
from tests.helpers.model_helpers import one_line


class Block(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.map(F.relu(self.norm(x)))


class Net(nn.Module):
    def __init__(self, blocks: int = 3, width: int = 16, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.Sequential(*[Block(width, norm) for _ in range(blocks)])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def batches(count: int = 2, size: int = 10, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(size, 8, generator=generator, dtype=dtype), torch.arange(size) % 4) for _ in range(count)]


def test_given_weights_beside_initialisations() -> None:
    net = Net().double()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    table = pathlens.signal_propagation(net, batches(), init=["he-fan-in", "as-built"], given=True, seeds=3,
                                        build=lambda seed: Net().double(), standardise=True)  # fmt: skip
    rows = table.rows
    assert {row["weights"]: row["seeds"] for row in rows} == {"as given": 1, "he-fan-in": 3, "as-built": 3}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert [row["place"] for row in rows[:9]] == ["stem", *["branch", "shortcut", "sum", "output"] * 2]
    for row in rows:
        assert row["squared_mean"] + row["channel_variance"] == pytest.approx(row["second_moment"])
        assert (row["second_moment_low"] is None) == (row["weights"] == "as given")
        assert (row["expected_second_moment"] is None) == (row["weights"] == "as given")  # weights may be trained
        if row["place"] in ("branch", "shortcut"):
            (total,) = [r for r in rows if r["place"] == "sum" and all(r[k] == row[k] for k in ("block", "weights"))]
            assert all(row[name] == total[name] for name in GRADIENTS)


def test_means_over_batches_and_seeds_with_student_intervals() -> None:
    from scipy import stats

    net = Net().double()
    whole = pathlens.signal_propagation(net, batches(), init="he-uniform", seeds=3, seed=5).rows
    single = [
        pathlens.signal_propagation(net, [batch], init="he-uniform", seeds=1, seed=5 + k).rows
        for k in range(3)
        for batch in batches()
    ]
    for index, row in enumerate(whole):
        for name in (*QUANTITIES, *GRADIENTS):
            seeds = [sum(rows[index][name] for rows in single[2 * k : 2 * k + 2]) / 2 for k in range(3)]
            mean, spread = sum(seeds) / 3, torch.tensor(seeds).double().std().item()
            half = stats.t.ppf(0.975, 2) * spread / 3**0.5
            assert row[name] == pytest.approx(mean)
            assert row[f"{name}_low"] == pytest.approx(mean - half, abs=1e-12 + 1e-6 * mean)
            assert row[f"{name}_high"] == pytest.approx(mean + half)


def test_growth_against_an_exact_law_with_jumps_between_stages() -> None:
    stages = [0, 0, 0, 1, 1, 1, 1]
    curve = [2.0**k * (1 if k < 3 else 100) for k in range(7)]
    growth = growth_of([curve], stages)
    assert growth.factor == pytest.approx(2)
    assert growth_of([curve], stages, backward=True).factor == pytest.approx(0.5)
    assert growth_of([[value * 1.5 for value in curve], curve], stages) == pytest.approx((2, 2, 2))
    assert growth_of([curve], range(7)).factor == pytest.approx(2 * 10 ** (2 * 12 / 28 * 0.5), rel=0.2)  # one line
    noisy = growth_of([[3.0, 7.0, 11.0, 26.0, 47.0, 90.0]], [0] * 6)
    assert noisy.low < noisy.factor < noisy.high
    assert growth_of([[None, 1.0]], [0, 0]) == (None, None, None)


def test_eval_mode_uses_the_running_statistics() -> None:
    net = Net(norm=True).double()
    net.blocks[0].norm.running_mean.fill_(3.0)
    rows = pathlens.signal_propagation(net, batches(1), mode="eval").rows
    x = net.eval().stem(batches(1)[0][0])
    due = net.blocks[0].map(F.relu((x - 3) / (1 + 1e-5) ** 0.5))
    found = next(row for row in rows if row["place"] == "branch")
    assert found["second_moment"] == pytest.approx(float(due.detach().square().mean()))


def test_a_zeroed_end_and_one_step_later() -> None:
    net = Net().double()
    table = pathlens.signal_propagation(net, batches(1), init="fixup", seeds=2)
    at_start = [row for row in table.rows if row["place"] == "output"]
    assert all(row["gradient_second_moment"] == 0 for row in at_start)  # the head starts at zero too
    warnings = " ".join(table.provenance["warnings"])
    assert "all gradients below it are exactly zero" in warnings
    assert "fixup: the gradient is exactly zero at 4 of 4 blocks and stem" in warnings
    later = pathlens.signal_propagation(net, batches(1), init="fixup", seeds=2, steps=2)
    assert all(row["gradient_second_moment"] > 0 for row in later.rows if row["place"] == "output")
    assert any(row["second_moment"] > 0 for row in later.rows if row["place"] == "branch")
    assert later.provenance["warnings"] == []


def test_steps_are_plain_gradient_descent() -> None:
    net = Net(norm=True).double()
    rows = pathlens.signal_propagation(net, batches(1), steps=3, lr=0.05).rows
    by_hand = Net(norm=True).double()
    by_hand.load_state_dict(net.state_dict())
    images, labels = batches(1)[0]
    for _ in range(3):
        by_hand.zero_grad()
        F.cross_entropy(by_hand.train()(images), labels).backward()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter.sub_(0.05 * parameter.grad)
    due = by_hand.blocks(by_hand.stem(images)).detach()
    assert rows[-1]["second_moment"] == pytest.approx(float(due.square().mean()))


def test_growth_that_will_overflow_is_named() -> None:
    torch.manual_seed(0)
    table = pathlens.signal_propagation(Net(8, 128), batches(1, 64, torch.float32), init="he-fan-in", seeds=3)
    (warning,) = table.provenance["warnings"]
    assert "float32 would overflow at block" in warning
    block = int(warning.rsplit(" ", 1)[1])
    assert block == pytest.approx(256, abs=30)  # 2^256 is the square of the largest number


class Ends(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + torch.tanh(self.blocks[0].map(x)))


class Exploding(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x * 1e12 + block.map(F.relu(x * 1e12))
        return self.head(x)


def test_overflow_at_initialisation_gives_the_values_up_to_there() -> None:
    table = pathlens.signal_propagation(Exploding(5), batches(1, dtype=torch.float32), init="he-fan-in", seeds=2)
    outputs = [row["second_moment"] for row in table.rows if row["place"] == "output"]
    assert [value is not None for value in outputs] == [True, True, True, False, False]
    assert all(row["gradient_second_moment"] is None for row in table.rows)
    (warning,) = table.provenance["warnings"]
    assert "he-fan-in: a value is NaN or infinite in block 3 (" in warning
    assert ", in float32; values go up to there" in warning
    assert figures.draw("signal-propagation", table).axes


def test_weights_that_are_no_numbers_are_no_overflow() -> None:
    net = Net().double()
    with torch.no_grad():
        net.blocks[1].map.weight[0, 0] = float("nan")
    (warning,) = pathlens.signal_propagation(net, batches(1), mode="eval").provenance["warnings"]
    assert "a value is NaN or infinite in block 1 (blocks.1), at its branch" in warning
    assert "overflow" not in warning


class Dropping(Net):
    """Values at the ends of its branches are dropped at random, which makes no difference while these are zero."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            nn.init.zeros_(block.map.weight)
            nn.init.zeros_(block.map.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + F.dropout(block.map(F.relu(x)), 0.5, self.training)
        return self.head(x)


@pytest.mark.parametrize("options", [{"init": "he-fan-in", "seeds": 1}, {"steps": 1, "lr": 30.0}])
def test_a_network_that_draws_at_random_once_it_has_other_weights_is_refused(options: dict) -> None:
    net = Dropping().double()
    assert pathlens.signal_propagation(net, batches(1)).rows
    with pytest.raises(NumericsError, match="draws at random in this mode"):
        pathlens.signal_propagation(net, batches(1), **options)
    assert pathlens.signal_propagation(net, batches(1), mode="eval", **options).rows


def test_steps_draw_from_a_generator_of_their_own() -> None:
    net = Dropping().double()
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        # so short a step that what is dropped makes no difference to speak of in the output
        tables.append(pathlens.signal_propagation(net, batches(1), steps=1, lr=1e-9))
    assert tables[0].rows == tables[1].rows
    branches = [row["second_moment"] for row in tables[0].rows if row["place"] == "branch"]
    assert all(0 < value < 1e-12 for value in branches)


def test_steps_are_by_the_first_targets_that_count() -> None:
    net, generator = Net().double(), torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (6, 5), generator=generator)
    targets[:3] = IGNORED
    targets[4] = IGNORED
    options = {"mode": "eval", "steps": 2, "lr": 0.5}
    found = pathlens.signal_propagation(net, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])], **options)
    counted = [(inputs[[3, 5]], targets[[3, 5]])]
    wanted, before = (pathlens.signal_propagation(net, counted, **use) for use in (options, {"mode": "eval"}))
    for name in ("second_moment", "gradient_second_moment"):
        values = [[row[name] for row in table.rows] for table in (found, wanted, before)]
        assert values[0] == pytest.approx(values[1], rel=1e-9)
        assert values[0] != pytest.approx(values[2], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"seeds": 0}, UsageError, "seeds 0: give at least 1"),
        ({"init": "he"}, UsageError, "unknown initialisation 'he': give one of he-fan-in"),
        ({"init": "as-built"}, UsageError, "as-built needs build="),
        ({"mode": "both"}, UsageError, "mode 'both' is unknown"),
        ({"given": False}, UsageError, "nothing to measure"),
        ({"steps": -1}, UsageError, "steps -1"),
    ],
)
def test_refused(options: dict, error: type[PathlensError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        pathlens.signal_propagation(Net().double(), batches(), **options)
    one_line(caught)


def test_a_scheme_that_does_not_fit_and_a_batch_of_one() -> None:
    with pytest.raises(ModelError, match=r"branch of block 0 .* ends in tanh"):
        pathlens.signal_propagation(Ends().double(), batches(), init="fixup")
    alone = [(torch.randn(1, 8, dtype=torch.float64), torch.zeros(1).long())]
    with pytest.raises(DataError, match="batch 0 has one example"):
        pathlens.signal_propagation(Net().double(), alone)
    pathlens.signal_propagation(Net().double(), alone, mode="eval")


def test_a_network_that_is_built_with_other_sizes() -> None:
    with pytest.raises(
        ModelError, match=r"as-built makes another network than Net from seed 4: .*size mismatch"
    ) as caught:
        pathlens.signal_propagation(Net(), batches(), init="as-built", seeds=1, seed=4, build=lambda seed: Net(width=8))
    one_line(caught)


# --- on the command line ---------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["signal-propagation", "-m", "preresnet20", "-w", "random", "-d", "digits", "--batch-size", "8", "-q"]
    out = tmp_path / "run"
    more = ["--limit", "8", "--seeds", "2", "--init", "as-built,stable", "--json", "--out", str(out)]
    assert main([*command, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["table"]) == 2 * (1 + 4 * 9)
    assert {row["weights"] for row in found["table"]} == {"as-built", "stable"}
    assert (out / "signal-propagation.pdf").exists()
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--out", str(page)]) == 0
    assert "Second moment of gradients" in page.read_text()
    capsys.readouterr()
    for wrong, words in (
        (["--limit", "9"], "leave a batch of one"),
        (["--seeds", "0"], "seeds 0"),
        (["--init", "he"], "unknown initialisation 'he'"),
    ):
        assert main([*command, *wrong]) in (2, 5)
        error = capsys.readouterr().err.strip()
        assert words in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize("verb", ["signal-propagation", "decompose"])
def test_trained_weights_of_other_classes_beside_the_network_as_built(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pathlens.load_model("preresnet20", "random", num_classes=12, in_channels=1).model
    weights = tmp_path / "trained.pt"
    torch.save(model.state_dict(), weights)
    command = [verb, "-m", "preresnet20", "-w", str(weights), "-d", "digits", "--limit", "4", "--batch-size", "4"]
    assert main([*command, "--init", "as-built", "--seeds", "1", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["weights"] for row in found["table"]} == {"trained.pt", "as-built"}


def test_a_smaller_last_batch_counts_by_its_examples() -> None:
    model = pathlens.load_model("preresnet20", "random").model.double()
    images = torch.randn(33, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(33) % 10
    parts = [(images[start : start + 16], labels[start : start + 16]) for start in (0, 16, 32)]
    tables = [pathlens.signal_propagation(model, data, mode="eval") for data in ([(images, labels)], parts)]
    for one, several in zip(*(table.rows for table in tables), strict=True):
        for name in ("second_moment", "gradient_second_moment"):
            assert one[name] == pytest.approx(several[name], rel=1e-9), (name, one["name"], one["place"])


def test_a_batch_without_targets_that_count_is_left_out() -> None:
    net, generator = Net().double(), torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 5, 8, generator=generator, dtype=torch.float64)  # sequences of five
    targets = torch.randint(4, (8, 5), generator=generator)
    targets[4:] = IGNORED
    pairs = [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])]
    for mode in ("train", "eval"):
        found, wanted = (pathlens.signal_propagation(net, data, mode=mode) for data in (pairs, pairs[:1]))
        assert found.rows == wanted.rows
        assert found.provenance["images_left_out"] == 4
    with pytest.raises(DataError, match="no target counts"):
        pathlens.signal_propagation(net, pairs[1:])
