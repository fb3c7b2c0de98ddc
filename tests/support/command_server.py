"""Runs shell scripts whose `cogenesis` commands go to this process, where the libraries are loaded already.

A script stays as it is and is run by bash; its commands run one after the other by the real command line.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from typer.testing import CliRunner

from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.server.serve import ServerOptions, serving
from cogenesis.cli import app
from edge_runtime.errors import CogenesisError

# What `cogenesis` is in the script: sends its arguments, prints what comes back, ends as the command did.
_FUNCTION = r"""
cogenesis() {
    local ended
    exec 9<>"/dev/tcp/127.0.0.1/$COMMANDS_PORT"
    printf '%s\0' "$#" "$@" >&9
    IFS= read -r ended <&9
    cat <&9
    exec 9>&-
    return "$ended"
}
export -f cogenesis
exec bash "$@"
"""


def run_script(script: Path, folder: Path, **settings: object) -> list[list[str]]:
    """Run a script in a folder, with settings in its environment; it must end well.

    Returns:
        Its commands.
    """
    commands: list[list[str]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as served:
        listener.settimeout(0.05)
        environment = os.environ | {name: str(value) for name, value in settings.items()}
        environment["COMMANDS_PORT"] = str(listener.getsockname()[1])
        process = subprocess.Popen(
            ["bash", "-c", _FUNCTION, "bash", script], cwd=folder, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while process.poll() is None:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            command = _received(connection)
            commands.append(command)
            if command[:2] == ["cloud", "serve"]:
                served.enter_context(_serving(command))
                served.enter_context(connection)  # the command ends with the script
                continue
            with connection:
                connection.sendall(_done(command))
        output, errors = process.communicate()
    assert process.returncode == 0, f"{commands[-1:]}\n{output[-2000:]}\n{errors[-4000:]}"
    return commands


def _received(connection: socket.socket) -> list[str]:
    content = b""
    while (parts := content.split(b"\0"))[0] == b"" or len(parts) < int(parts[0]) + 2:
        content += connection.recv(1 << 16)
    return [part.decode() for part in parts[1:-1]]


def _done(command: list[str]) -> bytes:
    """How a command ended, and what it printed."""
    result = CliRunner().invoke(app, command)
    if isinstance(result.exception, CogenesisError):
        print(f"{' '.join(command)}: {result.exception}")
        return b"1\n"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return f"{result.exit_code}\n{result.stdout}".encode()


@contextmanager
def _serving(command: list[str]) -> Iterator[None]:
    def value(option: str) -> str:
        return command[command.index(option) + 1]

    engine = load_onnx_engine(value("--bundle"), threads=1)
    with serving(engine, ServerOptions(port=int(value("--port")))):
        yield
