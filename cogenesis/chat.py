"""`cogenesis chat`: an interactive prompt over a bundle, with the cloud or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.generate import (
    AdapterOption,
    ApiKeyOption,
    BackendOption,
    CloudOption,
    ContextOption,
    FusionOption,
    KeyWithoutTlsOption,
    LedgerOption,
    PolicyOption,
    ScheduleOption,
    ThreadsOption,
    TimeoutOption,
    TlsCaOption,
    TlsOption,
    UserOption,
    use_adapter_of,
)
from cogenesis.retrieved import ItemsOption, RetrievalOption, RetrieverOption, StoreOption, open_retrieval
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import CogenesisError, RequestError
from edge_runtime.fusion.fuse import Fusion, Strategy, usual_weight
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.generation.schedule import parse_schedule
from edge_runtime.privacy.gate import Policy
from edge_runtime.privacy.ledger import Ledger

if TYPE_CHECKING:
    from rich.console import Console

    from edge_runtime.answer import Answer, AnswerResult
    from edge_runtime.assistant import Assistant

HELP = """\
Type what you want written; every line is a task of its own. Commands:
  /left            show everything that left the device since the start
  /mode MODE       edge, cloud, sketch or fused
  /user [ID]       write with this user's adapter, without ID with none
  /context         show how much private context there is
  /help            this text
  /quit            leave (or Ctrl-D); Ctrl-C stops an answer"""


def chat(
    bundle: Annotated[Path, typer.Argument(help="Directory made by `cogenesis export onnx`.")],
    user: Annotated[
        Path | None, typer.Option(help="JSON file with the user's profile and history (see examples/user/user.json).")
    ] = None,
    store: StoreOption = None,
    retriever: RetrieverOption = None,
    items: ItemsOption = 4,
    retrieval: RetrievalOption = None,
    mode: Annotated[
        Mode | None, typer.Option(help="Who writes; fused with a cloud, edge without, unless given.")
    ] = None,
    cloud: CloudOption = None,
    api_key: ApiKeyOption = None,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    key_without_tls: KeyWithoutTlsOption = False,
    timeout: TimeoutOption = 60.0,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample within this likeliest mass.")] = 0.9,
    policy: PolicyOption = Policy.GUARDED,
    fusion: FusionOption = Strategy.GEOMETRIC,
    schedule: ScheduleOption = "0,0,1",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answers.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Limit of an answer.")] = 512,
    writer: UserOption = None,
    adapter: AdapterOption = None,
    ledger: LedgerOption = None,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    context_length: ContextOption = None,
) -> None:
    """Write with a bundle interactively; answers stream, and /left shows what left the device.

    Example: cogenesis chat my-bundle --user examples/user/user.json --cloud 127.0.0.1:50051
    """
    from rich.console import Console

    from cogenesis.connection import open_cloud
    from edge_runtime.assistant import load

    options = Options(
        max_new_tokens,
        Sampling(temperature, top_p=top_p, seed=seed),
        fusion=Fusion(fusion, usual_weight(fusion)),
        schedule=parse_schedule(schedule),
        policy=policy,
    )
    context = _context(user, store)
    console = Console(highlight=False)
    state = mode or (Mode.FUSED if cloud else Mode.EDGE)
    connection = open_cloud(
        Mode.FUSED if cloud else state, cloud, api_key, tls, tls_ca, timeout, key_without_tls=key_without_tls
    )
    assistant = load(bundle, backend, threads=threads, context_length=context_length)
    use_adapter_of(assistant, writer, adapter)
    console.print(f"[bold]{assistant.bundle.manifest.model.id}[/bold], mode {state}. /help shows the commands.")
    with Ledger(ledger) as book, open_retrieval(store, retriever, items, retrieval, bundle) as found:
        while True:
            try:
                line = console.input("[bold green]> [/bold green]").strip()
            except (EOFError, KeyboardInterrupt):
                console.print()
                break
            if line in ("/quit", "/exit"):
                break
            if line.startswith("/"):
                state = _command(line, state, cloud is not None, context, book, assistant, console)
            elif line:
                instruction = PublicInstruction(line)
                try:
                    used = context if found is None else found.context(instruction, PrivateContext()).context
                except CogenesisError as error:
                    console.print(str(error), markup=False, style="red")
                    continue
                answer = assistant.generate(
                    instruction, used, mode=state, cloud=connection, options=options, ledger=book
                )
                _stream(answer, console)
    if connection is not None:
        connection.close()


def _stream(answer: Answer, console: Console) -> None:
    try:
        for piece in answer:
            console.print(piece, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        answer.close()
    except CogenesisError as error:
        console.print(f"[red]{error}[/red]")
        return
    console.print()
    console.print(f"[dim]{_summary(answer.result)}[/dim]")


def _summary(result: AnswerResult) -> str:
    stats = result.stats
    text = f"{result.mode}: {len(result.token_ids)} tokens, {stats.tokens_per_second:.0f} tokens/s"
    if stats.round_trips:
        text += f", {stats.round_trips} round trips, {stats.bytes_up:,} bytes up, {stats.bytes_down:,} down"
    if result.cloud_error:
        text += f". Finished on the device: {result.cloud_error}"
    return text


def _command(
    line: str,
    mode: Mode,
    has_cloud: bool,
    context: PrivateContext,
    ledger: Ledger,
    assistant: Assistant,
    console: Console,
) -> Mode:
    name, _, argument = line.partition(" ")
    if name == "/left":
        _show_ledger(ledger, console)
    elif name == "/user":
        _use(argument.strip(), assistant, console)
    elif name == "/context":
        console.print(
            f"{len(context.profile):,} characters of profile, {len(context.history)} past texts; on this device."
        )
    elif name == "/mode":
        try:
            wanted = Mode(argument.strip())
        except ValueError:
            console.print(f"There is no mode '{argument}'. Use one of: {', '.join(Mode)}.")
            return mode
        if wanted.needs_cloud and not has_cloud:
            console.print(f"Mode {wanted} needs a cloud: start again with --cloud HOST:PORT.")
            return mode
        console.print(f"Mode {wanted}.")
        return wanted
    else:
        if name != "/help":
            console.print(f"There is no command {name}.")
        console.print(HELP)
    return mode


def _use(user: str, assistant: Assistant, console: Console) -> None:
    try:
        assistant.use_user(user or None)
    except CogenesisError as error:
        console.print(str(error), markup=False, style="red")
    else:
        console.print(f"With the adapter of {user}." if user else "Without an adapter.", markup=False)


def _show_ledger(ledger: Ledger, console: Console) -> None:
    entries = [entry for entry in ledger.entries if entry.direction == "up"]
    if not entries:
        console.print("Nothing left the device.")
    for entry in entries:
        content = json.dumps(dict(entry.content), ensure_ascii=False)
        console.print(f"{entry.time} {entry.kind:7} {entry.bytes:6,} bytes {content}", markup=False, soft_wrap=True)
    if ledger.path is not None:
        console.print(f"All of it is in {ledger.path}.", soft_wrap=True)


def _context(user: Path | None, store: Path | None) -> PrivateContext:
    if user is not None and store is not None:
        raise RequestError("Give --user or --store, not both.")
    if store is not None:
        from edge_runtime.store.profile_store import ProfileStore

        with ProfileStore(store) as profiles:
            return profiles.context()
    if user is not None:
        from edge_runtime.request import load_json, parse_context

        return parse_context(load_json(user), user)
    return PrivateContext()
