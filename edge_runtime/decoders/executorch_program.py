"""Loads an ExecuTorch program, checks that it matches the manifest, and runs it."""

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
from edge_runtime.decoders.model import DecoderModel
from edge_runtime.errors import BundleError, CogenesisError
from edge_runtime.extras import require_packages
from edge_runtime.machine.threads import default_threads

INPUTS_BEFORE_CACHE = 3  # token ids, positions, rows


class ExecuTorchProgram(DecoderModel):
    """The program and the data that its sequences share; it has no state, so any number of sequences may use it.

    Attributes:
        chunk: maximum tokens, and rows of logits, per call.
        adapters: packed matrices of the most recent users.
        no_adapter: matrices of rank 1 without effect, in the order of the program's inputs.
        lora_names: names of those inputs, as returned by `edge_runtime.adapters.pack.pack_adapter`.
    """

    def __init__(self, bundle: Bundle, spec: DecoderSpec, threads: int | None) -> None:
        """Load a bundle's program.

        Raises:
            MissingExtraError: ExecuTorch is not installed.
            CogenesisError: the installed ExecuTorch can't be loaded.
            BundleError: the program can't be loaded, or does not match the manifest.
            ValueError: fewer than one thread.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        super().__init__(bundle, spec)
        self._runtime, self.tensor = load_runtime()
        self._calls = threading.Lock()
        try:
            with quiet():
                # All programs of the process share one pool.
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
        """Run the program once; it writes the requested rows into `logits` (R, vocab_size) and the caches in place.

        Raises:
            BundleError: the program failed.
        """
        # The program owns one buffer of activations, which all sequences share.
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
        """Reject a program that does not match the manifest, because its kernels would read out of bounds."""
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
    """Return ExecuTorch's Python runtime, and the function that wraps an array as its tensor without copying.

    The runtime imports torch, which nothing else on the device needs, so it is loaded only when a program is opened.

    Raises:
        MissingExtraError: ExecuTorch is not installed.
        CogenesisError: the installed ExecuTorch can't be loaded.
    """
    require_packages("An ExecuTorch program", "executorch", "torch", extra="executorch")
    try:
        with quiet(), _one_openmp_thread():
            # The first two imports register the kernels of the embedding and of attention.
            import executorch.kernels.quantized  # noqa: F401
            import torch
            from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
            from executorch.extension.pybindings import portable_lib
    except ImportError as error:
        raise CogenesisError(
            f"ExecuTorch can't be loaded ({error}). Run `pip install --force-reinstall 'cogenesis-edge[executorch]'`, "
            "or use `backend` onnx."
        ) from None
    return portable_lib, torch.from_numpy


@contextlib.contextmanager
def _one_openmp_thread() -> Iterator[None]:
    """Limit torch's OpenMP to one thread, if torch is not loaded yet.

    Otherwise the attention kernel starts a team of threads in each thread of the pool. A prompt then takes twice the
    time and many times the CPU time.
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
    """Suppress the log output of the runtime's C++ code; errors are raised as exceptions."""
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
