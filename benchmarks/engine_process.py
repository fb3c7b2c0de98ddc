"""One engine in a process of its own, as in an app: for each line on standard input, a prompt is read and tokens taken.

Run by engines.py. Answers each line with tokens a second of both, and ends with its input. In one process engines would
disturb each other: their idle threads spin, and libraries that they share are set up by the first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

# Read when llama.cpp's OpenMP is loaded: waiting threads may spin in all engines, or they would not be at their best.
os.environ.pop("OMP_WAIT_POLICY", None)

if TYPE_CHECKING:
    from collections.abc import Sequence

LLAMA_CPP = "llama.cpp"


class Engine(Protocol):
    """A model that reads a prompt and then takes tokens one by one, giving the logits after each."""

    def start(self, token_ids: Sequence[int]) -> None:
        """Forget everything and read a prompt."""

    def step(self, token_id: int) -> None:
        """Take one token."""


def main() -> None:
    """Serve runs until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", help=f"onnx, executorch or {LLAMA_CPP}")
    parser.add_argument("model", type=Path, help="a bundle, or a GGUF file")
    parser.add_argument("--prompt", type=Path, required=True, help="JSON list of token ids")
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    token_ids: list[int] = json.loads(arguments.prompt.read_text())
    engine: Engine
    if arguments.engine == LLAMA_CPP:
        engine = _LlamaCpp(arguments.model, len(token_ids) + arguments.new_tokens + 1, arguments.threads)
    else:
        engine = _Ours(arguments.model, arguments.engine, arguments.threads)
    for _ in sys.stdin:
        prefill, decode = _run(engine, token_ids, token_ids[: arguments.new_tokens])
        print(json.dumps({"prefill": prefill, "decode": decode}), flush=True)


def _run(engine: Engine, prompt: Sequence[int], new: Sequence[int]) -> tuple[float, float]:
    """Tokens a second of prefill and of decoding; tokens fed are fixed, so all engines do the same work."""
    started = time.perf_counter()
    engine.start(prompt)
    read = time.perf_counter()
    for token in new:
        engine.step(token)
    return len(prompt) / (read - started), len(new) / (time.perf_counter() - read)


class _Ours:
    def __init__(self, bundle: Path, backend: str, threads: int) -> None:
        from edge_runtime.bundle.reader import open_bundle
        from edge_runtime.decoders.open import open_decoder

        self.decoder = open_decoder(open_bundle(bundle), backend, threads=threads)

    def start(self, token_ids: Sequence[int]) -> None:
        self.decoder.rewind(0)
        self.decoder.extend(token_ids)

    def step(self, token_id: int) -> None:
        self.decoder.extend([token_id])


class _LlamaCpp:
    def __init__(self, gguf: Path, context: int, threads: int) -> None:
        from llama_cpp import Llama

        self.model = Llama(str(gguf), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def start(self, token_ids: Sequence[int]) -> None:
        self.model.reset()
        self.model.eval(list(token_ids))

    def step(self, token_id: int) -> None:
        self.model.eval([token_id])


if __name__ == "__main__":
    main()
