"""Gives the configuration and the weights that an independent implementation needs, for each kind of source."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from tokenizers import Tokenizer

from export.check.described import described_config
from export.check.reference import CheckpointWeights, ReadWeights, Reference, quiet
from export.errors import SourceError
from export.model.hf_fields import hf_values
from export.model.hf_source import HFSource, read_config
from export.model.packed.checkpoint import FIELDS
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

    from export.model.gguf.source import GGUFSource
    from export.model.rope import Rope
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


def reference_config(source: HFSource | GGUFSource) -> Mapping[str, Any]:
    """Return a source's Hugging Face configuration: a directory's own, or what transformers makes of a GGUF file.

    Raises:
        SourceError: transformers can't read the file.
    """
    if isinstance(source, HFSource):
        config = text_config(read_config(source.path), str(source.path))
        # Weights that are stored packed are compared as what they are worth.
        return {name: value for name, value in config.items() if name not in FIELDS}
    a = source.architecture
    if a.family not in _READ_BY_TRANSFORMERS:
        return described_config(a, {} if source.ready_made_rope else source.rope_fields())
    # It overlooks the size of heads in some families, and would take the family's default.
    usual = {"head_dim": a.head_dim, "pad_token_id": None}
    biases = {"attention_bias": a.qkv_bias, "mlp_bias": a.mlp_bias}
    return usual | _read_by_transformers(source) | biases | {"vocab_size": a.vocab, "tie_word_embeddings": a.tied_head}


def reference_rope(source: HFSource | GGUFSource) -> Rope | None:
    """Return rotary positions that a source holds ready-made, which no configuration can express; None for others."""
    return None if isinstance(source, HFSource) else source.ready_made_rope


def reference_of(source: HFSource | GGUFSource, config: Mapping[str, Any]) -> Reference:
    """Return the source model as transformers computes it: a directory's own files, or a GGUF file's float32 weights.

    Raises:
        ExportError: the model can't be built or read.
    """
    if isinstance(source, HFSource) and not source.is_packed:
        return Reference(config, CheckpointWeights(source.path))
    read = source.read if isinstance(source, HFSource) else hf_values(source.architecture, source.read)
    return Reference(config, ReadWeights(source.names(), read), reference_rope(source))


def _read_by_transformers(source: GGUFSource) -> dict[str, Any]:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with tempfile.TemporaryDirectory(prefix="cogenesis-check-") as directory:
        header = Path(directory) / "header.gguf"
        _write_header(source.fields, header)
        try:
            with quiet():
                config: dict[str, Any] = load_gguf_checkpoint(str(header), return_tensors=False)["config"]
        except Exception as error:  # transformers does not say what it raises
            raise SourceError(
                f"transformers can't read this file, so the export can't be checked: {source.path} "
                f"({' '.join(str(error).split())[:200]}). Set `check` to False to export it unchecked."
            ) from None
    return config


def _write_header(fields: Mapping[str, Any], path: Path) -> None:
    """Write a file with the fields alone, without the vocabulary, which transformers takes many seconds to read."""
    writer = gguf.GGUFWriter(path, str(fields["general.architecture"]))
    for name, value in fields.items():
        if not name.startswith(("tokenizer.", "general.architecture", "split.")) and value != []:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
