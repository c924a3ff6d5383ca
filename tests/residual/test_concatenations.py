"""New channels of concatenations as blocks: found, named, and deleted as by hand."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import timm
import torch
import torchvision
from torch import nn

import pathlens
from pathlens import plans
from pathlens.analyses.sweep import evaluate, routes_of
from pathlens.errors import NoResidualBlocksError, PathlensError
from pathlens.residual import engines
from pathlens.residual.inference import Inference
from tests.helpers.dense_nets import DENSE, Dual
from tests.helpers.joined import JOINED
from tests.helpers.path_oracle import drawn, images

LABELS = torch.tensor([0, 2, 1, 1])


def subsets(count):
    return chain.from_iterable(combinations(range(count), size) for size in range(count + 1))


def by_hand(net, x, blocks):
    """Logits with the new channels of some layers set to zero."""
    net.instead = dict.fromkeys(blocks, torch.zeros_like)
    try:
        return net(x)
    finally:
        net.instead = {}


@pytest.mark.parametrize("name", DENSE)
def test_every_lesion_is_the_one_by_hand(name):
    net, x = drawn(DENSE[name]()), images(4, 6)
    view = pathlens.find_blocks(net, x, concat=True)
    assert [block.name for block in view] == ["f.0", "f.1", "f.2"]
    assert {block.kind for block in view} == {"concatenation"}
    assert (view.concat, view.in_series, view.has_concatenations) == (True, False, True)
    for blocks in subsets(3):
        with torch.no_grad():
            wanted = by_hand(net, x, blocks)
        with torch.no_grad(), pathlens.deleted(view, blocks):
            torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)


def test_what_a_block_is():
    net, x = drawn(DENSE["listed"]()), images(2, 6)
    view = pathlens.find_blocks(net, x, concat=True)
    assert [block.in_shape[0] for block in view] == [4, 6, 8]
    assert {block.out_shape for block in view} == {(2, 6, 6)}
    assert [block.parameters for block in view] == [sum(p.numel() for p in f.parameters()) for f in net.f]
    assert view.stages == ((0, 1, 2),)
    assert [block.module for block in view] == ["f.0", "f.1", "f.2"]
    assert "the blocks are concatenations wherever they lie, and no chain" in view.notes


def test_gradients_and_statistics_in_train_mode():
    nets, x = [drawn(DENSE["listed"]()) for _ in range(2)], images(4, 6)
    view = pathlens.find_blocks(nets[0], x, concat=True)
    for net in nets:
        net.train()
    with pathlens.deleted(view, 1):
        nets[0](x).sum().backward()
    by_hand(nets[1], x, [1]).sum().backward()
    for (name, own), other in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if name.startswith("f.1."):
            assert own.grad is None  # by hand it was computed, and multiplied by nothing
        else:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-12)
    for (name, own), other in zip(nets[0].named_buffers(), nets[1].buffers(), strict=True):
        assert name.startswith("f.1.") or torch.equal(own, other)


def test_a_deleted_layer_is_not_computed():
    net, x = drawn(DENSE["growing"]()), images(2, 6)
    view = pathlens.find_blocks(net, x, concat=True)
    for parameter in net.f[2].parameters():
        parameter.data.fill_(float("nan"))
    with torch.no_grad(), pathlens.deleted(view, 2):
        assert bool(net(x).isfinite().all())
        assert net(images(5, 6)).shape == (5, 3)


def test_residual_additions_are_blocks_beside_them():
    net, x = drawn(Dual()), images(2, 6)
    view = pathlens.find_blocks(net, x, concat=True)
    assert [(block.name, block.kind) for block in view][2:] == [("dense.f.2", "concatenation"), ("add", "identity")]
    assert [block.name for block in pathlens.find_blocks(net, x, additions="all", concat=True)][-1] == "add"
    with torch.no_grad(), pathlens.deleted(view, [0, 3]):
        features = net.dense
        features.instead = {0: torch.zeros_like}
        wanted = features.head(features.features(features.stem(x)).mean((2, 3)))
        features.instead = {}
        torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)
    assert len(pathlens.find_blocks(net, x)) == 1  # the chain, as ever
    skips = plans.delete_skips([3]).check(view)
    with torch.no_grad(), pathlens.applied(view, skips):
        assert not torch.allclose(net(x), wanted)


def test_levels_of_a_u_net():
    net, x = drawn(JOINED["U-Net"]()), images(2, 8)
    view = pathlens.find_blocks(net, x, additions="all", concat=True)
    assert [block.kind for block in view].count("concatenation") == 1
    assert len(view) == 5
    level = next(block.index for block in view if block.is_concatenation)
    with torch.no_grad():
        hook = net.up.register_forward_hook(lambda _module, _x, out: torch.zeros_like(out))
        wanted = net(x)
        hook.remove()
        with pathlens.deleted(view, level):
            torch.testing.assert_close(net(x), wanted, rtol=1e-12, atol=1e-12)


def test_no_concatenation_of_features_leaves_the_chain():
    net = pathlens.load_model().model.eval()
    view = pathlens.find_blocks(net, torch.zeros(2, 1, 8, 8), concat=True)
    assert view.in_series
    assert not view.concat
    squeezed = torchvision.models.squeezenet1_1().eval()  # both sides of its concatenations are learned
    with pytest.raises(NoResidualBlocksError, match="which block deletion does not apply to"):
        pathlens.find_blocks(squeezed, torch.zeros(2, 3, 32, 32), concat=True)


@pytest.mark.parametrize("form", ["plain", "folded-2", "packed-3"])
def test_every_engine_computes_every_lesion(form):
    if form.startswith("packed") and not engines.packs(torch.device("cpu"), torch.float32):
        pytest.skip("no packed convolutions here")
    net, x = drawn(DENSE["listed"](), dtype=torch.float32), images(4, 8, torch.float32)
    view = pathlens.find_blocks(net, x, concat=True)
    sets = list(subsets(3))
    lesions = routes_of([plans.delete(blocks) for blocks in sets], 3)
    with torch.inference_mode(), Inference(view, engine=engines.named(form, torch.device("cpu"), x.dtype)) as network:
        for index, logits in evaluate(network, lesions, x):
            torch.testing.assert_close(logits, by_hand(net, x, sets[index]), rtol=1e-4, atol=1e-5)


def dense_layers(model):
    return [module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("denselayer")]


@pytest.mark.parametrize("build", [torchvision.models.densenet121, lambda **k: timm.create_model("densenet121", **k)])
def test_densenet121(build):
    torch.manual_seed(0)
    model, x = build(num_classes=5).double().eval(), images(2, 32)
    view = pathlens.find_blocks(model, x, concat=True)
    assert [len(stage) for stage in view.stages] == [6, 12, 24, 16]
    assert view[57].name == "features.denseblock4.denselayer16"
    assert view[57].in_shape == (992, 1, 1)
    layers = dense_layers(model)
    assert [block.parameters for block in view] == [sum(p.numel() for p in layer.parameters()) for layer in layers]
    for blocks in ([0], [57], [3, 7, 30, 31]):
        hooks = [layers[i].register_forward_hook(lambda _module, _x, out: torch.zeros_like(out)) for i in blocks]
        with torch.no_grad():
            wanted = model(x)
            for hook in hooks:
                hook.remove()
            with pathlens.deleted(view, blocks):
                torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-12)


REFUSED = {
    "reorder": lambda view, x: plans.reorder([1, 0, 2]).check(view),
    "reorder_blocks": lambda view, x: pathlens.reorder_blocks(view, [(x, LABELS)]),
    "skip": lambda view, x: plans.delete_skips([1]).check(view),
    "delete_skips": lambda view, x: pathlens.delete_skips(view, [(x, LABELS)]),
    "restrict": lambda view, x: plans.restrict(path=[1]).check(view),
    "run": lambda view, x: view.run(x),
    "signal": lambda view, x: pathlens.signal_propagation(view, [(x, LABELS)]),
    "lattice": lambda view, x: pathlens.lattice(view, [(x, LABELS)]),
    "gradients": lambda view, x: pathlens.path_gradients(view, [(x, LABELS)]),
    "surface": lambda view, x: pathlens.loss_surface(view, [(x, LABELS)]),
    "tree": lambda view, x: pathlens.unravel(view, kind="tree"),
    "whole": lambda view, x: pathlens.unravel(view, detail="blocks"),
    "trunk": lambda view, x: pathlens.delete_blocks(view, [(x, LABELS)], additions="trunk"),
    "initial": lambda view, x: pathlens.initialise(view, "fixup"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_serve_them_says_so_in_one_line(what):
    net, x = drawn(DENSE["growing"]()), images(4, 6)
    view = pathlens.find_blocks(net, x, concat=True)
    with pytest.raises(PathlensError, match=r"chain|concatenation|residual blocks") as caught:
        REFUSED[what](view, x)
    assert "\n" not in str(caught.value)


def test_a_view_of_other_blocks_is_refused():
    net, x = drawn(Dual()), images(4, 6)
    with pytest.raises(PathlensError, match="the view has no concatenations among its blocks"):
        pathlens.delete_blocks(pathlens.find_blocks(net, x), [(x, LABELS)], concat=True)
    one, two = pathlens.find_blocks(net, x, additions="all"), pathlens.find_blocks(net, x, concat=True)
    with (
        pathlens.deleted(two, 0),
        pytest.raises(PathlensError, match="count its blocks by two views"),
        pathlens.deleted(one, 0),
    ):
        pass


def test_the_dag_is_the_same():
    net, x = drawn(DENSE["listed"]()), images(2, 6)
    graph, own = pathlens.unravel(pathlens.find_blocks(net, x, concat=True)), pathlens.unravel(net, x)
    for number in ("n_paths_by_length", "n_skips_concat"):
        assert graph.graph[number] == own.graph[number]


def test_the_batch_is_no_dimension_of_features():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(torch.cat([x, self.f(x)], 0).mean((2, 3)))

    with pytest.raises(NoResidualBlocksError):
        pathlens.find_blocks(Doubled().eval(), torch.zeros(2, 3, 4, 4), concat=True)
