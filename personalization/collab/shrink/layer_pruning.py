"""Takes layers out of a model: tells which matter least, and lets those that stay make up for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.model.layers import LayerStack, batches
from export.progress import Progress
from personalization.errors import SettingsError
from personalization.models.precision import Precision, computing_in

_RIDGE = 0.1  # of the mean eigenvalue; on SmolLM2 better than 0.01, which fits the windows alone


def layers_for_share(parameters: int, of_layer: int, layers: int, share: float) -> int:
    """How many layers a model may keep.

    Args:
        parameters: of the whole model.
        of_layer: of one layer.
        layers: that the model has.
        share: of all parameters that may stay.

    Raises:
        SettingsError: the rest of the model alone is more than that, or no layer would go.
    """
    rest = parameters - layers * of_layer
    count = int((share * parameters - rest) // of_layer)
    if not 1 <= count < layers:
        least, most = (rest + of_layer) / parameters, 1 - of_layer / parameters
        raise SettingsError(f"The share of parameters must be in {least:.2f} .. {most:.2f} here, not {share}.")
    return count


def block_influences(
    stack: LayerStack, windows: NDArray[np.int64], precision: Precision, progress: Progress
) -> list[float]:
    """How much each layer turns the states that pass it (ShortGPT, Men et al., 2024, equation 1).

    Args:
        stack: the model.
        windows: (n, T) token ids of typical text.
        precision: what is computed with.
        progress: called before each layer.

    Returns:
        One minus the mean cosine of a token's state before and after each layer, 0 .. 2.
    """
    hidden = stack.embed(windows)
    influences = []
    with torch.no_grad():
        for index in range(stack.count):
            progress("Measuring the layers", index, stack.count)
            after = _through(stack, stack.layer(index), hidden, precision)
            influences.append(1.0 - float(torch.cosine_similarity(hidden, after, dim=-1).double().mean()))
            hidden = after
    progress("Measuring the layers", stack.count, stack.count)
    return influences


def most_useful(influences: Sequence[float], count: int) -> tuple[int, ...]:
    """Indices of the `count` layers of the highest influence, ascending; of equal ones the earlier."""
    ranked = sorted(range(len(influences)), key=lambda index: (-influences[index], index))
    return tuple(sorted(ranked[:count]))


def refitted_projections(
    stack: LayerStack, kept: Sequence[int], windows: NDArray[np.int64], precision: Precision, progress: Progress
) -> list[torch.Tensor]:
    """Fit the last matrix of each layer that stays, so that it does the work of those that are gone behind it.

    After ReplaceMe (Shopkhoev et al., 2025), which puts a linear map in the place of layers and folds it into the
    matrix before it: we fit that matrix itself, by ridge regression towards what it was, and one layer after the other
    on the states that the fitted layers before it give, so that their errors are made up for, too. The error is taken
    relative to a state's size, which the norm of the next layer takes out: few tokens have states a hundred times
    larger than others.

    Args:
        stack: the whole model.
        kept: layers that stay, ascending.
        windows: (n, T) token ids of typical text; some 40 tokens for each of the layer's inner states.
        precision: what is computed with.
        progress: called before each layer of the whole model.

    Returns:
        `mlp.down_proj.weight` of each layer that stays, (hidden, inner) float32.
    """
    target = stack.embed(windows)
    hidden = target
    matrices = []
    reached = 0
    with torch.no_grad():
        for index, until in zip(kept, [*kept[1:], stack.count], strict=True):
            for passed in range(reached, until):
                progress("Fitting the layers that stay", passed, stack.count)
                target = _through(stack, stack.layer(passed), target, precision)
            reached = until
            layer = stack.layer(index)
            _refit(stack, layer, hidden, target, precision)
            hidden = _through(stack, layer, hidden, precision)
            matrices.append(layer.mlp.down_proj.weight)
    progress("Fitting the layers that stay", stack.count, stack.count)
    return matrices


def _through(stack: LayerStack, layer: Any, hidden: torch.Tensor, precision: Precision) -> torch.Tensor:
    with computing_in(precision, "cpu"):
        return torch.cat([stack.forward(layer, hidden[part]) for part in batches(hidden)])


def _refit(stack: LayerStack, layer: Any, hidden: torch.Tensor, target: torch.Tensor, precision: Precision) -> None:
    """Change the layer's last matrix W by D, so that sum |(W + D) z + rest - target|^2 / |target|^2 is least."""
    projection = layer.mlp.down_proj
    seen: list[torch.Tensor] = []
    hook = projection.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    gram = torch.zeros(projection.in_features, projection.in_features)
    products = torch.zeros(projection.in_features, projection.out_features)
    try:
        for part in batches(hidden):
            seen.clear()
            missing = target[part] - _through(stack, layer, hidden[part], precision)
            size = target[part].square().mean(-1, keepdim=True).sqrt()
            inner, missing = (seen[0].float() / size).flatten(0, 1), (missing / size).flatten(0, 1)
            gram += inner.T @ inner
            products += inner.T @ missing
    finally:
        hook.remove()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    projection.weight += torch.linalg.solve(gram.double(), products.double()).float().T
