"""The privacy boundary: what is public, what is private, and the one gate through which anything leaves.

`PublicInstruction` and `PrivateContext` are different types with nothing in common. The cloud client takes only
`Released` messages; only `Gate` makes them, from a `PublicInstruction` and from accepted token ids, never from a
`PrivateContext`. A `Released` message gives its content away in one way: `leave`, which writes the ledger first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import ClassVar, Generic, Literal, TypeVar

from edge_runtime.errors import PolicyError, RequestError
from edge_runtime.ledger import Ledger

ValueType = Literal["float32", "float16"]


class Policy(StrEnum):
    """What may leave the device besides the public instruction.

    OPEN: accepted tokens too, as in CoGenesis' logit variant. SKETCH: nothing else.
    """

    OPEN = "open"
    SKETCH = "sketch"


@dataclass(frozen=True, slots=True)
class PublicInstruction:
    """What the user asks, as they would ask any chatbot; the only text that the cloud ever gets."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"a public instruction is text, not {type(self.text).__name__}")
        if not self.text.strip():
            raise RequestError("The instruction is empty: field 'instruction'. Say what should be written.")


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One text the user wrote before: `title` is the task it was written for."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class PrivateContext:
    """What only the device may see: the user's profile and past texts. Its repr hides the content from logs."""

    profile: str = ""
    history: tuple[HistoryItem, ...] = ()

    def __repr__(self) -> str:
        return f"PrivateContext(<{len(self.profile)} characters of profile, {len(self.history)} past texts>)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class InfoRequest:
    """Asks the cloud which model it serves."""

    kind: ClassVar[str] = "info"


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Opens a session that scores continuations of the instruction.

    Attributes:
        instruction: the public instruction, byte for byte.
        tokenizer_fingerprint: must equal the cloud's (see `edge_runtime.tokenizer`).
        top_k: how many log-probabilities a row.
        value_type: how log-probabilities are coded on the wire.
    """

    instruction: str
    tokenizer_fingerprint: str
    top_k: int
    value_type: ValueType
    kind: ClassVar[str] = "open"


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """Appends tokens to the cloud view and asks for rows.

    Attributes:
        keep: how many tokens of the cloud view stay.
        tokens: tokens that follow them.
        first_row: rows `first_row .. keep + len(tokens)` are wanted; row p is the distribution of token p of the
            answer given the instruction and tokens 0 .. p-1.
        text: `tokens` as text, for the ledger alone; it does not travel.
    """

    keep: int
    tokens: tuple[int, ...]
    first_row: int
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
M_co = TypeVar("M_co", bound=Message, covariant=True)

_GATE_KEY = object()


class Released(Generic[M_co]):
    """A message that passed the gate. Its content comes out in one way, `leave`, and never without a ledger entry."""

    __slots__ = ("__ledger", "__message")

    def __init__(self, message: M_co, ledger: Ledger, key: object) -> None:
        if key is not _GATE_KEY:
            raise TypeError("Only edge_runtime.privacy.Gate releases messages to the cloud.")
        self.__message = message
        self.__ledger = ledger

    @property
    def kind(self) -> str:
        """Kind of the message, as in the ledger."""
        return self.__message.kind

    def leave(self, encode: Callable[[M_co], bytes]) -> bytes:
        """Encode the message, write it to the ledger, and return the bytes to send; once for every time it is sent.

        Raises:
            LedgerError: the ledger can't be written, so there is nothing to send.
        """
        payload = encode(self.__message)
        self.__ledger.record("up", self.__message.kind, len(payload), asdict(self.__message))
        return payload

    def arrived(self, size: int) -> None:
        """Record that `size` bytes came back in answer to this message."""
        self.__ledger.record("down", self.__message.kind, size)


class Gate:
    """The one place that turns public data into messages for the cloud."""

    def __init__(self, policy: Policy, ledger: Ledger) -> None:
        self.policy = policy
        self.ledger = ledger

    def info(self) -> Released[InfoRequest]:
        """Release the question which model the cloud serves."""
        return Released(InfoRequest(), self.ledger, _GATE_KEY)

    def open(
        self, instruction: PublicInstruction, *, tokenizer_fingerprint: str, top_k: int, value_type: ValueType
    ) -> Released[OpenRequest]:
        """Release the public instruction to open a scoring session.

        Raises:
            PolicyError: the policy lets no answer tokens leave, so a session would be useless.
        """
        self._allow_tokens()
        request = OpenRequest(_public_text(instruction), tokenizer_fingerprint, top_k, value_type)
        return Released(request, self.ledger, _GATE_KEY)

    def verify(self, *, keep: int, tokens: Sequence[int], first_row: int, text: str) -> Released[VerifyRequest]:
        """Release tokens of the answer.

        Raises:
            PolicyError: the policy lets no answer tokens leave.
        """
        self._allow_tokens()
        request = VerifyRequest(keep, tuple(int(token) for token in tokens), first_row, text)
        return Released(request, self.ledger, _GATE_KEY)

    def sketch(self, instruction: PublicInstruction) -> Released[SketchRequest]:
        """Release the public instruction to get an outline for it."""
        return Released(SketchRequest(_public_text(instruction)), self.ledger, _GATE_KEY)

    def answer(
        self, instruction: PublicInstruction, *, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Released[AnswerRequest]:
        """Release the public instruction to have the cloud answer it alone."""
        request = AnswerRequest(_public_text(instruction), max_new_tokens, temperature, top_p, seed)
        return Released(request, self.ledger, _GATE_KEY)

    def _allow_tokens(self) -> None:
        if self.policy is not Policy.OPEN:
            raise PolicyError(
                f"Fused generation sends answer tokens to the cloud, which the policy '{self.policy}' forbids. "
                "Use --mode sketch, or --policy open."
            )


def _public_text(instruction: PublicInstruction) -> str:
    # The static types say this already; a caller without mypy must not get past it either.
    if type(instruction) is not PublicInstruction:
        raise TypeError(f"only a PublicInstruction may leave the device, not {type(instruction).__name__}")
    return instruction.text
