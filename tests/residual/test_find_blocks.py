"""Residual blocks are found exactly, described truthfully, and finding them leaves the model alone."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pathlens import deleted, find_blocks
from tests.helpers import nets
from tests.helpers.nets_tokens import CASES, KINDS, found
from tests.helpers.wild_nets import WILD, Wild


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a model that finding blocks must leave alone."""
    modules = list(model.modules())
    return {
        "attributes": [{key: id(value) for key, value in module.__dict__.items()} for module in modules],
        "contents": [
            {key: list(value) for key, value in module.__dict__.items() if isinstance(value, dict | list)}
            for module in modules
        ],
        "training": [module.training for module in modules],
        "values": {key: value.clone() for key, value in model.state_dict(keep_vars=True).items()},
        "identity": {key: id(value) for key, value in model.state_dict(keep_vars=True).items()},
        "requires grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [parameter.grad for parameter in model.parameters()],
        "random state": torch.get_rng_state(),
        "fast attention": torch.backends.mha.get_fastpath_enabled(),
    }


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    for key in ("values", "random state"):
        torch.testing.assert_close(after.pop(key), before.pop(key), rtol=0, atol=0)
    assert after == before


# the blocks of every network


@pytest.mark.parametrize("name", CASES)
def test_number_kinds_stages_and_names(name):
    case, view = CASES[name], found(name)[1]
    assert [block.kind for block in view] == case.kinds
    assert "".join(str(block.stage) for block in view) == case.stages
    assert [block.index for block in view] == list(range(len(case.letters))) == [i for s in view.stages for i in s]
    assert len({block.name for block in view}) == len(view)
    if case.names is not None:
        assert tuple(block.name for block in view) == case.names


@pytest.mark.parametrize("name", ["gpt", "post_norm", "shared", "repvgg", "inplace"])
def test_the_same_blocks_are_found_in_train_mode(name):
    case = CASES[name]
    view = find_blocks(case.model().train(), case.input())
    assert [(b.name, b.kind, b.stage) for b in view] == [(b.name, b.kind, b.stage) for b in found(name)[1]]


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_the_hand_written_forward_pass(name):
    model, view = found(name)
    with torch.no_grad():
        points = [tuple(point.shape[1:]) for point in model.points(CASES[name].input())]
    assert [block.out_shape for block in view] == points[1:]
    for block, before in zip(view, points, strict=False):
        if not block.transition:
            assert block.in_shape == before
        assert block.changes_shape == (block.in_shape != block.out_shape)


def test_shapes_are_those_that_hooks_see():
    model, view = found("cifar")
    seen = {}
    hooks = [
        model.get_submodule(block.name).register_forward_hook(
            lambda _module, args, out, name=block.name: seen.update({name: (args[0].shape[1:], out.shape[1:])})
        )
        for block in view
    ]
    model(CASES["cifar"].input())
    for hook in hooks:
        hook.remove()
    assert {block.name: (block.in_shape, block.out_shape) for block in view} == seen


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.names is not None] + ["windows", "gpt", "encoder_post"]
)
def test_parameters_are_those_of_the_modules(name):
    model, view = found(name)

    def count(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    if name == "windows":
        wanted = [
            c for b in (model.one, model.two, model.three) for c in (count(b.norm1, b.attn), count(b.norm2, b.mlp))
        ]
    elif name == "gpt":
        parts = (("ln_1", "attn"), ("ln_2", "fc", "proj"))
        wanted = [count(*(block[part] for part in group)) for block in model.h for group in parts]
    elif name == "encoder_post":
        # the norm after the addition is post-activation
        wanted = [c for b in model.encoder.layers for c in (count(b.self_attn), count(b.linear1, b.linear2))]
    else:
        wanted = [count(model.get_submodule(block.name)) for block in view]
    if name == "preact":
        # branch and projection of block 1 both start after its first batch norm, which is the transition to it
        wanted[1] -= count(model.layers[1].bn1)
    if name == "post_norm":
        # the norm after the addition is post-activation
        wanted = [count(block.body) for block in model.blocks]
    assert [block.parameters + block.shortcut_parameters for block in view] == wanted


def test_parameters_of_a_projection_are_counted_apart():
    model, view = found("preact")
    projection = model.layers[1].shortcut[0].weight.numel()
    assert [block.shortcut_parameters for block in view] == [0, projection, 0, 0]
    assert [block.shortcut_parameters for block in found("cifar")[1]] == [0] * 5
    # a shared block counts at each of its uses
    shared = sum(parameter.numel() for parameter in found("shared")[0].block.parameters())
    assert [block.parameters for block in found("shared")[1]] == [shared] * 3


def test_multiply_adds_of_a_cifar_resnet_counted_by_hand():
    view = found("cifar")[1]
    first = 2 * (8 * 8 * 9) * 16 * 16
    down = (8 * 16 * 9 + 16 * 16 * 9) * 8 * 8
    last = 2 * (16 * 16 * 9) * 8 * 8
    assert [block.multiply_adds for block in view] == [first, first, down, last, last]
    assert [block.shortcut_multiply_adds for block in view] == [0] * 5
    assert [block.shortcut_multiply_adds for block in found("preact")[1]] == [0, 8 * 16 * 4 * 4, 0, 0]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.names is not None])
