"""`cogenesis generate`: writes one answer for a request file, as text or JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.assistant import AssistantOptions
from cogenesis.options.cloud import CloudOption, Connection
from cogenesis.options.expand import expand
from cogenesis.options.fusion import LedgerOption, PacedFusionOptions
from cogenesis.options.output import JsonOption
from cogenesis.options.request import ModeOption, RequestOption
from cogenesis.options.retrieval import RetrievalOptions
from cogenesis.options.rows import CloudRows
from cogenesis.options.sampling import AllSamplingOptions, MaxNewTokensOption
from edge_runtime.context import PrivateContext
from edge_runtime.errors import CogenesisError
from edge_runtime.generation.options import Mode, Options
from edge_runtime.privacy.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.answer import Answer, AnswerResult

FINISHED_WITHOUT_CLOUD = 6
ALONE = {
    "cloud": "the cloud was lost or too slow",
    "context": "the answer filled the cloud's context",
    "policy": "the privacy policy showed the cloud no more of the answer",
}
_GREEDY = AllSamplingOptions(temperature=0.0, top_p=1.0)


@expand
def generate(
    bundle: Annotated[
        Path,
        typer.Option(
            "--bundle", "-b", metavar="DIR", help="Bundle directory from `cogenesis export onnx`.", show_default=False
        ),
    ],
    request: RequestOption,
    mode: ModeOption = Mode.EDGE,
    cloud: CloudOption = None,
    *,
    connection: Connection,
    fusion: PacedFusionOptions,
    rows: CloudRows,
    sampling: AllSamplingOptions = _GREEDY,
    max_new_tokens: MaxNewTokensOption = 256,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given again.", show_default=False)
    ] = None,
    device: AssistantOptions,
    retrieval: RetrievalOptions,
    ledger: LedgerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one answer for a request file.

    The request is {"instruction": "...", "context": {"profile": "...", "history": [{"title": "...", "text": "..."}]}}.
    The device sends the instruction and, in mode fused, the part of the answer that the policy allows; nothing else.
    With --fusion learned, the cloud by default truncates and encodes its rows as in the combiner's training.

    With --store, the store's profile and the retrieved past texts join the private context.

    Examples:
      cogenesis generate --bundle my-bundle --request request.json --mode fused --cloud 127.0.0.1:50051

      cogenesis generate --bundle my-bundle --request request.json --store profile.db --retriever bm25 --items 4
    """
    from edge_runtime.request import load_request

    options = Options(
        max_new_tokens=max_new_tokens,
        sampling=sampling.sampling(),
        stop=tuple(stop or ()),
        fusion=fusion.fused(),
        schedule=fusion.steps(),
        rows=rows.form(),
        window=fusion.window_tokens(),
        patience=fusion.patience,
        policy=fusion.policy,
    )
    asked = load_request(request)
    opened = connection.open_for(mode, cloud)
    try:
        assistant = device.load(bundle)
        with Ledger(ledger) as book, retrieval.open(bundle) as found:

            def answer_with(context: PrivateContext) -> Answer:
                return assistant.generate(
                    asked.instruction, context, mode=mode, cloud=opened, options=options, ledger=book
                )

            written = _Written(answer_with)
            context, retriever = asked.context, None
            if found is not None:
                choice = found.context(asked.instruction, context, written.text if mode is Mode.EDGE else None)
                context, retriever = choice.context, choice.retriever
            result = written.result(context, shown=not as_json)
    finally:
        if opened is not None:
            opened.close()
    if as_json:
        print(json.dumps(result.to_json() | {"retriever": retriever}, ensure_ascii=False))
    else:
        _print_summary(result, len(context.history), retriever)
    if result.cloud_error:
        raise FinishedWithoutCloudError(f"The device finished the answer alone. {result.cloud_error}")


class _Written:
    """Caches answers by context, because a selector that reads answers has several written before it chooses one."""

    def __init__(self, answer_with: Callable[[PrivateContext], Answer]) -> None:
        self._answer_with = answer_with
        self._answers: dict[PrivateContext, Answer] = {}

    def text(self, context: PrivateContext) -> str:
        """Return the whole answer with a context."""
        if context not in self._answers:
            self._answers[context] = self._answer_with(context)
        return "".join(self._answers[context]) or self._answers[context].result.text

    def result(self, context: PrivateContext, *, shown: bool) -> AnswerResult:
        """Return the answer with a context; if `shown`, print it while it is written."""
        answer = self._answers.get(context) or self._answer_with(context)
        for piece in [answer.result.text] if context in self._answers else answer:
            if shown:
                print(piece, end="", flush=True)
        return answer.result


def _print_summary(result: AnswerResult, past_texts: int, retriever: str | None) -> None:
    stats = result.stats
    print()
    if retriever:
        print(f"[past texts: {past_texts}, by {retriever}]", file=sys.stderr)
    print(
        f"[{result.mode}: {len(result.token_ids)} tokens, {stats.tokens_per_second:.1f} tokens/s, first after "
        f"{stats.first_token_seconds:.2f} s, {stats.round_trips} round trips, {stats.bytes_up:,} bytes up, "
        f"{stats.bytes_down:,} down]",
        file=sys.stderr,
    )
    for reason, count in result.alone.items():
        print(f"[{count} tokens by the device alone: {ALONE[reason]}]", file=sys.stderr)


class FinishedWithoutCloudError(CogenesisError):
    """The answer is complete, but the cloud was lost while it was written."""

    exit_code = FINISHED_WITHOUT_CLOUD
