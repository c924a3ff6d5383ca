"""Many answers an example: counted by hand, and tests and intervals by scipy's where the examples are equally long."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pathlens.errors import DataError, ModelError, NumericsError, UsageError
from pathlens.metrics import UnitCounts, task_for, task_named, wilson_interval
from pathlens.metrics import units as counting
from pathlens.metrics.tasks import CLASSIFICATION, NEXT_TOKEN, SEGMENTATION
from pathlens.metrics.units import IGNORED


def drawn(examples: int, length: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(examples, length, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (examples, length), generator=generator)


def of(task, networks, targets):
    """The counts of each network, and its comparison with the first."""
    values, answers = zip(*(task.answers(logits, targets) for logits in networks), strict=True)
    rows = torch.cat([torch.stack(values), task.compare(torch.stack(answers))], dim=1)
    return [task.measured(row) for row in rows.tolist()]


def by_hand(logits: torch.Tensor, targets: torch.Tensor) -> tuple[list[list[bool]], list[float]]:
    """Whether each token that counts is right, by example, and the losses of all of them."""
    right, losses = [], []
    for example, wanted in zip(logits.tolist(), targets.tolist(), strict=True):
        right.append([])
        for scores, target in zip(example, wanted, strict=True):
            if target == IGNORED:
                continue
            right[-1].append(scores.index(max(scores)) == target)
            losses.append(math.log(sum(map(math.exp, scores))) - scores[target])
    return right, losses


@pytest.mark.parametrize("chunk", [10, 2**22])
def test_counts_are_those_of_a_loop(chunk, monkeypatch):
    monkeypatch.setattr(counting, "CHUNK", chunk)
    logits, targets = drawn(6, 5, 3, 0)
    targets[0, 1:4] = IGNORED
    targets[3, 0] = IGNORED
    (counts, _), (_, pairs) = of(NEXT_TOKEN, [logits, changed := logits.flip(0)], targets)
    right, losses = by_hand(logits, targets)
    other, _ = by_hand(changed, targets)
    sizes = np.array([len(row) for row in right])
    wrong = np.array([row.count(False) for row in right])
    assert counts == UnitCounts(
        6, sizes.sum(), sum(map(sum, right)), pytest.approx(math.fsum(losses), rel=1e-12), 0,
        (wrong**2).sum(), (wrong * sizes).sum(), (sizes**2).sum(), 6,
    )  # fmt: skip
    assert counts.loss == pytest.approx(np.mean(losses), rel=1e-12)
    lost = [sum(a and not b for a, b in zip(*rows, strict=True)) for rows in zip(right, other, strict=True)]
    gained = [sum(b and not a for a, b in zip(*rows, strict=True)) for rows in zip(right, other, strict=True)]
    change = np.subtract(lost, gained)
    assert (pairs.lost, pairs.gained) == (sum(lost), sum(gained))
    assert (pairs.squares, pairs.products) == ((change**2).sum(), (change * sizes).sum())
    # the variance of a ratio, from its residuals
    ratio = change.sum() / sizes.sum()
    deviation = math.sqrt(((change - ratio * sizes) ** 2).sum() * 6 / 5) / sizes.sum()
    assert pairs.difference == ratio
    assert pairs.p == pytest.approx(2 * stats.t.sf(abs(ratio) / deviation, 5), rel=1e-9)
    assert pairs.interval == pytest.approx(stats.t.interval(0.95, 5, ratio, deviation), rel=1e-9)


def test_examples_of_which_nothing_counts_are_no_samples():
    """Intervals and tests are those of the others alone; n is of all."""
    logits, targets = drawn(12, 30, 4, 9)
    other = logits.flip(0)
    targets[3:] = IGNORED
    found, alone = (of(NEXT_TOKEN, [x, y], z) for x, y, z in (
        (logits, other, targets), (logits[:3], other[:3], targets[:3])
    ))  # fmt: skip
    for (counts, pairs), (own, own_pairs) in zip(found, alone, strict=True):
        assert {**counts.columns(), "n": 3} == own.columns()
        assert (counts.n, counts.judged) == (12, 3)
        assert (pairs.p, pairs.interval) == (own_pairs.p, own_pairs.interval)
    targets[1:] = IGNORED
    (_, _), (_, single) = of(NEXT_TOKEN, [logits, other], targets)
    assert (single.p, single.interval) == (1.0, (None, None))
    targets[1] = targets[0]
    right = torch.nn.functional.one_hot(targets.clamp(0), 4).double()
    ((counts, _),) = of(NEXT_TOKEN, [right], targets)
    assert counts.columns()["error_high"] == wilson_interval(0, 2)[1]


def test_examples_of_one_length_are_samples_of_a_t_test():
    logits, targets = drawn(40, 12, 4, 1)
    better = logits + 2 * torch.nn.functional.one_hot(targets, 4)
    (_, _), (counts, pairs) = of(NEXT_TOKEN, [better, logits], targets)
    errors, intact = ((own.argmax(-1) != targets).double().mean(1) for own in (logits, better))
    test = stats.ttest_rel(errors, intact)
    assert pairs.p == pytest.approx(test.pvalue, rel=1e-9)
    low, high = test.confidence_interval()
    assert pairs.interval == pytest.approx((low, high), rel=1e-9)
    low, high = stats.ttest_1samp(errors, 0).confidence_interval()
    assert [counts.columns()[f"error_{end}"] for end in ("low", "high")] == pytest.approx([low, high], rel=1e-9)


def test_batches_add_up():
    logits, targets = drawn(7, 4, 5, 2)
    networks = [logits, logits.roll(1, 0)]
    whole = of(NEXT_TOKEN, networks, targets)
    parts = [of(NEXT_TOKEN, [own[at] for own in networks], targets[at]) for at in (slice(0, 3), slice(3, 7))]
    for one, other, both in zip(*parts, whole, strict=True):
        assert vars(one[0] + other[0]) == pytest.approx(vars(both[0]), rel=1e-12)
        assert one[1] + other[1] == both[1]


def test_pixels_have_their_classes_second():
    logits, targets = drawn(3, 6, 4, 3)
    images = logits.reshape(3, 2, 3, 4).movedim(-1, 1)
    masks = targets.reshape(3, 2, 3)
    counts = of(SEGMENTATION, [images], masks)[0][0]
    same = vars(of(NEXT_TOKEN, [logits], targets)[0][0])
    assert {name: vars(counts)[name] for name in same} == pytest.approx(same, rel=1e-12)
    torch.testing.assert_close(SEGMENTATION.losses(images, masks), NEXT_TOKEN.losses(logits, targets))


def test_losses_are_means_over_what_counts():
    logits, targets = drawn(4, 5, 3, 4)
    targets[1, :3] = IGNORED
    targets[2] = IGNORED  # nothing is asked of it
    losses = NEXT_TOKEN.losses(logits, targets)
    for example in (0, 1, 3):
        _, own = by_hand(logits[example : example + 1], targets[example : example + 1])
        assert losses[example].item() == pytest.approx(np.mean(own), rel=1e-12)
    assert losses[2] == 0


def test_a_network_that_overflows_is_wrong_everywhere_in_that_example():
    logits, targets = drawn(3, 4, 3, 5)
    logits[1, 2, 0] = math.inf
    ((counts, _),) = of(NEXT_TOKEN, [logits], targets)
    right, _ = by_hand(logits[[0, 2]], targets[[0, 2]])
    assert (counts.nonfinite, counts.correct) == (1, sum(map(sum, right)))
    assert counts.columns()["loss"] is None
    with pytest.raises(NumericsError, match="the network gives NaN or infinity for 1 of 3 examples"):
        counts.require_finite("the network")


def test_what_tells_no_spread():
    logits, targets = drawn(1, 4, 3, 6)
    ((counts, pairs),) = of(NEXT_TOKEN, [logits], targets)
    assert counts.columns()["error_low"] is None
    assert (pairs.p, pairs.interval) == (1.0, (None, None))
    logits, targets = torch.zeros(4, 3, 2), torch.zeros(4, 3, dtype=torch.long)
    worse = logits.clone()
    worse[..., 1] = 1  # wrong everywhere, where the first is right everywhere
    (_, same), (_, pairs) = of(NEXT_TOKEN, [logits, worse], targets)
    # no example of four changes, and all change alike: neither makes sure of others
    assert same.p == 1
    assert same.interval == pytest.approx((-wilson_interval(0, 4)[1], wilson_interval(0, 4)[1]))
    assert (pairs.difference, pairs.interval, pairs.p) == (1.0, (None, None), stats.binomtest(4, 4).pvalue)
    ((right, _), (wrong, _)) = of(NEXT_TOKEN, [logits, worse], targets)
    for counts, k in ((right, 0), (wrong, 4)):
        found = counts.columns()
        assert (found["error_low"], found["error_high"]) == wilson_interval(k, 4)


def test_what_does_not_fit_is_refused():
    logits, targets = drawn(2, 3, 4, 7)
    with pytest.raises(ModelError, match=r"shape \(2, 3\), and the task next-token wants logits \[batch, tok"):
        NEXT_TOKEN.answers(logits[..., 0], targets)
    with pytest.raises(DataError, match=r"targets of the sequences are torch.int64 of shape \(2,\)"):
        NEXT_TOKEN.losses(logits, targets[:, 0])
    with pytest.raises(DataError, match=r"1 of 6 targets are outside the 4 classes.*tokenizer"):
        NEXT_TOKEN.losses(logits, torch.tensor([[0, 1, 2], [3, 4, 0]]))
    with pytest.raises(DataError, match=r"1 of 6 tokens have a target outside.*tokenizer"):
        of(NEXT_TOKEN, [logits], torch.tensor([[0, 1, 2], [3, 4, 0]]))
    with pytest.raises(ModelError, match=r"one label for each sequence.*not logits \[batch, classes\]; give a network"):
        NEXT_TOKEN.check_targets(targets[:, 0], 2)
    with pytest.raises(DataError, match="2 sequences have targets of shape"):
        NEXT_TOKEN.check_targets(targets[:1], 2)
    with pytest.raises(NumericsError, match="no targets were counted"):
        _ = of(NEXT_TOKEN, [logits], torch.full((2, 3), IGNORED))[0][0].error
    with pytest.raises(NumericsError, match="no targets were counted"):
        _ = of(NEXT_TOKEN, [logits, logits], torch.full((2, 3), IGNORED))[1][1].p
    with pytest.raises(UsageError, match="task 'words' is unknown; there are classification, next-token, segmentation"):
        task_named("words")
    with pytest.raises(ModelError, match="not logits"):
        task_for((2, 3, 4, 5, 6))


def test_the_task_fits_the_outputs():
    assert [task_for(shape) for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5))] == [
        CLASSIFICATION, NEXT_TOKEN, SEGMENTATION,
    ]  # fmt: skip
