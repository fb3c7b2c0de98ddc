"""A second reader of bundles, written from docs/bundle.md alone: what the page says is enough to run the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from edge_runtime.bundle.reader import open_bundle


class Port:
    """What a Kotlin, Swift or C++ runtime would do, in numpy and onnxruntime."""

    def __init__(self, root: Path) -> None:
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
        assert (manifest["format"], manifest["schema"]["major"]) == ("cogenesis-bundle", 2)
        checksum = manifest.pop("checksum")
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        assert hashlib.sha256(canonical.encode()).hexdigest() == checksum
        fingerprint = hashlib.sha256()
        for entry in sorted(manifest["files"], key=lambda entry: entry["path"]):
            content = (root / entry["path"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])
            if entry["role"] in ("graph", "weights") and entry["path"].startswith("onnx/"):
                fingerprint.update(f"{entry['path']}\0{entry['sha256']}\n".encode())
        self.fingerprint = fingerprint.hexdigest()
        self.manifest, decoder = manifest, manifest["decoders"][0]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self.session = ort.InferenceSession(root / decoder["graph"], options, providers=["CPUExecutionProvider"])
        self.io = self.session.io_binding()
        shape = (1, decoder["kv_heads"], manifest["context_length"], decoder["head_dim"])
        for layer in range(decoder["layers"]):
            for part in ("key", "value"):
                buffer = ort.OrtValue.ortvalue_from_numpy(np.full(shape, 1e9, np.float32))  # need not be cleared
                self.io.bind_ortvalue_input(f"past_key_values.{layer}.{part}", buffer)
                self.io.bind_ortvalue_output(f"present.{layer}.{part}", buffer)
        self.past = 0

    def feed(self, tokens: list[int], rows: list[int]) -> np.ndarray:
        total = self.past + len(tokens)
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array([total], np.int32),
            "rows": np.array(rows, np.int64),
        }
        for name, array in inputs.items():
            self.io.bind_cpu_input(name, array)
        self.io.bind_output("logits", "cpu")
        self.session.run_with_iobinding(self.io)
        self.past = total
        return next(value.numpy() for value in self.io.get_outputs() if value.numpy().ndim == 2)


@pytest.mark.parametrize(("name", "scheme"), [("llama-tied", "int8"), ("qwen3", "fp32"), ("qwen2", "int4")])
def test_a_port_conforms(name, scheme, family_bundle):
    root = family_bundle(name, scheme)
    port = Port(root)
    golden = json.loads((root / "golden.json").read_text())
    for vector in golden["vectors"]:
        port.past = 0  # rewind
        *first, last = np.array_split(vector["token_ids"], 3)
        for chunk in (chunk.tolist() for chunk in first if len(chunk)):
            assert port.feed(chunk, []).shape == (0, port.manifest["vocab_size"])
        row = port.feed(last.tolist(), [len(last) - 1])[0]
        difference = np.abs(row[vector["top_ids"]] - vector["top_logits"]).max()
        assert difference <= golden["tolerance"]
        for token in vector["greedy"]:
            assert row.max() - row[token] <= 2 * golden["tolerance"]
            row = port.feed([token], [0])[0]
    bundle = open_bundle(root)
    assert port.fingerprint == bundle.fingerprint(bundle.manifest.decoder)
