"""The link: requests and their timing, and the answer when the cloud is slow, lost or back."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from edge_runtime.cloud import Verified
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import (
    CloudError,
    CloudOverloadedError,
    CloudRefusedError,
    CloudTimeoutError,
    CloudUnavailableError,
    ProtocolError,
)
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs
from edge_runtime.generation.backoff import FIRST_SECONDS, LONGEST_SECONDS, Backoff
from edge_runtime.generation.cloud_link import Alone, CloudLink
from edge_runtime.generation.pace import AdaptiveWindow, FixedWindow, Measured
from edge_runtime.generation.schedule import Schedule
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.privacy.messages import OpenRequest, VerifyRequest

INSTRUCTION = PublicInstruction("Write.")
GONE = CloudUnavailableError("gone")


def row(token: int) -> SparseLogProbs:
    return SparseLogProbs(np.array([token], np.int32), np.array([-0.1], np.float32), 0.05)


class HandCloud:
    """A cloud whose replies come by hand from the test."""

    def __init__(self) -> None:
        self.opened: list[OpenRequest] = []
        self.asked: list[VerifyRequest] = []
        self.futures: list[Future[Verified]] = []
        self.open_sessions = 0
        self.id = ""
        self.abandoned = 0

    def open(self, request):
        request.leave(lambda message: self.opened.append(message) or b"")
        self.open_sessions += 1
        return self

    def verify(self, request) -> Future[Verified]:
        request.leave(lambda message: self.asked.append(message) or b"")
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        self.open_sessions -= 1

    room: int | None = None

    def abandon(self) -> None:
        self.abandoned += 1

    def reply(self, index: int = -1) -> None:
        self.id = f"session-{len(self.opened)}"
        self.futures[index].set_result(Verified(tuple(row(number) for number in self.asked[index].rows), 0.01))

    def fail(self, error: CloudError = GONE, index: int = -1) -> None:
        self.futures[index].set_exception(error)


class Tokenizer:
    def decode(self, tokens, **_) -> str:
        return " ".join(map(str, tokens))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cloud() -> HandCloud:
    return HandCloud()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def link(cloud, clock) -> CloudLink:
    gate = Gate(Policy.OPEN, Ledger())
    link = CloudLink(
        cloud,
        lambda resume: gate.open(INSTRUCTION, tokenizer_fingerprint="f", rows=RowFormat(), resume=resume),
        gate.conversation(INSTRUCTION, PrivateContext(), Tokenizer()),
        Schedule(),
        KnownTokens.all(1000),
        0.2,
        Measured(),
        Backoff(lambda _, high: high),
        clock,
    )
    link.begin()
    return link


def started(link: CloudLink, cloud: HandCloud) -> CloudLink:
    """Start a link, with the first row received and its token settled."""
    link.send()
    cloud.reply()
    link.poll()
    link.push(7)
    link.settled(1)
    return link


def test_the_first_row_is_asked_for_without_any_token(link, cloud):
    link.send()
    assert cloud.asked == [VerifyRequest(0, (), (0,), "")]


def test_a_draft_travels_with_its_rows_in_one_request(link, cloud):
    started(link, cloud)
    link.push(8)
    link.push(9)
    link.send()
    assert cloud.asked[-1] == VerifyRequest(0, (7, 8, 9), (1, 2, 3), "7 8 9")


def test_after_a_rejected_draft_only_what_differs_is_sent(link, cloud):
    started(link, cloud)
    link.push(8)
    link.push(9)
    link.send()
    link.rewind(2)
    link.push(10)
    link.settled(3)
    link.send()
    assert cloud.asked[-1] == VerifyRequest(2, (10,), (3,), "10")


def test_the_reply_to_a_draft_that_was_taken_back_is_dropped(link, cloud):
    started(link, cloud)
    link.push(8)
    link.send()
    link.rewind(1)
    link.push(10)
    cloud.reply()
    link.poll()
    assert link.ready == 1  # the row after 7 stays; the row after 8 is dropped
    assert link.unsent == 1


def test_a_cloud_that_leaves_out_rows_which_are_wanted_breaks_the_protocol(link, cloud):
    started(link, cloud)
    link.send()
    cloud.futures[-1].set_result(Verified((), superseded=True))
    link.poll()
    assert isinstance(link.error, ProtocolError)
    assert link.ready == 1


def test_no_token_is_sent_before_a_row_behind_it_is_wanted(cloud, clock):
    gate = Gate(Policy.OPEN, Ledger())
    link = CloudLink(
        cloud,
        lambda resume: gate.open(INSTRUCTION, tokenizer_fingerprint="f", rows=RowFormat(), resume=resume),
        gate.conversation(INSTRUCTION, PrivateContext(), Tokenizer()),
        Schedule(2, 9, 1),
        KnownTokens.all(1000),
        0.2,
        Measured(),
        clock=clock,
    )
    link.begin()
    for token in (7, 8, 9):
        link.push(token)
    link.send()
    assert cloud.asked == [VerifyRequest(0, (7,), (0, 1), "7")]


@pytest.mark.parametrize("error", [GONE, CloudRefusedError("key"), CloudTimeoutError("late")])
def test_a_failure_before_the_first_row_is_raised(error, link, cloud):
    link.send()
    cloud.fail(error)
    with pytest.raises(type(error)):
        link.poll()
    assert cloud.open_sessions == 0


def test_a_busy_cloud_is_asked_again_when_it_said(link, cloud):
    link.send()
    busy = CloudOverloadedError("busy")
    busy.retry_after = 0.01
    cloud.fail(busy)
    link.poll()
    cloud.reply()
    link.poll()
    assert link.ready == 1
    assert [asked.rows for asked in cloud.asked] == [(0,), (0,)]


def test_a_busy_cloud_that_wants_longer_than_we_are_patient_is_an_error(link, cloud):
    link.send()
    busy = CloudOverloadedError("busy")
    busy.retry_after = 9.0
    cloud.fail(busy)
    with pytest.raises(CloudOverloadedError):
        link.poll()


def test_after_a_break_the_edge_decides_alone_until_the_session_is_resumed(link, cloud, clock):
    started(link, cloud)
    link.send()
    cloud.fail()
    link.poll()
    assert link.ready == 1
    assert link.row(0) is None
    assert link.error is GONE
    link.push(8)
    link.settled(2)
    assert link.ready == 1  # reached while the cloud is lost, so the edge decides alone

    link.poll()
    assert len(cloud.opened) == 1  # not yet
    clock.now += FIRST_SECONDS
    link.poll()
    assert cloud.opened[-1].resume == "session-1"
    assert cloud.asked[-1] == VerifyRequest(0, (7, 8), (2,), "7 8")  # the whole view, because the cloud has lost it
    link.push(9)
    link.settled(3)
    assert link.row(0) is None  # no reply from the cloud yet

    cloud.reply()
    link.poll()
    assert link.error is None
    assert link.counts.resumed == link.counts.interruptions == 1
    link.push(10)
    link.settled(4)
    link.send()
    assert cloud.asked[-1] == VerifyRequest(2, (9, 10), (4,), "9 10")


def test_pauses_between_attempts_grow(link, cloud, clock):
    started(link, cloud)
    link.send()
    cloud.fail()
    link.poll()
    for attempt in range(1, 4):
        clock.now += FIRST_SECONDS * 2 ** (attempt - 1) - 0.01
        link.poll()
        assert len(cloud.opened) == attempt
        clock.now += 0.01
        link.poll()
        assert len(cloud.opened) == attempt + 1
        cloud.fail()
        link.poll()
    assert link.counts.interruptions == 1


def test_what_trying_again_cannot_mend_ends_the_link(link, cloud, clock):
    started(link, cloud)
    link.send()
    cloud.fail(CloudRefusedError("the key was withdrawn"))
    link.poll()
    clock.now += 1000
    link.poll()
    assert len(cloud.opened) == 1
    assert isinstance(link.error, CloudRefusedError)


def test_a_slow_cloud_is_not_waited_for_and_used_again_when_it_answers(link, cloud, clock, monkeypatch):
    started(link, cloud)
    link.send()

    def nothing_comes(_, timeout, return_when) -> None:
        clock.now += timeout

    monkeypatch.setattr("edge_runtime.generation.cloud_link.wait", nothing_comes)
    link.wait()
    assert link.ready == 1
    assert link.row(0) is None
    assert isinstance(link.error, CloudTimeoutError)
    assert link.counts.wait_seconds == pytest.approx(0.2)
    link.push(8)
    link.settled(2)
    cloud.reply()
    link.poll()
    assert link.error is None
    assert len(cloud.opened) == 1  # the session was never abandoned
    link.push(9)
    link.settled(3)
    link.send()
    assert cloud.asked[-1].rows == (3,)


def test_a_connection_that_gives_no_sign_is_abandoned_and_another_one_resumes_the_session(
    link, cloud, clock, monkeypatch
):
    started(link, cloud)
    link.send()
    monkeypatch.setattr(
        "edge_runtime.generation.cloud_link.wait", lambda _, timeout, **more: setattr(clock, "now", clock.now + timeout)
    )
    link.wait()
    link.poll()
    assert cloud.abandoned == 0
    clock.now += 0.21
    link.poll()
    assert cloud.abandoned == 1
    clock.now += FIRST_SECONDS
    link.poll()
    assert cloud.opened[-1].resume == "session-1"
    assert link.counts.interruptions == 1


def test_rows_that_the_clouds_context_has_no_room_for_are_the_edges_alone_and_the_others_are_asked_for(link, cloud):
    started(link, cloud)
    cloud.room = 2
    for token in (8, 9, 10):
        link.push(token)
    link.send()
    assert cloud.asked[-1] == VerifyRequest(0, (7, 8), (1, 2), "7 8")
    cloud.reply()
    link.poll()
    assert link.ready == 4
    link.settled(3)
    link.wait()
    assert (link.row(0), link.error, link.counts.interruptions) == (None, None, 0)


def test_cancelling_ends_waiting_from_another_thread(link, cloud):
    started(link, cloud)
    link.patience = 60
    link.send()
    threading.Timer(0.05, lambda: link.cancelled.set_result(None)).start()
    link.wait()
    assert link.ready == 0
    assert link.error is None


def test_nothing_leaves_after_cancelling_though_a_busy_cloud_wanted_to_be_asked_again(link, cloud):
    link.send()
    busy = CloudOverloadedError("busy")
    busy.retry_after = 0.1
    cloud.fail(busy)
    link.cancelled.set_result(None)
    link.poll()
    assert len(cloud.opened) == len(cloud.asked) == 1


def test_a_session_that_fails_before_its_first_row_is_resumed_by_its_id_all_the_same(link, cloud, clock):
    started(link, cloud)
    link.send()
    cloud.id = "session-that-opened-and-broke"
    cloud.fail()
    link.poll()
    clock.now += FIRST_SECONDS
    link.poll()
    assert cloud.opened[-1].resume == "session-that-opened-and-broke"


def test_rows_of_another_vocabulary_are_refused(link, cloud):
    started(link, cloud)
    link.send()
    cloud.futures[-1].set_result(Verified((row(1000),)))
    link.poll()
    assert isinstance(link.error, ProtocolError)


def test_closing_frees_the_session(link, cloud):
    link.close()
    link.close()
    assert cloud.open_sessions == 0


def test_backoff_grows_to_its_limit_with_jitter_and_honours_what_the_cloud_asked_for():
    backoff = Backoff()
    for failure in range(12):
        longest = min(FIRST_SECONDS * 2**failure, LONGEST_SECONDS)
        assert longest / 4 <= backoff.next_seconds() <= longest
    assert backoff.next_seconds(at_least=60) >= 60
    backoff.reset()
    assert backoff.next_seconds() <= FIRST_SECONDS


def test_a_window_of_one_never_drafts_and_sends_at_once():
    pace = FixedWindow(1)
    assert not pace.drafts(0)
    assert pace.sends(1, 0, 0)


def test_a_fixed_window_waits_until_it_is_full_and_keeps_one_message_under_way():
    pace = FixedWindow(4)
    assert [pace.sends(unsent, 0, 0) for unsent in (1, 3, 4)] == [False, False, True]
    assert not pace.sends(4, 1, 0)
    assert [pace.drafts(drafted) for drafted in (0, 5, 6)] == [True, True, False]


def test_the_adaptive_window_sends_as_much_as_the_cloud_can_keep_up_with():
    fast = AdaptiveWindow(Measured(step_seconds=0.02, server_seconds=0.01))
    slow = AdaptiveWindow(Measured(step_seconds=0.01, server_seconds=0.033))  # leaves the cloud some idle time
    assert (fast.part, slow.part) == (1, 5)
    assert slow.sends(1, 0, 0)  # nothing in flight: send immediately
    assert [slow.sends(unsent, 1, 0) for unsent in (4, 5)] == [False, True]
    assert not slow.sends(8, 1, 40)  # a cloud reads ahead only this far


def test_the_adaptive_window_drafts_further_the_better_its_drafts_are():
    def depth(acceptance: float) -> int:
        pace = AdaptiveWindow(Measured(acceptance=acceptance))
        return next(drafted for drafted in range(100) if not pace.drafts(drafted))

    assert 1 <= depth(0.1) < depth(0.5) < depth(0.9) <= 32


def test_measured_means_follow_what_happens():
    measured = Measured()
    for _ in range(200):
        measured.step(0.02)
        measured.trip(0.11, 0.01)
        measured.draft(accepted=False)
    assert measured.step_seconds == pytest.approx(0.02, rel=1e-3)
    assert measured.link_seconds == pytest.approx(0.1, rel=1e-3)
    assert measured.acceptance < 0.01
    assert (measured.compared, measured.accepted) == (200, 0)


def test_tokens_that_are_not_fused_are_counted_with_the_reason(link, cloud):
    started(link, cloud)
    cloud.room = 2
    for token in (8, 9, 10):
        link.push(token)
    link.send()
    cloud.reply()
    link.poll()
    assert link.ready == 4
    link.settled(3)
    assert link.counts.alone == {}
    link.settled(5)
    assert link.counts.alone == {Alone.CONTEXT: 2}

    cloud.room = None
    link.push(11)
    link.send()
    cloud.fail()
    link.poll()  # the row on its way is lost
    link.push(12)
    link.settled(7)
    assert link.counts.alone == {Alone.CONTEXT: 2, Alone.CLOUD: 2}


def test_tokens_that_the_policy_hides_are_counted(link, cloud, monkeypatch):
    started(link, cloud)
    monkeypatch.setattr(type(link.conversation), "asks", False)
    link.push(8)
    link.push(9)
    link.settled(4)
    assert link.counts.alone[Alone.POLICY] == 2


def test_tokens_that_the_schedule_leaves_to_the_edge_are_not_counted(cloud, clock):
    gate = Gate(Policy.OPEN, Ledger())
    link = CloudLink(
        cloud,
        lambda resume: gate.open(INSTRUCTION, tokenizer_fingerprint="f", rows=RowFormat(), resume=resume),
        gate.conversation(INSTRUCTION, PrivateContext(), Tokenizer()),
        Schedule(1, 9, 1),
        KnownTokens.all(1000),
        0.2,
        Measured(),
        clock=clock,
    )
    link.begin()
    link.send()
    cloud.reply()
    link.poll()
    for token in (7, 8, 9):
        link.push(token)
    link.settled(3)
    assert link.counts.alone == {}
