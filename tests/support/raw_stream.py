"""A `Score` stream frame by frame, without the client: what a device may do, and what it must not."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from typing import Any

import grpc

from cloud_bridge import wire
from edge_runtime.cloud import Verified
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.privacy.messages import OpenRequest, VerifyRequest

FORM = RowFormat(top_k=8)
SECONDS = 30


def wait_until(holds: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)


class RawStream:
    """One stream on a channel of its own."""

    def __init__(self, address: str, *, key: str | None = None, channel: grpc.Channel | None = None) -> None:
        self.channel = channel or grpc.insecure_channel(address)
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        score = self.channel.stream_stream(wire.method_path("Score"))
        self.call: Any = score(iter(self._frames.get, None), timeout=SECONDS, metadata=metadata)
        self.opened: wire.Opened | None = None
        self.form = FORM
        self._asked: list[tuple[int, int]] = []
        self._said = 0
        self._received = 0

    def open(
        self, engine: Any, instruction: str = "Write a letter.", *, resume: str = "", form: RowFormat = FORM
    ) -> RawStream:
        self.form = form
        self.send(wire.encode_open(OpenRequest(instruction, engine.tokenizer_fingerprint, form, resume)))
        return self

    def await_opened(self) -> wire.Opened:
        if self.opened is None:
            self.opened = wire.decode_opened(next(self.call))
        return self.opened

    def send(self, frame: bytes) -> None:
        self._said = wire.said(frame, self._said)
        self._frames.put(frame)

    def ask(self, keep: int, tokens: list[int], rows: list[int]) -> None:
        """Send a `verify`; its reply comes with `reply`."""
        self.send(wire.encode_verify(VerifyRequest(keep, tuple(tokens), tuple(rows), "")))
        self._asked.append((len(rows), self._said))

    def reply(self) -> Verified:
        opened = self.await_opened()
        number = self._received
        data = next(self.call)
        self._received += 1
        count, said = self._asked[number]
        return wire.decode_verified(
            data, number=number, count=count, vocab_size=opened.vocab_size, form=self.form, heard=said
        )

    def verify(self, keep: int, tokens: list[int], rows: list[int]) -> Verified:
        self.ask(keep, tokens, rows)
        return self.reply()

    def half_close(self) -> None:
        """Say that the session is not needed any more."""
        self._frames.put(None)

    def vanish(self) -> None:
        """Break the stream, as a lost connection does."""
        self.call.cancel()
        self._frames.put(None)

    def refusal(self) -> tuple[str, float | None]:
        """Read to the end: the reason, and the seconds after which the server wants to be asked again."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError:
            trailer = dict(self.call.trailing_metadata())
            after = trailer.get(wire.RETRY_AFTER_KEY)
            return trailer.get(wire.REASON_KEY, f"no reason: {self.call.code()}"), int(after) / 1e3 if after else None
        raise AssertionError("the stream ended without a reason")

    def __enter__(self) -> RawStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.half_close()
        with contextlib.suppress(grpc.RpcError):
            for _ in self.call:
                pass
        self.channel.close()
