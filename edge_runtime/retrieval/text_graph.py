"""Runs a directory's graph over texts' tokens: what text encoders and retriever selectors have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_runtime.errors import BundleError
from edge_runtime.machine.threads import default_threads
from edge_runtime.text.tokenizer import Tokenizer

GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
TOKENIZER_NAME = "tokenizer.json"

_TOKENS_AT_ONCE = 4096  # of all texts of a pass, padding included: bounds the memory


class TextGraph:
    """A graph with the inputs `input_ids` and `attention_mask`, (n, length) int64, and one output a text."""

    def __init__(self, directory: Path, threads: int | None = None) -> None:
        """Load `model.onnx` and `tokenizer.json`.

        Args:
            directory: where they are.
            threads: None takes all usable cores.

        Raises:
            BundleError: a file is missing or damaged.
        """
        self.path = directory / GRAPH_NAME
        self.tokenizer = Tokenizer.load(directory / TOKENIZER_NAME).backend
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its log goes to stderr, our errors say it better
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        try:
            self._session: Any = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
            inputs = {value.name for value in self._session.get_inputs()}
        except Exception as error:  # its exceptions have no common base but Exception
            raise self._damaged("can't be loaded", error) from None
        if inputs != {"input_ids", "attention_mask"}:
            raise BundleError(
                f"This graph is none of a text encoder: {self.path} (its inputs are {', '.join(sorted(inputs))}). "
                "Export it again."
            )

    def run(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Run the graph; texts of about the same length go together.

        Args:
            token_ids: of each text; a text without any counts as token 0.

        Returns:
            (n, ...) float32: the first output, in the order of the texts.

        Raises:
            BundleError: the graph fails, as it does on tokens that it does not know.
        """
        rows = [ids or [0] for ids in token_ids]
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), index))
        parts, start = [], 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(rows[order[end]]) <= _TOKENS_AT_ONCE:
                end += 1
            parts.append(self._pass([rows[index] for index in order[start:end]]))
            start = end
        if not parts:
            return np.zeros((0, 0), np.float32)
        found = np.concatenate(parts)
        result = np.empty_like(found)
        result[order] = found
        return result

    def _pass(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        try:
            output: NDArray[np.float32] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        except Exception as error:  # its exceptions have no common base but Exception
            raise self._damaged("fails", error) from None
        if len(output) != len(rows):
            raise BundleError(f"This graph gives no output a text: {self.path}. Export it again.")
        return output

    def _damaged(self, problem: str, error: Exception) -> BundleError:
        return BundleError(f"The graph {problem}: {self.path} ({' '.join(str(error).split())[:200]}). Export it again.")
