"""A cloud without a network: a real decoder's rows, with replies that are late or missing as a seed determines.

Rows are computed one token at a time and cached, so they are the same however requests are grouped. Differences between
two answers therefore come from the device.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from edge_runtime.cloud import Verified
from edge_runtime.decoders.protocol import Decoder
from edge_runtime.errors import CloudUnavailableError
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify
from edge_runtime.privacy.gate import Released
from edge_runtime.privacy.messages import OpenRequest, VerifyRequest


@dataclass
class Weather:
    """How often and how badly the link fails; all probabilities are per request."""

    seed: int = 0
    latency: float = 0.0
    jitter: float = 0.0
    breaks: float = 0.0
    stalls: float = 0.0
    stall_seconds: float = 0.0
    first_is_safe: bool = True

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)


@dataclass
class LocalCloud:
    """The part of an `edge_runtime.cloud.Cloud` that fused generation needs, over a decoder and a prompt.

    Its rows are cut to `width`, as a cloud cuts padding behind the tokenizer; None leaves them whole.
    """

    decoder: Decoder
    prompt: tuple[int, ...]
    weather: Weather = field(default_factory=Weather)
    requests: list[VerifyRequest] = field(default_factory=list)
    opened: list[OpenRequest] = field(default_factory=list)
    width: int | None = None
    _rows: dict[tuple[int, ...], SparseLogProbs] = field(default_factory=dict)
    _states: dict[str, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, request: Released[OpenRequest]) -> LocalSession:
        request.leave(lambda message: self.opened.append(message) or b"open")
        return LocalSession(self, self.opened[-1].rows, f"session-{len(self.opened)}")

    def row(self, view: tuple[int, ...], form: RowFormat) -> SparseLogProbs:
        """Return the row that follows a view."""
        with self._lock:
            if view not in self._rows:
                tokens = self.prompt + view
                known = self.decoder.token_ids
                shared = next(
                    (i for i, (a, b) in enumerate(zip(known, tokens[:-1], strict=False)) if a != b),
                    min(len(known), len(tokens) - 1),
                )
                self.decoder.rewind(shared)
                for token in tokens[shared:-1]:
                    self.decoder.extend([token], rows=0)
                self._rows[view] = sparsify(log_softmax(self.decoder.extend([tokens[-1]])[0][: self.width]), form)
            return self._rows[view]


class LocalSession:
    """One stream: its own thread answers requests in order."""

    def __init__(self, cloud: LocalCloud, form: RowFormat, name: str) -> None:
        self._cloud = cloud
        self._form = form
        self._name = name
        self._view: tuple[int, ...] = ()
        self._broken = False
        self._answered = False
        self._thread = ThreadPoolExecutor(max_workers=1)

    @property
    def id(self) -> str:
        return self._name if self._answered else ""

    def verify(self, request: Released[VerifyRequest]) -> Future[Verified]:
        cloud = self._cloud
        request.leave(lambda message: cloud.requests.append(message) or b"verify")
        asked = cloud.requests[-1]
        assert asked.keep <= len(self._view), "keeps more than there is"
        self._view = (*self._view[: asked.keep], *asked.tokens)
        assert asked.rows == tuple(sorted(set(asked.rows))), "rows don't ascend"
        assert not asked.rows or asked.rows[-1] <= len(self._view), "a row beyond the view"
        weather = cloud.weather
        first = weather.first_is_safe and len(cloud.requests) == 1
        pause = weather.latency + weather.random.random() * weather.jitter
        if not first and weather.random.random() < weather.stalls:
            pause += weather.stall_seconds
        breaks = not first and weather.random.random() < weather.breaks
        return self._thread.submit(self._reply, self._view, asked.rows, pause, breaks)

    def close(self) -> None:
        self._broken = True
        self._thread.shutdown(wait=True, cancel_futures=True)  # a decoder serves one thread, so leave none running

    room: int | None = None

    def abandon(self) -> None:
        self.close()

    def _reply(self, view: tuple[int, ...], rows: tuple[int, ...], pause: float, breaks: bool) -> Verified:
        time.sleep(pause)
        if breaks or self._broken:
            self._broken = True
            raise CloudUnavailableError("The link is broken: it was asked to break. Wait.")
        self._answered = True
        return Verified(tuple(self._cloud.row(view[:row], self._form) for row in rows))
