"""The wire format: protobuf bytes to and from the edge runtime's types, strict in what it accepts.

Encoders give the bytes to send. Decoders raise `ProtocolError` and nothing else, whatever the bytes are: what they
return can be used without further checks, except for limits that only a server knows (its context, its vocabulary).
See docs/wire.md for the meaning of the messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from cloud_bridge import bridge_pb2 as pb
from edge_runtime.cloud import AnswerPiece, CloudInfo
from edge_runtime.errors import ProtocolError, RequestError
from edge_runtime.messages import AnswerRequest, InfoRequest, OpenRequest, SketchRequest, VerifyRequest
from edge_runtime.sparse import RowFormat, SparseLogProbs, ValueType

PROTOCOL_VERSION = 1
SERVICE = "cogenesis.v1.CloudBridge"
REASON_KEY = "cogenesis-reason"
MAX_ROWS = 256
"""The most rows one `verify` may ask for."""
MAX_INSTRUCTION_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_DTYPES: dict[ValueType, np.dtype[np.float32 | np.float16]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_TO_WIRE: dict[ValueType, pb.ValueType] = {"float32": pb.FLOAT32, "float16": pb.FLOAT16}
_FROM_WIRE: dict[int, ValueType] = {pb.FLOAT32: "float32", pb.FLOAT16: "float16"}
_FLOAT16_LOWEST = -65504.0
# Rounding to float16 moves the sum of a row's probabilities by less than 1 %; more is another format or a fault.
_MASS_TOLERANCE = 0.02
_MAX_INT32 = 2**31 - 1
_FINISH_REASONS = ("", "stop", "length")

M = TypeVar("M", bound=Message)


class Reason(StrEnum):
    """Why a server refuses; travels as trailing metadata `cogenesis-reason`."""

    API_KEY = "api_key"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"
    OVERLOADED = "overloaded"
    EVICTED = "evicted"
    STOPPING = "stopping"
    CONTEXT_FULL = "context_full"
    BAD_REQUEST = "bad_request"
    INTERNAL = "internal"


def method_path(method: str) -> str:
    """Path by which gRPC calls a method, as in `/cogenesis.v1.CloudBridge/Info`."""
    return f"/{SERVICE}/{method}"


@dataclass(frozen=True, slots=True)
class Opened:
    """The server's answer to `open`.

    Attributes:
        session_id: of the server's log.
        model: name of the model.
        vocab_size: all ids of rows and tokens are below it.
        prompt_tokens: length of the cloud's prompt.
        context_length: positions for prompt and answer together.
    """

    session_id: str
    model: str
    vocab_size: int
    prompt_tokens: int
    context_length: int


# --- from the device to the cloud -------------------------------------------------------------------------------------


def encode_info_request(_: InfoRequest) -> bytes:
    """Bytes of an info request."""
    return pb.InfoRequest().SerializeToString()


def encode_open(request: OpenRequest) -> bytes:
    """Bytes of a stream's first frame.

    Raises:
        RequestError: a field can't be written, such as text that is not Unicode.
    """
    return _serialize(
        lambda: pb.ClientFrame(
            open=pb.Open(
                instruction=request.instruction,
                tokenizer_fingerprint=request.tokenizer_fingerprint,
                top_k=request.top_k,
                value_type=_TO_WIRE[request.value_type],
                protocol_version=PROTOCOL_VERSION,
            )
        )
    )


def encode_verify(request: VerifyRequest) -> bytes:
    """Bytes of a `verify` frame; `text` stays behind.

    Raises:
        RequestError: a number is out of range.
    """
    return _serialize(
        lambda: pb.ClientFrame(verify=pb.Verify(keep=request.keep, tokens=request.tokens, first_row=request.first_row))
    )


def encode_sketch_request(request: SketchRequest) -> bytes:
    """Bytes of a sketch request.

    Raises:
        RequestError: the instruction is not Unicode.
    """
    return _serialize(lambda: pb.SketchRequest(instruction=request.instruction))


def encode_answer_request(request: AnswerRequest) -> bytes:
    """Bytes of an answer request.

    Raises:
        RequestError: the instruction is not Unicode, or a number is out of range.
    """
    return _serialize(
        lambda: pb.AnswerRequest(
            instruction=request.instruction,
            max_new_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
        )
    )


def decode_client_frame(data: bytes) -> OpenRequest | VerifyRequest:
    """Read a frame of a `Score` stream. `VerifyRequest.text` is empty: it does not travel."""
    frame = _parse(pb.ClientFrame, data)
    kind = frame.WhichOneof("frame")
    if kind == "open":
        return _open_request(frame.open)
    if kind == "verify":
        verify = frame.verify
        end = verify.keep + len(verify.tokens)
        _require(verify.first_row <= end, f"first_row {verify.first_row} is above {end}, the last row there is")
        _require(end - verify.first_row < MAX_ROWS, f"{end - verify.first_row + 1} rows asked for, {MAX_ROWS} allowed")
        _require(max(verify.tokens, default=0) <= _MAX_INT32, "a token id is out of range")
        return VerifyRequest(verify.keep, tuple(verify.tokens), verify.first_row, "")
    raise ProtocolError("A frame is neither open nor verify.")


def decode_sketch_request(data: bytes) -> SketchRequest:
    """Read a sketch request."""
    return SketchRequest(_instruction(_parse(pb.SketchRequest, data).instruction))


def decode_answer_request(data: bytes) -> AnswerRequest:
    """Read an answer request."""
    request = _parse(pb.AnswerRequest, data)
    _require(request.max_new_tokens >= 1, "max_new_tokens must be at least 1")
    _require(math.isfinite(request.temperature) and request.temperature >= 0, "temperature must be 0 or above")
    _require(0 < request.top_p <= 1, "top_p must be above 0 and at most 1")
    return AnswerRequest(
        _instruction(request.instruction), request.max_new_tokens, request.temperature, request.top_p, request.seed
    )


# --- from the cloud to the device -------------------------------------------------------------------------------------


def encode_info(info: CloudInfo) -> bytes:
    """Bytes of an info reply."""
    return pb.InfoReply(
        model=info.model,
        vocab_size=info.vocab_size,
        context_length=info.context_length,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        max_top_k=info.max_top_k,
        protocol_version=PROTOCOL_VERSION,
    ).SerializeToString()


def encode_opened(opened: Opened) -> bytes:
    """Bytes of the reply to `open`."""
    return pb.ServerFrame(
        opened=pb.Opened(
            session_id=opened.session_id,
            model=opened.model,
            vocab_size=opened.vocab_size,
            prompt_tokens=opened.prompt_tokens,
            context_length=opened.context_length,
        )
    ).SerializeToString()


def encode_verified(first_row: int, rows: Sequence[SparseLogProbs], value_type: ValueType) -> bytes:
    """Bytes of the reply to a `verify`."""
    return pb.ServerFrame(
        verified=pb.Verified(first_row=first_row, rows=[_encode_row(row, value_type) for row in rows])
    ).SerializeToString()


def encode_sketch_piece(text: str) -> bytes:
    """Bytes of a part of a sketch."""
    return pb.SketchPiece(text=text).SerializeToString()


def encode_answer_piece(piece: AnswerPiece) -> bytes:
    """Bytes of a part of an answer."""
    return pb.AnswerPiece(
        text=piece.text,
        token_ids=piece.token_ids,
        finish_reason=piece.finish_reason,
        prompt_tokens=piece.prompt_tokens,
    ).SerializeToString()


def decode_info(data: bytes) -> CloudInfo:
    """Read an info reply."""
    reply = _parse(pb.InfoReply, data)
    _require(
        reply.protocol_version == PROTOCOL_VERSION,
        f"the cloud speaks version {reply.protocol_version} of the protocol, this device version {PROTOCOL_VERSION}",
    )
    _require(0 < reply.vocab_size <= _MAX_INT32, "the vocabulary's size is out of range")
    _require(0 < reply.context_length <= _MAX_INT32, "the context's length is out of range")
    _require(reply.max_top_k >= 1, "max_top_k is 0")
    _require(len(reply.tokenizer_fingerprint) == 64, "the tokenizer's fingerprint has not 64 digits")
    return CloudInfo(
        _name(reply.model), reply.vocab_size, reply.context_length, reply.tokenizer_fingerprint, reply.max_top_k
    )


def decode_opened(data: bytes) -> Opened:
    """Read the first frame of a server, which must be `opened`."""
    frame = _parse(pb.ServerFrame, data)
    _require(frame.WhichOneof("frame") == "opened", "the first frame is not opened")
    opened = frame.opened
    _require(0 < opened.vocab_size <= _MAX_INT32, "the vocabulary's size is out of range")
    _require(0 < opened.context_length <= _MAX_INT32, "the context's length is out of range")
    _require(opened.prompt_tokens <= opened.context_length, "the prompt is longer than the context")
    return Opened(
        _name(opened.session_id), _name(opened.model), opened.vocab_size, opened.prompt_tokens, opened.context_length
    )


def decode_verified(
    data: bytes, *, first_row: int, rows: int, vocab_size: int, top_k: int, value_type: ValueType
) -> list[SparseLogProbs]:
    """Read the reply to a `verify`.

    Args:
        data: the frame.
        first_row: that was asked for.
        rows: how many rows were asked for.
        vocab_size: of `opened`; ids must be below it.
        top_k: of `open`; the most log-probabilities a row may have.
        value_type: of `open`.

    Returns:
        Exactly `rows` rows.
    """
    frame = _parse(pb.ServerFrame, data)
    _require(frame.WhichOneof("frame") == "verified", "a frame is not verified")
    verified = frame.verified
    _require(
        verified.first_row == first_row and len(verified.rows) == rows,
        f"{len(verified.rows)} rows from {verified.first_row} came, {rows} from {first_row} were asked for",
    )
    return [_decode_row(row, vocab_size, top_k, value_type) for row in verified.rows]


def decode_sketch_piece(data: bytes) -> str:
    """Read a part of a sketch."""
    return _parse(pb.SketchPiece, data).text


def decode_answer_piece(data: bytes) -> AnswerPiece:
    """Read a part of an answer."""
    piece = _parse(pb.AnswerPiece, data)
    _require(piece.finish_reason in _FINISH_REASONS, "the finish reason is unknown")
    _require(max(piece.token_ids, default=0) <= _MAX_INT32, "a token id is out of range")
    return AnswerPiece(piece.text, tuple(piece.token_ids), piece.finish_reason, piece.prompt_tokens)


# --- parts ------------------------------------------------------------------------------------------------------------


def _encode_row(row: SparseLogProbs, value_type: ValueType) -> pb.Row:
    values: NDArray[np.float32] = row.log_probs
    if value_type == "float16":
        values = np.maximum(values, np.float32(_FLOAT16_LOWEST))
    return pb.Row(
        id_deltas=np.diff(row.ids, prepend=0).tolist(),
        values=values.astype(_DTYPES[value_type]).tobytes(),
        tail_mass=row.tail_mass,
    )


def _decode_row(row: pb.Row, vocab_size: int, top_k: int, value_type: ValueType) -> SparseLogProbs:
    dtype = _DTYPES[value_type]
    count = len(row.id_deltas)
    _require(1 <= count <= top_k, f"a row has {count} tokens, 1 to {top_k} are allowed")
    _require(len(row.values) == count * dtype.itemsize, f"a row has {count} ids and {len(row.values)} bytes of values")
    deltas = np.array(row.id_deltas, dtype=np.int64)
    _require(bool((deltas[1:] > 0).all()), "ids of a row do not ascend")
    ids = np.cumsum(deltas)
    _require(int(ids[-1]) < vocab_size, f"a row has the id {int(ids[-1])} in a vocabulary of {vocab_size}")
    values = np.frombuffer(row.values, dtype=dtype).astype(np.float32)
    # NaN fails this too.
    _require(
        bool((values <= 1e-3).all()) and bool(np.isfinite(values).all()), "a log-probability is above 0 or not finite"
    )
    _require(0.0 <= row.tail_mass <= 1.0, "a tail mass is not in [0, 1]")
    mass = float(np.exp(values).sum()) + row.tail_mass
    _require(abs(mass - 1.0) <= _MASS_TOLERANCE, f"the probabilities of a row sum to {mass:.3f}")
    return SparseLogProbs(ids.astype(np.int32), values, row.tail_mass)


def _open_request(frame: pb.Open) -> OpenRequest:
    _require(
        frame.protocol_version == PROTOCOL_VERSION,
        f"the device speaks version {frame.protocol_version} of the protocol, this cloud version {PROTOCOL_VERSION}",
    )
    _require(frame.top_k >= 1, "top_k must be at least 1")
    value_type = _FROM_WIRE.get(frame.value_type)
    if value_type is None:
        raise ProtocolError(f"A message is malformed: value_type {frame.value_type} is unknown.")
    return OpenRequest(_instruction(frame.instruction), frame.tokenizer_fingerprint, frame.top_k, value_type)


def _instruction(text: str) -> str:
    _require(bool(text.strip()), "the instruction is empty")
    size = len(text.encode())
    _require(size <= MAX_INSTRUCTION_BYTES, f"the instruction has {size} bytes, {MAX_INSTRUCTION_BYTES} are allowed")
    return text


def _name(text: str) -> str:
    # It ends in terminals: no escape sequences.
    _require(len(text) <= 256 and text.isprintable(), "a name is too long or not printable")
    return text


def _serialize(build: Callable[[], Message]) -> bytes:
    try:
        return build().SerializeToString()
    except (ValueError, TypeError, OverflowError) as error:  # UnicodeEncodeError is a ValueError
        raise RequestError(f"The request can't be sent: {error}. Correct that field.") from None


def _parse(kind: type[M], data: bytes) -> M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise ProtocolError(
            f"A message is malformed: {len(data)} bytes that are no {kind.__name__}. Update the older of both sides."
        ) from None
    return message


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProtocolError(f"A message is malformed: {otherwise}. Update the older of both sides.")
