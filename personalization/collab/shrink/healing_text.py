"""Token windows of the text that a shrunk model is healed on: plain text, or records' tasks and answers as chats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.quantization.calibration import calibration_windows, read_calibration_text
from personalization.collab.records.records import FORMAT, read_collab_file
from personalization.errors import DataError
from personalization.models.examples import ExampleWriter


def read_windows(path: Path, writer: ExampleWriter, width: int, most_tokens: int) -> NDArray[np.int64]:
    """Read a file and cut it into windows.

    Args:
        path: records (see `personalization.collab.records.records`), plain text, or JSON lines with a field "text".
        writer: of the model's form.
        width: tokens of a window.
        most_tokens: what is more is left out.

    Returns:
        (n, width) token ids, each window with the token first that prompts begin with.

    Raises:
        SourceError: the file can't be read, or has no text.
        DataError: it has no record that can be used.
    """
    documents = _chats(path, writer) if holds_records(path) else read_calibration_text(path)
    # Every prompt starts with this token, which large activations gather at.
    start = writer.prompt("-")[0]
    return calibration_windows(writer.tokenizer.encode, documents, start=start, window=width, max_tokens=most_tokens)


def holds_records(path: Path) -> bool:
    """Whether a file begins as one of records does."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = json.loads(file.readline(1 << 16))
    except (OSError, ValueError, RecursionError):
        return False  # the reader of text says what is wrong
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