def test_multiply_adds_are_those_of_a_real_forward_pass(name):
    model, view = found(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(CASES[name].input(2))
    flops = counter.get_flop_counts()
    root = type(model).__name__
    for block in view:
        wanted = sum(flops[f"{root}.{block.name}"].values()) // 4
        assert block.multiply_adds + block.shortcut_multiply_adds == wanted, block


def test_post_activations_and_transitions():
    def of(name, field):
        return [getattr(block, field) for block in found(name)[1]]

    assert of("cifar", "post_activation") == ["relu"] * 5
    assert of("preact", "post_activation") == of("highway", "post_activation")[:1] * 4 == [""] * 4
    assert of("preact", "transition")[0] == ""
    assert "relu" in of("preact", "transition")[1]
    assert of("post_norm", "post_activation") == ["batch_norm, relu"] * 2
    assert of("encoder_post", "post_activation") == ["layer_norm"] * 4
    assert of("encoder_pre", "post_activation") == [""] * 4
    assert of("mobile", "transition")[0] == ""
    assert "conv2d" in of("mobile", "transition")[1]
    assert of("one_function", "post_activation") == ["relu"] * 3


def test_nested_and_parallel_additions_are_told():
    assert [block.nested for block in found("edsr")[1]] == [3]
    assert "3 residual additions lie inside the branch" in " ".join(found("edsr")[1].notes)
    assert "1 residual additions lie beside the trunk" in " ".join(found("unet")[1].notes)
    assert found("cifar")[1].notes == ()


# the model is left alone


@pytest.mark.parametrize(
    ("name", "training"),
    [("inplace", False), ("encoder_post_frozen", False)]
    + [(name, True) for name in ("shared", "gpt", "mobile_drop", "shake_shake")],
)
def test_the_model_and_the_random_state_are_untouched(name, training):
    model = CASES[name].model().train(training)
    next(iter(model.modules())).training = True  # mixed flags survive too
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = snapshot(model)
    find_blocks(model, CASES[name].input())
    assert_same(before, snapshot(model))


class Rememberer(nn.Module):
    """Stores what it computes on itself, counts its calls, and is watched by a hook."""

    def __init__(self):
        super().__init__()
        self.first, self.block = nets.conv(3, 6), nets.SmallBlock(6)
        self.maps, self.watched, self.calls, self.last = [], {}, 0, None
        self.block.register_forward_hook(lambda _m, _a, out: self.watched.update(out=out))

    def forward(self, x):
        self.last = self.first(x)
        self.calls += 1
        self.maps.append(self.last)
        return self.block(self.last)


def test_what_a_forward_pass_stores_on_its_modules_is_undone():
    model = Rememberer()
    model(torch.zeros(2, 3, 8, 8))
    kept, watched = model.last, model.watched["out"]
    before = snapshot(model)
    assert len(find_blocks(model, torch.zeros(2, 3, 8, 8))) == 1
    assert_same(before, snapshot(model))
    assert (model.calls, model.last is kept, model.watched["out"] is watched, len(model.maps)) == (1, True, True, 1)


def test_a_compiled_model_has_the_blocks_of_the_model():
    case = CASES["tuple_out"]
    model = case.model()
    compiled = torch.compile(model, backend="eager")
    view = find_blocks(compiled, case.input())
    assert [block.name for block in view] == ["blocks.0", "blocks.1"]
    with deleted(model, 1):
        wanted = model(case.input())[0]
    with deleted(compiled, 1):
        torch.testing.assert_close(compiled(case.input())[0], wanted)
    torch.testing.assert_close(compiled(case.input())[0], model(case.input())[0])


def test_the_view_does_not_keep_the_example():
    model, example = CASES["tuple_out"].model(), torch.zeros(64, 3, 8, 8)
    storage, tensor = weakref.ref(example.untyped_storage()), weakref.ref(example)
    view = find_blocks(model, example)
    del example
    gc.collect()
    assert tensor() is None
    assert storage() is None
    assert view.input_shape == (3, 8, 8)
    sizes = [
        t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (64, 3, 8, 8)
    ]
    assert all(size < 64 * 3 * 8 * 8 * 4 for size in sizes)


@pytest.mark.parametrize("name", WILD)
def test_what_strangers_write(name):
    run, letters = WILD[name]
    torch.manual_seed(0)
    model, x = Wild(run).eval(), torch.randn(3, 3, 8, 8)
    view = find_blocks(model, x)
    assert [block.kind for block in view] == [KINDS[letter] for letter in letters]
    torch.testing.assert_close(view.head(view.run(view.stem(x))), model(x), rtol=1e-4, atol=1e-4)


def test_shortcuts_of_a_network_in_train_mode_are_named_by_their_operations():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Projected())
    for mode in (True, False):
        (block,) = find_blocks(net.train(mode), torch.randn(2, 3, 6, 6))
        assert block.shortcut == "conv2d, batch_norm", mode


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x):
        return torch.relu(self.branch(x)) + self.norm(torch.nn.functional.conv2d(x, self.weight))
