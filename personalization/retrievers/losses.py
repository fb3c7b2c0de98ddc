"""What retrievers and their selectors are trained by (Salemi et al., SIGIR 2024): distilled and reinforced feedback."""

from __future__ import annotations

import torch


def distillation_loss(scores: torch.Tensor, gains: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between the softmax of what candidates are worth and the softmax of how they are scored.

    Its gradient is that of the Kullback-Leibler divergence, which differs by the first softmax's entropy.

    Args:
        scores: (n,) of the candidates, by what is trained.
        gains: (n,) feedback on the candidates, higher is better.
        temperature: both are divided by it; below 1 the best candidates count for more.

    Returns:
        () of the scores' dtype.
    """
    target = torch.softmax(gains / temperature, dim=0)
    return -(target * torch.log_softmax(scores / temperature, dim=0)).sum()


def reinforce_loss(scores: torch.Tensor, gains: torch.Tensor, chosen: int) -> torch.Tensor:
    """REINFORCE (Williams, 1992) for one candidate drawn from the softmax of the scores.

    The baseline is what the candidate is worth that the scores put first: it does not depend on the draw, so over all
    draws the gradient is that of the expected gain, and draws that are no better than it are made no likelier.

    Args:
        scores: (n,) of the candidates, by what is trained.
        gains: (n,) feedback on the candidates, higher is better.
        chosen: index of the candidate that was drawn.

    Returns:
        () of the scores' dtype; its value says nothing, its gradient everything.
    """
    advantage = gains[chosen] - gains[scores.argmax()]
    return -torch.log_softmax(scores, dim=0)[chosen] * advantage
