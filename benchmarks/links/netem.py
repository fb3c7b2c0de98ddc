"""Two network namespaces and the wire between them: real IP packets, delayed, queued and lost in user space.

Kernels without netem can't do that themselves. Each namespace has one TUN device, whose packets this process reads and
hands to the other. The namespaces have no name: they exist as long as this process holds them open or a command runs
in them, so that a crash leaves nothing behind. `links.namespaces` starts this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.links.control import hurry, say
from benchmarks.links.lane import Lane
from benchmarks.links.presets import Link

DEVICE_ADDRESS = "10.78.0.1"
CLOUD_ADDRESS = "10.78.0.2"

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_DEVICE = "wire0"
_MTU = 1500


def main() -> None:
    """Make the namespaces, then carry packets until standard input ends; then end what still runs in them."""
    try:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        device_space, device = _space(DEVICE_ADDRESS, CLOUD_ADDRESS)
        cloud_space, cloud = _space(CLOUD_ADDRESS, DEVICE_ADDRESS)
        _enter(home)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else ""
        say(error=f"Network namespaces can't be made here: {detail or error}.")
        return
    hurry()
    say(
        **{
            name: f"/proc/{os.getpid()}/fd/{space}"
            for name, space in (("device", device_space), ("cloud", cloud_space))
        }
    )
    try:
        _carry(device, cloud)
    finally:
        _end_all_in({os.fstat(device_space).st_ino, os.fstat(cloud_space).st_ino})


def _carry(device: int, cloud: int) -> None:
    """Read packets when they come, write them when they arrive; obey the lines on standard input."""
    lanes = _lanes(Link("none"), 0, device, cloud)
    opposite = {device: cloud, cloud: device}
    under_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    lines = b""
    control = sys.stdin.fileno()
    while True:
        patience = max(under_way[0][0] - time.monotonic(), 0.0) if under_way else None
        # Not epoll: it waits whole milliseconds.
        ready, _, _ = select.select([device, cloud, control], [], [], patience)
        for source in ready:
            if source == control:
                received = os.read(control, 65536)
                if not received:
                    return
                *complete, lines = (lines + received).split(b"\n")
                for line in complete:
                    message = json.loads(line)
                    lanes = _lanes(Link.from_json(message["link"]), message["seed"], device, cloud)
                    say()
                continue
            for packet in _packets(source):
                arrival = lanes[source].packet(time.monotonic(), len(packet))
                if arrival is not None:
                    count += 1
                    heapq.heappush(under_way, (arrival, count, opposite[source], packet))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, _, sink, packet = heapq.heappop(under_way)
            # A full device loses the packet, as a router does.
            with contextlib.suppress(BlockingIOError):
                os.write(sink, packet)


def _packets(source: int) -> list[bytes]:
    """What waits in a TUN device, not so much that others wait long."""
    packets: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        packets.extend(os.read(source, _MTU + 100) for _ in range(32))
    return packets


def _lanes(link: Link, seed: int, device: int, cloud: int) -> dict[int, Lane]:
    now = time.monotonic()
    return {device: Lane.of(link, "up", seed, now), cloud: Lane.of(link, "down", seed, now)}


def _space(own: str, other: str) -> tuple[int, int]:
    """Enter a new namespace with one point-to-point device; gives the namespace and the device as descriptors."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
    space = os.open("/proc/self/ns/net", os.O_RDONLY)
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    for arguments in (
        "link set lo up",
        f"link set {_DEVICE} addrgenmode none",  # no IPv6 chatter
        f"addr add {own} peer {other} dev {_DEVICE}",
        f"link set {_DEVICE} up mtu {_MTU}",
    ):
        subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)
    return space, tun


def _enter(space: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns: " + os.strerror(ctypes.get_errno()))


def _end_all_in(spaces: set[int]) -> None:
    """Kill what runs in our namespaces: commands whose starter crashed."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "ns/net").stat().st_ino in spaces:
                    os.kill(int(process.name), signal.SIGKILL)


if __name__ == "__main__":
    main()
