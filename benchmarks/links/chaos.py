"""A TCP proxy that breaks what passes through it, at a chosen byte, in every way that networks and servers do.

Faults are counted in bytes, not in seconds, and drawn from a seed: a run that went wrong can be had again.

    with Chaos(address, seed=7) as chaos:
        connect_to(chaos.address)
        chaos.plan(Fault(Kind.RESET, "down", at=300))
        ...
        chaos.heal()
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, NoReturn, TypeVar, get_args

from benchmarks.links.lane import Direction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from types import TracebackType

T = TypeVar("T")

_GOODBYE = 1.0
"""Seconds that a side has to notice a connection's end."""


class Kind(StrEnum):
    """What goes wrong.

    CUT: the connection ends as if both sides had closed it (FIN).
    RESET: it breaks (RST).
    STALL: it stays open and carries nothing more, either way: what a lost NAT entry or a vanished phone looks like.
    BLACKHOLE: so do all connections, and new ones.
    DELAY: its direction pauses.
    TRUNCATE: `length` bytes are missing.
    CORRUPT: the bits of `mask` are flipped in one byte.
    DUPLICATE: up to `length` bytes come twice.
    REFUSE: it breaks, and new connections are refused.
    RESTART: the server is killed, and started again later, perhaps at another address.

    STALL, BLACKHOLE, DELAY, REFUSE and the time until a restart last `seconds`.
    """

    CUT = "cut"
    RESET = "reset"
    STALL = "stall"
    BLACKHOLE = "blackhole"
    DELAY = "delay"
    TRUNCATE = "truncate"
    CORRUPT = "corrupt"
    DUPLICATE = "duplicate"
    REFUSE = "refuse"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: it strikes the byte that comes after `at` more bytes in its direction, over all connections."""

    kind: Kind
    direction: Direction = "down"
    at: int = 0
    seconds: float = inf
    length: int = 1
    mask: int = 1

    def __post_init__(self) -> None:
        if self.at < 0 or self.seconds < 0 or self.length < 1 or not 1 <= self.mask <= 255:
            raise ValueError(f"Not a fault: {self}.")


class Chaos:
    """A proxy in front of `target` ("HOST:PORT"), in a thread of its own. `address` is where to connect instead.

    Attributes:
        address: "HOST:PORT"; it stays the same.
        injected: how often each kind of fault struck.
        connections: how many were accepted.
        passed: bytes carried in each direction.
        random: the seeded source of chance, for plans.
    """

    def __init__(
        self,
        target: str,
        seed: int = 0,
        *,
        kill: Callable[[], None] | None = None,
        restart: Callable[[], str] | None = None,
    ) -> None:
        """Start the proxy.

        Args:
            target: the server.
            seed: of `random_fault`.
            kill: ends the server, for RESTART.
            restart: starts it again and gives its address; called after `kill`, never twice for one.
        """
        self.random = random.Random(seed)
        self.injected: Counter[Kind] = Counter()
        self.connections = 0
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self._target = target
        self._kill = kill
        self._restart = restart
        self._is_down = False
        self._armed: list[_Armed] = []
        self._carrying: set[asyncio.Task[None]] = set()
        self._recovering: set[asyncio.Task[None]] = set()
        self._acceptor: asyncio.Task[None] | None = None
        # Held but never listened to: the port stays ours while connections are refused.
        self._reserved = _bound(0)
        self._port = self._reserved.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._loop = asyncio.new_event_loop()
        self._restarting = asyncio.Lock()
        self._healed = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos", daemon=True)
        self._thread.start()
        self._call(self._listen())

    @property
    def target(self) -> str:
        """The server that new connections lead to; set it when the server moved."""
        return self._target

    @target.setter
    def target(self, address: str) -> None:
        self._target = address

    @property
    def pending(self) -> tuple[Fault, ...]:
        """Planned faults that have not struck."""
        return tuple(armed.fault for armed in self._armed)

    def plan(self, *faults: Fault) -> None:
        """Let these faults strike, counted from now on; those planned before still do.

        Raises:
            ValueError: a restart without the functions for it.
        """
        if any(fault.kind is Kind.RESTART for fault in faults) and not (self._kill and self._restart):
            raise ValueError("A restart needs the functions kill and restart.")

        async def arm() -> None:
            self._armed += [_Armed(fault, fault.at) for fault in faults]

        self._call(arm())

    def random_fault(
        self, *, up: int, down: int, seconds: tuple[float, float], kinds: Sequence[Kind] = tuple(Kind)
    ) -> Fault:
        """Draw a fault within the next `up` or `down` bytes; one that lasts does so for a time within `seconds`."""
        direction = self.random.choice(get_args(Direction))
        return Fault(
            kind=self.random.choice(kinds),
            direction=direction,
            at=self.random.randrange(up if direction == "up" else down),
            seconds=self.random.uniform(*seconds),
            length=self.random.randint(1, 64),
            mask=self.random.randint(1, 255),
        )

    def heal(self) -> None:
        """Forget what is planned and end what lasts: what was held back arrives, and the server runs."""
        self._call(self._heal())

    def break_all(self) -> None:
        """Reset all connections now."""

        async def cancel() -> None:
            for task in self._carrying:
                task.cancel()

        self._call(cancel())

    def close(self) -> None:
        """Stop listening and break all connections."""

        async def stop() -> None:
            self._stop_listening()
            # Again while there are any: a fault that was just striking may have begun another.
            while tasks := self._carrying | self._recovering:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        if self._loop.is_closed():
            return
        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
        self._reserved.close()

    def __enter__(self) -> Chaos:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _spawn(self, tasks: set[asyncio.Task[None]], coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _listen(self) -> None:
        if self._acceptor is None:
            listener = _bound(self._port)
            listener.listen(256)
            self._acceptor = self._loop.create_task(self._accept(listener))

    def _stop_listening(self) -> None:
        if self._acceptor is not None:
            self._acceptor.cancel()
            self._acceptor = None

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                device, _ = await self._loop.sock_accept(listener)
                self.connections += 1
                self._spawn(self._carrying, self._connect(device))

    async def _connect(self, device: socket.socket) -> None:
        """Carry a connection until it ends by itself or by a fault."""
        with device, socket.socket() as cloud:
            ends = (device, cloud)
            try:
                for end in ends:
                    end.setblocking(False)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._open.wait()
                host, _, port = self._target.rpartition(":")
                await self._loop.sock_connect(cloud, (host, int(port)))
                flowing = asyncio.Event()
                flowing.set()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(_Flow("up", device, cloud, flowing)))
                    group.create_task(self._carry(_Flow("down", cloud, device, flowing)))
            except* _CutError:
                await self._part(ends)
            except* OSError:
                _reset_on_close(ends)
            except* asyncio.CancelledError:
                _reset_on_close(ends)

    async def _carry(self, flow: _Flow) -> None:
        while True:
            data = await self._loop.sock_recv(flow.source, 65536)
            await self._pass_gates(flow)
            if not data:
                flow.sink.shutdown(socket.SHUT_WR)
                return
            while data:
                data = await self._step(flow, data)

    async def _step(self, flow: _Flow, data: bytes) -> bytes:
        """Carry `data` up to the next fault and let that strike; gives what is left."""
        if flow.swallow:
            swallowed = min(flow.swallow, len(data))
            flow.swallow -= swallowed
            self._count(flow.direction, swallowed)
            return data[swallowed:]
        due = min((a for a in self._armed if a.fault.direction == flow.direction), key=lambda a: a.left, default=None)
        harmless = len(data) if due is None else min(max(due.left, 0), len(data))
        self._count(flow.direction, harmless)
        if due is None or harmless == len(data):
            await self._loop.sock_sendall(flow.sink, data)
            return b""
        # Out of the list before anything is waited for: the other direction must not meet it, too.
        self._armed.remove(due)
        await self._loop.sock_sendall(flow.sink, data[:harmless])
        self.injected[due.fault.kind] += 1
        return await self._strike(due.fault, flow, data[harmless:])

    async def _strike(self, fault: Fault, flow: _Flow, data: bytes) -> bytes:
        """Let a fault happen to `data`, which begins with the byte it is for; gives what is to be carried on."""
        match fault.kind:
            case Kind.CUT:
                raise _CutError
            case Kind.RESET:
                _break()
            case Kind.STALL:
                flow.flowing.clear()
                self._spawn(self._recovering, self._later(fault.seconds, flow.flowing.set))
            case Kind.BLACKHOLE:
                self._open.clear()
                self._spawn(self._recovering, self._later(fault.seconds, self._open.set))
            case Kind.DELAY:
                await self._pause(fault.seconds)
            case Kind.TRUNCATE:
                flow.swallow = fault.length
            case Kind.CORRUPT:
                data = bytes([data[0] ^ fault.mask]) + data[1:]
            case Kind.DUPLICATE:
                await self._loop.sock_sendall(flow.sink, data[: fault.length])
            case Kind.REFUSE:
                self._stop_listening()
                self._spawn(self._recovering, self._relisten(fault.seconds))
                _break()
            case Kind.RESTART:
                self._is_down = True
                killed = asyncio.Event()
                # Its own task: this connection may break, and then the server must come back all the same.
                self._spawn(self._recovering, self._crash(fault.seconds, killed))
                await killed.wait()
        await self._pass_gates(flow)
        return data

    def _count(self, direction: Direction, size: int) -> None:
        self.passed[direction] += size
        for armed in self._armed:
            if armed.fault.direction == direction:
                armed.left -= size

    async def _pass_gates(self, flow: _Flow) -> None:
        await flow.flowing.wait()
        await self._open.wait()

    async def _pause(self, seconds: float) -> None:
        """Wait, until the time is over or all is healed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._healed.wait(), None if seconds == inf else seconds)

    async def _later(self, seconds: float, action: Callable[[], None]) -> None:
        await self._pause(seconds)
        action()

    async def _relisten(self, seconds: float) -> None:
        await self._pause(seconds)
        await self._listen()

    async def _crash(self, seconds: float, killed: asyncio.Event) -> None:
        assert self._kill is not None
        async with self._restarting:
            await asyncio.to_thread(self._kill)
        killed.set()
        await self._pause(seconds)
        await self._revive()

    async def _revive(self) -> None:
        async with self._restarting:
            if self._is_down:
                assert self._restart is not None
                self._target = await asyncio.to_thread(self._restart)
                self._is_down = False

    async def _heal(self) -> None:
        self._armed.clear()
        self._healed.set()
        self._healed = asyncio.Event()
        self._open.set()
        await self._listen()
        if self._is_down:
            await self._revive()

    async def _part(self, ends: Sequence[socket.socket]) -> None:
        """End a connection by FIN: closing a socket with unread bytes would reset it."""
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)

        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_GOODBYE):
                for end in ends:
                    while await self._loop.sock_recv(end, 65536):
                        pass


@dataclass(slots=True, eq=False)
class _Armed:
    """A planned fault and the bytes until it strikes."""

    fault: Fault
    left: int


@dataclass(slots=True)
class _Flow:
    """One direction of a connection; `flowing` is shared by both."""

    direction: Direction
    source: socket.socket
    sink: socket.socket
    flowing: asyncio.Event
    swallow: int = field(default=0)


class _CutError(Exception):
    """A fault ends the connection by FIN."""


def _break() -> NoReturn:
    raise ConnectionResetError("A fault breaks the connection.")


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setblocking(False)
    bound.bind(("127.0.0.1", port))
    return bound


def _reset_on_close(ends: Sequence[socket.socket]) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
