"""A device and a cloud in network namespaces of their own, joined by an emulated link of real IP packets.

TCP itself then meets loss, jitter, outages and slow start, which a proxy can only imitate. Needs Linux,
root, /dev/net/tun, `ip` (iproute2) and `nsenter` (util-linux).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from benchmarks.links.control import ControlError, Controlled
from benchmarks.links.netem import CLOUD_ADDRESS, DEVICE_ADDRESS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from benchmarks.links.presets import Link

Side = Literal["device", "cloud"]


@cache
def unavailable() -> str:
    """Why this machine can't do it; "" if it can."""
    if missing := [tool for tool in ("ip", "nsenter") if not shutil.which(tool)]:
        return f"Network namespaces need {' and '.join(missing)} (packages iproute2 and util-linux)."
    if os.geteuid() != 0:
        return "Network namespaces need root."
    try:
        Controlled("benchmarks.links.netem").close()
    except ControlError as error:
        return str(error)
    return ""


class Namespaces:
    """Two namespaces and the link between them. Leaving the context ends the commands in them, and then them.

    Raises:
        ControlError: the machine does not allow it; `unavailable()` tells beforehand.
    """

    address: ClassVar[dict[Side, str]] = {"device": DEVICE_ADDRESS, "cloud": CLOUD_ADDRESS}

    def __init__(self, link: Link, seed: int = 0) -> None:
        self._control = Controlled("benchmarks.links.netem")
        self._control.ask(link=link.to_json(), seed=seed)

    def use(self, link: Link, seed: int = 0) -> None:
        """Change the link; packets under way arrive as they would have."""
        self._control.ask(link=link.to_json(), seed=seed)

    def command(self, side: Side, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` on one side."""
        return ["nsenter", f"--net={self._control.hello[side]}", "--", *command]

    def start(self, side: Side, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a command on one side; options are Popen's. Text streams."""
        return subprocess.Popen(self.command(side, command), text=True, **options)

    def close(self) -> None:
        """End the commands and the namespaces."""
        self._control.close()

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
