"""Gradients by path length against the enumeration of all paths by autograd, which is written independently."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.models import load_model
from pathlens.residual import find_blocks, scaled
from pathlens.residual.gradients import Linearisation
from pathlens.residual.losses import cross_entropy
from pathlens.residual.vjp import BatchedVJP, SequentialVJP
from tests.helpers.gradient_cases import LABELS, assert_lengths_equal, linearised, oracle, ordinary, prepared
from tests.helpers.nets_tokens import CASES
from tests.helpers.path_oracle import (
    KINDS,
    NETS,
    Block,
    Net,
    Path,
    Post,
    Pre,
    Viewed,
    by_length,
    drawn,
    enumerated,
    every_path,
    images,
    through_path,
)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("at", ["input", "stem", "block:1"])
def test_every_length_is_the_sum_over_its_paths(name, at):
    net, view = prepared(name)
    blocks = len(net.blocks)
    assert len(view) == blocks
    if blocks == 1 and at == "block:1":
        return
    boundary = {"input": -1, "stem": 0, "block:1": 1}[at]
    linear = linearised(name, at=at)
    assert linear.boundary == boundary
    assert linear.blocks == range(max(0, boundary), blocks)
    profile = linear.exact()
    assert (profile.boundary, profile.lengths) == (boundary, range(blocks - max(0, boundary) + 1))
    expected = by_length(oracle(name, boundary))
    assert_lengths_equal(profile.gradients, expected)
    torch.testing.assert_close(profile.total(), linear.reference, rtol=1e-12, atol=1e-14)
    if boundary < 0:
        torch.testing.assert_close(linear.reference, ordinary(net, images()), rtol=1e-12, atol=1e-14)
    norms = torch.stack([torch.stack([g.norm() for g in row]) for row in expected])
    torch.testing.assert_close(profile.norms(), norms, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_every_block_on_the_way(name):
    """The lattice: profiles at all boundaries are what a linearisation at that boundary alone gives."""
    _, view = prepared(name)
    profiles = list(linearised(name).profiles())
    assert [profile.boundary for profile in profiles] == list(range(len(view), -2, -1))
    assert [len(profile.lengths) for profile in profiles[:-1]] == list(range(1, len(view) + 2))
    for profile in profiles[1:-1]:
        assert_lengths_equal(profile.gradients, by_length(oracle(name, profile.boundary)))
    seed = by_length({(): through_path(prepared(name)[0], images(), LABELS, (), cross_entropy, len(view))})
    assert_lengths_equal(profiles[0].gradients, seed)


@pytest.mark.parametrize("name", NETS)
def test_single_paths(name):
    _, view = prepared(name)
    expected = oracle(name)
    paths = list(expected)
    found = linearised(name).along(paths)
    assert found.shape == (2 ** len(view), *images().shape)
    assert_lengths_equal(found, torch.stack(list(expected.values())))
    assert_lengths_equal(linearised(name).along([paths[-1], paths[0]]), found[[-1, 0]], 1e-12)
    later = [path for path in paths if 0 not in path] if len(view) > 1 else []
    if later:
        expected = oracle(name, 1)
        assert_lengths_equal(linearised(name, at=1).along(later), torch.stack([expected[path] for path in later]))


@pytest.mark.parametrize("name", ["post-activation", "projection", "pre-activation", "minus"])
def test_stacks_are_used_for_convolutions_and_change_nothing(name):
    fast, slow = linearised(name), linearised(name, stacked=False)
    kinds = {type(parts.branch) for parts in fast._blocks.values()}
    assert kinds == {BatchedVJP}
    assert {type(parts.branch) for parts in slow._blocks.values()} == {SequentialVJP}
    assert_lengths_equal(fast.exact().gradients, slow.exact().gradients, 1e-12)
    assert_lengths_equal(fast.along([(0,), (0, 2)]), slow.along([(0,), (0, 2)]), 1e-12)


@pytest.mark.parametrize("chunk", [1, 200, 1000])
@pytest.mark.parametrize("name", ["post-activation", "pre-activation", "norm first", "all sorts"])
def test_chunks_change_nothing(monkeypatch, name, chunk):
    whole, paths = linearised(name).exact(), every_path(range(3))
    signs = torch.tensor([[-1.0, 1.0]] * 6)
    alone, flipped = linearised(name).along(paths), linearised(name).exact(signs=signs)
    for limit in ("_CHUNK", "_DEEP"):
        monkeypatch.setattr(scaled, limit, chunk)
    assert linearised(name)._at_once < len(paths)
    assert_lengths_equal(linearised(name).exact().gradients, whole.gradients, 1e-12)
    assert_lengths_equal(linearised(name).along(paths), alone, 1e-12)
    assert_lengths_equal(linearised(name).exact(signs=signs).gradients, flipped.gradients, 1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_largest_value_of_a_row_is_that_of_its_infinity_norm(layout):
    rows = torch.randn(3 * 4, 5, 6, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    rows = rows.unflatten(0, (3, 4))
    rows[1, 2, 3, 4, 5] = -9.0
    expected = torch.linalg.vector_norm(rows.flatten(1), torch.inf, dim=1)
    assert torch.equal(scaled._largest(rows), expected)
    assert torch.equal(scaled._largest(rows[:, 0, 0, 0]), rows[:, 0, 0, 0].abs().amax(1))
    rows[2, 0, 0, 0, 0] = torch.nan
    assert scaled._largest(rows).isnan().tolist() == [False, False, True]


STRANGERS = (
    "arithmetic", "norm_free", "repvgg", "shake_shake", "shake_shake_stages", "unet", "edsr", "shared", "mobile",
    "inplace", "denoiser", "encoder_post", "parallel", "gpt", "folded_windows", "tuple_out",
)  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_networks_of_strangers(name):
    case = CASES[name]
    model, x = case.model().double(), case.input(2)
    x = x if case.vocabulary else x.double()

    def loss(out: Tensor, _: Tensor) -> Tensor:
        flat = out.flatten(1)
        return flat.sin().sum(1) + flat.square().sum(1) / 2

    view = find_blocks(model, x)
    boundary = {"gpt": 0, "arithmetic": 2}.get(name, -1)  # tokens have no gradient, and 8 blocks many paths
    linear = Linearisation(view, x, LABELS, loss=loss, at="input" if boundary < 0 else boundary)
    expected = by_length(enumerated(Viewed(view), x, LABELS, loss, boundary))
    assert len(expected) == len(case.kinds) - max(0, boundary) + 1
    profile = linear.exact()
    assert_lengths_equal(profile.gradients, expected)
    torch.testing.assert_close(profile.total(), linear.reference, rtol=1e-10, atol=1e-12)


@st.composite
def small_nets(draw: st.DrawFn) -> Net:
    """Blocks of random kinds, in one or two widths."""
    narrow = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
    wide = draw(st.lists(st.sampled_from(KINDS), max_size=2))
    blocks = [kind(3) for kind in narrow]
    if wide:
        widen = draw(st.sampled_from([lambda: Post(3, 4, 2), lambda: Post(3, 5, padded=True), lambda: Pre(3, 4)]))
        blocks.append(widen())
        width = 5 if isinstance(blocks[-1], Post) and blocks[-1].padded else 4
        blocks += [kind(width) for kind in wide]
        return Net(blocks, 3, last=width)
    return Net(blocks, 3)


@settings(max_examples=6)
@given(small_nets(), st.integers(0, 2**16), st.data())
def test_any_network_place_and_length(net, seed, data):
    net, x = drawn(net, seed), images(2, 5, seed=seed)
    view = find_blocks(net, x)
    blocks = len(net.blocks)
    assert len(view) == blocks
    at = data.draw(st.sampled_from(["input", "stem", *(f"block:{i}" for i in range(blocks))]))
    linear = Linearisation(view, x, LABELS, at=at)
    paths = enumerated(net, x, LABELS, cross_entropy, linear.boundary)
    expected = by_length(paths)
    assert_lengths_equal(linear.exact().gradients, expected)
    longest = data.draw(st.integers(0, blocks + 1))
    assert_lengths_equal(linear.exact(max_length=longest).gradients, expected[: longest + 1])
    some = data.draw(st.lists(st.sampled_from(list(paths)), min_size=1, max_size=5))
    assert_lengths_equal(linear.along(some), torch.stack([paths[path] for path in some]))


@pytest.mark.parametrize("name", ["post-activation", "norm after"])
def test_longest_length_is_exact_for_those_kept(name):
    expected = by_length(oracle(name))
    for longest in range(7):
        profile = linearised(name).exact(max_length=longest)
        assert profile.lengths == range(min(longest, 4) + 1)
        assert_lengths_equal(profile.gradients, expected[: longest + 1])
    for profile in linearised(name).profiles(max_length=2):
        assert len(profile.lengths) <= 3


def test_tolerance_leaves_out_what_it_says():
    net, x = drawn(Net([Post(4, 4) for _ in range(8)])), images()
    view = find_blocks(net, x)
    linear = Linearisation(view, x, LABELS)
    whole = linear.exact()
    dropped = []
    for tolerance in (1e-3, 1e-2, 0.1, 0.5):
        trimmed = Linearisation(view, x, LABELS).exact(tolerance=tolerance)
        rest = float((trimmed.total() - linear.reference).norm() / linear.reference.norm())
        assert 0 < rest < 2 * tolerance
        kept = whole.gradients[trimmed.lengths.start : trimmed.lengths.stop]
        bound = 2 * tolerance * float(whole.norms().max())
        assert float((trimmed.gradients - kept).flatten(2).norm(dim=2).max()) <= bound
        dropped.append(9 - len(trimmed.lengths))
    assert 0 < dropped[0] < dropped[1] < dropped[2] < dropped[3]  # the wider the tolerance, the more is left out
    assert Linearisation(view, x, LABELS).exact(tolerance=1e-300).lengths == range(9)


def test_tolerance_where_short_paths_vanish():
    """Gates that are almost shut let nothing through a shortcut, so the shortest paths go first."""
    net = drawn(NETS["gated"]())
    for block in net.blocks:
        nn.init.constant_(block.t.bias, 12.0)
    view = find_blocks(net, images())
    profile = Linearisation(view, images(), LABELS).exact(tolerance=1e-4)
    assert profile.first > 0
    assert profile.lengths.stop == 4
    reference = Linearisation(view, images(), LABELS).reference
    torch.testing.assert_close(profile.total(), reference, rtol=0, atol=1e-3 * float(reference.abs().max()))


def test_gradient_that_is_zero_everywhere():
    net = drawn(NETS["minus"]())
    nn.init.zeros_(net.first.weight)
    view = find_blocks(net, images())
    profile = Linearisation(view, images(), LABELS).exact(tolerance=0.01)
    assert len(profile.lengths) > 0
    assert not profile.gradients.any()


class Damped(Block):
    """Shortcut and branch times a number each."""

    def __init__(self, kept: float, branch: float) -> None:
        super().__init__()
        self.a, self.b, self.kept, self.factor = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), kept, branch

    def shortcut(self, t: Tensor) -> Tensor:
        return t * self.kept

    def branch(self, t: Tensor) -> Tensor:
        return self.b(F.silu(self.a(t))) * self.factor


@pytest.mark.parametrize(
    ("kept", "branch"),
    [
        ([1.0] * 12, 1e-5),  # long paths are too small for float32
        ([1e-5] * 12, 1e-5),  # so are all paths
        ([0.0] * 12, 1e-5),  # only the longest path is not zero
        ([1e-5] * 11 + [0.0], 1e-5),  # the shortest path is zero, and lends no scale to the others
        ([1e-5] * 12, 1.0),  # short paths are small and long ones are not
    ],
)
def test_norms_beyond_the_range_of_single_precision(kept, branch):
    net, x = drawn(Net([Damped(factor, branch) for factor in kept], 2)), images(2, 4)
    double = Linearisation(find_blocks(net, x), x, LABELS)
    net, x = copy.deepcopy(net).float(), x.float()
    single = Linearisation(find_blocks(net, x), x, LABELS)
    for one, other in zip(single.profiles(), double.profiles(), strict=True):
        norms, expected = one.norms(), other.norms()
        torch.testing.assert_close(norms, expected, rtol=1e-4, atol=0)
    assert float(expected[expected > 0].min()) < 2.0**-149
    paths = [(), range(12), range(0, 12, 3)]
    torch.testing.assert_close(single.through(paths).norms(), double.through(paths).norms(), rtol=1e-4, atol=0)


def all_signs(blocks: int) -> Tensor:
    """One column for each of the 2^n sign vectors."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=blocks))).T


