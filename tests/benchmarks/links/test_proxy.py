"""The proxy link: real sockets through a real process. Times are only ever compared from below."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.links.emulate import emulated
from benchmarks.links.presets import Link, Outages
from benchmarks.links.proxy import Proxy
from tests.support.commands import ROOT
from tests.support.sockets import connect, receive, send_back, serving


def test_an_answer_takes_a_round_trip_at_the_least(echo):
    with emulated(Link("far", rtt=0.03), echo) as address, connect(address) as connection:
        for _ in range(5):
            began = time.monotonic()
            connection.sendall(b"ping")
            assert receive(connection, 4) == b"ping"
            assert time.monotonic() - began >= 0.03


def test_a_connection_takes_a_round_trip_more(echo):
    with emulated(Link("far", rtt=0.05), echo) as address:
        began = time.monotonic()
        with connect(address) as connection:
            connection.sendall(b"ping")
            assert receive(connection, 4) == b"ping"
        assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("slow", ["up", "down"])
def test_a_transfer_takes_as_long_as_the_rate_says_at_the_least(echo, slow):
    link = Link("slow", **{f"rate_{slow}": 4e6})
    data = random.Random(0).randbytes(100_000)
    with emulated(link, echo) as address, connect(address) as connection:
        began = time.monotonic()
        threading.Thread(target=connection.sendall, args=(data,)).start()
        assert receive(connection, len(data)) == data
        assert time.monotonic() - began >= len(data) * 8 / 4e6


def test_both_directions_are_carried_at_once(echo):
    """Twenty messages that don't wait for each other take one round trip, not twenty."""
    with emulated(Link("far", rtt=0.2), echo) as address, connect(address) as connection:
        connection.sendall(b"x")
        receive(connection, 1)
        arrivals = []
        for index in range(20):
            connection.sendall(bytes([index]))
        for index in range(20):
            assert receive(connection, 1) == bytes([index])
            arrivals.append(time.monotonic())
        assert arrivals[-1] - arrivals[0] < 20 * 0.2 / 2, "an ordering: the twentieth before the tenth round trip"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(st.binary(min_size=1, max_size=20_000), min_size=1, max_size=8),
    link=st.builds(
        Link,
        name=st.just("any"),
        rtt=st.floats(0, 0.02),
        rate_down=st.floats(2e7, 1e9),
        rate_up=st.floats(2e7, 1e9),
        jitter=st.floats(0, 0.02),
        loss=st.sampled_from([0.0, 0.02]),
    ),
    seed=st.integers(0, 5),
)
def test_bytes_come_unchanged_and_in_order(shared_proxy, messages, link, seed):
    shared_proxy.use(link, seed)
    with connect(shared_proxy.address) as connection:
        sender = threading.Thread(target=lambda: [connection.sendall(message) for message in messages])
        sender.start()
        everything = b"".join(messages)
        assert receive(connection, len(everything)) == everything
        sender.join()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"", "the end of the stream comes through, too"


@pytest.fixture(scope="module")
def shared_proxy():
    with serving(send_back) as server, Proxy(Link("none"), server.address) as proxy:
        yield proxy


def test_an_outage_stalls_and_then_delivers(echo):
    with emulated(Link("outage", outages=Outages(period=1.0, length=0.6)), echo) as address:
        began = time.monotonic()
        with connect(address) as connection:
            sent, waits = [], []
            while time.monotonic() < began + 2.2:
                message = os.urandom(8)
                sent.append(message)
                start = time.monotonic()
                connection.sendall(message)
                assert receive(connection, 8) == message
                waits.append(time.monotonic() - start)
                time.sleep(0.02)
        assert max(waits) >= 0.3, "no message met an outage"


def test_a_new_link_takes_effect_under_a_connection(echo):
    with Proxy(Link("none"), echo) as proxy, connect(proxy.address) as connection:
        connection.sendall(b"a")
        assert receive(connection, 1) == b"a"
        proxy.use(Link("far", rtt=0.1))
        began = time.monotonic()
        connection.sendall(b"b")
        assert receive(connection, 1) == b"b"
        assert time.monotonic() - began >= 0.1


def test_a_reset_comes_through(echo):
    with (
        serving(_reset_after_one_byte) as server,
        emulated(Link("far", rtt=0.01), server.address) as address,
        connect(address) as connection,
    ):
        connection.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def _reset_after_one_byte(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def test_a_server_that_is_not_there_is_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        unused = f"127.0.0.1:{taken.getsockname()[1]}"
    with (
        emulated(Link("none"), unused) as address,
        pytest.raises(OSError, match=r"reset|Broken pipe"),
        connect(address) as connection,
    ):
        connection.sendall(b"x")
        assert connection.recv(1), "a clean end instead of a reset"


def test_a_retargeted_proxy_leads_new_connections_elsewhere(echo):
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"hello from elsewhere")

    with serving(greet) as other, Proxy(Link("none"), echo) as proxy:
        proxy.retarget(other.address)
        with connect(proxy.address) as connection:
            assert receive(connection, 20) == b"hello from elsewhere"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_the_proxy_ends_when_its_starter_is_killed(echo):
    code = (
        "from benchmarks.links.presets import Link; from benchmarks.links.proxy import Proxy; import time\n"
        f"proxy = Proxy(Link('none'), {echo!r}); print(proxy._control.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with starter:
        pid = int(starter.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        starter.send_signal(signal.SIGKILL)
    assert _gone(pid)


def _gone(pid: int) -> bool:
    """Whether a process ends within a time that only a hang exceeds; one that nobody has waited for yet has ended."""
    for _ in range(500):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False
