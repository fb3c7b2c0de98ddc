"""Makes a smaller sibling of a model: takes its least useful layers out, and heals what is left by distillation.

Both have the same vocabulary and tokenizer, so they can be fused. Healing is as Minitron's (Muralidharan et al., 2024)
for models that lost depth: the distance of the distributions, and of the states between the layers.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from export.model.hf_source import HFSource, read_config
from export.model.layers import LayerStack
from export.progress import Progress
from personalization.collab.shrink.layer_pruning import (
    block_influences,
    layers_for_share,
    most_useful,
    refitted_projections,
)
from personalization.errors import DataError, SettingsError, TrainingError
from personalization.models.base_model import Base
from personalization.models.precision import Precision, computing_in
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from personalization.training.trained_model import Trained, save_model, train_into, weights_sha256

MEASURED_TOKENS, FITTED_TOKENS = 16_384, 65_536
"""On so many tokens at most the layers are measured, and those that stay are fitted."""

_HELD_OUT_EVERY = 20  # windows; what judges is never learnt from


@dataclass(frozen=True, slots=True)
class Size:
    """How large the sibling is to be: this many layers, or as many as this share of all parameters leaves room for."""

    layers: int | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Healing:
    """How the sibling is healed.

    Attributes:
        states: weight of the relative squared distance of states, beside the divergence of the distributions, 1.
        precision: what is computed with.
        settings: of the training; its examples are windows of text.
    """

    states: float
    precision: Precision
    settings: TuningSettings


@dataclass(frozen=True, slots=True)
class Note:
    """What is noted of a sibling.

    Attributes:
        kept: layers of the whole model that it has, ascending.
        share: of the whole model's parameters.
        whole_loss: mean negative log-likelihood of held-out tokens by the whole model, nats.
    """

    kept: tuple[int, ...]
    share: float
    whole_loss: float


class Sibling(torch.nn.Module):
    """The model with fewer layers; what it is made of is noted in it, so that an interrupted run knows.

    Attributes:
        model: of transformers.
        kept: (layers,) int64, which layers of the whole model these were.
        whole_loss: () float64, mean negative log-likelihood of held-out tokens by the whole model, nats.
    """

    kept: torch.Tensor
    whole_loss: torch.Tensor

    def __init__(self, whole: Any, layers: int) -> None:
        super().__init__()
        config = copy.deepcopy(whole.config)
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:layers]
        self.model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.register_buffer("kept", torch.zeros(layers, dtype=torch.int64))
        self.register_buffer("whole_loss", torch.zeros((), dtype=torch.float64))
        self.take(whole, tuple(range(layers)))
        self.to(whole.device)
        # Few steps don't reach rare words: their rows would only drift apart from those of the cloud's model.
        for table in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            table.requires_grad_(False)

    def take(self, whole: Any, kept: tuple[int, ...]) -> None:
        """Become the whole model without its other layers."""
        state = whole.state_dict()
        for name, own in self.model.state_dict().items():
            own.copy_(state[_name_in_whole(name, kept)])
        self.kept.copy_(torch.tensor(kept))


class HealObjective:
    """Make the sibling's distributions and states those of the whole model, as an `Objective`."""

    def __init__(
        self, base: Base, sibling: Sibling, training: NDArray[np.int64], judging: NDArray[np.int64], healing: Healing
    ) -> None:
        self.module: torch.nn.Module = sibling
        self._base, self._sibling, self._healing = base, sibling, healing
        self._training, self._judging = (torch.from_numpy(part).to(base.device) for part in (training, judging))
        self.count, self.held_out = len(training), len(judging)

    def loss(self, index: int, draw: random.Random) -> torch.Tensor:  # noqa: ARG002 (protocol)
        """See `Objective.loss`: the mean over the window's tokens."""
        ids = self._training[index : index + 1]
        with self._computing():
            with torch.no_grad():
                whole = self._base.model(**_inputs(ids), output_hidden_states=True)
            own = self._sibling.model(**_inputs(ids), output_hidden_states=True)
        # What a layer gives should be what the next one that stays was given in the whole model.
        targets = [whole.hidden_states[place] for place in (*self._sibling.kept.tolist()[1:], -1)]
        distance = torch.stack([*map(_distance, own.hidden_states[1:], targets)]).mean()
        return divergence(own.logits, whole.logits) + self._healing.states * distance

    def gain(self, index: int) -> float:
        """See `Objective.gain`: the mean log-likelihood of a window's tokens."""
        return -self._negative_log_likelihood(self._sibling.model, index)

    def whole_loss(self) -> float:
        """Mean negative log-likelihood of the held-out windows' tokens by the whole model, nats."""
        with torch.inference_mode():
            return sum(self._negative_log_likelihood(self._base.model, i) for i in range(self.held_out)) / self.held_out

    def _negative_log_likelihood(self, model: Any, index: int) -> float:
        ids = self._judging[index]
        with self._computing():
            logits = model(**_inputs(ids[None])).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits.float(), ids[1:]))

    def _computing(self) -> torch.autocast:
        return computing_in(self._healing.precision, self._base.device)


