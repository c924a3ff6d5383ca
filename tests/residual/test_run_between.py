"""Running any range of blocks equals the model's own forward pass, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from pathlens import find_blocks
from pathlens.errors import PathlensError, UsageError
from tests.helpers import nets
from tests.helpers.nets_tokens import CASES, ODD, found, main_output

close = torch.testing.assert_close


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_whole_network_at_other_batch_sizes(name):
    model, view = found(name)
    for batch in (1, 2, 7):
        x = CASES[name].input(batch, seed=batch)
        close(view.head(view.run(view.stem(x))), main_output(model(x)), rtol=1e-5, atol=1e-5)


@settings(max_examples=50)
@given(data=st.data(), name=st.sampled_from(sorted(CASES)), batch=st.sampled_from([1, 2, 7]))
def test_any_range_equals_the_hand_written_forward_pass(data, name, batch):
    model, view = found(name)
    start = data.draw(st.integers(0, len(view)))
    stop = data.draw(st.integers(start, len(view)))
    with torch.no_grad():
        points = model.points(CASES[name].input(batch, seed=start + 10 * stop))
        given_copy = points[start].clone()
        close(view.run(points[start], start, stop), points[stop], rtol=1e-5, atol=1e-5)
        # what was given is not written into, in-place networks or not
        close(points[start], given_copy, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_branch_shortcut_and_post_compose_to_the_block(name):
    model, view = found(name)
    points = model.points(CASES[name].input())
    for block, before, after in zip(view, points, points[1:], strict=False):
        i = block.index
        t = view.transition(i, before)
        assert tuple(t.shape[1:]) == block.in_shape
        branch, shortcut = view.branch(i, t), view.shortcut(i, t)
        close(view.post(i, shortcut + branch), after, rtol=1e-5, atol=1e-5)
        if block.kind == "identity":
            close(shortcut, t, rtol=0, atol=0)
        if block.kind != "gated":
            close(view.without_branch(i, before), view.post(i, shortcut), rtol=1e-6, atol=1e-6)
        close(view.without_shortcut(i, before), view.post(i, branch), rtol=1e-6, atol=1e-6)


def everything(model: nn.Module) -> tuple[list[bool], dict[str, torch.Tensor]]:
    return [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", ["cifar", "preact", "post_norm", "shared", "mobile", "norm_free"])
@torch.no_grad()
def test_train_mode_uses_batch_statistics_and_keeps_the_running_ones(name):
    case = CASES[name]
    model = case.model()
    view = find_blocks(model, case.input())
    in_eval = view.run(view.stem(case.input(5)))
    model.train()
    before = everything(model)
    x = case.input(5)
    start = [view.stem(x)]
    ran = [view.run(start[0], 0, i) for i in range(len(view) + 1)]
    halfway = [view.run(ran[i], i, len(view)) for i in range(len(view) + 1)]
    flags, state = everything(model)
    assert flags == before[0]
    close(state, before[1], rtol=0, atol=0)
    wanted = model.points(x)  # changes the running statistics, last
    close(ran, wanted, rtol=1e-4, atol=1e-4)
    close(halfway, [wanted[-1]] * len(halfway), rtol=1e-4, atol=1e-4)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        assert not torch.allclose(in_eval, ran[-1], atol=1e-3)
    model.load_state_dict(before[1])
    close(view.run(view.stem(x)), ran[-1], rtol=1e-6, atol=1e-6)
    model.eval()
    close(view.run(view.stem(x)), in_eval, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["shake_shake", "mobile_drop", "gpt"])
@torch.no_grad()
def test_dropout_and_stochastic_depth_draw_what_the_model_draws(name):
    case = CASES[name]
    model = case.model().train()
    view = find_blocks(model, case.input())
    x = case.input(8)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(view.head(view.run(view.stem(x))))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2], atol=1e-3)
    torch.manual_seed(0)
    close(results[0], main_output(model(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "training"),
    [(name, False) for name in ("arithmetic", "encoder_pre", "gpt", "edsr", "windows")]
    + [(name, True) for name in ("cifar", "highway", "inplace")],
)
def test_gradients_equal_those_of_the_plain_forward_pass(name, training):
    case = CASES[name]
    model = case.model().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train(training)
    x = case.input() if case.vocabulary else case.input().double().requires_grad_()
    view = find_blocks(model, x)
    wrt = [p for p in model.parameters() if p.requires_grad] + ([] if case.vocabulary else [x])

    def gradients(out):
        weighted = out * torch.linspace(-1, 1, out.numel()).view_as(out)
        return torch.autograd.grad(weighted.sum(), wrt, allow_unused=True)

    middle = view.run(view.stem(x), 0, len(view) // 2)
    got = gradients(view.head(view.run(middle, len(view) // 2)))
    close(got, gradients(main_output(model(x))), rtol=1e-9, atol=1e-11)


def test_a_frozen_or_no_grad_part_stays_so():
    model = CASES["cifar"].model()
    model.layer1.requires_grad_(False)
    view = find_blocks(model, CASES["cifar"].input())
    view.head(view.run(view.stem(CASES["cifar"].input()))).sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None} == {"layer1"}
    with torch.no_grad():
        assert not view.run(view.stem(CASES["cifar"].input())).requires_grad


# the view follows the model


def fresh():
    case = CASES["tuple_out"]
    model = case.model()
    return model, find_blocks(model, case.input()), case.input(4, seed=9)


def agrees(model, view, x, tolerance=1e-5):
    with torch.no_grad():
        close(view.head(view.run(view.stem(x))), main_output(model(x)), rtol=tolerance, atol=tolerance)


def test_loaded_weights_are_used():
    model, view, x = fresh()
    before = view.head(view.run(view.stem(x)))
    model.load_state_dict(CASES["tuple_out"].model(seed=5).state_dict())
    agrees(model, view, x)
    assert not torch.allclose(view.head(view.run(view.stem(x))), before, atol=1e-3)
    model.load_state_dict(CASES["tuple_out"].model(seed=6).state_dict(), assign=True)
    agrees(model, view, x)


def test_replaced_parameters_and_modules_are_used():
    model, view, x = fresh()
    view.head(view.run(view.stem(x)))
    model.out.weight = nn.Parameter(torch.ones_like(model.out.weight))
    model.blocks[0].body[0].weight = nn.Parameter(-model.blocks[0].body[0].weight.detach())
    agrees(model, view, x)
    model.out = nn.Linear(5, 2)
    model.blocks[1] = nets.SmallBlock(5, scale=0.5)
    agrees(model, view, x)


def test_an_optimizer_step_is_seen():
    model, view, x = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = parameters_to_vector(model.parameters()).detach().clone()
    view.head(view.run(view.stem(x))).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, parameters_to_vector(model.parameters()))
    agrees(model, view, x)


@pytest.mark.parametrize("name", ["tuple_out", "gpt", "encoder_post"])
def test_the_type_follows_the_model(name):
    case = CASES[name]
    model = case.model()
    view = find_blocks(model, case.input())
    model.double()
    x = case.input(4) if case.vocabulary else case.input(4).double()
    state = view.stem(x)
    assert state.dtype == torch.float64
    agrees(model, view, x, tolerance=1e-12)
    assert view.run(state, 1, 2).dtype == torch.float64
    model.float()
    agrees(model, view, case.input(4))


def test_memory_formats_do_not_matter():
    case = CASES["cifar"]
    model, view = found("cifar")
    x = case.input(4).contiguous(memory_format=torch.channels_last)
    agrees(model, view, x)
    twin = case.model().to(memory_format=torch.channels_last)
    agrees(twin, find_blocks(twin, x), x)


def test_another_image_size_is_traced_anew():
    view = found("unet")[1]
    x = torch.randn(2, 3, 16, 12)
    assert view.stem(x).shape == (2, 6, 16, 12)
    with pytest.raises(UsageError, match=r"x_0 has shape \(N, 6, 8, 8\); found \(2, 6, 16, 12\)"):
        view.run(view.stem(x))


@pytest.mark.parametrize("example", [1, 3])
@torch.no_grad()
def test_a_batch_size_that_the_network_fixes(example):
    case = ODD["baked_batch"]
    model = case.model()
    view = find_blocks(model, case.input(example))
    assert [block.kind for block in view] == case.kinds
    for batch in (3, 1):
        x = case.input(batch)
        agrees(model, view, x)
        close(view.run(model.points(x)[1], 1, 2), model.points(x)[2])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6), (6, 6)])
def test_ranges_that_do_not_exist(start, stop):
    with pytest.raises(UsageError, match=f"run from {start} to {stop}: boundaries of this network are 0 to 5"):
        found("cifar")[1].run(torch.zeros(2, 8, 16, 16), start, stop)


@pytest.mark.parametrize("shape", [(2, 8, 16), (2, 16, 16, 16), (8, 16, 16), (2,), ()])
def test_states_of_another_shape(shape):
    with pytest.raises(UsageError, match=r"x_0 has shape \(N, 8, 16, 16\); found"):
        found("cifar")[1].run(torch.zeros(shape))


def test_inputs_that_do_not_fit_are_one_line():
    for x in (torch.zeros(2, 4, 16, 16), torch.zeros(2, 3, 16, 16, dtype=torch.long), torch.zeros(())):
        with pytest.raises(PathlensError) as caught:
            found("cifar")[1].stem(x)
        assert "\n" not in str(caught.value)
