"""No intervention outlives its ``with`` block: generated over every context manager and kind of network."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import linecache
import weakref

import pytest
import torch
from torch import nn
from torch.fx.graph_module import _loader

from pathlens import (
    applied,
    deleted,
    find_blocks,
    find_layers,
    intervene,
    plans,
    reordered,
    restrict_backward,
    skips_deleted,
)
from pathlens.errors import UsageError
from tests.helpers.nets_tokens import CASES, ODD, main_output
from tests.helpers.path_oracle import Minus, Net, drawn, images

close = torch.testing.assert_close


def nested(target):
    stack = deleted(target, 0)
    inner = skips_deleted(target, 1)

    class Both:
        def __enter__(self):
            stack.__enter__()
            return inner.__enter__()

        def __exit__(self, *error):
            inner.__exit__(*error)
            return stack.__exit__(*error)

    return Both()


CONTEXTS = {
    "deleted": lambda target: deleted(target, 0),
    "skips_deleted": lambda target: skips_deleted(target, [0, 1]),
    "reordered": lambda target: reordered(target, [1, 0]),
    "applied": lambda target: applied(target, plans.delete(-1)),
    "restrict_backward": lambda target: restrict_backward(target, [0, 1]),
    "nested": nested,
}

#: networks of two interchangeable blocks, and one in train mode
KINDS = ["tuple_out", "shake_shake", "parallel", "unet", "plain layers"]


class BoomError(Exception):
    pass


def in_body(model, x):
    model(x)
    raise BoomError


def in_body_before_the_call(model, x):
    raise BoomError


def in_a_hook(model, x):
    def hook(*args):
        raise BoomError

    handle = model.register_forward_pre_hook(hook)
    try:
        model(x)
    finally:
        handle.remove()


def in_the_call(model, x):
    with pytest.raises(UsageError, match="exactly one tensor"):
        model(x, x)
    raise BoomError


def in_the_backward_pass(model, x):
    out = main_output(model(x))
    out.register_hook(lambda gradient: in_body_before_the_call(model, x))
    out.sum().backward()


def normal(model, x):
    model(x)


def twice(model, x):
    model(x)
    model(x[:1])


BODIES = [normal, twice, in_body, in_body_before_the_call, in_a_hook, in_the_call, in_the_backward_pass]


def traces_of_use(model: nn.Module) -> dict[str, object]:
    """What hooks, patches and forgotten state would show up in."""
    registries = [name for name in vars(nn.Module()) if "hook" in name]
    return {
        "instance attributes": [dict(module.__dict__).keys() for module in model.modules()],
        "forward": [module.forward.__func__ is type(module).forward for module in model.modules()],
        "classes": [(type(module), dict(type(module).__dict__)) for module in model.modules()],
        "hooks": [[list((getattr(module, name) or {}).items()) for name in registries] for module in model.modules()],
        "training": [module.training for module in model.modules()],
        "requires grad": [parameter.requires_grad for parameter in model.parameters()],
        "parameters": [id(parameter) for parameter in model.parameters()],
        "buffers": [id(buffer) for buffer in model.buffers()],
    }


@functools.cache
def subject(kind: str):
    case = ODD["plain"] if kind == "plain layers" else CASES[kind]
    model = case.model()
    view = find_layers(model, case.input()) if kind == "plain layers" else find_blocks(model, case.input())
    return model, case.input(2), copy.deepcopy(model.state_dict()), view


def fits(context: str, kind: str) -> bool:
    """A plain network has neither skips nor paths; the blocks of the U-net lie at its two ends."""
    if kind == "plain layers":
        return context in ("deleted", "applied")
    return (kind, context) != ("unet", "reordered")


@pytest.mark.parametrize(
    ("context", "kind", "body"),
    [
        (context, kind, body)
        for context, kind, body in itertools.product(CONTEXTS, KINDS, BODIES)
        if fits(context, kind)
    ],
)
def test_everything_is_as_before(context, kind, body):
    model, x, state, view = subject(kind)
    model.load_state_dict(state)
    wanted = main_output(model(x)) if kind != "shake_shake" else None
    before = traces_of_use(model)
    ends = contextlib.nullcontext() if body in (normal, twice) else pytest.raises(BoomError)
    with ends, CONTEXTS[context](model if body is normal else view) as changed:
        assert changed is model
        body(model, x)
    assert traces_of_use(model) == before
    if wanted is not None:
        close(main_output(model(x)), wanted, rtol=0, atol=0)
    close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize("context", [name for name in CONTEXTS if name not in ("restrict_backward",)])
def test_a_generator_that_is_never_finished_ends_with_its_collection(context):
    model, x, *_ = subject("tuple_out")

    def body():
        with CONTEXTS[context](model):
            yield main_output(model(x))

    stuck = body()
    next(stuck)
    assert "forward" in model.__dict__
    stuck.close()
    del stuck
    gc.collect()
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("make", ["function", "partial", "callable object"])
def test_the_users_own_forward_is_used_and_restored(make):
    model, x, *_ = subject("tuple_out")
    plain = type(model).forward

    class Doubling:
        def __call__(self, x):
            return plain(model, 2 * x)

    own = {
        "function": lambda x: plain(model, 2 * x),
        "partial": functools.partial(plain, model),
        "callable object": Doubling(),
    }[make]
    scale = 1 if make == "partial" else 2
    model.forward = own
    try:
        whole = main_output(model(x))
        assert len(find_blocks(model, x)) == 2
        assert model.__dict__["forward"] is own
        with deleted(model, [0, 1]):
            close(main_output(model(x)), model.head(model.stem(scale * x))[0])
        assert model.__dict__["forward"] is own
        close(main_output(model(x)), whole, rtol=0, atol=0)
    finally:
        del model.forward


def test_hooks_on_the_model_itself_run_and_those_inside_do_not():
    model, x, *_ = subject("tuple_out")
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: seen.append(name))
        for name, module in (("model", model), ("block", model.blocks[0]))
    ]
    try:
        with deleted(model, 1):
            model(x)
            assert seen == ["model"]
        model(x)
        assert seen == ["model", "block", "model"]
    finally:
        for hook in hooks:
            hook.remove()


def test_copies_made_inside_are_of_the_network_itself():
    model, x, *_ = subject("tuple_out")
    with deleted(model, 0):
        twin = copy.deepcopy(model)
        lesioned = main_output(model(x))
    again = copy.deepcopy(twin)
    for copied in (twin, again):
        close(main_output(copied(x)), main_output(model(x)), rtol=0, atol=0)
    assert not torch.allclose(lesioned, main_output(model(x)), atol=1e-4)
    with torch.no_grad():
        again.out.bias.add_(1)
    close(main_output(again(x)), main_output(model(x)) + 1)


def test_state_dicts_inside_are_ordinary():
    model, x, state, _ = subject("tuple_out")
    with deleted(model, 0):
        model(x)
        assert list(model.state_dict()) == list(state)
        assert len(list(model.modules())) == len(list(CASES["tuple_out"].model().modules()))


def test_contexts_may_end_in_any_order():
    model, x, *_ = subject("shake_shake")
    zero, one = deleted(model, 0), deleted(model, 1)
    zero.__enter__()
    one.__enter__()
    with skips_deleted(model, 0) as _, pytest.raises(UsageError, match="lose both"):
        model(x)
    with torch.no_grad():
        close(model(x), model.stem(x))
        zero.__exit__(None, None, None)
        outer_gone = model(x)
        one.__exit__(None, None, None)
        assert "forward" not in model.__dict__
        close(outer_gone, model.blocks[0](model.stem(x)))


def test_models_and_views_are_freed():
    model = CASES["tuple_out"].model()
    view = find_blocks(model, CASES["tuple_out"].input())
    with deleted(view, 0):
        model(CASES["tuple_out"].input())
    gone = weakref.ref(model)
    del view, model
    gc.collect()
    assert gone() is None


def sources() -> set[str]:
    """Under which names torch keeps the source of compiled graphs."""
    gc.collect()
    return {*_loader.eval_cache, *(name for name in linecache.cache if "eval_with_key" in name)}


def test_a_lesion_is_compiled_once_for_a_view_and_forgotten_with_it():
    net, x = drawn(Net([Minus(4), Minus(4)])), images()
    before, view = sources(), find_blocks(net, x)
    for _ in range(3):
        with deleted(view, 0):
            net(x)
    assert len(sources() - before) == 1
    del view
    for _ in range(2):
        with deleted(net, 1):  # traced anew in each block
            net(x)
    assert sources() <= before


def test_lesions_of_a_view_are_kept_in_a_bounded_number(monkeypatch):
    monkeypatch.setattr(intervene, "_MOST_BUILT", 4)
    net, x = drawn(Net([Minus(4) for _ in range(3)])), images()
    before, view = sources(), find_blocks(net, x)
    for number in range(6):
        with deleted(view, [block for block in range(3) if number >> block & 1]):
            net(x)
    assert len(sources() - before) == 4
