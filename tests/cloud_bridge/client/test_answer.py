"""The cloud's own answer: greedy equals transformers, sampling follows its seed, pieces are whole characters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_bridge.server.engines.sampling import choose
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import CloudContextFullError, ProtocolError
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger

INSTRUCTION = PublicInstruction("Write about 東京 and 🎈.")


def answer(client, *, tokens=40, temperature=0.0, top_p=1.0, seed=0, instruction=INSTRUCTION):
    gate = Gate(Policy.SKETCH, Ledger())
    released = gate.answer(instruction, max_new_tokens=tokens, temperature=temperature, top_p=top_p, seed=seed)
    return list(client.answer(released))


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def tokens_of(pieces) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def test_the_greedy_answer_is_what_transformers_generates(client, oracle, tiny_model):
    import torch
    from transformers import AutoModelForCausalLM

    pieces = answer(client, tokens=40)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    prompt = torch.tensor([oracle.prompt(INSTRUCTION.text)])
    # Ids of the padding are no tokens: neither side may choose them.
    padding = list(range(oracle.vocab_size, model.config.vocab_size))
    whole = model.generate(prompt, max_new_tokens=40, do_sample=False, suppress_tokens=padding, pad_token_id=0)
    expected = whole[0, prompt.shape[1] :].tolist()
    ended = expected[-1] == oracle.tokenizer.eos_token_id
    assert tokens_of(pieces) == (expected[:-1] if ended else expected)
    assert pieces[-1].finish_reason == ("stop" if ended else "length")
    assert pieces[-1].prompt_tokens == prompt.shape[1]
    assert [piece.finish_reason for piece in pieces[:-1]] == [""] * (len(pieces) - 1)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(client):
    one, again, other = (tokens_of(answer(client, temperature=1.0, top_p=0.95, seed=seed)) for seed in (5, 5, 6))
    assert one == again
    assert one != other


@pytest.mark.parametrize("seed", [*range(6), 2**64 - 1])
def test_pieces_never_split_a_character_and_together_are_the_text(client, oracle, seed):
    # Hot sampling of a random model over a byte-level vocabulary gives broken UTF-8 all the time.
    pieces = answer(client, temperature=3.0, seed=seed, tokens=60)
    whole = oracle.tokenizer.backend_tokenizer.decode(tokens_of(pieces), skip_special_tokens=True)
    text = text_of(pieces)
    assert whole.startswith(text)
    assert whole[len(text) :].strip("\ufffd") == ""


def test_an_end_token_stops_the_answer_and_is_no_part_of_it(client, oracle):
    ends = {"<|im_end|>", "<|endoftext|>"}
    reasons = set()
    for seed in range(10):  # hot enough that the end comes up in some of these
        pieces = answer(client, temperature=9.0, seed=seed, tokens=200)
        reasons.add(pieces[-1].finish_reason)
        assert not ends & set(oracle.tokenizer.convert_ids_to_tokens(tokens_of(pieces)))
    assert "stop" in reasons


def test_an_answer_ends_with_the_context(client, engine, oracle):
    instruction = PublicInstruction("a, " * 500)
    room = engine.context_length - len(oracle.prompt(instruction.text))
    assert 0 < room < 200
    pieces = answer(client, tokens=1000, instruction=instruction)
    assert pieces[-1].finish_reason in {"length", "stop"}
    assert len(tokens_of(pieces)) <= room
    if pieces[-1].finish_reason == "length":
        assert len(tokens_of(pieces)) == room


def test_an_instruction_longer_than_the_context_is_refused(client):
    with pytest.raises(CloudContextFullError):
        answer(client, instruction=PublicInstruction("beach " * 2000))


@pytest.mark.parametrize(("tokens", "temperature", "top_p"), [(0, 0.0, 1.0), (1, -1.0, 1.0), (1, 1.0, 0.0)])
def test_impossible_sampling_is_refused(client, tokens, temperature, top_p):
    with pytest.raises(ProtocolError):
        answer(client, tokens=tokens, temperature=temperature, top_p=top_p)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 5), st.floats(0.01, 1), st.sampled_from([20, 3000]))
def test_draws_come_from_the_smallest_set_that_reaches_top_p(seed, temperature, top_p, size):
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.full(size, 0.3)) + 1e-12).astype(np.float32)
    heated = np.exp(log_probs.astype(np.float64) / temperature)
    heated /= heated.sum()
    token = choose(log_probs, temperature, top_p, rng)
    # The mass of all likelier tokens does not reach top_p yet.
    assert heated[heated > heated[token]].sum() < top_p + 1e-9


@pytest.mark.parametrize(("top_p", "kept"), [(0.9, 3), (1.0, 4)])
def test_draws_have_the_probabilities_they_should(top_p, kept):
    from scipy.stats import chisquare

    probabilities = np.array([0.5, 0.2, 0.2, 0.1])
    heated = probabilities ** (1 / 0.7)
    nucleus = heated[:kept] / heated[:kept].sum()
    rng = np.random.default_rng(3)
    log_probs = np.log(probabilities).astype(np.float32)
    drawn = np.bincount([choose(log_probs, 0.7, top_p, rng) for _ in range(4000)], minlength=4)
    assert drawn[kept:].sum() == 0
    assert chisquare(drawn[:kept], nucleus * 4000).pvalue > 0.001


def test_temperature_zero_takes_the_likeliest():
    log_probs = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    assert {choose(log_probs, 0.0, 0.1, np.random.default_rng(n)) for n in range(5)} == {1}
