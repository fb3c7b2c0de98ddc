"""When packets and streams arrive at the end of a lane."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.links.lane import HEADERS, SEGMENT, SMALLEST_TIMEOUT, Lane
from benchmarks.links.presets import PRESETS, Link, Outages, named, plain

LINKS = st.builds(
    Link,
    name=st.just("any"),
    rtt=st.floats(0, 1),
    rate_down=st.floats(1e4, 1e9),
    rate_up=st.floats(1e4, 1e9),
    jitter=st.floats(0, 0.1),
    loss=st.floats(0, 0.5),
    outages=st.none() | st.builds(Outages, period=st.floats(5, 20), length=st.floats(0.1, 4)),
)
SENT = st.lists(st.tuples(st.floats(0, 2), st.integers(1, SEGMENT)), min_size=1, max_size=40)


@given(link=LINKS, sent=SENT, direction=st.sampled_from(["up", "down"]), seed=st.integers(0, 9))
def test_a_stream_arrives_in_order_and_never_early(link, sent, direction, seed):
    lane = Lane.of(link, direction, seed)
    rate = link.rate_up if direction == "up" else link.rate_down
    now, arrivals, carried = 0.0, [], 0
    for pause, size in sent:
        now += pause
        arrival = lane.stream(now, size)
        carried += size + HEADERS
        assert arrival >= now + size * 8 / rate + link.rtt / 2
        assert arrival >= carried * 8 / rate + link.rtt / 2, "more than the rate went through"
        arrivals.append(arrival)
    assert arrivals == sorted(arrivals)


@given(link=LINKS, sent=SENT, seed=st.integers(0, 9))
def test_packets_arrive_in_order_or_not_at_all_and_never_leave_in_an_outage(link, sent, seed):
    lane = Lane.of(link, "down", seed)
    now, arrivals = 0.0, []
    for pause, size in sent:
        now += pause
        arrival = lane.packet(now, size)
        if link.outages and link.outages.at(now):
            assert arrival is None
        if arrival is not None:
            assert arrival >= now + size * 8 / link.rate_down + link.rtt / 2
            arrivals.append(arrival)
    assert arrivals == sorted(arrivals)


def test_the_same_seed_has_the_same_luck():
    link = Link("any", rtt=0.1, jitter=0.05, loss=0.3)
    first, second, other = (Lane.of(link, "up", seed) for seed in (1, 1, 2))
    times = [k * 0.5 for k in range(50)]
    assert [first.packet(t, 100) for t in times] == [second.packet(t, 100) for t in times]
    assert [first.packet(t + 25, 100) for t in times] != [other.packet(t + 25, 100) for t in times]


def test_about_as_many_packets_are_lost_as_asked_for():
    lane = Lane.of(Link("lossy", loss=0.1), "up", 3)
    lost = sum(lane.packet(float(k), 100) is None for k in range(10_000))
    assert 850 < lost < 1150  # five standard deviations of a binomial


def test_a_stream_sent_in_an_outage_comes_with_the_first_repetition_after_it():
    lane = Lane.of(Link("outages", rtt=0.1, outages=Outages(period=10, length=2)), "up", 0)
    patience = 0.1 + SMALLEST_TIMEOUT
    # Sent at 8.0, repeated after 0.3, 0.9, 2.1 seconds: the third is after the outage's end at 10.
    assert lane.stream(8.0, 10) == pytest.approx(8.0 + 7 * patience + 0.05)
    assert lane.stream(10.2, 10) == pytest.approx(10.25), "behind it, all flows again"


def test_what_does_not_fit_into_the_queue_is_lost():
    lane = Lane.of(plain(10, 1), "up", 0)
    arrived = [lane.packet(0.0, 1500) for _ in range(200)]
    assert arrived[0] is not None
    assert arrived[-1] is None
    assert lane.packet(1.0, 1500) is not None, "once it has drained there is room again"


def test_links_have_names():
    assert all(named(name) is link and link.name == name for name, link in PRESETS.items())
    assert {"wifi", "5g", "4g", "3g", "edge", "tunnel", "none", "lan"} <= set(PRESETS)
    assert named("50ms-10mbit") == plain(50, 10) == Link("50ms-10mbit", 0.05, 10e6, 10e6)
    with pytest.raises(ValueError, match="No link is called 'carrier-pigeon'"):
        named("carrier-pigeon")
    with pytest.raises(ValueError, match="No link is called"):
        named("fastms-10mbit")


@given(link=LINKS | st.sampled_from(list(PRESETS.values())))
def test_a_link_survives_the_way_to_another_process(link):
    import json

    assert Link.from_json(json.loads(json.dumps(link.to_json()))) == link


@pytest.mark.parametrize(
    "values", [{"rtt": -1}, {"loss": 1.0}, {"rate_up": 0}, {"jitter": -0.1}], ids=lambda v: next(iter(v))
)
def test_impossible_links_are_refused(values):
    with pytest.raises(ValueError, match="Not a network"):
        Link("impossible", **values)
    with pytest.raises(ValueError, match="does not fit"):
        Outages(period=1, length=1)
