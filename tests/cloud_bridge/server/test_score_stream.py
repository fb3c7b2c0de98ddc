"""A stream of the server: read ahead, answered in order, superseded, ended, broken and resumed."""

import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.server.score_stream import MAX_UNDER_WAY
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.fusion.sparse import RowFormat
from tests.support.examples import examples
from tests.support.raw_stream import RawStream, wait_until

INSTRUCTION = "Write a letter."
WHOLE = RowFormat(top_k=512)


class HeldEngine:
    """The real engine; its next job can be held back, and it logs its requests."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.go = threading.Event()
        self.go.set()
        self.reached = threading.Event()
        self.scored: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def score(self, state, *, keep, tokens, rows, form):
        self.reached.set()
        self.go.wait(20)
        self.scored.append((keep, tuple(tokens), tuple(rows)))
        return self._engine.score(state, keep=keep, tokens=tokens, rows=rows, form=form)

    def hold(self) -> None:
        self.reached.clear()
        self.go.clear()

    def release(self) -> None:
        self.go.set()


def metric(server, name: str, **labels: str) -> float:
    return server.telemetry.registry.get_sample_value(f"cogenesis_{name}", labels) or 0.0


@pytest.fixture
def held(engine):
    one = HeldEngine(engine)
    yield one
    one.release()


@pytest.fixture
def holding(held):
    """A server of the engine that can be held back."""
    with serving(held, ServerOptions(max_sessions=4, idle_seconds=600, resume_seconds=600)) as running:
        yield running


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Record how many positions each run of a model computed."""
    from cloud_bridge.server.engines.cached_sequence import CachedSequence

    sizes: list[int] = []
    append = CachedSequence._append

    def counting(self, start, token_ids, rows):
        sizes.append(len(token_ids))
        return append(self, start, token_ids, rows)

    monkeypatch.setattr(CachedSequence, "_append", counting)
    return sizes


def assert_row(row, dense) -> None:
    np.testing.assert_allclose(row.log_probs, dense[row.ids], atol=2e-4)


def test_replies_come_in_order_with_their_numbers_and_times(server, engine, oracle):
    tokens = [30, 31, 32, 33, 34, 35]
    dense = oracle.rows(INSTRUCTION, tokens)
    with RawStream(server.address).open(engine, form=WHOLE) as stream:
        for n, token in enumerate(tokens):
            stream.ask(n, [token], [n + 1])
        for n in range(len(tokens)):
            reply = stream.reply()
            assert_row(reply.rows[0], dense[n + 1])
            assert reply.compute_seconds > 0 and reply.queue_seconds >= 0


def test_a_request_that_a_later_one_takes_back_is_not_computed_and_the_answer_is_right(held, holding, oracle):
    with RawStream(holding.address).open(held, form=WHOLE) as stream:
        stream.verify(0, [10, 11], [2])
        held.hold()
        stream.ask(2, [12], [3])  # computed: no later request withdraws it
        assert held.reached.wait(20)
        stream.ask(3, [13, 14], [4, 5])  # withdrawn by the last request
        stream.ask(5, [15], [6])  # withdrawn too
        stream.ask(4, [20], [4, 5])
        wait_until(lambda: metric(holding, "bytes_total", direction="in") > 0)
        time.sleep(0.1)  # the server reads the frames while the engine works
        held.release()
        first, second, third, last = (stream.reply() for _ in range(4))
        assert [one.superseded for one in (first, second, third, last)] == [False, True, True, False]
        assert second.rows == () and third.rows == ()
        dense = oracle.rows(INSTRUCTION, [10, 11, 12, 13, 20])
        for row, position in zip(last.rows, (4, 5), strict=True):
            assert_row(row, dense[position])
        assert all(not rows for keep, _, rows in held.scored if keep in (3, 5))
        assert metric(holding, "superseded_total") == 2


