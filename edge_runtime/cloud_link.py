"""One generation's conversation with the cloud: what of the answer the cloud has seen, and what became of the link."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from edge_runtime.cloud import CloudSession
from edge_runtime.errors import CloudError, ProtocolError
from edge_runtime.privacy import Gate
from edge_runtime.sparse import SparseLogProbs
from edge_runtime.tokenizer import Tokenizer

Pending = Future[Sequence[SparseLogProbs]]


class CloudLink:
    """Asks the cloud for rows and notices when it is gone.

    Until the first row has arrived every failure is raised, since nothing was promised yet; after that a failure ends
    the link, is kept in `error`, and the answer goes on without the cloud.
    """

    def __init__(self, session: CloudSession, gate: Gate, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._session = session
        self._gate = gate
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._seen = 0
        self.round_trips = 0
        self.error: CloudError | None = None

    @property
    def alive(self) -> bool:
        """Whether the cloud can still be asked."""
        return self.error is None

    def ask(self, answer: Sequence[int]) -> Pending | None:
        """Ask for the row that follows `answer`; sends the tokens that the cloud has not seen yet.

        Returns:
            The row to come, or None where the link has ended.
        """
        if not self.alive:
            return None
        new = tuple(answer[self._seen :])
        text = self._tokenizer.decode(new, skip_special_tokens=False) if new else ""
        request = self._gate.verify(keep=self._seen, tokens=new, first_row=len(answer), text=text)
        try:
            pending = self._session.verify(request)
        except CloudError as error:
            self._ended(error)
            return None
        self._seen = len(answer)
        return pending

    def row(self, pending: Pending | None) -> SparseLogProbs | None:
        """Wait for a row.

        Returns:
            The row, or None where there was nothing to wait for or the link ended.

        Raises:
            CloudError: before the first row.
        """
        if pending is None:
            return None
        try:
            rows = pending.result()
            if len(rows) != 1 or int(rows[0].ids[-1]) >= self._vocab_size:
                raise ProtocolError("The cloud sent rows that don't fit this model. Check which model it serves.")
        except CloudError as error:
            self._ended(error)
            return None
        self.round_trips += 1
        return rows[0]

    def close(self) -> None:
        """Free the server's session."""
        self._session.close()

    def _ended(self, error: CloudError) -> None:
        if self.round_trips == 0:
            raise error
        self.error = error
