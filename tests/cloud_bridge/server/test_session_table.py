"""The table of sessions by a clock of its own: places, parking, memory and quotas."""

from dataclasses import replace

import pytest

from cloud_bridge.server.errors import RefusalError
from cloud_bridge.server.quotas import Caller, TokenQuota
from cloud_bridge.server.sessions import SessionLimits, SessionTable

PHONE, TABLET = Caller("phone", "phone"), Caller("tablet", "tablet")
TOPIC = b"topic"
LIMITS = SessionLimits(max_sessions=2, idle_seconds=5, session_timeout=60, resume_seconds=30)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Table(SessionTable):
    """A table whose sessions have a state, and which notes what it frees."""

    def __init__(self, limits: SessionLimits = LIMITS, **options) -> None:
        self.released: list = []
        self.dropped: list = []
        super().__init__(limits, release=self.released.append, drop_cache=self.dropped.append, clock=Clock(), **options)

    def enter(self, caller: Caller = PHONE):
        ended: list[RefusalError] = []
        session = self.open(caller, "Score", ended.append, topic=TOPIC)
        session.state = "state"
        return session, ended


def test_the_longest_idle_session_gives_way_and_a_working_one_never_does():
    table = Table()
    old, old_ended = table.enter()
    table.clock.now = 1
    young, young_ended = table.enter()
    table.clock.now = 10
    table.touch(old, working=True)
    table.clock.now = 20
    table.enter()
    assert [one.reason for one in young_ended] == ["evicted"] and old_ended == []
    assert (len(table), table.released) == (2, [young])
    with pytest.raises(RefusalError, match="all 2 sessions") as refused:
        table.enter()
    assert refused.value.reason == "overloaded" and 0.2 <= refused.value.retry_after <= 30


def test_a_session_is_not_evicted_before_it_was_idle_for_long_enough():
    table = Table(replace(LIMITS, max_sessions=1))
    session, ended = table.enter()
    table.clock.now = 100
    table.touch(session, working=False)
    table.clock.now = 104
    with pytest.raises(RefusalError):
        table.enter()
    table.clock.now = 105
    table.enter()
    assert ended[0].reason == "evicted"


def test_a_parked_session_gives_way_before_an_idle_one_and_expires():
    table = Table()
    parked, parked_ended = table.enter()
    table.enter()
    table.park(parked)
    assert (table.active, table.parked) == (1, 1)
    third, _ = table.enter()
    assert parked_ended == [] and table.released == [parked]
    table.park(third)
    table.clock.now = 29
    table.sweep()
    assert table.parked == 1
    table.clock.now = 30
    table.sweep()
    assert table.parked == 0 and table.released == [parked, third]


def test_a_session_is_resumed_by_its_own_key_and_instruction_alone():
    table = Table()
    session, ended = table.enter()
    table.park(session)
    again: list[RefusalError] = []
    assert table.resume(session.id, TABLET, again.append, topic=TOPIC) is None
    assert table.resume(session.id, PHONE, again.append, topic=b"other") is None
    assert table.resume("unknown", PHONE, again.append, topic=TOPIC) is None
    assert table.resume(session.id, PHONE, again.append, topic=TOPIC) is session
    assert table.holds(session, again.append) and ended == []
    newest: list[RefusalError] = []
    assert table.resume(session.id, PHONE, newest.append, topic=TOPIC) is session
    assert again[0].reason == "evicted" and table.holds(session, newest.append)
    assert table.released == []


def test_an_idle_session_is_ended_by_itself_and_a_working_one_is_not():
    table = Table()
    session, ended = table.enter()
    working, _ = table.enter()
    table.touch(working, working=True)
    table.clock.now = 59
    table.sweep()
    assert ended == []
    table.clock.now = 60
    table.sweep()
    assert ended[0].reason == "evicted" and table.released == [session] and table.active == 1


