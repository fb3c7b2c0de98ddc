"""Gives the configuration and the weights that an independent implementation needs, for each kind of source."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gguf
import numpy as np
from tokenizers import Tokenizer

from export.check.described import described_config
from export.check.reference import CheckpointWeights, ReadWeights, Reference, quiet
from export.errors import SourceError
from export.model.gguf.families import OFFSET_NORMS
from export.model.hf_source import HFSource, read_config
from export.model.text_part import text_config

_TOKENS = 64
# GGUF files of these are read by transformers itself. It overlooks fields of others.
_READ_BY_TRANSFORMERS = ("llama", "qwen2", "qwen3")
_TEXT = (
    "Dear Ms. Rivera, thank you for your letter of 14 March. The ferry leaves at 6:45 every morning; in winter it is "
    "often late, so please bring something warm. I have enclosed two tickets (numbers 311 and 312), a map, and the "
    "recipe that you asked for: 250 g of flour, three eggs, a pinch of salt. Yours sincerely, the harbour office."
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from export.model.gguf.source import GGUFSource
    from export.model.weights import TokenizerAssets


def sample_tokens(assets: TokenizerAssets, limit: int) -> list[int]:
    """Encode a text with a model's tokenizer, behind its first token if it has one.

    Args:
        assets: the tokenizer.
        limit: largest number of tokens.
    """
    tokenizer = Tokenizer.from_str(assets.json)
    start = tokenizer.token_to_id(assets.bos_token) if assets.bos_token else None
    token_ids = [] if start is None else [start]
    token_ids += tokenizer.encode(_TEXT, add_special_tokens=False).ids
    return token_ids[: max(1, min(limit, _TOKENS))] or [0]


class Source(Protocol):
    """A model directory or a GGUF file."""

    path: Path

    def tokenizer(self) -> TokenizerAssets:
        """Read the model's tokenizer."""
        ...


def reference_config(source: Source) -> Mapping[str, Any]:
    """Return a source's Hugging Face configuration: a directory's own, or what transformers makes of a GGUF file.

    Raises:
        SourceError: transformers can't read the file.
    """
    path = source.path
    if path.is_dir():
        # Weights that are stored quantized are compared as what they are worth.
        return {
            name: value
            for name, value in text_config(read_config(path), str(path)).items()
            if name != "quantization_config"
        }
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    own = _gguf_source(source)
    if own.architecture.family not in _READ_BY_TRANSFORMERS:
        return described_config(own.architecture, {} if own.ready_made_rope else own.rope_fields())
    with tempfile.TemporaryDirectory(prefix="cogenesis-check-") as directory:
        header = Path(directory) / "header.gguf"
        _write_header(own.fields, header)
        try:
            with quiet():
                config: dict[str, Any] = load_gguf_checkpoint(str(header), return_tensors=False)["config"]
        except Exception as error:  # transformers does not say what it raises
            raise SourceError(
                f"transformers can't read this file, so the export can't be checked: {path} "
                f"({' '.join(str(error).split())[:200]}). Set `check` to False to export it unchecked."
            ) from None
    # It overlooks the size of heads in some families, and would take the family's default.
    a = own.architecture
    biases = {"attention_bias": a.qkv_bias, "use_qkv_bias": a.qkv_bias, "mlp_bias": a.mlp_bias}
    usual = {"head_dim": a.head_dim, "pad_token_id": None}
    return usual | config | biases | {"vocab_size": a.vocab, "tie_word_embeddings": a.tied_head}


def reference_of(source: Source, config: Mapping[str, Any]) -> Reference:
    """Return the source model as transformers computes it: a directory's own files, or a GGUF file's float32 weights.

    Raises:
        ExportError: the model can't be built or read.
    """
    if source.path.is_dir():
        if "quantization_config" not in read_config(source.path):
            return Reference(config, CheckpointWeights(source.path))
        packed = HFSource(source.path)
        return Reference(config, ReadWeights(packed.names(), packed.read))
    own = _gguf_source(source)
    return Reference(config, ReadWeights(own.names(), functools.partial(_as_saved, own)), own.ready_made_rope)


def _as_saved(source: GGUFSource, name: str) -> NDArray[np.float32]:
    """Read a tensor as a Hugging Face directory holds it."""
    values = source.read(name)
    # llama.cpp stores these norms with the 1 that the model adds.
    return values - np.float32(1) if source.architecture.family in OFFSET_NORMS and "norm" in name else values


def _write_header(fields: Mapping[str, Any], path: Path) -> None:
    """Write a file with the fields alone, without the vocabulary, which transformers takes many seconds to read."""
    writer = gguf.GGUFWriter(path, str(fields["general.architecture"]))
    for name, value in fields.items():
        if not name.startswith(("tokenizer.", "general.architecture", "split.")) and value != []:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _gguf_source(source: Source) -> GGUFSource:
    from export.model.gguf.source import GGUFSource

    return source if isinstance(source, GGUFSource) else GGUFSource(source.path)
