"""Opens a bundle's decoder with the backend that its graph needs."""

from __future__ import annotations

from edge_runtime.bundle.manifest import GRAPH_EXECUTORCH, GRAPH_PORTABLE
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.prompt_check import checked_context_length
from edge_runtime.decoders.protocol import Decoder


def open_decoder(
    bundle: Bundle,
    backend: str | None = None,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    spin: bool = True,
) -> Decoder:
    """Load a bundle's decoder.

    Args:
        bundle: an opened bundle.
        backend: "onnx" or "executorch"; None uses the bundle's first backend.
        threads: threads of one matrix product; None uses all usable cores, at most 8.
        context_length: positions to serve, at most the bundle's number; None serves all of them.
        spin: whether idle threads busy-wait, which is fastest on a device that does nothing else. Use False if several
            processes share the cores, because spinning starves them. ExecuTorch ignores this.

    Raises:
        BundleError: the bundle has no decoder for that backend, or the graph or its weights can't be loaded or don't
            match the manifest.
        RequestError: the context length is below 1 or above the bundle's.
    """
    spec = bundle.decoder(backend)
    length = checked_context_length(context_length, bundle.manifest.context_length)
    # Imported here because onnxruntime takes a tenth of a second to load, and many commands never decode.
    if spec.kind == GRAPH_EXECUTORCH:
        from edge_runtime.decoders.executorch_decoder import ExecuTorchDecoder
        from edge_runtime.decoders.executorch_program import ExecuTorchProgram

        return ExecuTorchDecoder(ExecuTorchProgram(bundle, spec, threads), length)
    if spec.kind == GRAPH_PORTABLE:
        from edge_runtime.decoders.portable_decoder import PortableDecoder, PortableModel

        return PortableDecoder(PortableModel(bundle, spec, threads, spin=spin), length)
    from edge_runtime.decoders.onnx_decoder import OnnxDecoder, OnnxModel

    return OnnxDecoder(OnnxModel(bundle, spec, threads, spin=spin), length)
