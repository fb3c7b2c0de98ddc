"""The base model, loaded once. Users' adapters are attached and detached; the model is never copied or changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from export.model.hf_source import read_config
from export.model.hf_tokenizer import hf_tokenizer
from export.model.transformers_config import transformers_config
from personalization.errors import ModelError, SettingsError, TrainingError
from personalization.models.adapter_sites import linear_layers
from personalization.models.examples import Example, ExampleWriter
from personalization.models.load_errors import model_errors

if TYPE_CHECKING:
    pass

State: TypeAlias = Mapping[str, torch.Tensor]
"""An adapter's matrices, by PEFT's names in a file."""

_ADAPTER = "user"
_IGNORED = -100  # ignored by torch's cross entropy

# Families whose attention respects the borders of packed texts, as tests show.
_PACKABLE = ("llama", "mistral", "qwen2", "qwen3", "gemma")


class Base:
    """A model with room for one adapter at a time."""

    @model_errors()
    def __init__(self, path: Path, threads: int, device: str = "cpu") -> None:
        """Load a model directory in float32; this sets torch's threads to `threads`.

        Args:
            path: the directory.
            threads: number of CPU threads.
            device: "cpu", "cuda" or "cuda:1".

        Raises:
            ModelError: the directory is incomplete or damaged.
            SettingsError: the model has no chat template, or there is no such device.
        """
        torch.set_num_threads(threads)
        # Some GPU operations have no deterministic form, so they only warn; on the CPU it is an error.
        torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
        config = read_config(path)
        self.seq2seq = bool(config.get("is_encoder_decoder"))
        kind = AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM
        described = transformers_config(path)
        try:
            model = kind.from_pretrained(
                path, config=described, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        except Exception as error:  # transformers' parts raise many types
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"The model can't be loaded: {path} ({reason}). Download it again.") from None
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(f"The device can't be used: {device} ({reason}). Use cpu.") from None
        self.path = path
        self.device = device
        assets = hf_tokenizer(path, config)
        self.stops = assets.stop_token_ids
        self.writer = ExampleWriter(assets, seq2seq=self.seq2seq)
        # None for T5 and similar models: their positions are relative.
        self.context_length: int | None = getattr(model.config, "max_position_embeddings", None)
        self._model: Any = model.requires_grad_(False).eval()
        self._linear = linear_layers(model)
        self._peft: Any = None
        parameters = inspect.signature(model.forward).parameters
        self._selects_rows = "logits_to_keep" in parameters
        self._takes_positions = "position_ids" in parameters
        self._packs = not self.seq2seq and config.get("model_type") in _PACKABLE

    @contextmanager
    def new_adapter(self, config: LoraConfig, seed: int) -> Iterator[None]:
        """Attach a fresh adapter, which has no effect yet, and detach it after the block.

        Args:
            config: rank, scale, dropout and sites of the adapter.
            seed: seed of its initial weights and of everything random after that.
        """
        torch.manual_seed(seed)
        with self._attached(config):
            yield

    @property
    def linear(self) -> frozenset[str]:
        """Names of the linear layers that an adapter can change."""
        return self._linear

    @contextmanager
    def saved_adapter(self, config: LoraConfig, state: State) -> Iterator[None]:
        """Attach a trained adapter, and detach it after the block.

        Raises:
            TrainingError: the adapter does not fit the base.
        """
        with self._attached(config):
            try:
                unfit = set_peft_model_state_dict(self._peft, dict(state), adapter_name=_ADAPTER).unexpected_keys
            except RuntimeError as error:  # shapes
                raise TrainingError(
                    f"The adapter does not fit the model ({str(error).splitlines()[-1].strip()})."
                ) from None
            if unfit:
                raise TrainingError(f"The adapter does not fit the model: it has no '{unfit[0]}'.")
            yield

    @property
    def model(self) -> Any:
        """The model itself, including the adapter while one is attached."""
        return self._model

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters: the adapter's matrices or, after `train_whole`, the model's weights."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def train_whole(self) -> None:
        """Make the model's own weights trainable; afterwards it is no longer a base for adapters."""
        self._model.requires_grad_(True)

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the adapter's matrices."""
        state = get_peft_model_state_dict(self._peft, adapter_name=_ADAPTER)
        return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}

    def restore(self, state: State) -> None:
        """Set the adapter's matrices to a copy from `state`."""
        set_peft_model_state_dict(self._peft, dict(state), adapter_name=_ADAPTER)

    def train(self, on: bool) -> None:
        """Turn the training mode, and so dropout, on or off."""
        self._model.train(on)

    def losses(self, examples: Sequence[Example]) -> torch.Tensor:
        """Negative log-likelihood of every answer token, in one pass.

        Args:
            examples: as many as fit into memory; examples of similar length waste the least padding.

        Returns:
            (examples, tokens of the longest answer) float32, right-aligned for decoders and left-aligned for
            encoder-decoder models, 0 where an answer has no token.
        """
        rows, labels = self._seq2seq_rows(examples) if self.seq2seq else self._causal_rows(examples)
        losses = torch.nn.functional.cross_entropy(
            rows.flatten(0, 1).float(), labels.flatten(), reduction="none", ignore_index=_IGNORED
        )
        return losses.view(labels.shape)

    @property
    def packs(self) -> bool:
        """Whether `packed_losses` takes several examples: transformers separates them by their positions."""
        return self._packs

    def packed_losses(self, examples: Sequence[Example]) -> torch.Tensor:
        """Negative log-likelihood of every answer token, of examples packed into one row.

        No example can attend to another, and there is no padding.

        Args:
            examples: exactly one, or any number if the model `packs`; exactly one for encoder-decoder models.

        Returns:
            (answer tokens of all examples,) float32, in order.
        """
        if self.seq2seq:
            return self.losses(examples).flatten()
        # The last token is predicted by the row before it, so it is not an input.
        ids = [token for example in examples for token in (*example.prompt, *example.answer)[:-1]]
        labels = torch.tensor([token for example in examples for token in example.answer], device=self.device)
        rows: list[int] = []
        start = 0
        for example in examples:
            rows += range(start + len(example.prompt) - 1, start + example.length - 1)
            start += example.length - 1
        chosen = torch.tensor(rows, device=self.device)
        inputs: dict[str, Any] = {"input_ids": torch.tensor([ids], device=self.device), "use_cache": False}
        if len(examples) > 1:
            positions = [place for example in examples for place in range(example.length - 1)]
            inputs["position_ids"] = torch.tensor([positions], device=self.device)
        else:
            # Enables attention's faster form for a single sequence.
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if self._selects_rows:
            logits = self._model(**inputs, logits_to_keep=chosen).logits[0]
        else:
            logits = self._model(**inputs).logits[0, chosen]
        return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def _causal_rows(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of the answers: padded on the left, so that all answers end in the last column."""
        longest = max(example.length for example in examples)
        answers = max(len(example.answer) for example in examples)
        # The last token is predicted by the row before it, so it is not an input.
        ids = torch.zeros(len(examples), longest - 1, dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full((len(examples), answers), _IGNORED)
        for row, example in enumerate(examples):
            tokens = torch.tensor((*example.prompt, *example.answer))
            ids[row, longest - example.length :] = tokens[:-1]
            mask[row, longest - example.length :] = 1
            labels[row, answers - len(example.answer) :] = tokens[len(example.prompt) :]
        ids, mask, labels = (tensor.to(self.device) for tensor in (ids, mask, labels))
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if self._takes_positions:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if self._selects_rows:
            inputs["logits_to_keep"] = answers
        return self._model(**inputs).logits[:, -answers:], labels

    def _seq2seq_rows(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.zeros(len(examples), max(len(example.prompt) for example in examples), dtype=torch.long)
        mask = torch.zeros_like(ids)
        labels = torch.full((len(examples), max(len(example.answer) for example in examples)), _IGNORED)
        for row, example in enumerate(examples):
            ids[row, : len(example.prompt)] = torch.tensor(example.prompt)
            mask[row, : len(example.prompt)] = 1
            labels[row, : len(example.answer)] = torch.tensor(example.answer)
        ids, mask, labels = (tensor.to(self.device) for tensor in (ids, mask, labels))
        shifted = self._model.prepare_decoder_input_ids_from_labels(labels=labels)
        output = self._model(input_ids=ids, attention_mask=mask, decoder_input_ids=shifted, use_cache=False)
        return output.logits, labels

    @contextmanager
    def _attached(self, config: LoraConfig) -> Iterator[None]:
        try:
            if self._peft is None:
                self._peft = PeftModel(self._model, config, adapter_name=_ADAPTER)
            else:
                self._peft.add_adapter(_ADAPTER, config)
                self._peft.set_adapter(_ADAPTER)
        except ValueError as error:
            raise SettingsError(f"The model takes no such adapter: {self.path} ({error}).") from None
        try:
            yield
        finally:
            self._peft.delete_adapter(_ADAPTER)
            self._model.eval()
