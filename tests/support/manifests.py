"""A small whole bundle for the tests of manifest and bundle: real files, no model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge_runtime.bundle.manifest import (
    MANIFEST_NAME,
    DecoderSpec,
    FileEntry,
    LoraSite,
    Manifest,
    ModelCard,
    Quantization,
    TokenizerSpec,
    WeightSource,
    write_manifest,
)

CONTENTS = {
    "onnx/model.onnx": ("graph", b"graph" * 100),
    "onnx/model.data": ("weights", bytes(range(256)) * 40),
    "tokenizer.json": ("tokenizer", b"{}"),
    "golden.json": ("golden", b"[]"),
}


def small_manifest() -> Manifest:
    """A valid manifest of `CONTENTS`."""
    files = tuple(
        FileEntry(path, role, len(content), hashlib.sha256(content).hexdigest())
        for path, (role, content) in CONTENTS.items()
    )
    return Manifest(
        created_by="tests",
        model=ModelCard("someone/tiny", "r1", "LlamaForCausalLM", "Apache-2.0", 1000),
        tokenizer=TokenizerSpec("tokenizer.json", "0" * 64, "<s>", "</s>", (2, 0)),
        chat_template="{{ messages }} üñí",
        context_length=128,
        vocab_size=300,
        decoders=(
            DecoderSpec(
                "onnx/model.onnx",
                "shared_kv",
                2,
                1,
                8,
                (LoraSite("qkv", 16, (("q_proj", 16), ("k_proj", 8))),),
                Quantization("fp32", "as in the source"),
                "golden.json",
            ),
        ),
        source=WeightSource("huggingface", "someone/tiny", "1" * 64),
        files=files,
    )


def write_small_bundle(root: Path) -> Path:
    """Write the files and their manifest."""
    for path, (_, content) in CONTENTS.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (root / MANIFEST_NAME).write_text(write_manifest(small_manifest()), encoding="utf-8")
    return root
