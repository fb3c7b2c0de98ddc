"""Cuts the text that heals a shrunk model into token windows: plain text, or records' tasks and answers as chats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import SourceError
from export.quantization.calibration import calibration_windows, read_calibration_text
from personalization.collab.records.records import FORMAT, read_collab_file
from personalization.errors import DataError
from personalization.models.examples import ExampleWriter


def read_windows(path: Path, writer: ExampleWriter, width: int, most_tokens: int) -> NDArray[np.int64]:
    """Read a file and cut it into windows.

    Args:
        path: records (see `personalization.collab.records.records`), plain text, or JSON lines with a field "text".
        writer: renders the model's chat format.
        width: number of tokens per window.
        most_tokens: maximum number of tokens in total; the rest is left out.

    Returns:
        (n, width) token ids; each window starts with the first token of prompts.

    Raises:
        DataError: the file can't be read, has no text, or has no usable record.
    """
    # Every prompt starts with this token; it attracts large activations.
    start = writer.prompt("-")[0]
    encode = writer.tokenizer.encode
    try:
        documents = _chats(path, writer) if holds_records(path) else read_calibration_text(path)
        return calibration_windows(encode, documents, start=start, window=width, max_tokens=most_tokens)
    except SourceError as error:  # the exporter's, which reads such text too; nothing is exported here
        raise DataError(*error.args) from None


def holds_records(path: Path) -> bool:
    """Whether a file starts like a file of records."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = json.loads(file.readline(1 << 16))
    except (OSError, ValueError, RecursionError):
        return False  # the text reader reports what is wrong
    return isinstance(head, dict) and head.get("format") == FORMAT


def _chats(path: Path, writer: ExampleWriter) -> list[str]:
    records = read_collab_file(path).records
    if not records:
        raise DataError(f"There is no record that can be used: {path}. Make some with `cogenesis collab data import`.")
    turns = (
        [{"role": "user", "content": record.task}, {"role": "assistant", "content": record.reference}]
        for record in records
    )
    return [writer.template.render(chat, add_generation_prompt=False) for chat in turns]
