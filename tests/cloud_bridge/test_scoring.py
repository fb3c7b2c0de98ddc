"""Rows that come over the wire equal an independent full pass of the model, whatever was kept, added or asked again."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.client import connect
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.errors import CloudContextFullError, ProtocolError
from edge_runtime.ledger import Ledger
from edge_runtime.privacy import Gate, Policy, PublicInstruction

INSTRUCTION = PublicInstruction("Write about the beach, the café and 東京.")
LIVE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def new_gate() -> Gate:
    return Gate(Policy.OPEN, Ledger())


def open_session(client, engine, *, gate=None, top_k=512, value_type="float32", instruction=INSTRUCTION):
    released = (gate or new_gate()).open(
        instruction, tokenizer_fingerprint=engine.tokenizer_fingerprint, top_k=top_k, value_type=value_type
    )
    return client.open(released)


def verify(session, keep, tokens, first_row):
    released = new_gate().verify(keep=keep, tokens=tokens, first_row=first_row, text="")
    return session.verify(released).result(timeout=60)


def assert_rows(got, dense, top_k, *, atol=2e-4):
    """`got` are the `top_k` likeliest of each dense row, with the mass of all others."""
    assert len(got) == len(dense)
    for sparse, row in zip(got, dense, strict=True):
        k = min(top_k, len(row))
        assert sparse.ids.size == k
        np.testing.assert_allclose(sparse.log_probs, row[sparse.ids], atol=atol)
        # No token left out is likelier than one kept, up to rounding.
        left_out = np.delete(row, sparse.ids)
        assert left_out.size == 0 or left_out.max() <= sparse.log_probs.min() + atol
        np.testing.assert_allclose(sparse.tail_mass, np.exp(left_out).sum(), rtol=5e-4, atol=1e-30)


@LIVE
@given(data=st.data())
def test_every_row_equals_a_full_pass_after_any_sequence_of_keep_tokens_and_first_row(data, client, engine, oracle):
    answer: list[int] = []
    top_k = data.draw(st.sampled_from([1, 7, 64, 512]), label="top_k")
    with open_session(client, engine, top_k=top_k) as session:
        for _ in range(data.draw(st.integers(1, 5), label="verifies")):
            keep = data.draw(st.integers(0, len(answer)), label="keep")
            tokens = data.draw(st.lists(st.integers(0, oracle.vocab_size - 1), max_size=6), label="tokens")
            first_row = data.draw(st.integers(0, keep + len(tokens)), label="first_row")
            answer = answer[:keep] + tokens
            rows = verify(session, keep, tokens, first_row)
            assert_rows(rows, oracle.rows(INSTRUCTION.text, answer)[first_row:], top_k)


def test_ids_that_only_padding_has_are_never_offered(client, engine, oracle):
    with open_session(client, engine) as session:
        (row,) = verify(session, 0, [], 0)
    assert engine.vocab_size == oracle.vocab_size < 704
    assert int(row.ids.max()) < oracle.vocab_size
    np.testing.assert_allclose(np.exp(row.log_probs.astype(np.float64)).sum() + row.tail_mass, 1.0, atol=1e-5)


def test_a_row_with_the_whole_vocabulary_has_no_tail(engine, oracle):
    with (
        serving(engine, ServerOptions(max_top_k=100_000)) as server,
        connect(server.address) as client,
        open_session(client, engine, top_k=100_000) as session,
    ):
        (row,) = verify(session, 0, [], 0)
    assert row.ids.size == oracle.vocab_size
    assert row.tail_mass == 0.0


def test_float16_values_are_within_their_rounding(client, engine, oracle):
    with open_session(client, engine, value_type="float16", top_k=64) as session:
        rows = verify(session, 0, [5, 6, 7], 0)
    for row, dense in zip(rows, oracle.rows(INSTRUCTION.text, [5, 6, 7]), strict=True):
        np.testing.assert_allclose(row.log_probs, dense[row.ids], rtol=2**-10, atol=2e-4)


def test_a_long_prompt_in_chunks_equals_one_pass(client, engine, oracle, monkeypatch):
    monkeypatch.setattr("cloud_bridge.server.transformers_engine._CHUNK", 7)
    tokens = list(range(20, 60))
    with open_session(client, engine, top_k=16) as session:
        rows = verify(session, 0, tokens, 5)
        assert_rows(rows, oracle.rows(INSTRUCTION.text, tokens)[5:], 16)


def test_requests_may_follow_each_other_without_waiting_for_replies(client, engine, oracle):
    tokens = [30, 31, 32, 33, 34, 35]
    gate = new_gate()
    with open_session(client, engine, gate=gate, top_k=8) as session:
        futures = [
            session.verify(gate.verify(keep=n, tokens=tokens[n : n + 1], first_row=n + 1, text=""))
            for n in range(len(tokens))
        ]
        rows = [future.result(timeout=60)[0] for future in futures]
    assert_rows(rows, oracle.rows(INSTRUCTION.text, tokens)[1:], 8)


def test_sessions_in_parallel_do_not_mix(client, engine, oracle):
    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        instruction = PublicInstruction(f"Write letter number {seed}.")
        answer: list[int] = []
        with open_session(client, engine, instruction=instruction, top_k=8) as session:
            for _ in range(6):
                keep = int(rng.integers(0, len(answer) + 1))
                tokens = rng.integers(0, oracle.vocab_size, size=3).tolist()
                answer = answer[:keep] + tokens
                rows = verify(session, keep, tokens, keep)
                assert_rows(rows, oracle.rows(instruction.text, answer)[keep:], 8)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def test_one_session_serves_several_threads(client, engine, oracle):
    dense = oracle.rows(INSTRUCTION.text, [40])
    with open_session(client, engine, top_k=8) as session, ThreadPoolExecutor(4) as pool:
        for rows in pool.map(lambda _: verify(session, 0, [40], 0), range(12)):
            assert_rows(rows, dense, 8)


def test_the_last_position_of_the_context_is_used_and_one_more_is_refused(client, engine, oracle):
    room = engine.context_length - len(oracle.prompt(INSTRUCTION.text))
    tokens = [n % 200 + 10 for n in range(room)]
    with open_session(client, engine, top_k=4) as session:
        assert_rows(verify(session, 0, tokens, room), oracle.rows(INSTRUCTION.text, tokens)[room:], 4)
        with pytest.raises(CloudContextFullError, match=f"{engine.context_length + 1} tokens"):
            verify(session, room, [1], room + 1)


def test_an_instruction_longer_than_the_context_is_refused(client, engine):
    with (
        open_session(client, engine, instruction=PublicInstruction("beach " * 2000)) as session,
        pytest.raises(CloudContextFullError, match="Shorten the instruction"),
    ):
        verify(session, 0, [], 0)


@pytest.mark.parametrize(
    ("keep", "tokens", "cause"),
    [(1, [], "keep 1"), (0, [700], "not in the vocabulary"), (0, [2**31 - 1], "vocabulary")],
)
def test_what_the_session_can_not_score_is_a_bad_request(client, engine, keep, tokens, cause):
    with open_session(client, engine) as session, pytest.raises(ProtocolError, match=cause):
        verify(session, keep, tokens, 0)


def test_more_log_probabilities_than_the_server_gives_are_refused(client, engine):
    with open_session(client, engine, top_k=513) as session, pytest.raises(ProtocolError, match="top_k 513"):
        verify(session, 0, [], 0)


def test_info_tells_what_is_served(client, engine):
    info = client.info(new_gate().info())
    assert (info.model, info.vocab_size, info.context_length) == ("tiny-cloud", engine.vocab_size, 1024)
    assert info.tokenizer_fingerprint == engine.tokenizer_fingerprint
    assert info.max_top_k == 512
