"""Opens a bundle's ONNX graph with options for phones and PCs, and turns onnxruntime's failures into our errors."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_runtime.bundle.manifest import DecoderSpec
from edge_runtime.bundle.reader import Bundle
from edge_runtime.errors import BundleError
from edge_runtime.machine.linux_memory import huge_pages
from edge_runtime.machine.threads import default_threads

_LOADING_ROOM = 16 << 20


def open_session(bundle: Bundle, spec: DecoderSpec, threads: int | None, *, spin: bool = True) -> Any:
    """Create an `onnxruntime.InferenceSession` on the CPU for a decoder's graph.

    Args:
        bundle: an opened bundle.
        spec: the decoder.
        threads: threads of one matrix product; None uses all usable cores.
        spin: whether idle threads busy-wait, which is fastest if no other process needs the cores.

    Raises:
        BundleError: onnxruntime does not accept the graph or its weights.
        ValueError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    if platform.machine().lower() in ("x86_64", "amd64"):
        # Tiled attention is no faster on prompts. Without x86's matrix-vector kernels it makes a decoding step a tenth
        # to a sixth slower. onnxruntime has no other switch.
        os.environ.setdefault("ORT_GQA_DISABLE_FLASH_ATTENTION", "1")
    path = bundle.path(spec.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # onnxruntime logs to stderr; our errors are clearer
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    # Planning which activations may share memory takes more than half of the loading time and saves nothing: the arena
    # reuses freed memory anyway.
    options.enable_mem_reuse = False
    # Each pattern holds memory for one shape, and prompts have many shapes.
    options.enable_mem_pattern = False
    # Weights are repacked while they load, so there must be room for both copies.
    try:
        with huge_pages(2 * sum(entry.size for entry in bundle.decoder_files(spec)) + _LOADING_ROOM):
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise graph_error(path, "can't be loaded", error) from None


def ort_value(array: NDArray[np.float32]) -> Any:
    """Wrap an array without copying, in the form that onnxruntime binds fastest; the value keeps the array alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def graph_error(path: Path, problem: str, error: Exception) -> BundleError:
    """Return a `BundleError` that names the graph and quotes onnxruntime's message, shortened."""
    words = " ".join(str(error).split())
    return BundleError(f"The bundle's graph {problem}: {path} ({words[:200]}). Export the bundle again.")


def not_the_described_graph(path: Path) -> BundleError:
    """Return a `BundleError` for a graph whose inputs or outputs differ from the manifest."""
    return BundleError(f"The bundle's graph is not the one its manifest describes: {path}. Export the bundle again.")
