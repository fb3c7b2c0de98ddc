"""Streams an answer in asyncio without blocking the event loop. Usage: embed_async.py BUNDLE [CLOUD]."""

import asyncio
import json
import sys
from pathlib import Path

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import Options, PrivateContext, PublicInstruction


async def main() -> None:
    """Write one answer."""
    user = json.loads((Path(__file__).parent / "user" / "user.json").read_text(encoding="utf-8"))
    instruction = PublicInstruction(user["tasks"][1]["instruction"])
    assistant = await asyncio.to_thread(edge_runtime.load, sys.argv[1])
    cloud = connect(sys.argv[2]) if len(sys.argv) > 2 else None
    mode = "fused" if cloud else "edge"
    options = Options(max_new_tokens=64)
    context = PrivateContext(profile=user["profile"])
    answer = assistant.generate(instruction, context, mode=mode, cloud=cloud, options=options)
    async for piece in answer:
        print(piece, end="", flush=True)
    print(f"\n[{answer.result.finish_reason}]")


asyncio.run(main())
