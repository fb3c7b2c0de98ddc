"""The privacy boundary: the policies, and the gate that every message to the cloud passes.

The cloud client accepts only `Released` messages, and only `Gate` creates them. It builds them from a
`PublicInstruction` and from answer tokens that the policy's cloud view releases, never from a `PrivateContext`. The
content of a `Released` message can be read only through `leave`, which writes the ledger entry first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import PolicyError, RequestError
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.privacy.cloud_view import CloudView, OpenView
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.privacy.messages import AnswerRequest, InfoRequest, Message, OpenRequest, SketchRequest, VerifyRequest

if TYPE_CHECKING:
    from edge_runtime.text.tokenizer import Tokenizer  # callers that only open sessions need not load it

__all__ = ["Gate", "HistoryItem", "Policy", "PrivateContext", "PublicInstruction", "Released"]


class Policy(StrEnum):
    """Controls what the device may send besides the public instruction.

    OPEN: the answer's tokens, as in CoGenesis' logit variant. GUARDED: the answer's tokens, with words that reveal
    private context replaced. SKETCH: nothing else.
    """

    OPEN = "open"
    GUARDED = "guarded"
    SKETCH = "sketch"

    @classmethod
    def of(cls, name: Policy | str) -> Policy:
        """Return the policy with this name.

        Raises:
            RequestError: there is no such policy.
        """
        try:
            return cls(name)
        except ValueError:
            raise RequestError(f"There is no policy '{name}'. Use one of: {', '.join(cls)}.") from None


M_co = TypeVar("M_co", bound=Message, covariant=True)

_GATE_KEY = object()


class Released(Generic[M_co]):
    """A message that passed the gate. Only `leave` returns its content, and it always writes a ledger entry first."""

    __slots__ = ("__ledger", "__message")

    def __init__(self, message: M_co, ledger: Ledger, key: object) -> None:
        if key is not _GATE_KEY:
            raise TypeError("Only edge_runtime.privacy.gate.Gate releases messages to the cloud.")
        self.__message = message
        self.__ledger = ledger

    @property
    def kind(self) -> str:
        """Kind of the message, as in the ledger."""
        return self.__message.kind

    def leave(self, encode: Callable[[M_co], bytes]) -> bytes:
        """Encode the message, write it to the ledger, and return the bytes to send; call it each time before sending.

        Raises:
            LedgerError: the ledger can't be written, so the message must not be sent.
        """
        payload = encode(self.__message)
        self.__ledger.record("up", self.__message.kind, len(payload), asdict(self.__message))
        return payload

    def arrived(self, size: int) -> None:
        """Record that a reply of `size` bytes to this message arrived."""
        self.__ledger.record("down", self.__message.kind, size)


class Conversation:
    """The policy's view of one answer, for the cloud. Only `Gate.conversation` creates it.

    It takes the answer's tokens, and returns only messages that the gate released.
    """

    __slots__ = ("__ledger", "__tokenizer", "__view")

    def __init__(self, view: CloudView, tokenizer: Tokenizer, ledger: Ledger, key: object) -> None:
        if key is not _GATE_KEY:
            raise TypeError("Only edge_runtime.privacy.gate.Gate starts a conversation with the cloud.")
        self.__view = view
        self.__tokenizer = tokenizer
        self.__ledger = ledger

    @property
    def length(self) -> int:
        """Number of answer tokens pushed so far."""
        return self.__view.length

    @property
    def asks(self) -> bool:
        """Whether the device may ask the cloud for the next token."""
        return self.__view.asks

    @property
    def row(self) -> int:
        """Index of the view's row that predicts the next token."""
        return len(self.__view.released)

    def push(self, token: int) -> None:
        """Add a token of the answer, or of its draft."""
        self.__view.push(token)

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens of the answer."""
        self.__view.rewind(length)

    def released(self) -> tuple[int, ...]:
        """Return the tokens that the cloud may see."""
        return tuple(self.__view.released)

    def verify(self, *, keep: int, end: int, rows: Sequence[int]) -> Released[VerifyRequest]:
        """Release the view's tokens from `keep` up to `end` (exclusive), with a request for rows."""
        tokens = tuple(int(token) for token in self.__view.released[keep:end])
        text = self.__tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""
        return Released(VerifyRequest(keep, tokens, tuple(rows), text), self.__ledger, _GATE_KEY)


class Gate:
    """The one place that turns public data into messages for the cloud."""

    def __init__(self, policy: Policy | str, ledger: Ledger) -> None:
        """Create a gate that enforces a policy.

        Raises:
            RequestError: there is no such policy.
        """
        self.policy = Policy.of(policy)
        self.ledger = ledger

    def info(self) -> Released[InfoRequest]:
        """Release a request for the model that the cloud serves."""
        return Released(InfoRequest(), self.ledger, _GATE_KEY)

    def open(
        self, instruction: PublicInstruction, *, tokenizer_fingerprint: str, rows: RowFormat, resume: str = ""
    ) -> Released[OpenRequest]:
        """Release the public instruction to open a scoring session, or to resume a broken one.

        Raises:
            PolicyError: the policy forbids sending answer tokens, so a session would be useless.
        """
        self._allow_tokens()
        request = OpenRequest(_public_text(instruction), tokenizer_fingerprint, rows, resume)
        return Released(request, self.ledger, _GATE_KEY)

    def conversation(
        self, instruction: PublicInstruction, context: PrivateContext | None, tokenizer: Tokenizer
    ) -> Conversation:
        """Start a conversation, the only way to send tokens of an answer.

        Args:
            instruction: the public instruction, which the cloud knows.
            context: the private context, which the guarded policy hides from the cloud.
            tokenizer: tokenizer of the answer.

        Raises:
            PolicyError: the policy forbids sending answer tokens.
        """
        self._allow_tokens()
        view: CloudView
        if self.policy is Policy.OPEN:
            view = OpenView()
        else:
            from edge_runtime.privacy.guard import Guard  # other policies need not load the word lists

            view = Guard(tokenizer, PublicInstruction(_public_text(instruction)), context or PrivateContext())
        return Conversation(view, tokenizer, self.ledger, _GATE_KEY)

    def sketch(self, instruction: PublicInstruction) -> Released[SketchRequest]:
        """Release the public instruction to request an outline."""
        return Released(SketchRequest(_public_text(instruction)), self.ledger, _GATE_KEY)

    def answer(
        self, instruction: PublicInstruction, *, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> Released[AnswerRequest]:
        """Release the public instruction to let the cloud answer it alone."""
        request = AnswerRequest(_public_text(instruction), max_new_tokens, temperature, top_p, seed)
        return Released(request, self.ledger, _GATE_KEY)

    def _allow_tokens(self) -> None:
        if self.policy not in (Policy.OPEN, Policy.GUARDED):
            raise PolicyError(
                f"Fused generation sends answer tokens to the cloud, which the policy '{self.policy}' forbids. "
                "Use `mode` sketch, or `policy` guarded."
            )


def _public_text(instruction: PublicInstruction) -> str:
    # The static types enforce this too, but a caller without mypy must not get around it.
    if type(instruction) is not PublicInstruction:
        raise TypeError(f"only a PublicInstruction may leave the device, not {type(instruction).__name__}")
    return instruction.text
