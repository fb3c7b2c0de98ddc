"""A TCP proxy that makes a link between two processes slow, far and unreliable, where namespaces can't be had.

It sees streams, not packets. So a lost packet is a packet that TCP repeats later, and an outage is silence that ends
with a repetition; `Lane.stream` says when. A connection begins after the handshake's trips.

asyncio's usual selectors wait whole milliseconds; `select` waits microseconds, and a proxy has few sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.links.control import Controlled, hurry, say
from benchmarks.links.lane import SEGMENT, Direction, Lane
from benchmarks.links.presets import Link

if TYPE_CHECKING:
    from types import TracebackType

IN_FLIGHT = 16 << 20
"""Bytes of one direction that may be under way: about the largest window that TCP grows to."""


class Proxy:
    """A link in front of `target` ("HOST:PORT"), in a process of its own; `address` is where to connect instead."""

    def __init__(self, link: Link, target: str, seed: int = 0) -> None:
        self._control = Controlled("benchmarks.links.proxy")
        self._control.ask(link=link.to_json(), seed=seed)
        self.retarget(target)
        self.address: str = self._control.hello["address"]

    def use(self, link: Link, seed: int = 0) -> None:
        """Change the link under the connections that there are; what is on its way arrives as it would have."""
        self._control.ask(link=link.to_json(), seed=seed)

    def retarget(self, target: str) -> None:
        """Lead new connections to another address."""
        self._control.ask(target=target)

    def close(self) -> None:
        """End the process; connections break."""
        self._control.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Emulator:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._target = ("127.0.0.1", 0)
        self._lanes = self._lanes_of(Link("none"), 0)
        self._tasks: set[asyncio.Task[None]] = set()

    def obey(self, message: dict[str, Any]) -> None:
        """Do what the parent process asks for."""
        if "target" in message:
            host, _, port = message["target"].rpartition(":")
            self._target = (host, int(port))
        if "link" in message:
            self._lanes = self._lanes_of(Link.from_json(message["link"]), message["seed"])

    async def listen(self, listener: socket.socket) -> None:
        """Accept for ever."""
        while True:
            device, _ = await self._loop.sock_accept(listener)
            task = self._loop.create_task(self._connect(device))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, device: socket.socket) -> None:
        """Take a handshake's three trips, then carry bytes until both directions have ended."""
        with device, socket.socket() as cloud:
            try:
                _prepare(device)
                _prepare(cloud)
                await self._until(self._lanes["up"].stream(self._loop.time(), 0))
                await self._until(self._lanes["down"].stream(self._loop.time(), 0))
                connected = self._loop.time()
                await self._until(self._lanes["up"].stream(connected, 0))
                await self._loop.sock_connect(cloud, self._target)
                up, down = _Flow(), _Flow()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._read("up", device, up, connected))
                    group.create_task(self._read("down", cloud, down, None))
                    group.create_task(self._deliver(up, cloud))
                    group.create_task(self._deliver(down, device))
            except* OSError:
                # The sender's reset, or a server that is not there, is for the other side a reset.
                for end in (device, cloud):
                    _reset_on_close(end)

    async def _read(self, direction: Direction, source: socket.socket, flow: _Flow, sent: float | None) -> None:
        """Put one direction's bytes on their way; what is read first was sent at `sent` (None: just now)."""
        data = b"-"
        while data:
            while flow.size > IN_FLIGHT or self._lanes[direction].is_full(self._loop.time()):
                await asyncio.sleep(0.001)
            error: OSError | None = None
            try:
                data = await self._loop.sock_recv(source, 16 * SEGMENT)
            except OSError as reset:
                data, error = b"", reset
            now, sent = self._loop.time() if sent is None else sent, None
            for start in range(0, len(data) or 1, SEGMENT):
                segment = data[start : start + SEGMENT]
                flow.queue.append((self._lanes[direction].stream(now, len(segment)), segment or error))
            flow.size += len(data)
            flow.changed.set()

    async def _deliver(self, flow: _Flow, sink: socket.socket) -> None:
        """Hand over what has arrived, in its order, until the end or a reset arrives."""
        while True:
            while not flow.queue:
                flow.changed.clear()
                await flow.changed.wait()
            await self._until(flow.queue[0][0])
            arrived = bytearray()
            end: OSError | bytes | None = None
            while flow.queue and flow.queue[0][0] <= self._loop.time():
                _, segment = flow.queue.popleft()
                if not segment or isinstance(segment, OSError):
                    end = segment or b""
                    break
                arrived += segment
            await self._loop.sock_sendall(sink, arrived)
            flow.size -= len(arrived)
            if isinstance(end, OSError):
                raise end
            if end is not None:
                sink.shutdown(socket.SHUT_WR)
                return

    async def _until(self, time: float) -> None:
        while (left := time - self._loop.time()) > 0:
            await asyncio.sleep(left)

    def _lanes_of(self, link: Link, seed: int) -> dict[Direction, Lane]:
        now = self._loop.time()
        return {"up": Lane.of(link, "up", seed, now), "down": Lane.of(link, "down", seed, now)}


@dataclass(slots=True)
class _Flow:
    """What is under way in one direction of a connection: (arrival, bytes, or none at the end, or how it broke)."""

    queue: deque[tuple[float, bytes | OSError | None]] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    size: int = 0


def _prepare(end: socket.socket) -> None:
    end.setblocking(False)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset_on_close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    emulator = _Emulator(loop)
    ended = asyncio.Event()
    lines = bytearray()

    def on_input() -> None:
        received = os.read(sys.stdin.fileno(), 65536)
        if not received:
            loop.remove_reader(sys.stdin.fileno())
            ended.set()
            return
        lines.extend(received)
        while b"\n" in lines:
            line, _, rest = bytes(lines).partition(b"\n")
            lines[:] = rest
            emulator.obey(json.loads(line))
            say()

    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setblocking(False)
    loop.add_reader(sys.stdin.fileno(), on_input)
    accepting = loop.create_task(emulator.listen(listener))
    say(address=f"127.0.0.1:{listener.getsockname()[1]}")
    await ended.wait()
    accepting.cancel()


def main() -> None:
    """Run until standard input ends."""
    hurry()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_serve())


if __name__ == "__main__":
    main()
