"""Embeds the runtime in an app and streams one personalized answer. Usage: embed.py BUNDLE [CLOUD_ADDRESS]."""

import json
import sys
from pathlib import Path

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import HistoryItem, Options, PrivateContext, PublicInstruction

user = json.loads((Path(__file__).parent / "user" / "user.json").read_text(encoding="utf-8"))
context = PrivateContext(user["profile"], tuple(HistoryItem(item["title"], item["text"]) for item in user["history"]))
instruction = PublicInstruction(user["tasks"][0]["instruction"])

# A shorter context drops the least relevant past texts, and so the first word comes sooner.
assistant = edge_runtime.load(sys.argv[1], context_length=1024)
cloud = connect(sys.argv[2]) if len(sys.argv) > 2 else None
mode = "fused" if cloud else "edge"
answer = assistant.generate(instruction, context, mode=mode, cloud=cloud, options=Options(max_new_tokens=64))
for piece in answer:
    print(piece, end="", flush=True)

print(f"\n[{answer.result.finish_reason}, {answer.result.stats.tokens_per_second:.0f} tokens/s]")
for entry in answer.result.ledger.entries:
    print(entry.direction, entry.kind, entry.bytes, "bytes")
