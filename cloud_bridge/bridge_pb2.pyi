from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ValueType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLOAT32: _ClassVar[ValueType]
    FLOAT16: _ClassVar[ValueType]
    BITS12: _ClassVar[ValueType]
FLOAT32: ValueType
FLOAT16: ValueType
BITS12: ValueType

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoReply(_message.Message):
    __slots__ = ("model", "vocab_size", "context_length", "tokenizer_fingerprint", "max_top_k", "protocol_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    vocab_size: int
    context_length: int
    tokenizer_fingerprint: str
    max_top_k: int
    protocol_version: int
    def __init__(self, model: _Optional[str] = ..., vocab_size: _Optional[int] = ..., context_length: _Optional[int] = ..., tokenizer_fingerprint: _Optional[str] = ..., max_top_k: _Optional[int] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("instruction", "tokenizer_fingerprint", "top_k", "value_type", "protocol_version", "mass", "resume", "floor")
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    VALUE_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MASS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    tokenizer_fingerprint: str
    top_k: int
    value_type: ValueType
    protocol_version: int
    mass: float
    resume: str
    floor: float
    def __init__(self, instruction: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., top_k: _Optional[int] = ..., value_type: _Optional[_Union[ValueType, str]] = ..., protocol_version: _Optional[int] = ..., mass: _Optional[float] = ..., resume: _Optional[str] = ..., floor: _Optional[float] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session_id", "model", "vocab_size", "prompt_tokens", "context_length", "resumed")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    vocab_size: int
    prompt_tokens: int
    context_length: int
    resumed: bool
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., vocab_size: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., context_length: _Optional[int] = ..., resumed: _Optional[bool] = ...) -> None: ...

class Verify(_message.Message):
    __slots__ = ("keep", "tokens", "row_deltas")
    KEEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROW_DELTAS_FIELD_NUMBER: _ClassVar[int]
    keep: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    row_deltas: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, keep: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., row_deltas: _Optional[_Iterable[int]] = ...) -> None: ...

class ClientFrame(_message.Message):
    __slots__ = ("open", "verify")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    open: Open
    verify: Verify
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., verify: _Optional[_Union[Verify, _Mapping]] = ...) -> None: ...

class Verified(_message.Message):
    __slots__ = ("number", "rows", "crc32", "compute_us", "queue_us", "superseded")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    number: int
    rows: bytes
    crc32: int
    compute_us: int
    queue_us: int
    superseded: bool
    def __init__(self, number: _Optional[int] = ..., rows: _Optional[bytes] = ..., crc32: _Optional[int] = ..., compute_us: _Optional[int] = ..., queue_us: _Optional[int] = ..., superseded: _Optional[bool] = ...) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("opened", "verified")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    verified: Verified
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., verified: _Optional[_Union[Verified, _Mapping]] = ...) -> None: ...

class SketchRequest(_message.Message):
    __slots__ = ("instruction",)
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    def __init__(self, instruction: _Optional[str] = ...) -> None: ...

class SketchPiece(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class AnswerRequest(_message.Message):
    __slots__ = ("instruction", "max_new_tokens", "temperature", "top_p", "seed")
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    def __init__(self, instruction: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class AnswerPiece(_message.Message):
    __slots__ = ("text", "token_ids", "finish_reason", "prompt_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: str
    prompt_tokens: int
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...
