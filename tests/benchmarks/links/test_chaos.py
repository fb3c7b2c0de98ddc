"""The fault injector does to a connection what its faults say, at the byte they say, and nothing else."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.links.chaos import Chaos, Fault, Kind
from tests.support.sockets import Server, connect, receive, send_back, serving

DATA = bytes(range(256)) * 40
UNTIL_QUIET = 0.2
"""Seconds of silence after which a test takes a connection to be stalled."""


@pytest.fixture
def chaos(echo):
    with Chaos(echo, seed=1) as proxy:
        yield proxy


def exchange(connection: socket.socket, data: bytes = DATA) -> bytes:
    connection.sendall(data)
    return receive(connection, len(data))


def test_without_a_plan_nothing_happens(chaos):
    with connect(chaos.address) as connection:
        assert exchange(connection) == DATA
    assert chaos.passed == {"up": len(DATA), "down": len(DATA)}
    assert chaos.connections == 1
    assert not chaos.injected


@pytest.mark.parametrize("at", [0, 1, 777, len(DATA) - 1])
def test_a_cut_ends_the_connection_after_exactly_so_many_bytes(chaos, at):
    chaos.plan(Fault(Kind.CUT, "down", at))
    with connect(chaos.address) as connection:
        assert exchange(connection) == DATA[:at]
        assert connection.recv(1) == b"", "a clean end"
    assert chaos.injected == {Kind.CUT: 1}


def test_a_cut_on_the_way_up_ends_it_for_the_server_after_exactly_so_many_bytes():
    got, ended = bytearray(), threading.Event()

    def keep(connection: socket.socket) -> None:
        while data := connection.recv(65536):
            got.extend(data)
        ended.set()

    with serving(keep) as server, Chaos(server.address) as chaos:
        chaos.plan(Fault(Kind.CUT, "up", 777))
        with connect(chaos.address) as connection:
            connection.sendall(DATA)
            assert ended.wait(10)
    assert bytes(got) == DATA[:777]


def test_a_reset_breaks_the_connection(chaos):
    chaos.plan(Fault(Kind.RESET, "up", 100))
    with connect(chaos.address) as connection, pytest.raises(ConnectionResetError):
        connection.sendall(DATA)
        while connection.recv(65536):
            pass
        pytest.fail("a clean end instead of a reset")


def test_a_stalled_connection_stays_open_and_silent_while_others_work(chaos):
    chaos.plan(Fault(Kind.STALL, "down", 100))
    with connect(chaos.address) as connection, connect(chaos.address) as other:
        connection.sendall(DATA)
        assert receive(connection, 100) == DATA[:100]
        assert _is_silent(connection)
        assert exchange(other, b"hello") == b"hello"
        chaos.heal()
        assert receive(connection, len(DATA) - 100) == DATA[100:], "what was held back arrives"


def test_a_stall_can_end_by_itself(chaos):
    chaos.plan(Fault(Kind.STALL, "up", 100, seconds=0.2))
    with connect(chaos.address) as connection:
        began = time.monotonic()
        assert exchange(connection) == DATA
        assert time.monotonic() - began >= 0.2


def test_a_black_hole_accepts_and_carries_nothing(chaos):
    chaos.plan(Fault(Kind.BLACKHOLE, "down", 100))
    with connect(chaos.address) as connection:
        connection.sendall(DATA)
        assert receive(connection, 100) == DATA[:100]
        with connect(chaos.address) as other:
            other.sendall(b"hello")
            assert _is_silent(other)
            assert _is_silent(connection)
            chaos.heal()
            assert receive(other, 5) == b"hello"


def test_a_delay_holds_up_its_direction(chaos):
    chaos.plan(Fault(Kind.DELAY, "down", 100, seconds=0.2))
    with connect(chaos.address) as connection:
        began = time.monotonic()
        assert exchange(connection) == DATA
        assert time.monotonic() - began >= 0.2


def test_truncation_leaves_bytes_out(chaos):
    chaos.plan(Fault(Kind.TRUNCATE, "down", 100, length=50))
    with connect(chaos.address) as connection:
        connection.sendall(DATA)
        assert receive(connection, len(DATA) - 50) == DATA[:100] + DATA[150:]


def test_corruption_changes_one_byte(chaos):
    chaos.plan(Fault(Kind.CORRUPT, "up", 100, mask=0x81))
    with connect(chaos.address) as connection:
        assert exchange(connection) == DATA[:100] + bytes([DATA[100] ^ 0x81]) + DATA[101:]


def test_duplication_repeats_bytes(chaos):
    chaos.plan(Fault(Kind.DUPLICATE, "up", 100, length=7))
    with connect(chaos.address) as connection:
        connection.sendall(DATA)
        assert receive(connection, len(DATA) + 7) == DATA[:107] + DATA[100:]


def test_refused_connections_are_refused_until_healed_and_the_address_stays(chaos):
    chaos.plan(Fault(Kind.REFUSE, "up", 0))
    with connect(chaos.address) as connection, pytest.raises(ConnectionResetError):
        connection.sendall(b"x")
        connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(chaos.address)
    chaos.heal()
    with connect(chaos.address) as connection:
        assert exchange(connection) == DATA


def test_a_killed_server_comes_back_elsewhere():
    servers = [Server(send_back)]

    def restart() -> str:
        servers.append(Server(send_back))
        return servers[-1].address

    with Chaos(servers[0].address, kill=servers[0].close, restart=restart) as chaos:
        chaos.plan(Fault(Kind.RESTART, "up", 100))
        with connect(chaos.address) as connection:
            connection.sendall(DATA)
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                while connection.recv(65536):
                    pass
                raise ConnectionResetError("it ended cleanly, which is as good: reset")
        assert len(servers) == 1, "it is down until it is healed"
        chaos.heal()
        assert len(servers) == 2
        assert chaos.target == servers[1].address
        with connect(chaos.address) as connection:
            assert exchange(connection) == DATA
    servers[1].close()


def test_a_restart_needs_functions_for_it(chaos):
    with pytest.raises(ValueError, match="needs the functions"):
        chaos.plan(Fault(Kind.RESTART))


def test_bytes_are_counted_over_connections_and_from_the_plan_on(chaos):
    with connect(chaos.address) as connection:
        exchange(connection, b"before the plan")
    chaos.plan(Fault(Kind.CORRUPT, "down", 6, mask=1))
    with connect(chaos.address) as connection:
        assert exchange(connection, b"aaaa") == b"aaaa"
    with connect(chaos.address) as connection:
        assert exchange(connection, b"aaaa") == b"aa`a"


def test_healing_forgets_what_was_planned(chaos):
    chaos.plan(Fault(Kind.CUT, "down", 100), Fault(Kind.RESET, "up", 200))
    assert len(chaos.pending) == 2
    chaos.heal()
    assert not chaos.pending
    with connect(chaos.address) as connection:
        assert exchange(connection) == DATA


def test_breaking_all_connections_leaves_the_proxy_working(chaos):
    with connect(chaos.address) as connection:
        exchange(connection, b"hello")
        chaos.break_all()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    with connect(chaos.address) as connection:
        assert exchange(connection) == DATA


HARMLESS_TO_LENGTH = st.builds(
    Fault,
    kind=st.sampled_from([Kind.CORRUPT, Kind.TRUNCATE, Kind.DELAY]),
    direction=st.sampled_from(["up", "down"]),
    at=st.integers(0, 200),
    seconds=st.just(0.0),
    length=st.integers(1, 30),
    mask=st.integers(1, 255),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(HARMLESS_TO_LENGTH, max_size=5), data=st.binary(min_size=1, max_size=400))
def test_faults_strike_alone_and_together_where_they_were_planned(shared, faults, data):
    """The oracle applies each direction's faults to the bytes as a whole."""
    shared.heal()
    shared.plan(*faults)
    with connect(shared.address) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection, len(data) + 1) == _broken(_broken(data, faults, "up"), faults, "down")


