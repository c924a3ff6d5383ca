"""What a choice of blocks is worth, and the loss whose gradient makes better choices more probable."""

from __future__ import annotations

import torch
from torch import Tensor


def reward(kept: Tensor, right: Tensor, penalty: float) -> Tensor:
    """R(u) = c (1 - (|u|_0 / K)^2) - (1 - c) gamma with c the share of the example that is right, shape (N,).

    Where c is 1 or 0, as for the class of an image, that is the reward of the source; in between it is ours.

    Args:
        kept: which of the K blocks run, bool, shape (N, K).
        right: c, in [0, 1], or whether the class is right, shape (N,).
        penalty: gamma, for what is wrong.

    Source: Wu et al. 2018, section 3.
    """
    share, right = kept.double().mean(1), right.double()
    return right * (1 - share**2) - (1 - right) * penalty


def bounded(logits: Tensor, alpha: float) -> Tensor:
    """Probabilities s' = alpha s + (1 - alpha) (1 - s) with s the sigmoid of the logits, which are never 0 or 1.

    Args:
        logits: of each block to run, any shape.
        alpha: above 0.5, so that the order of probabilities stays; s' lies between 1 - alpha and alpha.

    Source: Wu et al. 2018, section 3.
    """
    probabilities = torch.sigmoid(logits)
    return alpha * probabilities + (1 - alpha) * (1 - probabilities)


def most_probable(logits: Tensor) -> Tensor:
    """The choice u_i = 1 where p_i > 0.5, bool, of the shape of the logits."""
    return logits > 0


def surrogate(logits: Tensor, kept: Tensor, advantage: Tensor, alpha: float) -> Tensor:
    """A loss for each image of which the gradient is minus the advantage times that of the choice's log-probability.

    In expectation over choices that are drawn with the probabilities of :func:`bounded`, the gradient is that of minus
    the expected reward, whatever baseline the advantage has, as long as it does not depend on the drawn choice
    (Williams 1992).

    Args:
        logits: of the blocks that the policy chooses, shape (N, K).
        kept: the drawn choice, bool, shape (N, K).
        advantage: reward of the drawn choice minus the baseline, shape (N,); a constant.
        alpha: as for :func:`bounded`.

    Source: Wu et al. 2018, section 3.
    """
    probabilities = bounded(logits, alpha)
    chances = torch.where(kept, probabilities, 1 - probabilities)
    return -advantage.detach().to(logits.dtype) * chances.clamp_min(torch.finfo(logits.dtype).tiny).log().sum(1)