@pytest.mark.parametrize("name", [name for name in NETS if name != "all sorts"])
@pytest.mark.parametrize("boundary", [-1, 1])
def test_mean_over_all_signs_is_the_second_moment(name, boundary):
    net, view = prepared(name)
    blocks = len(view)
    if boundary >= blocks:
        return
    signs = all_signs(blocks)
    draws = signs.shape[1]
    x, labels = images(1).expand(draws, -1, -1, -1), LABELS[:1].expand(draws)
    at = "input" if boundary < 0 else boundary
    squares = Linearisation(view, x, labels, at=at).exact(signs=signs).norms().square().mean(1)
    paths = enumerated(net, images(1), LABELS[:1], cross_entropy, boundary)
    for length, square in enumerate(squares):
        expected = sum(float(gradient.square().sum()) for path, gradient in paths.items() if len(path) == length)
        assert float(square) == pytest.approx(expected, rel=1e-10)


def test_random_signs_are_unbiased_within_their_standard_error():
    net, view = prepared("pre-activation")
    paths = enumerated(net, images(1), LABELS[:1], cross_entropy)
    truth = torch.tensor(
        [sum(float(g.square().sum()) for p, g in paths.items() if len(p) == k) for k in range(5)], dtype=torch.float64
    )
    scores = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        draws = 40
        signs = torch.randint(0, 2, (4, draws), generator=generator) * 2.0 - 1
        x = images(1).expand(draws, -1, -1, -1)
        squares = Linearisation(view, x, LABELS[:1].expand(draws)).exact(signs=signs).norms().square()
        error = squares.std(1) / math.sqrt(draws)
        scores.append(((squares.mean(1) - truth) / error)[1:-1])  # a single path has no error
        torch.testing.assert_close(squares[[0, -1]], truth[[0, -1], None].expand(-1, draws), rtol=1e-10, atol=0)
    scores = torch.stack(scores)
    assert scores.abs().max() < 5
    assert (scores.mean(0).abs() < 4 / math.sqrt(12)).all()  # unbiased
    assert 0.5 < float(scores.std()) < 2  # and the standard error is what it says


