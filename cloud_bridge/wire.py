"""The wire format: protobuf bytes to and from the edge runtime's types, strict in what it accepts.

Encoders give the bytes to send. Decoders raise `ProtocolError` and nothing else, whatever the bytes are: what they
return can be used without further checks, except for limits that only a server knows (its context, its vocabulary).
See docs/wire.md for the meaning of the messages.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from cloud_bridge import bridge_pb2 as pb
from cloud_bridge.row_coding import decode_rows, encode_rows
from cloud_bridge.strict import malformed, require
from edge_runtime.cloud import AnswerPiece, CloudInfo, Verified
from edge_runtime.errors import RequestError
from edge_runtime.fusion.sparse import RowFormat, ValueType
from edge_runtime.privacy.messages import AnswerRequest, InfoRequest, OpenRequest, SketchRequest, VerifyRequest

PROTOCOL_VERSION = 2
SERVICE = "cogenesis.v1.CloudBridge"
REASON_KEY = "cogenesis-reason"
RETRY_AFTER_KEY = "cogenesis-retry-after-ms"
MAX_ROWS = 256
"""The most rows one `verify` may ask for."""
MAX_INSTRUCTION_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_TO_WIRE: dict[ValueType, pb.ValueType] = {"float32": pb.FLOAT32, "float16": pb.FLOAT16, "bits12": pb.BITS12}
_FROM_WIRE: dict[int, ValueType] = {number: name for name, number in _TO_WIRE.items()}
_MAX_INT32 = 2**31 - 1
_MAX_UINT32 = 2**32 - 1
_FINISH_REASONS = ("", "stop", "length")

M = TypeVar("M", bound=Message)


class Reason(StrEnum):
    """Why a server refuses; travels as trailing metadata `cogenesis-reason`."""

    API_KEY = "api_key"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"
    OVERLOADED = "overloaded"
    QUOTA = "quota"
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
        session_id: by which a later stream can resume this session; a secret.
        model: name of the model.
        vocab_size: all ids of rows and tokens are below it.
        prompt_tokens: length of the cloud's prompt.
        context_length: positions for prompt and answer together.
        resumed: the cache of the session to resume was found.
    """

    session_id: str
    model: str
    vocab_size: int
    prompt_tokens: int
    context_length: int
    resumed: bool = False


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
                top_k=request.rows.top_k,
                mass=request.rows.mass,
                floor=request.rows.floor,
                value_type=_TO_WIRE[request.rows.value_type],
                protocol_version=PROTOCOL_VERSION,
                resume=request.resume,
            )
        )
    )


def encode_verify(request: VerifyRequest) -> bytes:
    """Bytes of a `verify` frame; `text` stays behind.

    Raises:
        RequestError: a number is out of range.
    """
    row_deltas = [row - before for row, before in zip(request.rows, (0, *request.rows), strict=False)]
    return _serialize(
        lambda: pb.ClientFrame(verify=pb.Verify(keep=request.keep, tokens=request.tokens, row_deltas=row_deltas))
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
        return _verify_request(frame.verify)
    raise malformed("a frame is neither open nor verify")


def decode_sketch_request(data: bytes) -> SketchRequest:
    """Read a sketch request."""
    return SketchRequest(_instruction(_parse(pb.SketchRequest, data).instruction))


def decode_answer_request(data: bytes) -> AnswerRequest:
    """Read an answer request."""
    request = _parse(pb.AnswerRequest, data)
    require(request.max_new_tokens >= 1, "max_new_tokens must be at least 1")
    require(math.isfinite(request.temperature) and request.temperature >= 0, "temperature must be 0 or above")
    require(0 < request.top_p <= 1, "top_p must be above 0 and at most 1")
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
            resumed=opened.resumed,
        )
    ).SerializeToString()


def said(message: bytes, before: int = 0) -> int:
    """Checksum of all messages of a device in a stream: of `message` and those before it."""
    return zlib.crc32(message, before)


