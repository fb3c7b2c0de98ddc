"""Opens a bundle's decoder with the backend that its graph needs."""

from __future__ import annotations

from edge_runtime.bundle.manifest import GRAPH_EXECUTORCH, GRAPH_PORTABLE
from edge_runtime.bundle.reader import Bundle
from edge_runtime.decoders.protocol import Decoder


def open_decoder(
    bundle: Bundle,
    backend: str | None = None,
    *,
    threads: int | None = None,
    context_length: int | None = None,
    spin: bool = True,
) -> Decoder:
    """Load the model of a bundle.

    Args:
        bundle: an opened bundle.
        backend: "onnx" or "executorch"; the bundle's first where None.
        threads: threads of one matrix product; all usable cores (at most 8) where None.
        context_length: positions to serve, at most the bundle's; all of them where None.
        spin: threads wait awake, which is fastest on a device that does nothing else; False where several processes
            share the cores, which spinning would starve. ExecuTorch decides that itself.

    Raises:
        BundleError: the bundle has no decoder of that backend, the graph or its weights can't be loaded, or are not
            what the manifest describes.
        RequestError: the context length is not one that the bundle serves.
    """
    spec = bundle.decoder(backend)
    # Imported here: onnxruntime takes a tenth of a second, which commands that never decode need not wait for.
    if spec.kind == GRAPH_EXECUTORCH:
        from edge_runtime.decoders.executorch_decoder import ExecuTorchDecoder

        return ExecuTorchDecoder.open(bundle, spec, threads=threads, context_length=context_length)
    if spec.kind == GRAPH_PORTABLE:
        from edge_runtime.decoders.portable_decoder import PortableDecoder

        return PortableDecoder.open(bundle, spec, threads=threads, context_length=context_length, spin=spin)
    from edge_runtime.decoders.onnx_decoder import OnnxDecoder

    return OnnxDecoder.open(bundle, spec, threads=threads, context_length=context_length, spin=spin)
