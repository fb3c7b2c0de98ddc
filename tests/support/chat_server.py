"""An OpenAI-compatible endpoint on this machine that behaves as a test says: well, or badly in one of several ways."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], str]
"""What is answered to a request's body."""


@dataclass
class ChatServer:
    """What a test sees of the server.

    Attributes:
        url: of its API.
        requests: bodies and headers (`"headers"` among the body's fields) as they came.
        faults: ways to misbehave, each for one request, first come first served: `nonsense`, `empty`, `prose` (no
            JSON at all), `slow` (a byte a moment, for ever), `cut`, `close`, a status such as `500`, or `429 0.2`
            with the seconds to wait.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def chat_server(answer: Answer) -> Iterator[ChatServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.requests.append(body | {"headers": dict(self.headers), "path": self.path, "at": time.monotonic()})
                fault = state.faults.pop(0) if state.faults else ""
            content = json.dumps(_completion(body, "" if fault == "empty" else answer(body))).encode()
            match fault.split():
                case ["nonsense"]:
                    self._send(200, b'{"object": "list", "data": []}')
                case ["prose"]:
                    self._send(200, b"<html>Welcome to the captive portal</html>")
                case ["cut"]:
                    self._send(200, content[:-9], length=len(content))
                    self.close_connection = True
                case ["close"]:
                    self.close_connection = True
                case ["slow"]:
                    self._head(200, 1000)
                    while not stopped.wait(0.05):
                        self.wfile.write(b" ")
                        self.wfile.flush()
                case [status, *wait] if status.isdigit():
                    self._send(int(status), b'{"error": {"message": "not now"}}', wait=wait)
                case _:
                    self._send(200, content)

        def _send(self, status: int, content: bytes, *, length: int | None = None, wait: list[str] | None = None):
            self._head(status, len(content) if length is None else length, wait)
            self.wfile.write(content)

        def _head(self, status: int, length: int, wait: list[str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(length))
            for seconds in wait or ():
                self.send_header("Retry-After", seconds)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # who asked has hung up, as some tests want
                self.close_connection = True

    stopped = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = ChatServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    words = sum(len(message["content"].split()) for message in body["messages"])
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": words, "completion_tokens": len(text.split()), "total_tokens": 0},
    }
