"""Losses for retrievers and their selectors (Salemi et al., SIGIR 2024): distillation and reinforcement of feedback."""

from __future__ import annotations

import torch


def distillation_loss(scores: torch.Tensor, gains: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy between the softmax of the candidates' gains and the softmax of their scores.

    Its gradient is that of the Kullback-Leibler divergence, from which it differs by the first softmax's entropy.

    Args:
        scores: (n,) scores of the candidates from the trained model.
        gains: (n,) feedback on the candidates, higher is better.
        temperature: divides both; below 1, the best candidates have more weight.

    Returns:
        () in the scores' dtype.
    """
    target = torch.softmax(gains / temperature, dim=0)
    return -(target * torch.log_softmax(scores / temperature, dim=0)).sum()


def reinforce_loss(scores: torch.Tensor, gains: torch.Tensor, chosen: int) -> torch.Tensor:
    """REINFORCE (Williams, 1992) for one candidate drawn from the softmax of the scores.

    The baseline is the gain of the candidate with the highest score. It does not depend on the draw, so the expected
    gradient is that of the expected gain. A draw that is no better than the baseline does not become more likely.

    Args:
        scores: (n,) scores of the candidates from the trained model.
        gains: (n,) feedback on the candidates, higher is better.
        chosen: index of the drawn candidate.

    Returns:
        () in the scores' dtype; only its gradient is meaningful, not its value.
    """
    advantage = gains[chosen] - gains[scores.argmax()]
    return -torch.log_softmax(scores, dim=0)[chosen] * advantage
