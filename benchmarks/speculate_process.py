"""A device for speculate.py: loads a bundle once, then writes the answers asked for on standard input.

A line of JSON in: record, mode, window, tokens, policy, weight, temperature, top_p, seed. A line out: the answer's
tokens, which of them are fused, its statistics and what went wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime.fusion.fuse import Fusion
from edge_runtime.generation.options import Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.privacy.gate import Policy
from tests.support.records import Record, ctx_records

if TYPE_CHECKING:
    from edge_runtime.assistant import Assistant
    from edge_runtime.cloud import Cloud


def main() -> None:
    """Serve standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("address", help="HOST:PORT of the cloud")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    records = ctx_records()
    assistant = edge_runtime.load(arguments.bundle, threads=arguments.threads, verify=False)
    with connect(arguments.address) as cloud:
        _say({"ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            _say(_answer(assistant, cloud, records[request["record"]], request))


def _answer(assistant: Assistant, cloud: Cloud, record: Record, request: dict[str, Any]) -> dict[str, Any]:
    options = Options(
        max_new_tokens=request["tokens"],
        sampling=Sampling(temperature=request["temperature"], top_p=request["top_p"], seed=request["seed"]),
        window=request["window"],
        policy=Policy(request["policy"]),
        fusion=Fusion(weight=request["weight"]),
    )
    began = time.perf_counter()
    result = assistant.generate(
        record.instruction, record.context, mode=request["mode"], cloud=cloud, options=options
    ).finish()
    return {
        "seconds": time.perf_counter() - began,
        "token_ids": result.token_ids,
        "fused": result.fused,
        "cloud_error": result.cloud_error,
        "stats": {name: getattr(result.stats, name) for name in type(result.stats).__slots__},
    }


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
