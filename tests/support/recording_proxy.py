"""A TCP proxy that records what a device sends, and reads the gRPC messages and header names out of the bytes.

It takes HTTP/2 apart with hyperframe and hpack, which share no code with gRPC: what it shows was on the wire.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import defaultdict
from dataclasses import dataclass, field

from hpack import Decoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class _Connection:
    up: bytearray = field(default_factory=bytearray)


class RecordingProxy:
    """Forwards every connection to `target` ("HOST:PORT") and keeps what went up, in the order it went.

    `address` is where to connect instead. `cut()` breaks all connections, `stall()` leaves them open and carries
    nothing more, as lost networks do.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._connections: list[_Connection] = []
        self._sockets: list[socket.socket] = []
        self._stalled: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def raw_up(self) -> bytes:
        """Every byte that went up, connection after connection."""
        with self._lock:
            return b"".join(bytes(connection.up) for connection in self._connections)

    def messages_up(self) -> list[tuple[str, bytes]]:
        """(path, message) of every gRPC message that went up, in the order in which they were complete."""
        return [message for captured in self._captured() for message in _read(captured)[0]]

    def headers_up(self) -> list[tuple[str, str]]:
        """(name, value) of every header that went up, trailers and repetitions included."""
        return [header for captured in self._captured() for header in _read(captured)[1]]

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            _shut(one)

    def stall(self) -> None:
        """Carry nothing more over the connections there are."""
        with self._lock:
            self._stalled = set(self._sockets)

    def close(self) -> None:
        """Stop listening and break all connections."""
        _shut(self._listener)
        self.cut()

    def __enter__(self) -> RecordingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _captured(self) -> list[bytes]:
        with self._lock:
            return [bytes(connection.up) for connection in self._connections]

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                cloud = socket.create_connection(self._target)
            except OSError:
                _shut(device)
                continue
            connection = _Connection()
            for one in (device, cloud):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.append(connection)
                self._sockets += [device, cloud]
            threading.Thread(target=self._pump, args=(device, cloud, connection), daemon=True).start()
            threading.Thread(target=self._pump, args=(cloud, device, None), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, record: _Connection | None) -> None:
        try:
            while data := source.recv(65536):
                if record is not None:
                    with self._lock:
                        record.up += data
                if source not in self._stalled:
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            _shut(source)
            _shut(sink)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


def _read(captured: bytes) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """Messages and headers of one connection's bytes; an unfinished frame at the end is left out."""
    if not captured:
        return [], []
    assert captured.startswith(PREFACE), "not HTTP/2"
    decoder = Decoder(max_header_list_size=1 << 20)
    paths: dict[int, str] = {}
    headers: list[tuple[str, str]] = []
    block = bytearray()
    bodies: dict[int, bytearray] = defaultdict(bytearray)
    messages: list[tuple[str, bytes]] = []
    for frame in _frames(captured[len(PREFACE) :]):
        if isinstance(frame, (HeadersFrame, ContinuationFrame)):
            block += frame.data
            if "END_HEADERS" in frame.flags:
                fields = [(str(name), str(value)) for name, value in decoder.decode(bytes(block))]
                paths.setdefault(frame.stream_id, dict(fields).get(":path", ""))
                headers += fields
                block.clear()
        elif isinstance(frame, DataFrame):
            body = bodies[frame.stream_id]
            body += frame.data
            while len(body) >= 5 and len(body) >= 5 + (size := int.from_bytes(body[1:5], "big")):
                assert body[0] == 0, "a compressed message"
                messages.append((paths[frame.stream_id], bytes(body[5 : 5 + size])))
                del body[: 5 + size]
    return messages, headers


def _frames(data: bytes) -> list[Frame]:
    frames = []
    position = 0
    while position + 9 <= len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[position : position + 9]))
        if position + 9 + length > len(data):
            break
        frame.parse_body(memoryview(data[position + 9 : position + 9 + length]))
        frames.append(frame)
        position += 9 + length
    return frames
