"""Deleted blocks, deleted skips and other orders equal networks that were edited by hand."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pathlens import applied, deleted, find_blocks, plans, reordered, skips_deleted
from pathlens.errors import PathlensError, UsageError
from pathlens.plans import interchangeable
from tests.helpers.lesions_by_hand import ROWS, forward, intervened
from tests.helpers.nets_tokens import CASES, ODD, found, main_output

close = torch.testing.assert_close

BY_HAND = ["cifar", "preact", "norm_free", "highway", "post_norm", "shared", "parallel", "tuple_out", *ROWS]
MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@cache
def subject(name: str, training: bool):
    """A network in double precision, its state, and its view."""
    model = CASES[name].model().double().train(training)
    x = CASES[name].input(4).double()
    return model, copy.deepcopy(model.state_dict()), find_blocks(model, x), x


def compare(name: str, training: bool, **lesion) -> None:
    """Outputs, gradients and batch-norm statistics of the lesioned network equal those of the one made by hand."""
    model, state, view, x = subject(name, training)
    model.load_state_dict(state)
    model.zero_grad()
    by_hand = copy.deepcopy(model)
    wanted = main_output(forward(name, by_hand, x, **lesion))
    with intervened(view, **lesion):
        got = main_output(model(x))
    close(got, wanted, rtol=1e-9, atol=1e-11)
    weights = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view_as(got)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for (key, mine), theirs in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), key
        if mine.grad is not None:
            close(mine.grad, theirs.grad, rtol=1e-7, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")
    for (key, mine), theirs in zip(model.named_buffers(), by_hand.buffers(), strict=True):
        if name != "shared" or not key.endswith("num_batches_tracked"):
            close(mine, theirs, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key}: {text}")
    assert [m.training for m in model.modules()] == [training] * len(list(model.modules()))
    model.load_state_dict(state)
    close(main_output(model(x)), main_output(copy.deepcopy(model)(x)), rtol=0, atol=0)


@MODES
@pytest.mark.parametrize("name", BY_HAND)
def test_each_single_block_and_all_together(name, training):
    count = len(CASES[name].letters)
    for blocks in [[i] for i in range(count)] + [list(range(count))]:
        compare(name, training, no_branch=blocks)
        compare(name, training, no_skip=blocks)


@settings(max_examples=25)
@given(data=st.data(), name=st.sampled_from(BY_HAND), training=st.booleans())
def test_any_mixture_of_interventions(data, name, training):
    view = subject(name, training)[2]
    fates = data.draw(
        st.lists(st.sampled_from(["whole", "no_branch", "no_skip"]), min_size=len(view), max_size=len(view))
    )
    order = list(range(len(view)))
    for group in interchangeable(view):
        for place, block in zip(group, data.draw(st.permutations(group)), strict=True):
            order[place] = block
    # the runs of a batch norm that is used several times cannot be told apart in another order
    assume(not (name == "shared" and training and order != sorted(order)))
    compare(
        name,
        training,
        no_branch=[i for i, fate in enumerate(fates) if fate == "no_branch"],
        no_skip=[i for i, fate in enumerate(fates) if fate == "no_skip"],
        order=order,
    )


@MODES
def test_every_order_of_a_stage(training):
    for order in ([1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [1, 0, 2, 4, 3]):
        compare("cifar", training, order=order)


@pytest.mark.parametrize("name", ["encoder_post", "encoder_pre", "encoder_pre_frozen", "gpt", "windows"])
@torch.no_grad()
def test_deleted_blocks_of_transformers_equal_branches_with_zero_weights(name):
    model, view = found(name)
    x = CASES[name].input()

    def last_layers(net):
        if name == "windows":
            return [part for b in (net.one, net.two, net.three) for part in (b.attn.proj, b.mlp[2])]
        if name == "gpt":
            return [part for b in net.h for part in (b["attn"].proj, b["proj"])]
        return [part for b in net.encoder.layers for part in (b.self_attn.out_proj, b.linear2)]

    for blocks in ([0], [1], [2, 3], [0, 1, 2, 3]):
        twin = copy.deepcopy(model)
        for i in blocks:
            last_layers(twin)[i].requires_grad_(False).weight.zero_()
            last_layers(twin)[i].bias.zero_()
        with deleted(view, blocks):
            close(main_output(model(x)), main_output(twin(x)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_deleted_skips_of_a_transformer():
    model, view = found("windows")
    x = CASES["windows"].input()
    state = model.points(x)[2]
    merged = model.merge(state + model.two.attend(state) * 0 + model.two.mlp(model.two.norm2(state)) * 0)
    attention = model.three.attend(merged)
    wanted = attention + model.three.mlp(model.three.norm2(attention))
    with skips_deleted(view, 4), deleted(view, [2, 3]):
        close(model(x), wanted.mean((1, 2)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_other_kinds_of_additions():
    model, view = found("arithmetic")
    x, c = CASES["arithmetic"].input(), model.convs
    wanted = [
        lambda x: torch.tanh(c[0](x)) / 2,
        lambda x: -torch.relu(c[1](x)),
        lambda x: model.scale * torch.sigmoid(c[2](x)),
        lambda x: torch.tanh(c[3](x)),
        lambda x: -2 * torch.tanh(c[4](x)),
        lambda x: torch.nn.functional.gelu(c[5](x)),
        lambda x: -model.scale * torch.tanh(c[6](x)) / 2,
        lambda x: torch.tanh(c[7](x)),
    ]
    for i, branch in enumerate(wanted):
        close(view.without_shortcut(i, x), branch(x), rtol=1e-5, atol=1e-6)
        close(view.without_branch(i, x), x / 4 if i == 7 else x, rtol=1e-6, atol=1e-6)
    with skips_deleted(model, 7), deleted(model, range(7)):
        close(model(x), wanted[7](x), rtol=1e-5, atol=1e-6)


# a deleted branch is not computed


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_deleted_branch_costs_no_operation():
    model, view = found("cifar")
    x = CASES["cifar"].input()
    model(x)
    counts = []
    for blocks in ([], [0], [0, 2, 4], range(5)):
        with applied(view, plans.delete(blocks)):
            model(x)
            with Operations() as operations:
                model(x)
        counts.append((operations.seen["convolution"], operations.seen["native_batch_norm"]))
    assert counts == [(11, 11), (9, 9), (5, 5), (1, 1)]


@MODES
@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "shared"])
def test_parameters_of_a_deleted_branch_do_not_matter(name, training):
    model, state, view, x = subject(name, training)
    for block in view:
        model.load_state_dict(state)
        module = model.get_submodule(block.name)
        # what a hand-written block without its branch takes no gradient from, is of the branch alone
        model.zero_grad()
        main_output(forward(name, model, x, no_branch=[block.index])).sum().backward()
        for parameter in module.parameters():
            if parameter.grad is None:
                parameter.data.fill_(float("nan"))
        with deleted(view, block.index):
            assert main_output(model(x)).isfinite().all()
        assert all(value.isfinite().all() for _, value in model.named_buffers())
        assert not main_output(model(x)).isfinite().all()
    model.load_state_dict(state)


# results, modes and shapes


def test_results_keep_their_structure():
    model, view = found("gpt")
    x = CASES["gpt"].input()
    with deleted(view, [0, 1]):
        result = model(x)
    assert set(result) == {"logits", "hidden", "loss"}
    assert result["loss"] is None
    assert result["logits"].shape == (3, 6, 11)
    model, view = found("tuple_out")
    x = CASES["tuple_out"].input()
    with deleted(model, 0):
        logits, rest = model(x)
    close(rest["features"][1], model.blocks[1](model.stem(x)))
    close(logits, model.out(rest["features"][0]))


@torch.no_grad()
def test_modes_batch_and_image_sizes_may_change_inside():
    model = CASES["unet"].model()
    with deleted(model, 0):
        for shape in ((3, 3, 8, 8), (1, 3, 8, 8), (5, 3, 16, 12)):
            x = torch.randn(shape)
            twin = copy.deepcopy(model)
            twin.__dict__.pop("forward", None)
            twin.before = nn.Identity()
            close(model(x), twin(x), rtol=1e-5, atol=1e-5)
    model, state, _, x = subject("cifar", False)
    model.load_state_dict(state)
    with deleted(model, 3):
        for training in (True, False, True):
            model.train(training)
            twin = copy.deepcopy(CASES["cifar"].model().double())
            twin.load_state_dict(model.state_dict())
            twin.train(training)
            close(model(x), forward("cifar", twin, x, [3]), rtol=1e-9, atol=1e-9)
            close(dict(model.named_buffers()), dict(twin.named_buffers()), rtol=1e-9, atol=1e-9)
    model.eval().load_state_dict(state)


def test_training_goes_on_inside():
    model, state, view, x = subject("preact", True)
    model.load_state_dict(state)
    by_hand = copy.deepcopy(model)
    with deleted(view, [2]):
        mine = [step(model, model, x) for _ in range(3)]
    theirs = [step(by_hand, lambda x: forward("preact", by_hand, x, [2]), x) for _ in range(3)]
    close(mine, theirs, rtol=1e-8, atol=1e-10)
    close(dict(model.state_dict()), dict(by_hand.state_dict()), rtol=1e-8, atol=1e-10)
    model.load_state_dict(state)


def step(model, call, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    loss = call(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def test_negative_indices_and_nested_contexts_add_up():
    model, _, view, x = subject("cifar", False)
    with torch.no_grad():
        wanted = forward("cifar", model, x, [4, 0])
        with deleted(view, -1):
            with deleted(model, [0]):
                close(model(x), wanted)
            close(model(x), forward("cifar", model, x, [4]))
        with deleted(model, [0, -1]):
            close(model(x), wanted)
        with deleted(model, []):
            close(model(x), forward("cifar", model, x))
        with deleted(model, 0), deleted(model, 0):
            close(model(x), forward("cifar", model, x, [0]))


def test_the_view_still_runs_the_whole_network_inside():
    model, view = found("shake_shake")
    x = torch.randn(2, 3, 12, 12)  # of a size that was not traced before
    with torch.no_grad():
        wanted = model.points(x)
        with deleted(model, [0, 1]):
            close(model(x), wanted[0])
            close(view.stem(x), wanted[0])
            inside = find_blocks(model, x)
            assert len(inside) == 2
            close(inside.run(inside.stem(x)), wanted[2])
            close(model(x), wanted[0])


def test_a_part_of_a_larger_model():
    whole = nn.Sequential(nn.Conv2d(3, 3, 1), CASES["cifar"].model(), nn.Softmax(1)).eval()
    x = CASES["cifar"].input()
    with torch.no_grad(), deleted(whole[1], [1, 2]):
        close(whole(x), forward("cifar", whole[1], whole[0](x), [1, 2]).softmax(1))


# faults


def refused(context, x, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught, context:
        context_model(x)
    assert "\n" not in str(caught.value)


def context_model(x):
    return found("cifar")[0](x)


@pytest.mark.parametrize("by_view", [True, False])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda m: deleted(m, 5), "block 5 does not exist: the network has 5 blocks, numbered 0 to 4"),
        (lambda m: deleted(m, -6), "block -6 does not exist"),
        (lambda m: skips_deleted(m, [0, 9]), "block 9 does not exist"),
        (lambda m: deleted(m, [1, 1]), "named twice"),
        (lambda m: deleted(m, [1, -4]), "named twice"),
        (lambda m: deleted(m, ["1"]), "must be integers; found '1'"),
        (lambda m: deleted(m, 1.0), "must be integers|integer"),
        (lambda m: deleted(m, None), "integer"),
        (lambda m: deleted(m, True), "must be integers; found True"),
        (lambda m: reordered(m, [0, 1]), "an order of 2 blocks does not fit this network of 5 blocks"),
        (lambda m: reordered(m, [0, 0, 1, 2, 3]), "each block from 0 to 4 once"),
        (lambda m: reordered(m, [2, 1, 0, 3, 4]), "cannot run in the place of block"),
        (lambda m: reordered(m, [0, 1, 3, 2, 4]), "cannot run in the place of block"),
        (lambda m: reordered(m, ["a"]), "integer"),
        (lambda m: reordered(m, 3), "order"),
        (lambda m: reordered(m, [0.5, 1, 2, 3, 4]), "integer"),
    ],
)
def test_plans_that_do_not_fit(make, match, by_view):
    model, view = found("cifar")
    with pytest.raises(UsageError, match=match) as caught, make(view if by_view else model):
        model(CASES["cifar"].input())
    assert "\n" not in str(caught.value)
    assert "forward" not in model.__dict__


def test_a_block_cannot_lose_both_branch_and_shortcut():
    model, view = found("cifar")
    x = CASES["cifar"].input()
    with deleted(view, 2), skips_deleted(view, [1, 2]), pytest.raises(UsageError, match="block 2 would lose both"):
        model(x)
    assert model(x).shape == (3, 10)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((None,), {}),
        (([1.0],), {}),
        ((torch.zeros(2, 3, 16, 16),) * 2, {}),
        ((), {"x": torch.zeros(2, 3, 16, 16)}),
    ],
)
def test_anything_but_one_tensor(args, kwargs):
    model = found("cifar")[0]
    with deleted(model, 0), pytest.raises(UsageError, match="exactly one tensor"):
        model(*args, **kwargs)


def test_networks_that_cannot_be_lesioned():
    x = ODD["scaled_pair"].input()
    for name in ("scaled_pair", "control_flow"):
        model = ODD[name].model()
        with pytest.raises(PathlensError) as caught, deleted(model, 0):
            model(x)
        assert "\n" not in str(caught.value)
        assert "forward" not in model.__dict__
    with pytest.raises(UsageError, match="found function"), deleted(refused, 0):
        pass
