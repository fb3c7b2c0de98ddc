"""A process beside ours that answers one JSON line with one, and ends when we do, however we end.

Emulation runs in processes of its own: a thread would wait for our interpreter's lock, which is far longer than a
packet takes on a fast link.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_PRIORITY = -15


class ControlError(RuntimeError):
    """The process could not do what it was asked for."""


class Controlled:
    """A running `python -m MODULE ARGUMENTS`. Its standard input ends with our process, and then it has to end, too."""

    def __init__(self, module: str, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        try:
            self.hello = self._answer()
        except ControlError:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for its answer.

        Raises:
            ControlError: the process is gone or said why it can't.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ControlError(f"The process of the emulated link is gone: {error}.") from error
        return self._answer()

    def close(self) -> None:
        """Let the process clean up and end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ControlError(f"The process of the emulated link ended with {self._process.wait(timeout=10)}.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ControlError(answer["error"])
        return answer


def say(**message: Any) -> None:
    """In the process: answer."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def hurry() -> None:
    """In the process: be woken before those that compute, where we may."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
