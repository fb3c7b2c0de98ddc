"""Runs the command line in separate processes, and makes expensive things once per run."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from tests.support.warm_process import ROOT as ROOT
from tests.support.warm_process import WarmProcess

MadeOnce: TypeAlias = Callable[[str, Callable[[Path], object]], Path]


def run_cogenesis(*arguments: object, timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with options of `WarmProcess`."""
    process = WarmProcess(*arguments, **options)
    stdout, stderr = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


def cogenesis(*arguments: object) -> str:
    """Run the command line, expect success, and return its output."""
    done = run_cogenesis(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(model: Path, *arguments: object, engine: str = "transformers") -> Iterator[tuple[str, WarmProcess]]:
    """A served model (for the engine onnx, a bundle): its address and its process."""
    source = ["--engine", "onnx", "--bundle"] if engine == "onnx" else ["--model"]
    process = WarmProcess("cloud", "serve", *source, model, *arguments, log=Path(os.devnull))
    try:
        yield json.loads(process.stdout.readline())["address"], process
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.close()


@contextmanager
def served(model: Path, *arguments: object, engine: str = "transformers") -> Iterator[str]:
    """Serve a model, and provide its address."""
    with serving(model, *arguments, engine=engine) as (address, _):
        yield address