def test_memory_is_taken_from_the_parked_then_the_idle_then_the_last_that_asked():
    table = Table(replace(LIMITS, max_sessions=4, max_cache_bytes=100))
    parked, older, idle, busy = (table.enter()[0] for _ in range(4))
    for at, session in enumerate((parked, older, idle)):
        table.clock.now = at
        table.cache_grew(session, 30)
        table.touch(session, working=session is older)
    table.park(parked)
    table.touch(busy, working=True)
    table.cache_grew(busy, 10)
    assert (table.cache_bytes, table.released, table.dropped) == (100, [], [])
    table.cache_grew(busy, 40)
    assert (table.cache_bytes, table.released, table.dropped) == (100, [parked], [])
    table.cache_grew(busy, 41)
    assert (table.cache_bytes, table.dropped) == (71, [idle])
    table.cache_grew(busy, 71)  # the older request is done first
    assert (table.cache_bytes, table.dropped) == (30, [idle, busy])
    table.cache_grew(older, 110)  # nobody else has any: one session alone may be larger
    assert (table.cache_bytes, table.dropped) == (110, [idle, busy])
    table.close(idle, "done")
    with pytest.raises(RefusalError, match="memory") as refused:
        table.enter()
    assert refused.value.reason == "overloaded"
    table.close(older, "done")
    assert table.cache_bytes == 0


def test_refused_clients_are_asked_back_one_after_the_other():
    table = Table(replace(LIMITS, max_sessions=4))
    for _ in range(4):
        table.touch(table.enter()[0], working=True)
    table.clock.now = 8.0  # sessions are 8 seconds old, so one of 4 places frees every 2 seconds or so
    waits = []
    for _ in range(20):
        with pytest.raises(RefusalError) as refused:
            table.enter()
        waits.append(refused.value.retry_after)
    assert waits[:4] == [2.0, 4.0, 6.0, 8.0]
    assert waits[-1] == 30.0  # nobody is sent away for longer


def test_newcomers_are_refused_while_requests_wait_for_too_long_and_told_for_how_long():
    waits = [5.0]
    table = Table(expected_wait=lambda: waits[0])
    session, _ = table.enter()
    table.park(session)
    waits[0] = 5.1
    with pytest.raises(RefusalError, match="requests wait") as refused:
        table.enter()
    assert (refused.value.reason, refused.value.retry_after) == ("overloaded", 5.1)
    assert table.resume(session.id, PHONE, lambda _: None, topic=TOPIC) is session  # its place is its own


def test_a_key_has_so_many_sessions_at_once_and_others_do_not_count():
    table = Table(replace(LIMITS, max_sessions=9, sessions_per_key=2))
    first, _ = table.enter()
    table.enter()
    with pytest.raises(RefusalError, match="2 sessions at once") as refused:
        table.enter()
    assert refused.value.reason == "quota" and refused.value.retry_after > 0
    table.enter(TABLET)
    table.park(first)
    table.enter()
    with pytest.raises(RefusalError, match="2 sessions at once"):
        table.resume(first.id, PHONE, lambda _: None, topic=TOPIC)


def test_a_stopping_table_admits_nobody_and_keeps_nothing_parked():
    table = Table()
    session, _ = table.enter()
    going, ended = table.enter()
    table.park(session)
    table.stop_admitting(7)
    with pytest.raises(RefusalError) as refused:
        table.enter()
    assert (refused.value.reason, refused.value.retry_after) == ("stopping", 7)
    assert table.parked == 0 and ended == []
    table.park(going)
    assert len(table) == 0


def test_a_quota_fills_steadily_and_says_when_to_come_back():
    clock = Clock()
    quota = TokenQuota(60, clock)
    quota.check("phone")
    quota.charge("phone", 90)  # what a request costs is known when it is done
    with pytest.raises(RefusalError) as refused:
        quota.check("phone")
    assert refused.value.reason == "quota" and refused.value.retry_after == pytest.approx(31)
    quota.check("tablet")
    clock.now = 30.9
    with pytest.raises(RefusalError):
        quota.check("phone")
    clock.now = 31
    quota.check("phone")
    quota.charge("phone", 1)
    clock.now = 89
    quota.forget_full()
    assert quota._buckets
    clock.now = 92
    quota.forget_full()
    assert not quota._buckets


def test_without_a_quota_nothing_is_counted():
    quota = TokenQuota(0)
    quota.charge("phone", 10**9)
    quota.check("phone")
    assert not quota._buckets
