"""Gradients by path length of lesioned networks, against all paths of networks that were lesioned by hand."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pathlens
from pathlens import figures, plans
from pathlens.cli.entry import main
from pathlens.errors import UsageError
from pathlens.plans import Deletion, Reordering, SkipDeletion
from pathlens.residual.gradients import Linearisation
from pathlens.residual.losses import cross_entropy
from tests.helpers.gradient_cases import LABELS, assert_lengths_equal, prepared
from tests.helpers.lesioned_oracle import lesioned_forward, lesioned_paths
from tests.helpers.lesions_by_hand import intervened
from tests.helpers.path_oracle import by_length, images

LESIONS = [
    ("pre-activation", {"no_branch": [2]}),
    ("pre-activation", {"no_skip": [0, 3], "order": [0, 1, 3, 2]}),
    ("projection", {"no_branch": [1], "no_skip": [2]}),
    ("gated", {"no_branch": [1], "order": [2, 0, 1]}),
    ("gated", {"no_skip": [1], "no_branch": [0, 2]}),
    ("norm after", {"no_branch": [0], "no_skip": [3], "order": [3, 1, 2, 0]}),
    ("scaled branch", {"no_skip": [0, 1, 2]}),
    ("minus", {"no_branch": [0, 1, 2]}),
]
CASES = pytest.mark.parametrize(
    ("name", "lesion"), LESIONS, ids=[f"{name} {' '.join(lesion)}" for name, lesion in LESIONS]
)


def plans_of(no_branch=(), no_skip=(), order=None):
    reordering = [] if order is None else [Reordering(tuple(order))]
    return [Deletion(tuple(no_branch)), SkipDeletion(tuple(no_skip)), *reordering]


def linear(name, lesion, **options):
    view = prepared(name)[1]
    return Linearisation(view, images(), LABELS, route=plans.route(plans_of(**lesion), len(view)), **options)


def lengths_of(net, lesion):
    forced, gone = len(lesion.get("no_skip", ())), len(lesion.get("no_branch", ()))
    return range(forced, len(net.blocks) - gone + 1)


@CASES
@pytest.mark.parametrize("stacked", [True, False])
def test_every_length_is_the_sum_over_its_paths(name, lesion, stacked):
    net, _ = prepared(name)
    profile = linear(name, lesion, stacked=stacked).exact()
    lengths = lengths_of(net, lesion)
    assert profile.lengths == lengths
    expected = by_length(lesioned_paths(net, images(), LABELS, cross_entropy, **lesion))
    assert_lengths_equal(profile.gradients, expected[lengths.start :])


@CASES
def test_the_sum_is_autograds_gradient_of_the_lesioned_network(name, lesion):
    net, view = prepared(name)
    x = images().requires_grad_()
    with intervened(view, **lesion):
        (wanted,) = torch.autograd.grad(F.cross_entropy(net(x), LABELS, reduction="sum"), x)
    found = linear(name, lesion)
    for one in (found.exact().total(), found.reference):
        torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-13)
    for boundary in range(len(view)):
        at = linear(name, lesion, at=boundary)
        torch.testing.assert_close(at.exact().total(), at.reference, rtol=1e-9, atol=1e-13)


@CASES
def test_single_paths(name, lesion):
    net, _ = prepared(name)
    expected = lesioned_paths(net, images(), LABELS, cross_entropy, **lesion)
    found = linear(name, lesion).along(list(expected))
    for path, gradient in zip(expected, found, strict=True):
        torch.testing.assert_close(gradient, expected[path], rtol=1e-9, atol=1e-14, msg=str(path))


def test_paths_that_the_lesioned_network_does_not_have():
    found = linear("norm after", {"no_branch": [0], "no_skip": [3]})
    with pytest.raises(UsageError, match="no subset of the blocks 1 to 3"):
        found.along([(0, 3)])
    with pytest.raises(UsageError, match="must take the blocks without a shortcut, 3"):
        found.along([(1,)])
    with pytest.raises(UsageError, match="no path has 0 blocks; give a longest length of 1"):
        found.exact(max_length=0)


@pytest.mark.parametrize("tolerance", [0.0, 0.3])
def test_a_longest_length_leaves_the_others_as_they_are(tolerance):
    lesion = {"no_skip": [0, 2]}
    whole = linear("pre-activation", lesion).exact()
    short = linear("pre-activation", lesion).exact(max_length=3, tolerance=tolerance)
    assert short.lengths.start >= 2
    assert short.lengths.stop == 4
    if not tolerance:
        torch.testing.assert_close(short.gradients, whole.gradients[:2], rtol=1e-12, atol=0)


# the restricted backward pass


def gradients_of(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def backward(net, x):
    net.zero_grad()
    F.cross_entropy(net(x), LABELS, reduction="sum").backward()


@CASES
def test_all_lengths_equal_the_ordinary_backward_pass(name, lesion):
    net, view = prepared(name)
    by_hand = copy.deepcopy(net)
    by_hand.zero_grad()
    F.cross_entropy(lesioned_forward(by_hand, images(), **lesion), LABELS, reduction="sum").backward()
    with intervened(view, **lesion), pathlens.restrict_backward(view, lengths=range(len(view) + 1)):
        backward(net, images())
    found, wanted = gradients_of(net), gradients_of(by_hand)
    for key, gradient in wanted.items():
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-8, atol=1e-12, msg=lambda text, key=key: f"{key} {text}"
        )
    assert all(not found[key].any() for key in found.keys() - wanted.keys())


@CASES
def test_each_length_is_the_sum_over_its_paths_in_any_nesting_order(name, lesion):
    net, view = prepared(name)
    paths = lesioned_paths(net, images(), LABELS, cross_entropy, **lesion)
    sums = by_length(paths)
    for number, length in enumerate(lengths_of(net, lesion)):
        x = images().requires_grad_()
        contexts = [intervened(view, **lesion), pathlens.restrict_backward(view, lengths=length)]
        first, second = contexts[:: 1 if number % 2 else -1]
        with first, second:
            backward(net, x)
        torch.testing.assert_close(x.grad, sums[length], rtol=1e-8, atol=1e-13)
    longest = max(paths, key=len)
    x = images().requires_grad_()
    with intervened(view, **lesion), pathlens.restrict_backward(view, path=longest):
        backward(net, x)
    torch.testing.assert_close(x.grad, paths[longest], rtol=1e-8, atol=1e-13)


def test_stem_and_branches_count_their_own_block():
    """With identity shortcuts: a branch's parameters get what its block's paths of that length bring."""
    net, view = prepared("scaled branch")
    lesion = {"no_branch": [0], "no_skip": [2]}
    with intervened(view, **lesion), pathlens.restrict_backward(view, lengths=[1]):
        backward(net, images())
    found = gradients_of(net)
    # length 1 is the forced branch alone: block 1 would be the second on the way back, block 0 is gone
    assert found["blocks.2.a.weight"].any()
    assert not found.get("blocks.1.a.weight", torch.zeros(1)).any()
    assert not found.get("blocks.0.a.weight", torch.zeros(1)).any()
    assert found["first.weight"].any()


@pytest.mark.parametrize(
    ("restriction", "words"),
    [
        ({"lengths": [0]}, "no path of the lesioned network has a length of .0.; its paths have lengths from 1 to 3"),
        ({"lengths": [4]}, "lengths from 1 to 3"),
        ({"path": [0, 3]}, "takes the branch of block 0, which is deleted"),
        ({"path": [1]}, "leaves out block 3, whose shortcut is deleted"),
    ],
)
def test_restrictions_without_a_path(restriction, words):
    net, view = prepared("norm after")
    with (
        pytest.raises(UsageError, match=words),
        intervened(view, no_branch=[0], no_skip=[3]),
        pathlens.restrict_backward(view, **restriction),
    ):
        net(images())


def test_two_restrictions_are_refused():
    net, view = prepared("minus")
    with pathlens.restrict_backward(view, lengths=[1]):
        with pytest.raises(UsageError, match="active on this model already"), pathlens.restrict_backward(view, 2):
            pass
        backward(net, images())
    assert "forward" not in net.__dict__


# the tables


@CASES
def test_tables_of_lesioned_networks(name, lesion):
    net, view = prepared(name)
    paths = lesioned_paths(net, images(), LABELS, cross_entropy, **lesion)
    norms = {path: torch.linalg.vector_norm(g.flatten(1), dim=1) for path, g in paths.items()}
    data = [(images(), LABELS)]
    table = pathlens.path_gradients(view, data, lesion=plans_of(**lesion), draws=40, max_samples=400, rel_error=0.001)
    lengths = lengths_of(net, lesion)
    assert [row["length"] for row in table.rows] == list(lengths)
    assert table.provenance["relative_difference_to_autograd"] < 1e-11
    sums = by_length(paths)
    for row in table.rows:
        here = [norm for path, norm in norms.items() if len(path) == row["length"]]
        assert row["n_paths"] == len(here) == math.comb(len(lengths) - 1, row["length"] - lengths.start)
        exact = torch.linalg.vector_norm(sums[row["length"]].flatten(1), dim=1).mean().item()
        assert row["total_norm"] == pytest.approx(exact, rel=1e-9)
        assert row["path_norm_mean"] == pytest.approx(torch.stack(here).mean().item(), rel=0.1)
        rms = torch.stack(here).square().mean().sqrt().item()
        assert abs(row["path_norm_rms"] - rms) <= 6 * row["path_norm_rms_error"] + 1e-9 * rms
    effective = table.provenance["effective"]["exact"]
    assert lengths.start <= effective["first"] <= effective["last"] <= lengths[-1]
    assert table.provenance["lesion"] == {
        "deleted_blocks": lesion.get("no_branch", []),
        "deleted_shortcuts": lesion.get("no_skip", []),
        "order": lesion.get("order"),
    }
    with intervened(view, **lesion):
        inside = pathlens.path_gradients(view, data, draws=40, max_samples=400, rel_error=0.001)
    assert inside.rows == table.rows
    grid = pathlens.lattice(view, data, lesion=plans_of(**lesion))
    at_input = {row["length"]: (row["n_paths"], row["norm"]) for row in grid.rows if row["boundary"] == -1}
    for row in table.rows:
        assert at_input[row["length"]] == (row["n_paths"], pytest.approx(row["total_norm"], rel=1e-12))


def test_contexts_and_the_argument_add_up():
    net, view = prepared("norm after")
    data = [(images(), LABELS)]
    with pathlens.deleted(net, 0):
        both = pathlens.path_gradients(net, data, lesion=plans.delete_skips(-1), method="exact")
    assert (
        both.rows
        == pathlens.path_gradients(view, data, lesion=[plans.delete(0), plans.delete_skips(3)], method="exact").rows
    )
    intact = pathlens.path_gradients(view, data, method="exact")
    assert [row["n_paths"] for row in intact.rows] == [1, 4, 6, 4, 1]
    assert "lesion" not in intact.provenance


def test_places_in_lesioned_networks():
    _, view = prepared("pre-activation")
    for at, lesion in itertools.product(("stem", "block:2"), ([plans.delete(3)], [plans.delete_skips(3)])):
        rows = pathlens.path_gradients(view, [(images(), LABELS)], at=at, lesion=lesion, method="exact").rows
        blocks, forced = (4 if at == "stem" else 2) - 1, int(isinstance(lesion[0], SkipDeletion))
        assert [(row["length"], row["n_paths"]) for row in rows] == [
            (forced + j, math.comb(blocks, j)) for j in range(blocks + 1)
        ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lesion": plans.restrict(1)}, "lesion"),
        ({"lesion": plans.delete(9)}, "block 9 does not exist"),
        ({"lesion": [plans.delete(0), plans.delete_skips(0)]}, "lose both"),
        ({"lesion": plans.delete_skips([0, 1]), "max_length": 1}, r"max-length 1 is outside 2\.\.4"),
        ({"lesion": "0"}, "lesion"),
    ],
)
def test_lesions_that_cannot_be_measured(options, words):
    _, view = prepared("pre-activation")
    with pytest.raises(UsageError, match=words) as caught:
        pathlens.path_gradients(view, [(images(), LABELS)], **options)
    assert "\n" not in str(caught.value)


def test_the_figure_shows_shares_of_the_lesioned_networks_paths():
    _, view = prepared("pre-activation")
    data = [(images(), LABELS)]
    for longest, shown in ((None, [12.5, 37.5, 37.5, 12.5]), (2, [12.5, 37.5])):
        table = pathlens.path_gradients(view, data, lesion=plans.delete_skips(1), method="exact", max_length=longest)
        (line,) = figures.path_gradients(table).axes[0].lines
        assert line.get_xdata().tolist() == [1, 2, 3, 4][: len(shown)]
        assert line.get_ydata().tolist() == shown


def test_the_command_measures_a_lesioned_network(tmp_path, capsys):
    spec = tmp_path / "net.py"
    spec.write_text(
        "from tests.helpers.path_oracle import Net, Pre, drawn\n"
        "import torch\n"
        "def build():\n"
        "    return drawn(Net([Pre(4, 4), Pre(4, 4), Pre(4, 4)]), dtype=torch.float32), torch.zeros(2, 3, 6, 6)\n"
    )
    rows = tmp_path / "images"
    for label in range(3):
        (rows / str(label)).mkdir(parents=True)
        pixels = torch.full((6, 6, 3), 60 * label + 20, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(rows / str(label) / "0.png")
    arguments = [
        "path-gradients",
        "--model",
        f"{spec}:build",
        "--data",
        f"imagefolder:{rows}",
        "--method",
        "exact",
        "-q",
    ]
    assert main([*arguments, "--delete", "-1", "--delete-skips", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["length"], row["n_paths"]) for row in found["table"]] == [(1, 1), (2, 1)]
    assert found["provenance"]["lesion"] == {"deleted_blocks": [2], "deleted_shortcuts": [0], "order": None}
    assert main([*arguments, "--delete", "1,2"]) == 0
    assert "without the branches of blocks 1, 2" in capsys.readouterr().out
    for given, words in (
        (["--delete", "9"], "block 9 does not exist"),
        (["--delete", "x"], "--delete 'x' is no range"),
    ):
        assert main([*arguments, *given]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.strip().splitlines()) == 1
        assert words in captured.err
