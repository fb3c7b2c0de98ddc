"""Engines in processes of their own, driven run by run, and what they read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


class EngineProcess:
    """An engine in a process of its own; see engine_process.py."""

    def __init__(self, engine: str, model: Path, prompt: Path, new_tokens: int, threads: int) -> None:
        script = Path(__file__).with_name("engine_process.py")
        self._command = [sys.executable, str(script), engine, str(model), "--prompt", str(prompt)]
        self._command += ["--new-tokens", str(new_tokens), "--threads", str(threads)]
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self) -> tuple[float, float]:
        """Tokens a second of prefill and of decoding."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"The engine's process failed: {' '.join(self._command)}.")
        found = json.loads(line)
        return found["prefill"], found["decode"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def prompt_text() -> str:
    """Prose of the project's own, repeated until it is long enough for every prompt."""
    root = Path(__file__).resolve().parent.parent
    text = (root / "export" / "quantization" / "calibration_text.txt").read_text(encoding="utf-8")
    return text * (1 + 40_000 // len(text))