def encode_verified(number: int, verified: Verified, form: RowFormat, heard: int = 0) -> bytes:
    """Bytes of the reply to the `number`-th `verify` of a stream, from 0; `heard` is what the device `said` with it."""
    rows = encode_rows(verified.rows, form.value_type)
    return pb.ServerFrame(
        verified=pb.Verified(
            number=number,
            rows=rows,
            crc32=_checksum(number, rows, heard),
            compute_us=_microseconds(verified.compute_seconds),
            queue_us=_microseconds(verified.queue_seconds),
            superseded=verified.superseded,
        )
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
    require(
        reply.protocol_version == PROTOCOL_VERSION,
        f"the cloud speaks version {reply.protocol_version} of the protocol, this device version {PROTOCOL_VERSION}",
    )
    require(0 < reply.vocab_size <= _MAX_INT32, "the vocabulary's size is out of range")
    require(0 < reply.context_length <= _MAX_INT32, "the context's length is out of range")
    require(reply.max_top_k >= 1, "max_top_k is 0")
    require(len(reply.tokenizer_fingerprint) == 64, "the tokenizer's fingerprint has not 64 digits")
    return CloudInfo(
        _name(reply.model), reply.vocab_size, reply.context_length, reply.tokenizer_fingerprint, reply.max_top_k
    )


def decode_opened(data: bytes) -> Opened:
    """Read the first frame of a server, which must be `opened`."""
    frame = _parse(pb.ServerFrame, data)
    require(frame.WhichOneof("frame") == "opened", "the first frame is not opened")
    opened = frame.opened
    require(0 < opened.vocab_size <= _MAX_INT32, "the vocabulary's size is out of range")
    require(0 < opened.context_length <= _MAX_INT32, "the context's length is out of range")
    require(opened.prompt_tokens <= opened.context_length, "the prompt is longer than the context")
    return Opened(
        _name(opened.session_id),
        _name(opened.model),
        opened.vocab_size,
        opened.prompt_tokens,
        opened.context_length,
        opened.resumed,
    )


def decode_verified(
    data: bytes, *, number: int, count: int, vocab_size: int, form: RowFormat, heard: int = 0
) -> Verified:
    """Read the reply to a `verify`.

    Args:
        data: the frame.
        number: of the `verify` in its stream, from 0.
        count: how many rows it asked for.
        vocab_size: of `opened`; ids must be below it.
        form: of `open`.
        heard: what this device `said` up to that `verify`, which is what the cloud must have heard.

    Returns:
        The reply, with exactly `count` rows, or none where it was superseded.
    """
    frame = _parse(pb.ServerFrame, data)
    require(frame.WhichOneof("frame") == "verified", "a frame is not verified")
    verified = frame.verified
    require(verified.number == number, f"reply {verified.number} came where reply {number} was due")
    require(verified.crc32 == _checksum(number, verified.rows, heard), "the checksum is wrong")
    expected = 0 if verified.superseded else count
    rows = decode_rows(verified.rows, count=expected, vocab_size=vocab_size, form=form)
    return Verified(rows, verified.compute_us / 1e6, verified.queue_us / 1e6, verified.superseded)


def decode_sketch_piece(data: bytes) -> str:
    """Read a part of a sketch."""
    return _parse(pb.SketchPiece, data).text


def decode_answer_piece(data: bytes) -> AnswerPiece:
    """Read a part of an answer."""
    piece = _parse(pb.AnswerPiece, data)
    require(piece.finish_reason in _FINISH_REASONS, "the finish reason is unknown")
    require(max(piece.token_ids, default=0) <= _MAX_INT32, "a token id is out of range")
    return AnswerPiece(piece.text, tuple(piece.token_ids), piece.finish_reason, piece.prompt_tokens)


# --- parts ------------------------------------------------------------------------------------------------------------


def _verify_request(frame: pb.Verify) -> VerifyRequest:
    end = frame.keep + len(frame.tokens)
    deltas = frame.row_deltas
    require(1 <= len(deltas) <= MAX_ROWS, f"{len(deltas)} rows asked for, 1 to {MAX_ROWS} are allowed")
    require(0 not in deltas[1:], "the rows asked for do not ascend")
    rows = tuple(itertools.accumulate(deltas))
    require(rows[-1] <= end, f"row {rows[-1]} is asked for, and {end} is the last there is")
    require(max(frame.tokens, default=0) <= _MAX_INT32, "a token id is out of range")
    return VerifyRequest(frame.keep, tuple(frame.tokens), rows, "")


def _open_request(frame: pb.Open) -> OpenRequest:
    require(
        frame.protocol_version == PROTOCOL_VERSION,
        f"the device speaks version {frame.protocol_version} of the protocol, this cloud version {PROTOCOL_VERSION}",
    )
    require(frame.top_k >= 1, "top_k must be at least 1")
    require(0.0 < frame.mass <= 1.0, "mass must be above 0 and at most 1")
    require(0.0 <= frame.floor < 1.0, "floor must be at least 0 and below 1")
    value_type = _FROM_WIRE.get(frame.value_type)
    if value_type is None:
        raise malformed(f"value_type {frame.value_type} is unknown")
    rows = RowFormat(frame.top_k, frame.mass, value_type, frame.floor)
    return OpenRequest(_instruction(frame.instruction), frame.tokenizer_fingerprint, rows, _name(frame.resume))


def _instruction(text: str) -> str:
    require(bool(text.strip()), "the instruction is empty")
    size = len(text.encode())
    require(size <= MAX_INSTRUCTION_BYTES, f"the instruction has {size} bytes, {MAX_INSTRUCTION_BYTES} are allowed")
    return text


def _name(text: str) -> str:
    # It ends in terminals: no escape sequences.
    require(len(text) <= 256 and text.isprintable(), "a name is too long or not printable")
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
        raise malformed(f"{len(data)} bytes that are no {kind.__name__}") from None
    return message


def _checksum(number: int, rows: bytes, heard: int) -> int:
    return zlib.crc32(number.to_bytes(4, "little") + rows, heard)


def _microseconds(seconds: float) -> int:
    return min(max(round(seconds * 1e6), 0), _MAX_UINT32)
