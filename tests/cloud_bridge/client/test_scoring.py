"""Rows from the wire equal an independent full pass of the model, whatever was kept, appended or requested again."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.client import connect
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import CloudContextFullError, ProtocolError
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.tokenizer import Tokenizer
from tests.support.examples import examples

WIDE = RowFormat(512)
INSTRUCTION = PublicInstruction("Write about the beach, the café and 東京.")
LIVE = settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def new_gate() -> Gate:
    return Gate(Policy.OPEN, Ledger())


@pytest.fixture(scope="module")
def tokenizer(oracle) -> Tokenizer:
    return Tokenizer(oracle.tokenizer.backend_tokenizer)


def open_session(client, engine, *, form=WIDE, instruction=INSTRUCTION):
    released = new_gate().open(instruction, tokenizer_fingerprint=engine.tokenizer_fingerprint, rows=form)
    return client.open(released)


def asked(tokenizer, answer, keep, rows):
    """Build a message that requests rows of `answer`; the session already has the first `keep` tokens."""
    conversation = new_gate().conversation(INSTRUCTION, None, tokenizer)
    for token in answer:
        conversation.push(token)
    return conversation.verify(keep=keep, end=len(answer), rows=rows)


def verify(session, tokenizer, answer, keep, rows):
    return session.verify(asked(tokenizer, answer, keep, rows)).result(timeout=60).rows


def assert_rows(got, dense, top_k, *, atol=2e-4):
    """Check that `got` has the `top_k` likeliest tokens of each dense row, and the mass of the others."""
    assert len(got) == len(dense)
    for sparse, row in zip(got, dense, strict=True):
        k = min(top_k, len(row))
        assert sparse.ids.size == k
        np.testing.assert_allclose(sparse.log_probs, row[sparse.ids], atol=atol)
        # No dropped token is likelier than a kept one, up to rounding.
        left_out = np.delete(row, sparse.ids)
        assert left_out.size == 0 or left_out.max() <= sparse.log_probs.min() + atol
        np.testing.assert_allclose(sparse.tail_mass, np.exp(left_out).sum(), rtol=5e-4, atol=1e-30)


@LIVE
@given(data=st.data())
def test_every_row_equals_a_full_pass_after_any_sequence_of_keep_tokens_and_rows(
    data, client, engine, oracle, tokenizer
):
    answer: list[int] = []
    top_k = data.draw(st.sampled_from([1, 7, 64, 512]), label="top_k")
    with open_session(client, engine, form=RowFormat(top_k)) as session:
        for _ in range(data.draw(st.integers(1, 5), label="verifies")):
            keep = data.draw(st.integers(0, len(answer)), label="keep")
            tokens = data.draw(st.lists(st.integers(0, oracle.vocab_size - 1), max_size=6), label="tokens")
            answer = answer[:keep] + tokens
            wanted = sorted(data.draw(st.sets(st.integers(0, len(answer)), min_size=1), label="rows"))
            rows = verify(session, tokenizer, answer, keep, wanted)
            assert_rows(rows, oracle.rows(INSTRUCTION.text, answer)[wanted], top_k)


@LIVE
@given(seed=st.integers(0, 999), mass=st.floats(0.01, 0.999), top_k=st.integers(1, 520))
def test_a_row_keeps_the_fewest_likeliest_tokens_that_reach_the_mass(
    seed, mass, top_k, client, engine, oracle, tokenizer
):
    answer = np.random.default_rng(seed).integers(0, oracle.vocab_size, 3).tolist()
    with open_session(client, engine, form=RowFormat(min(top_k, 512), mass)) as session:
        rows = verify(session, tokenizer, answer, 0, [0, 2, 3])
    for row, dense in zip(rows, oracle.rows(INSTRUCTION.text, answer)[[0, 2, 3]], strict=True):
        reached = np.exp(np.sort(dense)[::-1]).cumsum()
        # Up to rounding: the mass may be reached one token earlier or later.
        fewest, most = (min(int(np.searchsorted(reached, mass * (1 + e))) + 1, top_k, 512) for e in (-1e-4, 1e-4))
        assert fewest <= row.ids.size <= most
        assert_rows([row], dense[None], row.ids.size)


def test_ids_that_only_padding_has_are_never_offered(client, engine, oracle, tokenizer):
    with open_session(client, engine) as session:
        (row,) = verify(session, tokenizer, [], 0, [0])
    assert engine.vocab_size == oracle.vocab_size < 704
    assert int(row.ids.max()) < oracle.vocab_size
    np.testing.assert_allclose(np.exp(row.log_probs.astype(np.float64)).sum() + row.tail_mass, 1.0, atol=1e-5)


def test_a_row_with_the_whole_vocabulary_has_no_tail(engine, oracle, tokenizer):
    with (
        serving(engine, ServerOptions(max_top_k=100_000)) as server,
        connect(server.address) as client,
        open_session(client, engine, form=RowFormat(100_000)) as session,
    ):
        (row,) = verify(session, tokenizer, [], 0, [0])
    assert row.ids.size == oracle.vocab_size
    assert row.tail_mass == 0.0


def test_float16_values_are_within_their_rounding(client, engine, oracle, tokenizer):
    with open_session(client, engine, form=RowFormat(64, value_type="float16")) as session:
        rows = verify(session, tokenizer, [5, 6, 7], 0, [0, 1, 2, 3])
    for row, dense in zip(rows, oracle.rows(INSTRUCTION.text, [5, 6, 7]), strict=True):
        np.testing.assert_allclose(row.log_probs, dense[row.ids], rtol=2**-10, atol=2e-4)


def test_a_long_prompt_in_parts_equals_one_pass(client, engine, oracle, tokenizer, monkeypatch):
    monkeypatch.setattr("cloud_bridge.server.engines.transformers_engine.PART", 7)
    tokens = list(range(20, 60))
    wanted = [5, 6, 30, 40]
    with open_session(client, engine, form=RowFormat(16)) as session:
        rows = verify(session, tokenizer, tokens, 0, wanted)
        assert_rows(rows, oracle.rows(INSTRUCTION.text, tokens)[wanted], 16)


def test_requests_may_follow_each_other_without_waiting_for_replies(client, engine, oracle, tokenizer):
    tokens = [30, 31, 32, 33, 34, 35]
    with open_session(client, engine, form=RowFormat(8)) as session:
        futures = [session.verify(asked(tokenizer, tokens[: n + 1], n, [n + 1])) for n in range(len(tokens))]
        rows = [future.result(timeout=60).rows[0] for future in futures]
    assert_rows(rows, oracle.rows(INSTRUCTION.text, tokens)[1:], 8)


def test_sessions_in_parallel_do_not_mix(client, engine, oracle, tokenizer):
    def run(seed: int) -> None:
        rng = np.random.default_rng(seed)
        instruction = PublicInstruction(f"Write letter number {seed}.")
        answer: list[int] = []
        with open_session(client, engine, instruction=instruction, form=RowFormat(8)) as session:
            for _ in range(6):
                keep = int(rng.integers(0, len(answer) + 1))
                answer = answer[:keep] + rng.integers(0, oracle.vocab_size, size=3).tolist()
                rows = verify(session, tokenizer, answer, keep, range(keep, keep + 4))
                assert_rows(rows, oracle.rows(instruction.text, answer)[keep:], 8)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))


def test_one_session_serves_several_threads(client, engine, oracle, tokenizer):
    dense = oracle.rows(INSTRUCTION.text, [40])
    with open_session(client, engine, form=RowFormat(8)) as session, ThreadPoolExecutor(4) as pool:
        verify(session, tokenizer, [40], 0, [1])
        # Nothing is withdrawn, or a request would supersede the others.
        for rows in pool.map(lambda _: verify(session, tokenizer, [40], 1, [0, 1]), range(12)):
            assert_rows(rows, dense, 8)


def test_the_last_position_of_the_context_is_used_and_one_more_is_refused(client, engine, oracle, tokenizer):
    room = engine.context_length - len(oracle.prompt(INSTRUCTION.text))
    tokens = [n % 200 + 10 for n in range(room)]
    with open_session(client, engine, form=RowFormat(4)) as session:
        found = verify(session, tokenizer, tokens, 0, [room])
        assert_rows(found, oracle.rows(INSTRUCTION.text, tokens)[room:], 4)
        with pytest.raises(CloudContextFullError, match=f"{engine.context_length + 1} tokens"):
            verify(session, tokenizer, [*tokens, 1], room, [room + 1])


def test_an_instruction_longer_than_the_context_is_refused(client, engine, tokenizer):
    with (
        open_session(client, engine, instruction=PublicInstruction("beach " * 2000)) as session,
        pytest.raises(CloudContextFullError, match="Shorten the instruction"),
    ):
        verify(session, tokenizer, [], 0, [0])


@pytest.mark.parametrize(
    ("keep", "answer", "cause"),
    [(1, [5], "keep 1"), (0, [700], "not in the vocabulary"), (0, [2**31 - 1], "vocabulary")],
)
def test_what_the_session_can_not_score_is_a_bad_request(client, engine, tokenizer, keep, answer, cause):
    with open_session(client, engine) as session, pytest.raises(ProtocolError, match=cause):
        verify(session, tokenizer, answer, keep, [0])


def test_more_log_probabilities_than_the_server_gives_are_refused(client, engine, tokenizer):
    with (
        open_session(client, engine, form=RowFormat(513)) as session,
        pytest.raises(ProtocolError, match="top_k 513"),
    ):
        verify(session, tokenizer, [], 0, [0])


def test_info_tells_what_is_served(client, engine):
    info = client.info(new_gate().info())
    assert (info.model, info.vocab_size, info.context_length) == ("tiny-cloud", engine.vocab_size, 1024)
    assert info.tokenizer_fingerprint == engine.tokenizer_fingerprint
    assert info.max_top_k == 512
