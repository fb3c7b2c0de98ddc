"""Which matrices a model can least do without: the loss that rounding each group of them to 4 bits would cost.

The loss is the KL divergence from the model's own predictions. To second order it is half the Fisher information's
quadratic form in the change of outputs (as in Kim et al., "SqueezeLLM", 2024, arXiv 2306.07629, which uses it for
weights): with g the gradient of the log-probability of a token *sampled from the model*, E[(g · Δy)²] / 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.model.layers import LayerStack, batches
from export.quantization.calibration import SITES
from export.quantization.quantize import quantize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from export.model.weights import WeightSource

_SEED = 0


def site_sensitivities(
    source: WeightSource, windows: NDArray[np.int64], progress: Callable[[str, int, int], None] | None = None
) -> dict[tuple[int, int], float]:
    """Nats a token that 4-bit rounding of a site alone would cost.

    Memory: one layer, and the tokens' hidden states at every layer's entrance.

    Args:
        source: the model.
        windows: (n, T) token ids.
        progress: called with what is being done, layers done and layers in all.

    Returns:
        By (layer, index in `SITES`).
    """
    import torch

    stack = LayerStack(source)
    with torch.no_grad():
        entering = [stack.embed(windows)]
        for index in range(stack.count):
            layer = stack.layer(index)
            entering.append(torch.cat([stack.forward(layer, entering[-1][part]) for part in batches(entering[-1])]))
    gradient = _gradient_at_the_end(stack, entering.pop())
    found: dict[tuple[int, int], float] = {}
    for index in reversed(range(stack.count)):
        if progress is not None:
            progress("Measuring sensitivities", stack.count - 1 - index, stack.count)
        layer = stack.layer(index)
        changes = {
            name: torch.from_numpy(quantize(weight, 4, "affine").dequantize() - weight)
            for names in SITES
            for name in names
            for weight in (layer.get_submodule(name).weight.numpy(),)
        }
        costs = [0.0] * len(SITES)
        hidden, before = entering.pop(), torch.empty_like(gradient)
        for part in batches(hidden):
            before[part], effects = _backward(stack, layer, hidden[part], gradient[part], changes)
            for site, names in enumerate(SITES):
                effect = torch.stack([effects[name] for name in names]).sum(0)
                costs[site] += float((effect.double() ** 2).sum()) / 2 / windows.size
        gradient = before
        found |= {(index, site): cost for site, cost in enumerate(costs)}
    if progress is not None:
        progress("Measuring sensitivities", stack.count, stack.count)
    return found


def most_sensitive(
    costs: Mapping[tuple[int, int], float], sizes: Mapping[tuple[int, int], int], share: float
) -> frozenset[tuple[int, int]]:
    """The sites to keep in 8 bits: those that save most for each weight, up to a share of all weights.

    Args:
        costs: what 4 bits would cost, by site.
        sizes: how many weights a site has.
        share: of all weights, 0 to 1.
    """
    budget = share * sum(sizes.values())
    chosen = set()
    for site in sorted(costs, key=lambda site: (-costs[site] / sizes[site], site)):
        if sizes[site] <= budget:
            chosen.add(site)
            budget -= sizes[site]
    return frozenset(chosen)


def _gradient_at_the_end(stack: LayerStack, hidden: Any) -> Any:
    """Gradient of the sampled tokens' log-probability at the last layer's output: (n, T, hidden)."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    norm, head = stack.final_norm(), stack.head()
    gradient = torch.empty_like(hidden)
    for window in range(len(hidden)):
        entering = hidden[window].clone().requires_grad_()
        rows = torch.log_softmax(norm(entering) @ head.T, dim=-1)
        sampled = torch.multinomial(rows.detach().exp(), 1, generator=generator)
        rows.gather(1, sampled).sum().backward()
        gradient[window] = entering.grad
    return gradient


def _backward(
    stack: LayerStack, layer: Any, hidden: Any, gradient: Any, changes: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Gradient at the layer's entrance, and g · Δy of every token for every changed matrix."""
    effects: dict[str, Any] = {}
    hooks = []
    for name, change in changes.items():

        def watch(_module: Any, inputs: Any, output: Any, name: str = name, change: Any = change) -> None:
            shift = inputs[0].detach() @ change.T

            def note(gradient: Any) -> None:
                effects[name] = (gradient * shift).sum(-1)

            output.register_hook(note)

        hooks.append(layer.get_submodule(name).register_forward_hook(watch))
    entering = hidden.clone().requires_grad_()
    stack.forward(layer, entering).backward(gradient)
    for hook in hooks:
        hook.remove()
    return entering.grad, effects
