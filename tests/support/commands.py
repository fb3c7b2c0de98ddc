"""The command line in processes of its own, and things that are made once a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

MadeOnce: TypeAlias = Callable[[str, Callable[[Path], object]], Path]

ROOT = Path(__file__).resolve().parents[2]


def run_cogenesis(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "cogenesis", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)  # type: ignore[call-overload]


def cogenesis(*arguments: object) -> str:
    """Run the command line, expect success, and give its output."""
    done = run_cogenesis(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(
    model: Path, *arguments: object, engine: str = "transformers"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A served model (for the engine onnx, a bundle): its address and its process."""
    source = ["--engine", "onnx", "--bundle"] if engine == "onnx" else ["--model"]
    command = [sys.executable, "-m", "cogenesis", "cloud", "serve", *source, str(model), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"], process
    finally:
        process.terminate()
        process.wait(timeout=30)


@contextmanager
def served(model: Path, *arguments: object, engine: str = "transformers") -> Iterator[str]:
    """A served model's address."""
    with serving(model, *arguments, engine=engine) as (address, _):
        yield address
