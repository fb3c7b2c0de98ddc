"""The privacy boundary: the policies, and the one gate through which anything leaves.

The cloud client takes only `Released` messages; only `Gate` makes them, from a `PublicInstruction` and from tokens of
the answer as the policy's cloud view shows them, never from a `PrivateContext`. A `Released` message gives its content
away in one way: `leave`, which writes the ledger first.
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
    from edge_runtime.text.tokenizer import Tokenizer  # who only opens sessions need not load it

__all__ = ["Gate", "HistoryItem", "Policy", "PrivateContext", "PublicInstruction", "Released"]


class Policy(StrEnum):
    """What may leave the device besides the public instruction.

    OPEN: tokens of the answer too, as in CoGenesis' logit variant. GUARDED: tokens of the answer, but words that carry
    something of the private context are replaced. SKETCH: nothing else.
    """

    OPEN = "open"
    GUARDED = "guarded"
    SKETCH = "sketch"

    @classmethod
    def of(cls, name: Policy | str) -> Policy:
        """The policy of this name.

        Raises:
            RequestError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            raise RequestError(f"There is no policy '{name}'. Use one of: {', '.join(cls)}.") from None


M_co = TypeVar("M_co", bound=Message, covariant=True)

_GATE_KEY = object()


class Released(Generic[M_co]):
    """A message that passed the gate. Its content comes out in one way, `leave`, and never without a ledger entry."""

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


class Conversation:
    """What the cloud may see of one answer: the policy's view of it. Made by `Gate.conversation` alone.

    The answer's tokens go in; only messages that the gate released come out.
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
        """How many tokens of the answer went in."""
        return self.__view.length

    @property
    def asks(self) -> bool:
        """Whether the cloud may be asked for the token that follows."""
        return self.__view.asks

    @property
    def row(self) -> int:
        """Which row of the view predicts the token that follows."""
        return len(self.__view.released)

    def push(self, token: int) -> None:
        """Add a token of the answer, or of its draft."""
        self.__view.push(token)

    def rewind(self, length: int) -> None:
        """Back to the first `length` tokens of the answer."""
        self.__view.rewind(length)

    def released(self) -> tuple[int, ...]:
        """The tokens that the cloud may see."""
        return tuple(self.__view.released)

    def verify(self, *, keep: int, end: int, rows: Sequence[int]) -> Released[VerifyRequest]:
        """Release the view's tokens `keep` .. `end`, and ask for rows."""
        tokens = tuple(int(token) for token in self.__view.released[keep:end])
        text = self.__tokenizer.decode(tokens, skip_special_tokens=False) if tokens else ""
        return Released(VerifyRequest(keep, tokens, tuple(rows), text), self.__ledger, _GATE_KEY)


class Gate:
    """The one place that turns public data into messages for the cloud."""

    def __init__(self, policy: Policy | str, ledger: Ledger) -> None:
        """Guard what leaves under a policy.

        Raises:
            RequestError: there is no such policy.
        """
        self.policy = Policy.of(policy)
        self.ledger = ledger

    def info(self) -> Released[InfoRequest]:
        """Release the question which model the cloud serves."""
        return Released(InfoRequest(), self.ledger, _GATE_KEY)

    def open(
        self, instruction: PublicInstruction, *, tokenizer_fingerprint: str, rows: RowFormat, resume: str = ""
    ) -> Released[OpenRequest]:
        """Release the public instruction to open a scoring session, or to go on with a broken one.

        Raises:
            PolicyError: the policy lets no answer tokens leave, so a session would be useless.
        """
        self._allow_tokens()
        request = OpenRequest(_public_text(instruction), tokenizer_fingerprint, rows, resume)
        return Released(request, self.ledger, _GATE_KEY)

    def conversation(
        self, instruction: PublicInstruction, context: PrivateContext | None, tokenizer: Tokenizer
    ) -> Conversation:
        """Start the one way by which tokens of an answer can leave.

        Args:
            instruction: what the cloud knows anyway.
            context: what it must not learn, under the policy guarded.
            tokenizer: of the answer.

        Raises:
            PolicyError: the policy lets no answer tokens leave.
        """
        self._allow_tokens()
        view: CloudView
        if self.policy is Policy.OPEN:
            view = OpenView()
        else:
            from edge_runtime.privacy.guard import Guard  # light callers need not read word lists

            view = Guard(tokenizer, PublicInstruction(_public_text(instruction)), context or PrivateContext())
        return Conversation(view, tokenizer, self.ledger, _GATE_KEY)

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
        if self.policy not in (Policy.OPEN, Policy.GUARDED):
            raise PolicyError(
                f"Fused generation sends answer tokens to the cloud, which the policy '{self.policy}' forbids. "
                "Use --mode sketch, or --policy guarded."
            )


def _public_text(instruction: PublicInstruction) -> str:
    # The static types say this already; a caller without mypy must not get past it either.
    if type(instruction) is not PublicInstruction:
        raise TypeError(f"only a PublicInstruction may leave the device, not {type(instruction).__name__}")
    return instruction.text
