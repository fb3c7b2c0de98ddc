"""The namespace link: commands in two network namespaces, and nothing left of them afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.links.namespaces import Namespaces, unavailable
from benchmarks.links.presets import Link
from tests.support.commands import ROOT

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def test_the_sides_reach_nothing_but_each_other():
    with Namespaces(Link("none")) as namespaces:
        with namespaces.start("device", ["ip", "-brief", "link"], stdout=subprocess.PIPE) as listing:
            devices = {line.split()[0].split("@")[0] for line in listing.stdout}
        with namespaces.start("device", ["ip", "route"], stdout=subprocess.PIPE) as routes:
            assert "default" not in routes.stdout.read()
    assert {"lo", "wire0"} <= devices
    assert not any(name.startswith(("eth", "en", "wl")) for name in devices)


def test_nothing_is_left_behind():
    before = _names()
    with Namespaces(Link("none")) as namespaces:
        sleeper = namespaces.start("cloud", ["sleep", "600"])
        spaces = [Path(namespaces._control.hello[side]).stat().st_ino for side in ("device", "cloud")]
        _wait_until(lambda: _inhabitants(spaces))
    assert sleeper.wait(timeout=10) == -signal.SIGKILL, "a command that was forgotten is ended"
    assert not _inhabitants(spaces)
    assert _names() == before


def test_nothing_is_left_behind_by_a_crash():
    code = (
        "from benchmarks.links.presets import Link; from benchmarks.links.namespaces import Namespaces\n"
        "import json, os, time\n"
        "namespaces = Namespaces(Link('none')); namespaces.start('cloud', ['sleep', '600'])\n"
        "hello = namespaces._control.hello\n"
        "print(json.dumps([os.stat(hello[side]).st_ino for side in hello]), flush=True); time.sleep(600)"
    )
    before = _names()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as starter:
        spaces = json.loads(starter.stdout.readline())
        _wait_until(lambda: _inhabitants(spaces))
        starter.send_signal(signal.SIGKILL)
    _wait_until(lambda: not _inhabitants(spaces))
    assert _names() == before


def _names() -> str:
    """The namespaces that have names."""
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def _inhabitants(spaces: list[int]) -> list[str]:
    """The processes in these namespaces."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino in spaces:
                found.append(process.name)
        except OSError:
            continue
    return found


def _wait_until(condition) -> None:
    """Wait for a time that only a hang exceeds."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail("It did not happen within ten seconds.")
