"""The unraveled network as a formula, and its derivative with one term for each path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pathlens.errors import UsageError
from pathlens.graph.symbols import LETTERS, Symbols
from pathlens.graph.window import check_size, checked_window
from pathlens.paths import all_paths
from pathlens.residual import ResidualView

FORMS = ("text", "latex")

_WORDS = {"branch": "branch", "shortcut": "shortcut", "post": "post-activation", "transition": "layers before"}
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
}  # fmt: skip


def equation(view: ResidualView, form: Literal["text", "latex"] = "text", blocks: Sequence[int] | None = None) -> str:
    """The unraveled network written out, and its derivative with one term for each path.

    ``y = x + f0[x] + f1[x + f0[x]]`` and ``dy/dx = I + f0' + f1' + f1' f0'`` for two blocks, with x the input of the
    first block of the window and y the output of the last. Symbols carry the numbers of the blocks: fi is the branch of
    block i; its shortcut Si, its post-activation si, and Ti, what is computed between the block before and its branch
    point, are written where they are not the identity. A derivative is taken at what its function is applied to in the
    forward pass, and a product goes from the last block to the first.

    Args:
        view: the network's blocks.
        form: ``text``, or ``latex``: a document that compiles as it is.
        blocks: first and last block, both included; by default all.

    Returns:
        The equation, its derivative by path length, and what the symbols stand for.

    Raises:
        NoResidualBlocksError: the network is no chain of residual blocks.
        UsageError: an unknown form, a window outside of the network, or more than 1024 paths.

    Source: Veit, Wilber, Belongie 2016, equations 4 to 6.
    """
    if form not in FORMS:
        raise UsageError(f"form {form!r} is unknown; give one of {', '.join(FORMS)}")
    if not isinstance(view, ResidualView):
        raise UsageError(f"an equation needs a view; found {type(view).__name__}; give find_blocks(model, example)")
    first, last = checked_window(view, blocks)
    check_size(first, last, "equation")
    return _text(view, first, last) if form == "text" else _latex(view, first, last)


def _text(view: ResidualView, first: int, last: int) -> str:
    symbols = Symbols(view, first)
    lines = [f"y = {symbols.output(last)}", "", "dy/dx ="]
    sign = " "
    for length, terms in _derivative(symbols, first, last, "I"):
        lines.append(f"  {sign} {' + '.join(terms)}    ({_paths(length, len(terms))})")
        sign = "+"
    lines += ["", f"x: input of block {first}", f"y: output of block {last}"]
    lines += [f"{symbol}: {words} of block {block}, {name}" for symbol, words, block, name in _legend(symbols, last)]
    return "\n".join(lines) + "\n"


def _latex(view: ResidualView, first: int, last: int) -> str:
    symbols = Symbols(view, first, lambda letter, block: f"{letter}_{{{block}}}")
    lines = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\begin{document}",
        r"\raggedright",
        r"\setlength{\parindent}{0pt}",
        "% in the text, not displayed, so that long sums break at the plus signs",
        rf"\(y = {symbols.output(last)}\)",
        r"\par\medskip",
        r"\(\frac{dy}{dx} =\)",
    ]
    sign = ""
    for length, terms in _derivative(symbols, first, last, "I"):
        lines += [r"\par\smallskip", rf"\({sign}{' + '.join(terms)}\) \quad ({_paths(length, len(terms))})"]
        sign = "+ "
    lines += [r"\par\medskip", rf"\(x\): input of block {first}", rf"\par \(y\): output of block {last}"]
    for symbol, words, block, name in _legend(symbols, last):
        lines.append(rf"\par \({symbol}\): {latex_text(words)} of block {block}, \texttt{{{latex_text(name)}}}")
    return "\n".join([*lines, r"\end{document}", ""])


def _derivative(symbols: Symbols, first: int, last: int, identity: str) -> Iterator[tuple[int, list[str]]]:
    """Path lengths, each with its terms."""
    count = last - first + 1

    def factors(taken: set[int]) -> Iterator[str]:
        for block in range(last, first - 1, -1):
            if symbols.has_post(block):
                yield symbols.symbol("post", block)
            if block in taken:
                yield symbols.symbol("branch", block)
            elif symbols.has_shortcut(block):
                yield symbols.symbol("shortcut", block)
            if symbols.has_transition(block):
                yield symbols.symbol("transition", block)

    for length in range(count + 1):
        terms = []
        for path in all_paths(count, length):
            product = " ".join(f"{factor}'" for factor in factors({first + block for block in path}))
            terms.append(product or identity)
        yield length, terms


def _paths(length: int, count: int) -> str:
    return f"length {length}, {count} path{'s' if count > 1 else ''}"


def _legend(symbols: Symbols, last: int) -> Iterator[tuple[str, str, int, str]]:
    shown = {"branch": lambda _: True, "shortcut": symbols.has_shortcut, "post": symbols.has_post,
             "transition": symbols.has_transition}  # fmt: skip
    for block in range(symbols.first, last + 1):
        own = symbols.view.blocks[block]
        for role in LETTERS:
            if shown[role](block):
                done = {"branch": "", "shortcut": own.shortcut or own.kind, "post": own.post_activation,
                        "transition": own.transition}[role]  # fmt: skip
                words = f"{_WORDS[role]} ({done})" if done else _WORDS[role]
                yield symbols.symbol(role, block), words, block, own.name


def latex_text(text: str) -> str:
    """Any text for a LaTeX document: special characters escaped, what is not ASCII by its code."""
    return "".join(
        _LATEX.get(character, character if " " <= character <= "~" else f"(U+{ord(character):04X})")
        for character in text
    )