@settings(
    max_examples=examples(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_whatever_is_superseded_rows_are_those_of_the_view_as_asked(data, server, engine, oracle):
    answer: list[int] = []
    views: list[tuple[list[int], list[int]]] = []
    with RawStream(server.address).open(engine, form=WHOLE) as stream:
        for _ in range(data.draw(st.integers(1, 8), label="requests")):
            keep = data.draw(st.integers(0, len(answer)), label="keep")
            tokens = data.draw(st.lists(st.integers(0, oracle.vocab_size - 1), max_size=4), label="tokens")
            answer = answer[:keep] + tokens
            rows = sorted(data.draw(st.sets(st.integers(0, len(answer)), min_size=1, max_size=3), label="rows"))
            stream.ask(keep, tokens, rows)
            views.append((answer, rows))
        replies = [stream.reply() for _ in views]
    assert not replies[-1].superseded
    for reply, (view, rows) in zip(replies, views, strict=True):
        if not reply.superseded:
            dense = oracle.rows(INSTRUCTION, view)
            for row, position in zip(reply.rows, rows, strict=True):
                assert_row(row, dense[position])


def test_too_many_requests_under_way_are_a_bad_request(held, holding):
    with RawStream(holding.address).open(held) as stream:
        held.hold()
        for _ in range(MAX_UNDER_WAY + 2):
            stream.ask(0, [5], [1])
        stream.await_opened()
        held.reached.wait(20)
        time.sleep(0.2)
        held.release()
        assert stream.refusal() == ("bad_request", None)


def test_half_closing_frees_the_session_while_the_engine_works_for_it(held, holding):
    with RawStream(holding.address).open(held) as stream:
        stream.await_opened()
        held.hold()
        stream.ask(0, [1], [1])
        assert held.reached.wait(20)
        stream.half_close()
        wait_until(lambda: len(holding.sessions) == 0)
        assert list(stream.call) == []  # ends without error
        held.release()
    assert metric(holding, "sessions_closed_total", cause="done") == 1


@pytest.mark.parametrize("ending", ["cancelled", "connection lost"])
def test_a_broken_stream_is_resumed_without_computing_anything_again(ending, held, holding, oracle, computed):
    tokens = list(range(20, 40))
    stream = RawStream(holding.address).open(held, form=WHOLE)
    opened = stream.await_opened()
    assert not opened.resumed and len(opened.session_id) == 32
    stream.verify(0, tokens, [len(tokens)])
    stream.vanish() if ending == "cancelled" else stream.channel.close()
    wait_until(lambda: holding.sessions.parked == 1 and holding.sessions.active == 0)
    before = sum(computed)
    with RawStream(holding.address).open(held, form=WHOLE, resume=opened.session_id) as again:
        assert again.await_opened().resumed
        assert again.opened.session_id == opened.session_id
        reply = again.verify(0, [*tokens, 50], [len(tokens) + 1])
        assert_row(reply.rows[0], oracle.rows(INSTRUCTION, [*tokens, 50])[-1])
        assert (holding.sessions.active, holding.sessions.parked) == (1, 0)
        assert sum(computed) - before == 1  # only the one new token
    assert metric(holding, "sessions_resumed_total") == 1


def test_a_new_stream_takes_over_from_one_whose_death_nobody_noticed(held, holding, oracle, computed):
    with RawStream(holding.address).open(held, form=WHOLE) as old:
        opened = old.await_opened()
        old.verify(0, [5, 6, 7], [3])
        held.hold()
        old.ask(3, [8], [4])
        assert held.reached.wait(20)
        with RawStream(holding.address).open(held, form=WHOLE, resume=opened.session_id) as new:
            assert new.await_opened().resumed
            new.ask(0, [5, 6, 9], [3])
            assert old.refusal() == ("evicted", None)
            held.release()
            assert_row(new.reply().rows[0], oracle.rows(INSTRUCTION, [5, 6, 9])[3])
            assert len(holding.sessions) == 1
            assert new.verify(3, [1], [4]).rows
    wait_until(lambda: len(holding.sessions) == 0)


@pytest.mark.parametrize("id_", ["0" * 32, "nonsense", "é"])
def test_an_unknown_session_is_opened_anew(id_, server, engine):
    with RawStream(server.address).open(engine, resume=id_) as stream:
        assert not stream.await_opened().resumed
        assert stream.opened.session_id != id_
        assert stream.verify(0, [], [0]).rows


def test_a_session_is_not_resumed_for_another_instruction(server, engine, oracle):
    with RawStream(server.address).open(engine) as first:
        id_ = first.await_opened().session_id
        first.verify(0, [1], [1])
        with RawStream(server.address).open(engine, "Write a poem.", resume=id_, form=WHOLE) as other:
            assert not other.await_opened().resumed
            assert_row(other.verify(0, [1], [1]).rows[0], oracle.rows("Write a poem.", [1])[1])
        assert first.verify(1, [2], [2]).rows  # still works


def test_a_session_that_was_ended_is_not_resumed(server, engine):
    with RawStream(server.address).open(engine) as first:
        id_ = first.await_opened().session_id
        first.verify(0, [1], [1])
        first.half_close()
        assert list(first.call) == []
    with RawStream(server.address).open(engine, resume=id_) as again:
        assert not again.await_opened().resumed


def test_a_long_prompt_is_read_in_parts_and_holds_nobody_up(engine, computed):
    long = "beach letter bread " * 200
    with serving(engine, ServerOptions()) as running, RawStream(running.address).open(engine) as short:
        short.verify(0, [1], [1])
        with RawStream(running.address).open(engine, long) as other:
            assert other.await_opened().prompt_tokens > 600
            other.verify(0, [1], [1])
        assert len(computed) == 3 and max(computed) < 600  # one pass for the short prompt, two for the long one
        assert metric(running, "engine_parts_total") == len(computed)


def test_frames_behind_a_malformed_one_are_not_served(server, engine):
    with RawStream(server.address).open(engine) as stream:
        stream.verify(0, [1], [1])
        stream.send(b"\xff\xff")
        assert stream.refusal() == ("bad_request", None)


def test_a_second_open_frame_is_a_bad_request(server, engine):
    with RawStream(server.address).open(engine) as stream:
        stream.open(engine)
        assert stream.refusal() == ("bad_request", None)


def test_a_stream_that_never_opens_is_ended(server, monkeypatch):
    monkeypatch.setattr("cloud_bridge.server.service.OPEN_SECONDS", 0.1)
    with RawStream(server.address) as stream:
        assert stream.refusal() == ("bad_request", None)
