"""A tiny random Llama with a real, small tokenizer of its own, and servers of it on real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """The lighthouse keeper found a bottle on the beach and wrote a letter to a friend in town.
Spring comes late to the mountain village, but the gardeners know how to wait and what to plant first.
A good recipe needs patience, fresh bread, salt and somebody who is hungry enough to thank the cook.
Why do we read old books? Because questions stay while answers change: every reader begins again.
Smörgåsbord, naïve café, Übung macht den Meister; 東京タワー and 🎈🎉 belong to it as well.
"""
PADDED_VOCABULARY = 704


def save_tiny_model(directory: Path, *, text: str = TEXT, context_length: int = 1024) -> Path:
    """A Llama of two layers with random weights, wider than its tokenizer (a padded embedding)."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE)
    assert len(tokenizer) < PADDED_VOCABULARY
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=PADDED_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        initializer_range=0.3,  # peaked enough for rows to differ
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-cloud")


@pytest.fixture(scope="session")
def engine(tiny_model: Path):
    from cloud_bridge.server.transformers_engine import load_engine

    return load_engine(str(tiny_model))


@pytest.fixture(scope="session")
def oracle(tiny_model: Path):
    """The same model, loaded and run by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def prompt(instruction: str) -> list[int]:
        return tokenizer.apply_chat_template([{"role": "user", "content": instruction}], add_generation_prompt=True)

    def rows(instruction: str, answer: list[int]):
        """(len(answer) + 1, tokenizer's vocabulary) float64 log-probabilities from one pass without a cache."""
        ids = prompt(instruction)
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer]), use_cache=False).logits[0, len(ids) - 1 :]
        return torch.log_softmax(logits[:, : len(tokenizer)].double(), dim=-1).numpy()

    return SimpleNamespace(prompt=prompt, rows=rows, tokenizer=tokenizer, vocab_size=len(tokenizer))


@pytest.fixture(scope="session")
def server(engine) -> Iterator:
    """An open server of the tiny model in a thread of this process."""
    from cloud_bridge.server.serve import ServerOptions, serving

    with serving(engine, ServerOptions(max_sessions=4, idle_seconds=0.0, max_top_k=512)) as running:
        yield running


@pytest.fixture
def client(server) -> Iterator:
    from cloud_bridge.client import connect

    with connect(server.address, call_timeout=20) as cloud:
        yield cloud
