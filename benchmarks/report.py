"""What every benchmark shares: the machine it ran on, medians and spreads, a table for people and JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CACHE = Path(__file__).resolve().parent.parent / "build" / "benchmarks"
"""Where benchmarks keep what is slow to make (exported bundles, reference logits); git ignores it."""

_PAGE = 160
"""Characters of a line where the output is no terminal."""

_PACKAGES = ("onnxruntime", "numpy", "tokenizers", "torch", "transformers", "llama-cpp-python", "rank-bm25", "bm25s")


def median(values: Sequence[float]) -> float:
    """The middle value, which one slow run can't move."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a share of the median: 0.05 reads as ±5 %."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    middle = median(values)
    return (high - low) / 2 / abs(middle) if middle else 0.0


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios of interleaved runs: what slows both runs of a pair down cancels out."""
    return median([mine / other for mine, other in zip(ours, theirs, strict=True)])


def machine() -> dict[str, Any]:
    """The machine and the packages that a number depends on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gb": _memory_gb(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def emit(
    headline: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    as_json: bool,
    *,
    title: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Print the result: `{"headline": ..., "rows": ..., "machine": ...}` or a table of the rows.

    Args:
        headline: the few numbers that are tracked from run to run.
        rows: one mapping a line of the table; columns are the keys in the order of their first appearance.
        as_json: print for machines.
        title: above the table.
        notes: lines below it.
    """
    if as_json:
        json.dump({"headline": dict(headline), "rows": [dict(row) for row in rows], "machine": machine()}, sys.stdout)
        sys.stdout.write("\n")
        return
    console = Console(width=None if sys.stdout.isatty() else _PAGE)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title or None, title_justify="left")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console.print(table)
    console.print(", ".join(f"{name} = {_cell(value)}" for name, value in headline.items()), highlight=False)
    for note in notes:
        console.print(note, highlight=False)
    about = machine()
    console.print(f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB", style="dim", highlight=False)


def progress(message: str) -> None:
    """Say on standard error what is being done; standard output stays the result's."""
    print(message, file=sys.stderr, flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