def test_signs_of_one_example_do_not_touch_another():
    signs = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]])
    plain, signed = linearised("post-activation").exact(), linearised("post-activation").exact(signs=signs)
    torch.testing.assert_close(signed.gradients[:, 1], plain.gradients[:, 1], rtol=1e-12, atol=1e-15)
    paths = oracle("post-activation")
    for length in range(5):
        expected = sum(
            math.prod(float(signs[block, 0]) for block in path) * gradient[0]
            for path, gradient in paths.items()
            if len(path) == length
        )
        torch.testing.assert_close(signed.gradients[length, 0], expected, rtol=1e-10, atol=1e-13)


TRAINED = ["post-activation", "projection", "pre-activation", "all sorts", "norm after"]


@pytest.mark.parametrize(("name", "stacked"), [*((name, True) for name in TRAINED), ("pre-activation", False)])
def test_train_mode_uses_the_statistics_of_the_batch(name, stacked):
    net = drawn(NETS[name]())
    if name == "all sorts":
        net.blocks = net.blocks[1:5]
    x = images(4)
    labels = torch.tensor([0, 1, 2, 1])
    view = find_blocks(net, x)
    in_eval = Linearisation(view, x, labels).exact()
    net.train()
    before = copy.deepcopy(net.state_dict())
    linear = Linearisation(view, x, labels, stacked=stacked)
    profile = linear.exact()
    paths = enumerated(copy.deepcopy(net), x, labels, cross_entropy)
    assert_lengths_equal(profile.gradients, by_length(paths))
    some = list(paths)[::3]
    assert_lengths_equal(linear.along(some), torch.stack([paths[path] for path in some]))
    torch.testing.assert_close(profile.total(), ordinary(net, x, labels), rtol=1e-10, atol=1e-13)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training
    if name != "norm after":  # the only one without batch norm
        assert (profile.gradients - in_eval.gradients).abs().max() > 1e-4


