"""Starts command-line processes quickly, by forking a process that has already loaded the libraries.

Importing transformers takes ten seconds. Here one process imports it once and forks for each command. Each fork has its
own output, environment, limits, signals and exit code, like `python -m cogenesis`.
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
        arguments: arguments of the command line.
        env: environment of the command; None uses this process's.
        log: file for its standard error; None makes it readable as `stderr`.
        file_limit: maximum file size in bytes; the kernel lets no file grow further, as on a full disk.
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
        with chdir(ROOT):  # so that the forked process finds these modules
            forkserver.ensure_running()
        self._process.start()
        out_end.close()
        errors_end.close()
        self.stdout, self.stderr = _reader(out), _reader(errors)

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See `returncode`."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command ends and return its exit code."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until the command ends and return its standard output and standard error."""
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
        """Stop reading its output."""
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
