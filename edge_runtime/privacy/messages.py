"""The messages that a device sends to its cloud. Only `edge_runtime.privacy.gate.Gate` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_runtime.fusion.sparse import RowFormat


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """Asks the cloud which model it serves."""

    kind: ClassVar[str] = "info"


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Opens a session that scores continuations of the instruction.

    Attributes:
        instruction: the public instruction, byte for byte.
        tokenizer_fingerprint: must equal the cloud's (see `edge_runtime.text.tokenizer`).
        rows: how rows are cut and coded.
        resume: id of an earlier session of the same generation, whose stream broke; "" for none.
    """

    instruction: str
    tokenizer_fingerprint: str
    rows: RowFormat
    resume: str = ""
    kind: ClassVar[str] = "open"


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """Appends tokens to the cloud view and asks for rows.

    Attributes:
        keep: how many tokens of the cloud view stay.
        tokens: tokens that follow them.
        rows: the rows wanted, ascending, each in 0 .. keep + len(tokens); row p is the distribution of token p of the
            view given the instruction and tokens 0 .. p-1.
        text: `tokens` as text, for the ledger alone; it does not travel.
    """

    keep: int
    tokens: tuple[int, ...]
    rows: tuple[int, ...]
    text: str
    kind: ClassVar[str] = "verify"


@dataclass(frozen=True, slots=True)
class SketchRequest:
    """Asks for an outline of the instruction."""

    instruction: str
    kind: ClassVar[str] = "sketch"


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """Asks the cloud to answer the instruction on its own.

    Attributes:
        instruction: the public instruction, byte for byte.
        max_new_tokens: limit of the answer.
        temperature: 0 is greedy.
        top_p: nucleus mass, 1 keeps all.
        seed: of the cloud's sampler.
    """

    instruction: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    kind: ClassVar[str] = "answer"


Message = InfoRequest | OpenRequest | VerifyRequest | SketchRequest | AnswerRequest