def test_train_mode_second_moment_needs_one_sign_for_all_examples():
    net = drawn(NETS["projection"]()).train()
    x = images(3)
    labels = torch.tensor([0, 1, 2])
    linear = Linearisation(find_blocks(net, x), x, labels)
    squares = [linear.exact(signs=column[:, None].expand(3, 3)).norms().square() for column in all_signs(3).T]
    paths = enumerated(copy.deepcopy(net), x, labels, cross_entropy)
    for length in range(4):
        expected = sum(g.flatten(1).square().sum(1) for p, g in paths.items() if len(p) == length)
        torch.testing.assert_close(torch.stack(squares).mean(0)[length], expected, rtol=1e-10, atol=0)


def cifar_parts(state: dict[str, Tensor], x: Tensor, taken: Tensor | None) -> Tensor:
    """ResNet-20 of He et al. 2016, section 4.2, from its state dict; ``taken`` (9, N): the path of each example."""

    def norm(y: Tensor, name: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(y, *(state[f"{name}.{key}"] for key in keys))

    x = F.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1"))
    for block in range(9):
        name = f"layer{block // 3 + 1}.{block % 3}"
        grows = block in (3, 6)
        kept = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2)) if grows else x
        y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=2 if grows else 1, padding=1)
        y = F.conv2d(F.relu(norm(y, f"{name}.bn1")), state[f"{name}.conv2.weight"], padding=1)
        y = norm(y, f"{name}.bn2")
        if taken is not None:
            mask = taken[block].reshape(-1, 1, 1, 1)
            y, kept = torch.where(mask, y, y.detach()), torch.where(mask, kept.detach(), kept)
        x = F.relu(kept + y)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


