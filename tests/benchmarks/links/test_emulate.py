"""One interface to both ways of emulating a link."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.links.emulate import network
from benchmarks.links.namespaces import unavailable
from benchmarks.links.presets import Link, Outages

SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        while data := connection.recv(65536):
            connection.sendall(data)
"""

CLIENT = """
import hashlib, json, random, socket, sys, threading, time
host, _, port = sys.argv[1].rpartition(":")
data = random.Random(0).randbytes(int(sys.argv[2]))
with socket.create_connection((host, int(port)), 60) as connection:
    began = time.monotonic()
    threading.Thread(target=connection.sendall, args=(data,)).start()
    got = bytearray()
    while len(got) < len(data):
        got += connection.recv(65536)
print(json.dumps({"seconds": time.monotonic() - began, "unchanged": bytes(got) == data}))
"""


@pytest.mark.parametrize(
    "emulation",
    [pytest.param("namespace", marks=pytest.mark.skipif(bool(unavailable()), reason=unavailable())), "proxy"],
)
@pytest.mark.parametrize(
    ("link", "size", "at_least"),
    [
        (Link("far", rtt=0.1), 100, 0.1),
        (Link("slow", rate_up=8e6), 200_000, 0.2),
        (Link("slow", rate_down=8e6), 200_000, 0.2),
        (Link("lossy", rtt=0.002, loss=0.02, rate_down=2e7, rate_up=2e7), 200_000, 0.08),
        (Link("outages", rate_up=8e6, outages=Outages(0.8, 0.1)), 400_000, 0.4),
    ],
    ids=lambda value: value.name if isinstance(value, Link) else None,
)
def test_one_interface_gives_the_same_link_by_either_means(emulation, link, size, at_least):
    with network(link, emulation) as between:
        server = between.start_cloud([sys.executable, "-c", SERVER, between.cloud_host], stdout=subprocess.PIPE)
        address = between.address(f"{between.cloud_host}:{int(server.stdout.readline())}")
        client = between.start_device([sys.executable, "-c", CLIENT, address, str(size)], stdout=subprocess.PIPE)
        result = json.loads(client.communicate()[0])
    assert result["unchanged"]
    assert result["seconds"] >= at_least
    assert server.poll() is not None, "the server ends with the network"


def test_auto_takes_what_the_machine_allows():
    with network(Link("none")) as between:
        assert between.kind == ("proxy" if unavailable() else "namespace")
