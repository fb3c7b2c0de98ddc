"""Small real tokenizers of the two families that decoders come in: byte-level BPE and BPE with byte fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from edge_runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from decoder_models import TinyModel

_CORPUS = [
    "Write a short letter to the residents' association about the repairs in the stairwell.",
    "Dear neighbours, thank you for the lovely evening; the children still talk about the lanterns.",
    "Grüße aus Köln, naïve café, 你好 世界, こんにちは, Привет мир, 🙂 👩‍👩‍👧",
    "The quick brown fox jumps over the lazy dog while 12 of 345 clocks strike 6:30.",
] * 4


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    """Trained here: any text is tokens of bytes, as in GPT-2, SmolLM2, Qwen and Llama 3."""
    tokenizer = HFTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return Tokenizer(tokenizer)


@pytest.fixture(scope="session")
def byte_fallback_tokenizer() -> Tokenizer:
    """Words and `<0xNN>` bytes for all else, with a stripped leading space, as in Llama 2 and Gemma."""
    vocabulary = {"<unk>": 0, "</s>": 1}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for letter in "▁abcdefghijklmnopqrstuvwxyzé.,":
        vocabulary[letter] = len(vocabulary)
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("a", "n"), ("an", "d")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = HFTokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    return Tokenizer(tokenizer)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random Llama of two layers, in fp32."""
    from decoder_models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny"), model_type="llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def other_tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Another base: the same shape, other weights."""
    from decoder_models import tiny_model

    return tiny_model(tmp_path_factory.mktemp("other"), model_type="llama", tie_word_embeddings=True, rope_theta=5e3)


@pytest.fixture(scope="session")
def tiny_portable(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A random GPT-2, which optimum exports: learnt positions, a graph of kind "portable"."""
    from decoder_models import tiny_model

    config = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return tiny_model(tmp_path_factory.mktemp("portable"), model_type="gpt2", **config)
