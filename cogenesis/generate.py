"""`cogenesis generate`: one answer for a request file, for people or for scripts."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cogenesis.retrieved import ItemsOption, RetrievalOption, RetrieverOption, StoreOption, open_retrieval
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, BACKEND_ONNX
from edge_runtime.context import PrivateContext
from edge_runtime.errors import CogenesisError, RequestError
from edge_runtime.fusion.fuse import Fusion, Strategy, usual_weight
from edge_runtime.fusion.sparse import THIN, RowFormat, ValueType
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.generation.schedule import parse_schedule
from edge_runtime.privacy.gate import Policy
from edge_runtime.privacy.ledger import Ledger

if TYPE_CHECKING:
    from edge_runtime.answer import Answer
    from edge_runtime.assistant import Assistant

FINISHED_WITHOUT_CLOUD = 6
ROWS = "Rows of the cloud; a learned fusion has defaults of its own"


class Backend(enum.StrEnum):
    """Choices of `--backend`."""

    onnx = BACKEND_ONNX
    executorch = BACKEND_EXECUTORCH


BundleOption = Annotated[Path, typer.Option("--bundle", help="Directory made by `cogenesis export onnx`.")]
CloudOption = Annotated[str | None, typer.Option("--cloud", metavar="HOST:PORT", help="Address of the cloud.")]
ApiKeyOption = Annotated[
    str | None, typer.Option("--api-key", envvar="COGENESIS_API_KEY", help="Key that the cloud asks for.")
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Encrypt, checking the server against the system's CAs.")]
TlsCaOption = Annotated[
    Path | None, typer.Option("--tls-ca", help="Encrypt, checking the server against this CA file (PEM).")
]
KeyWithoutTlsOption = Annotated[
    bool, typer.Option("--key-without-tls", help="Send the key to another machine where anyone on the way can read it.")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for each reply.")]
AdapterOption = Annotated[Path | None, typer.Option("--adapter", help="An adapter file, instead of --as.")]
UserOption = Annotated[
    str | None, typer.Option("--as", metavar="ID", help="Write with this user's adapter, which the bundle holds.")
]
LedgerOption = Annotated[
    Path | None, typer.Option("--ledger", help="Append everything that leaves the device to this JSON Lines file.")
]
PolicyOption = Annotated[
    Policy,
    typer.Option(
        help="What may leave besides the instruction: the answer without private words (guarded), the answer as it is "
        "(open), or nothing (sketch)."
    ),
]
BackendOption = Annotated[
    Backend | None, typer.Option(help="Runtime of the decoder, where the bundle has both; default: its first.")
]
FusionOption = Annotated[
    Strategy, typer.Option(help="How the two distributions become one; learned: by the bundle's combiner.")
]
ScheduleOption = Annotated[
    str,
    typer.Option(
        metavar="P,K,T|learned[:SHARE]",
        help="Ask the cloud at the first P steps, then T of every K+T; learned: where the bundle's combiner expects "
        "much of it, learned:0.5: at about half of the steps, where it expects most.",
    ),
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="Threads of the decoder.")]
ContextOption = Annotated[
    int | None, typer.Option("--context-length", min=16, help="Use at most this many positions of the context.")
]


def generate(
    bundle: BundleOption,
    request: Annotated[Path, typer.Option(help="JSON file: instruction, and context with profile and history.")],
    mode: Annotated[Mode, typer.Option(help="Who writes.")] = Mode.EDGE,
    cloud: CloudOption = None,
    api_key: ApiKeyOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    key_without_tls: KeyWithoutTlsOption = False,
    timeout: TimeoutOption = 60.0,
    policy: PolicyOption = Policy.GUARDED,
    fusion: FusionOption = Strategy.GEOMETRIC,
    weight: Annotated[
        float | None, typer.Option(help="The edge's share; for delta its alpha. Default 0.5, for delta 1.")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            min=1,
            help=f"The most log-probabilities of a row; {THIN.top_k} unless given.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    mass: Annotated[
        float | None,
        typer.Option(
            help=f"A row ends where its likeliest tokens reach this mass; {THIN.mass:g} unless given.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            help=f"Rows leave out tokens less likely than this; {THIN.floor:g} unless given.", rich_help_panel=ROWS
        ),
    ] = None,
    wire: Annotated[
        str | None,
        typer.Option(
            help=f"How they are coded: float32 (exact), float16 or bits12; {THIN.value_type} unless given.",
            rich_help_panel=ROWS,
        ),
    ] = None,
    window: Annotated[
        str, typer.Option(metavar="N|auto", help="Tokens of one round trip; changes the speed, never the answer.")
    ] = "auto",
    patience: Annotated[
        float, typer.Option(help="Seconds a token waits for the cloud before the device goes on alone.")
    ] = 5.0,
    schedule: ScheduleOption = "0,0,1",
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    sample_top_k: Annotated[int, typer.Option("--sample-top-k", help="Sample among the k likeliest; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample within this likeliest mass.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", help="Drop tokens below this share of the likeliest.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1 repeats less.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Limit of the answer.")] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be given again.")] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", "--as", metavar="ID", help="Write with this user's adapter, which the bundle holds."),
    ] = None,
    adapter: AdapterOption = None,
    ledger: LedgerOption = None,
    store: StoreOption = None,
    retriever: RetrieverOption = None,
    items: ItemsOption = 4,
    retrieval: RetrievalOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    context_length: ContextOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Write one answer for a request file.

    The request is {"instruction": "...", "context": {"profile": "...", "history": [{"title": "...", "text": "..."}]}}.
    Only the instruction, and in mode fused what the policy lets out of the answer, leave the device. With --fusion
    learned, the cloud's rows are by default cut and coded as the combiner has learnt them.

    With a store, its profile and the past texts that a retriever finds in it are private context, too.

    Examples:
      cogenesis generate --bundle my-bundle --request request.json --mode fused --cloud 127.0.0.1:50051

      cogenesis generate --bundle my-bundle --request request.json --store profile.db --retriever bm25 --items 4
    """
    from edge_runtime.request import load_request

    options = Options(
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, sample_top_k, top_p, min_p, repetition_penalty, seed),
        stop=tuple(stop or ()),
        fusion=Fusion(fusion, usual_weight(fusion) if weight is None else weight),
        schedule=parse_schedule(schedule),
        rows=_rows(top_k, mass, floor, wire),
        window=_window(window),
        patience=patience,
        policy=policy,
    )
    asked = load_request(request)

    from cogenesis.connection import open_cloud
    from edge_runtime.assistant import load

    connection = open_cloud(mode, cloud, api_key, tls, tls_ca, timeout, key_without_tls=key_without_tls)
    try:
        assistant = load(bundle, backend, threads=threads, context_length=context_length)
        use_adapter_of(assistant, user, adapter)
        with Ledger(ledger) as book, open_retrieval(store, retriever, items, retrieval, bundle) as found:

            def answer_with(context: PrivateContext) -> Answer:
                return assistant.generate(
                    asked.instruction, context, mode=mode, cloud=connection, options=options, ledger=book
                )

            written: dict[PrivateContext, Answer] = {}

            def write(context: PrivateContext) -> str:
                if context not in written:
                    written[context] = answer_with(context)
                return "".join(written[context]) or written[context].result.text

            context, retriever_used = asked.context, None
            if found is not None:
                choice = found.context(asked.instruction, context, write if mode is Mode.EDGE else None)
                context, retriever_used = choice.context, choice.retriever
            answer = written.get(context) or answer_with(context)
            pieces = [answer.result.text] if context in written else answer
            for piece in pieces:
                if not as_json:
                    print(piece, end="", flush=True)
            result = answer.result
    finally:
        if connection is not None:
            connection.close()
    if as_json:
        print(json.dumps(result.to_json() | {"retriever": retriever_used}, ensure_ascii=False))
    else:
        stats = result.stats
        print()
        if retriever_used:
            print(f"[past texts: {len(context.history)}, by {retriever_used}]", file=sys.stderr)
        print(
            f"[{result.mode}: {len(result.token_ids)} tokens, {stats.tokens_per_second:.1f} tokens/s, first after "
            f"{stats.first_token_seconds:.2f} s, {stats.round_trips} round trips, {stats.bytes_up:,} bytes up, "
            f"{stats.bytes_down:,} down]",
            file=sys.stderr,
        )
    if result.cloud_error:
        raise FinishedWithoutCloudError(f"The device finished the answer alone. {result.cloud_error}")


def use_adapter_of(assistant: Assistant, user: str | None, adapter: Path | None) -> None:
    """Have the assistant write with a user's adapter, or with one in a file, if either is given."""
    if user is not None and adapter is not None:
        raise RequestError("Give the user whose adapter to use, or --adapter with a file, not both.")
    if user is not None:
        assistant.use_user(user)
    elif adapter is not None:
        assistant.use_adapter(adapter)


def _rows(top_k: int | None, mass: float | None, floor: float | None, wire: str | None) -> RowFormat | None:
    """The form of rows that was asked for: thin but for what is given; None where nothing is."""
    if top_k is None and mass is None and floor is None and wire is None:
        return None
    return RowFormat(
        THIN.top_k if top_k is None else top_k,
        THIN.mass if mass is None else mass,
        THIN.value_type if wire is None else cast("ValueType", wire),
        THIN.floor if floor is None else floor,
    )


def _window(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise RequestError(f"--window must be a whole number or auto, not {text}.")
    return int(text)


class FinishedWithoutCloudError(CogenesisError):
    """The answer is complete, but the cloud fell away in the middle of it."""

    exit_code = FINISHED_WITHOUT_CLOUD
