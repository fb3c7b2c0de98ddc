"""Size and speed of a pair's two bundles, such as a model and its smaller sibling of `cogenesis collab shrink`.

Each bundle has a process of its own, and their runs are interleaved; ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.engines import EngineProcess, prompt_text
from benchmarks.report import emit, median, progress, ratio, spread, usable_cores
from edge_runtime.bundle.manifest import BACKEND_ONNX, ROLE_WEIGHTS
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.text.tokenizer import Tokenizer


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("small", type=Path, help="the device's bundle")
    parser.add_argument("large", type=Path, help="the cloud's")
    parser.add_argument("--prompt-tokens", type=int, default=344)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved runs of both (default 9)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each (default: all usable cores)")
    parser.add_argument("--json", action="store_true", help="print for machines")
    arguments = parser.parse_args()

    bundles = {"small": open_bundle(arguments.small), "large": open_bundle(arguments.large)}
    tokenizers = {bundle.manifest.tokenizer.fingerprint for bundle in bundles.values()}
    if len(tokenizers) > 1:
        sys.exit("These bundles are no pair: their tokenizers differ.")
    first = bundles["small"]
    tokenizer = Tokenizer.load(first.path(first.manifest.tokenizer.path))
    prefill: dict[str, list[float]] = {name: [] for name in bundles}
    decode: dict[str, list[float]] = {name: [] for name in bundles}
    with tempfile.TemporaryDirectory() as work:
        prompt = Path(work) / "prompt.json"
        prompt.write_text(json.dumps(tokenizer.encode(prompt_text())[: arguments.prompt_tokens]))
        engines = {
            name: EngineProcess(BACKEND_ONNX, bundle.root, prompt, arguments.new_tokens, arguments.threads)
            for name, bundle in bundles.items()
        }
        for round_number in range(arguments.rounds + 1):
            progress(f"Round {round_number} of {arguments.rounds}" if round_number else "Warming up")
            for name, engine in engines.items():
                read, taken = engine.run()
                if round_number:
                    prefill[name].append(read)
                    decode[name].append(taken)
        for engine in engines.values():
            engine.close()
    rows = [
        {
            "bundle": name,
            "weights_mb": round(sum(one.size for one in bundle.manifest.files if one.role == ROLE_WEIGHTS) / 1e6, 1),
            "prefill": round(median(prefill[name]), 1),
            "prefill_±": round(spread(prefill[name]), 3),
            "decode": round(median(decode[name]), 1),
            "decode_±": round(spread(decode[name]), 3),
        }
        for name, bundle in bundles.items()
    ]
    headline = {
        "decode_speedup": round(ratio(decode["small"], decode["large"]), 3),
        "prefill_speedup": round(ratio(prefill["small"], prefill["large"]), 3),
    }
    emit(
        headline,
        rows,
        arguments.json,
        title=f"Prompt of {arguments.prompt_tokens} tokens, {arguments.new_tokens} new; {arguments.threads} threads",
        notes=("Tokens a second, medians; ± is half the distance between the quartiles. Speedups: small over large.",),
    )


if __name__ == "__main__":
    main()
