"""`cogenesis chat`: writes interactively with a bundle, with or without the cloud."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.generate import ALONE
from cogenesis.options.assistant import AssistantOptions, UserFileOption
from cogenesis.options.cloud import CloudOption, Connection
from cogenesis.options.expand import expand
from cogenesis.options.fusion import FusionOptions, LedgerOption
from cogenesis.options.request import MODE
from cogenesis.options.retrieval import RetrievalOptions
from cogenesis.options.sampling import MaxNewTokensOption, SamplingOptions
from cogenesis.terminal.flag_names import with_flags
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import CogenesisError, RequestError
from edge_runtime.generation.options import Mode, Options
from edge_runtime.privacy.ledger import Ledger

if TYPE_CHECKING:
    from rich.console import Console

    from edge_runtime.answer import Answer, AnswerResult
    from edge_runtime.assistant import Assistant

HELP = """\
Type what you want written. Each line is a separate task. Commands:
  /left            show everything that was sent to the cloud since the start
  /mode MODE       edge, cloud, sketch or fused
  /user [ID]       write with this user's adapter; without an ID, with no adapter
  /context         show how much private context there is
  /help            show this text
  /quit            quit (or Ctrl-D); Ctrl-C stops an answer"""


@expand
def chat(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory from `cogenesis export onnx`.", show_default=False)],
    user_file: UserFileOption = None,
    mode: Annotated[Mode | None, MODE] = None,
    cloud: CloudOption = None,
    *,
    connection: Connection,
    fusion: FusionOptions,
    sampling: SamplingOptions,
    max_new_tokens: MaxNewTokensOption = 512,
    device: AssistantOptions,
    retrieval: RetrievalOptions,
    ledger: LedgerOption = None,
) -> None:
    """Write interactively with a bundle. Answers stream, and /left shows every message sent to the cloud.

    Example: cogenesis chat my-bundle --context examples/user/user.json --cloud 127.0.0.1:50051
    """
    from rich.console import Console

    options = Options(
        max_new_tokens,
        sampling.sampling(),
        fusion=fusion.fused(),
        schedule=fusion.steps(),
        policy=fusion.policy,
    )
    context = _context(user_file, retrieval.store)
    console = Console(highlight=False)
    state = mode or (Mode.FUSED if cloud else Mode.EDGE)
    opened = connection.open_for(Mode.FUSED if cloud else state, cloud)
    assistant = device.load(bundle)
    console.print(f"[bold]{assistant.bundle.manifest.model.id}[/bold], mode {state}. /help shows the commands.")
    with Ledger(ledger) as book, retrieval.open(bundle) as found:
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
                    console.print(with_flags(str(error)), markup=False, style="red")
                    continue
                answer = assistant.generate(instruction, used, mode=state, cloud=opened, options=options, ledger=book)
                _stream(answer, console)
    if opened is not None:
        opened.close()


def _stream(answer: Answer, console: Console) -> None:
    try:
        for piece in answer:
            console.print(piece, end="", markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        answer.close()
    except CogenesisError as error:
        console.print(f"[red]{with_flags(str(error))}[/red]")
        return
    console.print()
    console.print(f"[dim]{_summary(answer.result)}[/dim]")


def _summary(result: AnswerResult) -> str:
    stats = result.stats
    text = f"{result.mode}: {len(result.token_ids)} tokens, {stats.tokens_per_second:.0f} tokens/s"
    if stats.round_trips:
        text += f", {stats.round_trips} round trips, {stats.bytes_up:,} bytes up, {stats.bytes_down:,} down"
    text += "".join(f". {count} tokens by the device alone: {ALONE[reason]}" for reason, count in result.alone.items())
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
            f"Private context on this device: {len(context.profile):,} characters of profile, "
            f"{len(context.history)} past texts."
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
        console.print(with_flags(str(error)), markup=False, style="red")
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
        console.print(f"All messages are in {ledger.path}.", soft_wrap=True)


def _context(user_file: Path | None, store: Path | None) -> PrivateContext:
    if user_file is not None and store is not None:
        raise RequestError("Give --context or --store, not both.")
    if store is not None:
        from edge_runtime.store.profile_store import ProfileStore

        with ProfileStore(store) as profiles:
            return profiles.context()
    if user_file is not None:
        from edge_runtime.request import load_json, parse_context

        return parse_context(load_json(user_file), user_file)
    return PrivateContext()