def _broken(data: bytes, faults: list[Fault], direction: str) -> bytes:
    """What becomes of `data`; positions count bytes that entered the direction."""
    result = list(data)
    missing: set[int] = set()
    end_of_hole = 0
    for fault in sorted((f for f in faults if f.direction == direction), key=lambda f: f.at):
        # Inside a hole nothing can be struck: the fault is for the first byte behind it.
        at = max(fault.at, end_of_hole)
        if at >= len(data):
            continue
        if fault.kind is Kind.CORRUPT:
            result[at] ^= fault.mask
        elif fault.kind is Kind.TRUNCATE:
            end_of_hole = at + fault.length
            missing.update(range(at, end_of_hole))
    return bytes(value for index, value in enumerate(result) if index not in missing)


@pytest.fixture(scope="module")
def shared():
    with serving(send_back) as server, Chaos(server.address) as proxy:
        yield proxy


def test_the_same_seed_draws_the_same_faults(echo):
    drawn = []
    for seed in (5, 5, 6):
        with Chaos(echo, seed) as chaos:
            drawn.append([chaos.random_fault(up=500, down=5000, seconds=(0.1, 2)) for _ in range(50)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert {fault.kind for fault in drawn[0]} == set(Kind)
    assert all(fault.at < (500 if fault.direction == "up" else 5000) for fault in drawn[0])
    assert all(0.1 <= fault.seconds <= 2 for fault in drawn[0])


@pytest.mark.parametrize("values", [{"at": -1}, {"seconds": -1}, {"length": 0}, {"mask": 0}, {"mask": 256}])
def test_impossible_faults_are_refused(values):
    with pytest.raises(ValueError, match="Not a fault"):
        Fault(Kind.CUT, **values)


def test_closing_ends_threads_and_connections(echo):
    before = _proxies()
    chaos = Chaos(echo)
    connection = connect(chaos.address)
    exchange(connection, b"hello")
    chaos.plan(Fault(Kind.STALL, "down"), Fault(Kind.BLACKHOLE, "up", 10))
    connection.sendall(b"hello again, into the void")
    chaos.close()
    chaos.close()
    with connection, pytest.raises(ConnectionResetError):
        while connection.recv(65536):
            pass
        raise ConnectionResetError
    with pytest.raises(ConnectionRefusedError):
        connect(chaos.address)
    assert _proxies() == before


def _proxies() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "chaos"}


def _is_silent(connection: socket.socket) -> bool:
    """Whether the connection is open and gives nothing."""
    connection.settimeout(UNTIL_QUIET)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10)
    return False
