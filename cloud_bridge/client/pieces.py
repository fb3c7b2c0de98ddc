"""An answer or a sketch that arrives piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc

from cloud_bridge.client.failures import Peer
from cloud_bridge.client.watchdog import Watchdog
from edge_runtime.errors import CloudTimeoutError
from edge_runtime.privacy.gate import Released

Piece = TypeVar("Piece")


@dataclass(slots=True)
class _Wait:
    # What the watchdog shares with the iterator; it must not hold the iterator itself, whose end ends the call.
    since: float | None = None
    expired: bool = False


class Pieces(Generic[Piece]):
    """Iterates over a call's decoded messages; each must come within `timeout` seconds of being asked for.

    Closing it, from any thread, or dropping it, cancels the call; who waits gets an error. Else for one thread.
    """

    def __init__(
        self,
        call: grpc.Call,
        released: Released[Any],
        decode: Callable[[bytes], Piece],
        peer: Peer,
        *,
        timeout: float,
        failed: Callable[[Exception], None],
        ended: Callable[[], None],
    ) -> None:
        """Take over a call that has begun; `failed` is told once what it failed with, `ended` that it is over."""
        self._call = call
        self._released = released
        self._decode = decode
        self._peer = peer
        self._failed = failed
        self._ended = ended
        self._over = False
        self._wait = wait = _Wait()

        def expire() -> None:
            wait.expired = True
            call.cancel()

        self._watchdog = Watchdog(timeout, lambda: wait.since, expire)

    def __iter__(self) -> Pieces[Piece]:
        return self

    def __next__(self) -> Piece:
        """Wait for the next piece.

        Raises:
            CloudError: for each cause its own subclass.
            LedgerError: what came can't be recorded.
        """
        self._wait.since = time.monotonic()
        try:
            data = next(self._call)
            self._released.arrived(len(data))
            return self._decode(data)
        except grpc.RpcError as error:
            expired = self._wait.expired
            failure = self._peer.describe(CloudTimeoutError) if expired else self._peer.error(error)
            self._failed(failure)
            self.close()
            raise failure from None
        except BaseException:  # StopIteration too: the call is over
            self.close()
            raise
        finally:
            self._wait.since = None

    def close(self) -> None:
        """Cancel the call; safe to call twice."""
        if self._over:
            return
        self._over = True
        self._watchdog.stop()
        self._call.cancel()
        self._ended()

    def __enter__(self) -> Pieces[Piece]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_watchdog"):
            self.close()
