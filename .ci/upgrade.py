"""Raises constraints.txt to the newest versions that pip installs together; `make upgrade` calls this.

A line that ends in "# held: REASON" keeps its version: remove the remark to let go of it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PIN = re.compile(r"([\w.\-]+)==([^\s#]+)(.*)")


def held(lines: list[str]) -> list[str]:
    """Return the pins that stay."""
    return [line for line in lines if "# held:" in line]


def raised(line: str, installed: str | None) -> str:
    """Return a line of the file with the installed version in place of the pinned one."""
    pin = PIN.fullmatch(line)
    return line if pin is None or installed is None or "# held:" in line else f"{pin[1]}=={installed}{pin[3]}"


def _installed(line: str) -> str | None:
    pin = PIN.fullmatch(line)
    try:
        return version(pin[1]) if pin else None
    except PackageNotFoundError:  # only a benchmark's
        return None


def main() -> None:
    """Install the newest versions and write them down."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as pins:
        pins.write("\n".join(held(lines)) + "\n")
        pins.flush()
        newest = ("--upgrade", "--upgrade-strategy", "eager", "--no-compile", "-c", pins.name, "-e", ".[dev]")
        subprocess.run([sys.executable, "-m", "pip", "-q", "install", *newest], check=True, cwd=CONSTRAINTS.parent)
    changed = [raised(line, _installed(line)) for line in lines]
    CONSTRAINTS.write_text("\n".join(changed) + "\n", encoding="utf-8")
    for before, after in zip(lines, changed, strict=True):
        if before != after:
            print(f"{before} -> {after}")


if __name__ == "__main__":
    main()
