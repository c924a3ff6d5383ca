"""How functions of blocks are written: f2, S2, s2 and T2 for branch, shortcut, post-activation and transition."""

from __future__ import annotations

from collections.abc import Callable

from pathlens.residual import ResidualView

LETTERS = {"branch": "f", "shortcut": "S", "post": "s", "transition": "T"}


class Symbols:
    """Expressions of a window of blocks. What is the identity is not written.

    Args:
        view: the network.
        first: the block whose input is written ``x``.
        style: symbol of a letter and a block (``f2``, or ``f_{2}`` for LaTeX).
    """

    input = "x"

    def __init__(self, view: ResidualView, first: int, style: Callable[[str, int], str] = "{}{}".format) -> None:
        self.view = view
        self.first = first
        self.style = style
        self._outputs: dict[int, str] = {}

    def has_shortcut(self, block: int) -> bool:
        """Whether the shortcut is more than the identity."""
        return self.view.blocks[block].kind != "identity"

    def has_post(self, block: int) -> bool:
        """Whether there is a post-activation."""
        return bool(self.view.chain().links[block].post)

    def has_transition(self, block: int) -> bool:
        """Whether anything is computed between the block before and this one's branch point."""
        return bool(self.view.blocks[block].transition)

    def symbol(self, role: str, block: int) -> str:
        """``f2``."""
        return self.style(LETTERS[role], block)

    def output(self, block: int) -> str:
        """The output of a block, down to ``x``."""
        if block < self.first:
            return self.input
        if block not in self._outputs:
            total = self.total(block)
            self._outputs[block] = f"{self.symbol('post', block)}[{total}]" if self.has_post(block) else total
        return self._outputs[block]

    def branch_point(self, block: int) -> str:
        """What branch and shortcut of a block start from."""
        below = self.output(block - 1)
        return f"{self.symbol('transition', block)}[{below}]" if self.has_transition(block) else below

    def total(self, block: int) -> str:
        """The sum of shortcut and branch."""
        branch_point = self.branch_point(block)
        shortcut = f"{self.symbol('shortcut', block)}[{branch_point}]" if self.has_shortcut(block) else branch_point
        return f"{shortcut} + {self.symbol('branch', block)}[{branch_point}]"

    def applied(self, role: str, block: int) -> str:
        """A function of a block together with what it is applied to."""
        if role == "post":
            return f"{self.symbol(role, block)}[{self.total(block)}]"
        if role == "transition":
            return self.branch_point(block)
        return f"{self.symbol(role, block)}[{self.branch_point(block)}]"
