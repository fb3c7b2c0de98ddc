"""Opens the answer writer that a specification names."""

from __future__ import annotations

from personalization.answering.writer import AnswerWriter, WriterSpec


def open_writer(spec: WriterSpec) -> AnswerWriter:
    """Load what writes.

    Raises:
        CogenesisError: it can't be loaded.
    """
    if spec.is_bundle:
        from personalization.answering.edge_writer import EdgeWriter

        return EdgeWriter(spec)
    from personalization.models.libraries import prepare_libraries

    prepare_libraries()
    from personalization.answering.torch_writer import TorchWriter

    return TorchWriter(spec)
