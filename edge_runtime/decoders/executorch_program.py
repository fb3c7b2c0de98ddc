"""A loaded ExecuTorch program: what its file must look like, and one call of it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.adapters.packed_cache import PackedAdapters
from edge_runtime.bundle.manifest import DecoderSpec
from edge_runtime.bundle.reader import Bundle
from edge_runtime.errors import BundleError, CogenesisError
from edge_runtime.machine.threads import default_threads

INPUTS_BEFORE_CACHE = 3  # token ids, positions, rows


class ExecuTorchProgram:
    """The program and what all sequences over it share; it has no state, so any number of them may.

    Attributes:
        spec: the decoder's description.
        chunk: tokens, and rows of logits, that one call takes at most.
        adapters: packed matrices of the last users.
        no_adapter: matrices of rank 1 that add nothing, in the order of the program's inputs.
        lora_names: names of those inputs, as `edge_runtime.adapters.pack.pack_adapter` gives them.
    """

    def __init__(self, bundle: Bundle, spec: DecoderSpec, threads: int | None) -> None:
        """Load a bundle's program.

        Raises:
            CogenesisError: ExecuTorch is not installed.
            BundleError: the program can't be loaded, or is not the one that the manifest describes.
            ValueError: fewer than one thread.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        manifest = bundle.manifest
        self.spec = spec
        self.path = bundle.path(spec.graph)
        self.vocab_size = manifest.vocab_size
        self.context_length = manifest.context_length
        self.fingerprint = bundle.fingerprint(spec)
        self._runtime, self.tensor = load_runtime()
        self._calls = threading.Lock()
        try:
            with quiet():
                # One pool serves all programs of the process.
                self._runtime._unsafe_reset_threadpool(threads or default_threads())
                self._module = self._runtime._load_for_executorch(str(self.path))
                about = self._module.method_meta("forward")
        except (RuntimeError, ValueError) as error:
            raise self._error("can't be loaded", error) from None
        self.lora_names = tuple(
            f"layers.{layer}.{site.name}.{half}"
            for layer in range(spec.layers)
            for site in spec.lora
            for half in ("lora_A", "lora_B")
        )
        self.chunk = self._checked_chunk(about)
        self.adapters = PackedAdapters(bundle.base, spec, self._with_batch)
        self.no_adapter = [self._with_batch(matrix) for matrix in self._zeros()]

    def run(self, inputs: Sequence[Any], logits: NDArray[np.float32]) -> None:
        """One call; the rows of logits asked for go into `logits` (R, vocab_size), caches are written in place.

        Raises:
            BundleError: the program failed.
        """
        # The activations' memory belongs to the program, and is one for all sequences.
        with self._calls:
            try:
                (found,) = self._module.forward(inputs, clone_outputs=False)
            except (RuntimeError, ValueError) as error:
                raise self._error("can't be run", error) from None
            logits[:] = found.numpy()[0, : len(logits)]

    def _with_batch(self, matrix: NDArray[np.float32]) -> Any:
        return self.tensor(matrix[None])

    def _zeros(self) -> Iterator[NDArray[np.float32]]:
        for _ in range(self.spec.layers):
            for site in self.spec.lora:
                yield np.zeros((site.in_features, 1), np.float32)
                yield np.zeros((1, sum(width for _, width in site.projections)), np.float32)

    def _checked_chunk(self, about: Any) -> int:
        """Refuse a program that the manifest does not describe: its kernels would read memory that isn't theirs."""
        spec = self.spec
        caches, sites = 2 * spec.layers, spec.layers * len(spec.lora)
        first_lora = INPUTS_BEFORE_CACHE + caches
        shapes = [tuple(about.input_tensor_meta(index).sizes()) for index in range(about.num_inputs())]
        logits = tuple(about.output_tensor_meta(0).sizes()) if about.num_outputs() == 1 else ()
        chunk = shapes[0][1] if shapes and len(shapes[0]) == 2 else 0
        lora = [
            (site.in_features, sum(width for _, width in site.projections))
            for _ in range(spec.layers)
            for site in spec.lora
        ]
        described = (
            len(shapes) == first_lora + 2 * sites
            and chunk > 0
            and shapes[:INPUTS_BEFORE_CACHE] == [(1, chunk), (chunk,), (chunk,)]
            and set(shapes[INPUTS_BEFORE_CACHE:first_lora]) == {(1, self.context_length, spec.kv_heads, spec.head_dim)}
            and [(a[1], b[2]) for a, b in zip(shapes[first_lora::2], shapes[first_lora + 1 :: 2], strict=True)] == lora
            and logits == (1, chunk, self.vocab_size)
        )
        if not described:
            raise BundleError(
                f"The bundle's program is not the one its manifest describes: {self.path}. Export the bundle again."
            )
        return chunk

    def _error(self, problem: str, error: Exception) -> BundleError:
        words = " ".join(str(error).split())
        return BundleError(f"The bundle's program {problem}: {self.path} ({words[:200]}). Export the bundle again.")


def load_runtime() -> tuple[Any, Any]:
    """ExecuTorch's Python runtime, and what makes one of its tensors of an array without copying.

    It brings torch, which nothing else on the device loads: hence here, and only when a program is opened.
    """
    try:
        with quiet(), _one_openmp_thread():
            # The first two register kernels, of the embedding and of attention.
            import executorch.kernels.quantized  # noqa: F401
            import torch
            from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise CogenesisError(
            f"ExecuTorch is not installed ({error}). Run `pip install 'cogenesis-edge[executorch]'`, "
            "or use --backend onnx."
        ) from None
    return portable_lib, torch.from_numpy


@contextlib.contextmanager
def _one_openmp_thread() -> Iterator[None]:
    """Have torch's OpenMP use one thread, where torch is not loaded yet.

    The attention kernel would start a team of them in each thread of the pool: twice the time of a prompt, and many
    times the processor's.
    """
    name, before = "OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS")
    if "torch" not in sys.modules:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the runtime's C++ side says about itself from the user's terminal; errors come as exceptions."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
