"""One way to put a link between a device and a cloud, whichever emulation the machine allows."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from benchmarks.links.namespaces import Namespaces, unavailable
from benchmarks.links.proxy import Proxy

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from benchmarks.links.presets import Link

Emulation = Literal["auto", "namespace", "proxy"]


class Network(Protocol):
    """Two sides with a link between them, which can be changed while they talk.

    Attributes:
        kind: "namespace" or "proxy".
        cloud_host: what a server on the cloud's side listens at.
    """

    kind: str
    cloud_host: str

    def start_cloud(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on the cloud's side; options are Popen's. It is ended with the network."""
        ...

    def start_device(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on the device's side; options are Popen's. It is ended with the network."""
        ...

    def address(self, target: str) -> str:
        """Where the device reaches "HOST:PORT" of the cloud, through the link."""
        ...

    def use(self, link: Link, seed: int = 0) -> None:
        """Change the link under the connections that there are."""
        ...


@contextmanager
def emulated(link: Link, target: str, seed: int = 0) -> Iterator[str]:
    """A link in front of `target` ("HOST:PORT"), for callers in this process: gives the address to connect to."""
    with Proxy(link, target, seed) as proxy:
        yield proxy.address


@contextmanager
def network(link: Link, emulation: Emulation = "auto", seed: int = 0) -> Iterator[Network]:
    """Two sides and a link, by namespaces where the machine allows it or by a proxy.

    Raises:
        RuntimeError: "namespace" was asked for and can't be had; says why.
    """
    reason = unavailable() if emulation != "proxy" else ""
    if emulation == "namespace" and reason:
        raise RuntimeError(reason)
    with ExitStack() as stack:
        if emulation == "proxy" or reason:
            yield _ProxyNetwork(link, seed, stack)
        else:
            yield _NamespaceNetwork(stack.enter_context(Namespaces(link, seed)), stack)


def add_emulation(parser: argparse.ArgumentParser) -> None:
    """Add `--emulation` to a benchmark's arguments."""
    parser.add_argument(
        "--emulation",
        choices=("auto", "namespace", "proxy"),
        default="auto",
        help="how links are emulated: real packets between network namespaces (Linux, root), or a TCP proxy",
    )


class _ProxyNetwork:
    kind = "proxy"
    cloud_host = "127.0.0.1"

    def __init__(self, link: Link, seed: int, stack: ExitStack) -> None:
        self._link, self._seed, self._stack = link, seed, stack
        self._proxies: list[Proxy] = []

    def start_cloud(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, text=True, **options)
        self._stack.callback(_end, process)
        return process

    start_device = start_cloud

    def address(self, target: str) -> str:
        proxy = self._stack.enter_context(Proxy(self._link, target, self._seed))
        self._proxies.append(proxy)
        return proxy.address

    def use(self, link: Link, seed: int = 0) -> None:
        self._link, self._seed = link, seed
        for proxy in self._proxies:
            proxy.use(link, seed)


class _NamespaceNetwork:
    kind = "namespace"
    cloud_host = Namespaces.address["cloud"]

    def __init__(self, namespaces: Namespaces, stack: ExitStack) -> None:
        self._namespaces, self._stack = namespaces, stack

    def start_cloud(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = self._namespaces.start("cloud", command, **options)
        self._stack.callback(_end, process)
        return process

    def start_device(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = self._namespaces.start("device", command, **options)
        self._stack.callback(_end, process)
        return process

    def address(self, target: str) -> str:
        return target

    def use(self, link: Link, seed: int = 0) -> None:
        self._namespaces.use(link, seed)


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
