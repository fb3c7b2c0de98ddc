"""CoGenesis' context-aware dev set: writing tasks with a user's profile and past texts."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
"""The evaluation data, beside the project."""

DATA = SHARED_DATA / "cogenesis"


@dataclass(frozen=True, slots=True)
class Record:
    """One task: public instruction, private context, published answer, and the authors' prompt of it all."""

    instruction: PublicInstruction
    context: PrivateContext
    answer: str
    prompt: str


def ctx_records(data: Path = DATA) -> list[Record]:
    """Return all records, in the order of ctx_dev.json; exit with a message if the data are missing."""
    if not data.is_dir():
        sys.exit(f"The evaluation data are missing: {data}. Put them beside the project.")
    prompts, structured, without = (
        json.loads((data / name).read_text(encoding="utf-8"))
        for name in ("ctx_dev.json", "context_aware_dev.json", "ctx_dev_wo.json")
    )
    parts = {record["tid"]: record for record in structured}
    tasks = {record["tid"]: record["conversations"][0]["value"] for record in without}
    return [
        Record(
            PublicInstruction(tasks[record["tid"]]),
            PrivateContext(
                parts[record["tid"]]["additional_profile"],
                tuple(HistoryItem(item["title"], item["text"]) for item in parts[record["tid"]]["profile"]),
            ),
            record["conversations"][1]["value"],
            record["conversations"][0]["value"],
        )
        for record in prompts
    ]