def divergence(own: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Mean Kullback-Leibler divergence of the whole model's distributions from the sibling's, nats.

    Args:
        own: (1, T, V) logits of the sibling.
        whole: (1, T, V) logits of the whole model.

    Returns:
        () float32.
    """
    logs = [torch.log_softmax(logits.flatten(0, -2).float(), -1) for logits in (own, whole)]
    return torch.nn.functional.kl_div(*logs, reduction="batchmean", log_target=True)


def shrink_model(
    model: Path,
    out: Path,
    texts: Callable[[Base], NDArray[np.int64]],
    size: Size,
    healing: Healing,
    team: Team,
    *,
    force: bool,
    progress: Progress,
) -> Trained:
    """Make a smaller sibling of a model and write it as a model directory.

    Its `config.json` holds a `Note` under `shrunk`.

    Args:
        model: directory of the whole model, of the Llama family.
        out: the sibling's.
        texts: gives (n, T) token ids of typical text; each of the last of every 20 windows judges, the others are
            learnt from.
        size: of the sibling.
        healing: how to heal it.
        team: with whom.
        force: replace what was made otherwise.
        progress: called after each step.

    Raises:
        ExportError: the model can't be loaded or is of another family, or `out` can't be written.
        PersonalizationError: too little text, a size that the model does not have, or see `train_into`.
    """
    stack = LayerStack(HFSource(model))
    base = Base(model, healing.settings.threads, team.device)
    layers = _layers(base.model, stack.count, size)
    windows = texts(base)
    judges = np.arange(len(windows)) % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    judging, training = windows[judges], windows[~judges]
    if not len(judging):
        raise DataError(
            f"There is too little text: {len(windows)} windows of {windows.shape[1]} tokens, and it takes "
            f"{_HELD_OUT_EVERY}. Give more, or lower --window."
        )
    sibling = Sibling(base.model, layers)
    objective = HealObjective(base, sibling, training, judging, healing)
    origin = {
        "kind": "collab shrink",
        "model": weights_sha256(base.model),
        "texts": hashlib.sha256(windows.tobytes()).hexdigest(),
        "window": windows.shape[1],
        "layers": len(sibling.kept),
        "states": healing.states,
        "precision": healing.precision,
    }

    def start() -> None:
        measured, fitted = (training[: max(1, most // windows.shape[1])] for most in (MEASURED_TOKENS, FITTED_TOKENS))
        kept = most_useful(block_influences(stack, measured, healing.precision, progress), len(sibling.kept))
        with torch.no_grad():
            sibling.take(base.model, kept)
            matrices = refitted_projections(stack, kept, fitted, healing.precision, progress)
            for layer, matrix in zip(sibling.model.model.layers, matrices, strict=True):
                layer.mlp.down_proj.weight.copy_(matrix)
        sibling.whole_loss.fill_(objective.whole_loss())

    save = partial(_save, sibling, base)
    return train_into(out, objective, healing.settings, team, origin, save, force=force, progress=progress, start=start)


def read_note(directory: Path) -> Note:
    """What is noted of a sibling in its directory.

    Raises:
        TrainingError: nothing is, or it is damaged.
    """
    try:
        noted = read_config(directory)["shrunk"]
        return Note(tuple(noted["kept"]), float(noted["share"]), float(noted["whole_loss"]))
    except (KeyError, TypeError, ValueError):
        raise TrainingError(
            f"The note of how the model was shrunk is damaged: {directory / 'config.json'}, field 'shrunk'. Remove the "
            "directory to shrink again."
        ) from None


def _layers(model: Any, layers: int, size: Size) -> int:
    if size.layers is None:
        of_layer = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
        return layers_for_share(model.num_parameters(), of_layer, layers, size.share or 1.0)
    if not 1 <= size.layers < layers:
        raise SettingsError(f"The sibling must have 1 .. {layers - 1} of the model's {layers} layers.")
    return size.layers


def _name_in_whole(name: str, kept: tuple[int, ...]) -> str:
    before, layers, after = name.partition("model.layers.")
    if not layers:
        return name
    index, _, rest = after.partition(".")
    return f"{before}{layers}{kept[int(index)]}.{rest}"


def _inputs(ids: torch.Tensor) -> dict[str, Any]:
    # Without a mask of ones transformers looks for packed sequences, and makes the mask that all of it stands for.
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def _distance(own: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the squared distance relative to the target's square: () float32."""
    own, target = own.float(), target.float()
    return ((own - target).square().sum(-1) / target.square().sum(-1)).mean()


def _save(sibling: Sibling, base: Base, directory: Path) -> None:
    share = sibling.model.num_parameters() / base.model.num_parameters()
    note = Note(tuple(sibling.kept.tolist()), share, float(sibling.whole_loss))
    sibling.model.config.shrunk = asdict(note)
    save_model(sibling.model, base.path, directory)
