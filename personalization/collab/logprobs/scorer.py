"""Teacher forcing: a model's rows at every token of a given answer, from a bundle, a directory or a bridge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.fusion.known_tokens import IMPOSSIBLE, NEVER, KnownTokens
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs, sparsify
from edge_runtime.text.prompt import build_prompt
from edge_runtime.text.prompt_form import PromptForm
from edge_runtime.text.tokenizer import Tokenizer
from personalization.collab.logprobs.model_spec import BridgeSpec, Network


class RowScorer:
    """A model, its tokenizer and its chat template.

    Attributes:
        network: the model.
        tokenizer: its tokenizer.
        known: the ids that both have; rows offer no others.
    """

    def __init__(self, network: Network, tokenizer: Tokenizer, template: PromptForm) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self._template = template
        self.known = KnownTokens.of(tokenizer.ids_below(network.vocab_size))

    def score(
        self,
        instruction: PublicInstruction,
        context: PrivateContext | None,
        answer: Sequence[int],
        outline: str | None = None,
        *,
        for_cloud: bool = False,
    ) -> NDArray[np.float32]:
        """Return log-probs at every token of an answer: (len(answer), V) float32, V being `known.size`.

        The prompt is the one that the edge runtime builds: it leaves room for the answer and drops history if
        necessary.

        Args:
            instruction: what to write.
            context: the private context; None for the instruction alone.
            answer: token ids.
            outline: points to follow, or None.
            for_cloud: give ids without a token -inf, as a cloud does; otherwise the device's `NEVER`.

        Raises:
            ContextOverflowError: prompt and answer don't fit into the context.
        """
        room = self.network.context_length - len(answer)
        prompt = build_prompt(self.tokenizer, self._template, instruction, context, outline, room)
        logits = self.network.logits([*prompt.token_ids, *answer[:-1]], len(answer))
        return self.known.log_probs(logits, IMPOSSIBLE if for_cloud else NEVER)


class CloudRows(Protocol):
    """Gives the cloud's rows."""

    def rows(
        self, instruction: PublicInstruction, answer: Sequence[int]
    ) -> tuple[Sequence[SparseLogProbs], NDArray[np.float32]]:
        """Return an answer's rows as a device gets them, and (n,) float32 log-probs of its tokens, NaN if unknown."""
        ...


class LocalCloudRows:
    """A model on this machine in place of the cloud; its rows are truncated and encoded as on the wire."""

    def __init__(self, scorer: RowScorer, form: RowFormat) -> None:
        self._scorer = scorer
        self._form = form

    def rows(
        self, instruction: PublicInstruction, answer: Sequence[int]
    ) -> tuple[Sequence[SparseLogProbs], NDArray[np.float32]]:
        """See `CloudRows.rows`.

        Raises:
            ContextOverflowError: instruction and answer don't fit into the context.
        """
        from cloud_bridge.row_coding import decode_rows, encode_rows

        whole = self._scorer.score(instruction, None, answer, for_cloud=True)
        coded = encode_rows((sparsify(row, self._form) for row in whole), self._form.value_type)
        sent = decode_rows(coded, count=len(answer), vocab_size=whole.shape[1], form=self._form)
        # The cloud's model may have fewer rows than the tokenizer has tokens.
        said = [row[token] if token < row.size else math.nan for row, token in zip(whole, answer, strict=True)]
        return sent, np.array(said, np.float32)


class BridgeRows:
    """A cloud behind the bridge. As under the open policy, it gets the instruction and the answer, but no context."""

    def __init__(self, bridge: BridgeSpec, form: RowFormat, tokenizer: Tokenizer) -> None:
        """Prepare the connection; nothing is sent before the first row.

        Raises:
            RequestError: the address has the wrong format.
        """
        from cloud_bridge.client import connect

        self._cloud = connect(bridge.address, api_key=bridge.api_key, tls=bridge.tls)
        self._form = form
        self._tokenizer = tokenizer
        self._fingerprint = tokenizer.fingerprint

    def rows(
        self, instruction: PublicInstruction, answer: Sequence[int]
    ) -> tuple[Sequence[SparseLogProbs], NDArray[np.float32]]:
        """See `CloudRows.rows`.

        Raises:
            CloudError: the cloud can't be reached or serves another vocabulary.
        """
        from edge_runtime.generation.options import LARGEST_WINDOW
        from edge_runtime.privacy.gate import Gate, Policy
        from edge_runtime.privacy.ledger import Ledger

        gate = Gate(Policy.OPEN, Ledger())
        view = gate.conversation(instruction, None, self._tokenizer)
        for token in answer[:-1]:
            view.push(token)
        session = self._cloud.open(gate.open(instruction, tokenizer_fingerprint=self._fingerprint, rows=self._form))
        sent: list[SparseLogProbs] = []
        try:
            for first in range(0, len(answer), LARGEST_WINDOW):
                wanted = range(first, min(first + LARGEST_WINDOW, len(answer)))
                # A row needs the tokens before it; the cloud has those of earlier requests.
                keep = wanted[0] - 1 if first else 0
                sent += session.verify(view.verify(keep=keep, end=wanted[-1], rows=wanted)).result().rows
        finally:
            session.close()
        return sent, np.array([_said(row, token) for row, token in zip(sent, answer, strict=True)], np.float32)


def _said(row: SparseLogProbs, token: int) -> float:
    place = int(np.searchsorted(row.ids, token))
    return float(row.log_probs[place]) if place < row.ids.size and row.ids[place] == token else math.nan