@pytest.fixture(scope="module")
def resnet20(shared_models):
    file = shared_models / "pytorch_resnet_cifar10" / "resnet20-12fca82f.th"
    model = load_model("resnet20", file).model.double()
    x = F.interpolate(torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=12, mode="bilinear")
    x, labels = x.double(), torch.tensor([3])
    paths = every_path(range(9))
    state = model.state_dict()
    found: dict[Path, Tensor] = {}
    for first in range(0, len(paths), 64):
        some = paths[first : first + 64]
        taken = torch.tensor([[block in path for path in some] for block in range(9)])
        many = x.repeat(len(some), 1, 1, 1).requires_grad_()
        loss = F.cross_entropy(cifar_parts(state, many, taken), labels.repeat(len(some)), reduction="sum")
        (grad,) = torch.autograd.grad(loss, many)
        found.update(zip(some, grad.unsqueeze(1), strict=True))
    return model, x, labels, found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_all_512_paths_of_a_trained_network(resnet20, dtype, tolerance):
    model, x, labels, found = resnet20
    model = copy.deepcopy(model).to(dtype)
    x = x.to(dtype)
    torch.testing.assert_close(model(x), cifar_parts(model.state_dict(), x, None), rtol=1e-3, atol=1e-3)
    linear = Linearisation(find_blocks(model, x), x, labels)
    profile = linear.exact()
    expected = by_length(found)
    assert len(found) == 512
    assert_lengths_equal(profile.gradients, expected, tolerance)
    scale = float(expected.norm())
    assert float((profile.gradients.double() - expected).norm()) <= scale * (1e-12 if dtype is torch.float64 else 4e-6)
    paths = list(found)[::5]
    assert_lengths_equal(linear.along(paths), torch.stack([found[path] for path in paths]), tolerance)
    whole = ordinary(model, x, labels)
    assert float((profile.total() - whole).norm() / whole.norm()) <= (1e-12 if dtype is torch.float64 else 1e-5)


def test_second_moment_of_a_trained_network(resnet20):
    model, x, labels, found = resnet20
    model, draws = copy.deepcopy(model).float(), 40
    signs = torch.randint(0, 2, (9, draws), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    linear = Linearisation(find_blocks(model, x.float()), x.float().repeat(draws, 1, 1, 1), labels.repeat(draws))
    squares = linear.exact(signs=signs).norms().square()
    for length, drawn_squares in enumerate(squares):
        truth = sum(float(g.square().sum()) for p, g in found.items() if len(p) == length)
        error = float(drawn_squares.std()) / math.sqrt(draws)
        assert abs(float(drawn_squares.mean()) - truth) <= 4 * error + 1e-3 * truth
