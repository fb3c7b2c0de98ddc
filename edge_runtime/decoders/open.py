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
    length = checked_context_length(context_length, bundle.manifest.context_length)
    # Imported here: onnxruntime takes a tenth of a second, which commands that never decode need not wait for.
    if spec.kind == GRAPH_EXECUTORCH:
        from edge_runtime.decoders.executorch_decoder import ExecuTorchDecoder
        from edge_runtime.decoders.executorch_program import ExecuTorchProgram

        return ExecuTorchDecoder(ExecuTorchProgram(bundle, spec, threads), length)
    if spec.kind == GRAPH_PORTABLE:
        from edge_runtime.decoders.portable_decoder import PortableDecoder, PortableModel

        return PortableDecoder(PortableModel(bundle, spec, threads, spin=spin), length)
    from edge_runtime.decoders.onnx_decoder import OnnxDecoder, OnnxModel

    return OnnxDecoder(OnnxModel(bundle, spec, threads, spin=spin), length)
