"""The unraveled equation is evaluated as it is written, and its derivative term by term."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import combinations
from math import comb

import pytest
import torch
from matplotlib.mathtext import MathTextParser
from torch import Tensor, nn

import pathlens
from pathlens.errors import NoResidualBlocksError, UsageError
from pathlens.graph.equation import latex_text
from pathlens.residual import ResidualView, find_layers
from tests.helpers.nets_tokens import CASES, ODD, found


class Function:
    """``f2[x]`` in Python is what it is in the equation."""

    def __init__(self, call) -> None:
        self.call = call

    def __getitem__(self, x: Tensor) -> Tensor:
        return self.call(x)


def functions(view: ResidualView) -> dict[str, Function]:
    run = {"f": view.branch, "S": view.shortcut, "s": view.post, "T": view.transition}
    return {
        f"{letter}{block.index}": Function(lambda x, call=call, i=block.index: call(i, x))
        for letter, call in run.items()
        for block in view
    }


def derivative_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search(r"\(length \d+, \d+ paths?\)$", line)]


@pytest.mark.parametrize("name", ["cifar", "norm_free", "preact", "highway", "post_norm"])
def test_the_equation_holds_as_it_is_written(name):
    _, view = found(name)
    first, last = 1, min(3, len(view) - 1)
    text = pathlens.equation(view, blocks=(first, last))
    x = view.run(view.stem(CASES[name].input()), 0, first)
    y = eval(text.splitlines()[0].removeprefix("y = "), {"__builtins__": {}, "x": x, **functions(view)})
    assert torch.allclose(y, view.run(x, first, last + 1), atol=1e-5)


def test_identities_are_not_written():
    _, view = found("preact")
    assert pathlens.equation(view, blocks=(2, 3)).splitlines()[0] == "y = x + f2[x] + f3[x + f2[x]]"
    text = pathlens.equation(found("cifar")[1])
    assert text.startswith("y = s4[s3[s2[S2[s1[s0[x + f0[x]] + f1[s0[x + f0[x]]]]]")
    assert "S2: shortcut (slice, pad) of block 2, layer2.0" in text.splitlines()


@pytest.mark.parametrize("name", ["cifar", "preact"])
def test_there_is_one_term_for_each_path(name):
    _, view = found(name)
    n = len(view)
    lines = derivative_lines(pathlens.equation(view))
    assert len(lines) == n + 1
    for length, line in enumerate(lines):
        terms = re.sub(r"\(length.*", "", line).strip().removeprefix("+ ").split(" + ")
        taken = [tuple(sorted(int(block) for block in re.findall(r"f(\d+)'", term))) for term in terms]
        assert sorted(taken) == list(combinations(range(n), length))
        assert len(terms) == comb(n, length)
        for term in terms:
            blocks = [int(number) for number in re.findall(r"\d+", term)]
            assert blocks == sorted(blocks, reverse=True)


def test_the_terms_add_up_to_the_derivative():
    _, view = found("highway")
    start = view.stem(CASES["highway"].input(1)).detach()
    calls = {name: function.call for name, function in functions(view).items()}
    # where each function is applied in the forward pass: highway blocks have neither transition nor post-activation
    at = {block.index: view.run(start, 0, block.index) for block in view}

    def jacobian(call, x: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(call, x).reshape(x.numel(), x.numel())

    total = torch.zeros(start.numel(), start.numel())
    for line in derivative_lines(pathlens.equation(view)):
        for term in re.sub(r"\(length.*", "", line).strip().removeprefix("+ ").split(" + "):
            product = torch.eye(start.numel())
            for factor in term.split():
                name = factor.removesuffix("'")
                product = product @ jacobian(calls[name], at[int(name[1:])])
            total += product
    assert torch.allclose(total, jacobian(view.run, start), atol=1e-5)


@pytest.mark.parametrize("name", ["cifar", "norm_free"])
def test_latex_is_whole_and_its_formulas_parse(name):
    _, view = found(name)
    text = pathlens.equation(view, "latex")
    lines = text.splitlines()
    assert lines[0] == r"\documentclass{article}"
    assert (lines.count(r"\begin{document}"), lines[-1]) == (1, r"\end{document}")
    formulas = re.findall(r"\\\((.*?)\\\)", text)
    assert len(formulas) > len(view) + 3
    parser = MathTextParser("path")
    for formula in formulas:
        parser.parse(f"${formula}$")
        assert formula.count("[") == formula.count("]")
    outside = re.sub(r"\\\(.*?\\\)", "", text)
    assert not re.search(r"(?<!\\)[_&#$^]", outside)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("name", CASES)
def test_latex_compiles_without_lines_that_are_too_long(name, tmp_path):
    (tmp_path / "equation.tex").write_text(pathlens.equation(found(name)[1], "latex"), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "equation.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-500:]
    assert b"Overfull" not in done.stdout
    assert (tmp_path / "equation.pdf").stat().st_size > 0


def test_names_are_text_in_latex():
    assert latex_text("a_b{%}$x^2\\é") == r"a\_b\{\%\}\$x\textasciicircum{}2\textbackslash{}(U+00E9)"


def test_what_cannot_be_written():
    _, view = found("cifar")
    with pytest.raises(UsageError, match="form 'html' is unknown; give one of text, latex"):
        pathlens.equation(view, "html")
    with pytest.raises(UsageError, match="2 to 9 is outside of the network"):
        pathlens.equation(view, blocks=(2, 9))
    with pytest.raises(UsageError, match="an equation needs a view; found Linear"):
        pathlens.equation(nn.Linear(1, 1))
    layers = find_layers(ODD["plain"].model(), ODD["plain"].input())
    with pytest.raises(NoResidualBlocksError, match="Plain is no chain of residual blocks"):
        pathlens.equation(layers)
