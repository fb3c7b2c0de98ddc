"""Processes of the command line that start at once, because they are copies of one that has the libraries loaded.

Importing transformers takes a process ten seconds. Here one process imports it and copies itself for each command. A
copy has its own output, environment, limits, signals and exit code, as `python -m cogenesis` has.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preloaded"])


class WarmProcess:
    """A running command, with the methods of `subprocess.Popen` that tests need.

    Args:
        arguments: of the command line.
        env: its environment; by default that of this process.
        log: a file for its standard error; by default this can be read as `stderr`.
        file_limit: largest size of a file, in bytes: the kernel refuses to let one grow further, as on a full disk.
    """

    def __init__(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        file_limit: int | None = None,
    ) -> None:
        self.args = [*map(str, arguments)]
        out, out_end = _CONTEXT.Pipe(duplex=False)
        errors, errors_end = _CONTEXT.Pipe(duplex=False)
        self._process = _CONTEXT.Process(
            target=_run, args=(self.args, out_end, errors_end, dict(env or os.environ), log, file_limit)
        )
        with chdir(ROOT):  # where the process that is copied finds these modules
            forkserver.ensure_running()
        self._process.start()
        out_end.close()
        errors_end.close()
        self.stdout, self.stderr = _reader(out), _reader(errors)

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and give its exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it has ended, and give all that it wrote and said."""
        with ThreadPoolExecutor(2) as pool:
            texts = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        self.close()
        return texts[0].result(), texts[1].result()

    def close(self) -> None:
        """Read no more of its output."""
        self.stdout.close()
        self.stderr.close()


def _reader(end: Connection) -> IO[str]:
    descriptor = os.dup(end.fileno())
    end.close()
    return os.fdopen(descriptor, encoding="utf-8")


def _run(
    arguments: list[str],
    out: Connection,
    errors: Connection,
    environment: dict[str, str],
    log: Path | None,
    file_limit: int | None,
) -> None:
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(errors.fileno() if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    out.close()
    errors.close()
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.argv = ["cogenesis", *arguments]
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from cogenesis.cli import main

    main()
