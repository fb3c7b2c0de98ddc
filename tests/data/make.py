"""Writes the files of this folder that repeat what other files here say. Run it after you change one of those.

See README.md for which files are written by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

ASSISTANT = (
    "You are now a helpful personal AI assistant. You should emulate the author's style and tone based on provided "
    "history content. Your responses should be detailed and informative, {how}. Aim for insightful and high-quality "
    "solutions that make users satisfied."
)
WITH_PROFILE = ASSISTANT.format(how="using the personal information reasonably in the user's profile")
WITH_PAPERS = ASSISTANT.format(how="matching the author's unique writing approach")
PAPERS = 14  # the last two are further papers of the first two authors


def prompts_with_context(structured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of `context_aware_dev.json` in the form of `ctx_dev.json`: everything is in one prompt."""
    return [
        conversation(
            record["tid"],
            f"{WITH_PROFILE}\n\n## User Profile\n{record['additional_profile']}\n\n## User Writing History\n"
            f"{past_texts('Task', [(item['title'], item['text']) for item in record['profile']])}"
            f"## Task\n{record['conversations'][0]['value']}\n",
            record["conversations"][1]["value"],
        )
        for record in structured
    ]


def prompts_alone(structured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same tasks without any context."""
    return [conversation(record["tid"], *(turn["value"] for turn in record["conversations"])) for record in structured]


def papers(
    questions: list[dict[str, Any]], golds: list[dict[str, str]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """LaMP-5 questions the other way round, an abstract for a title: with the author's other papers and without."""
    with_context, alone = [], []
    for question, gold in zip(questions, golds, strict=True):
        abstract = question["input"].partition(": ")[2]
        task = (
            f"Compose an abstract for the title '{gold['output']}' that matches the author's unique content, "
            "style and tone."
        )
        past = past_texts("Title", [(item["title"], item["abstract"]) for item in question["profile"]])
        prompt = f"{WITH_PAPERS}\n\n## History Paper Abstracts\n{past}## Task\n{task}\n"
        with_context.append(conversation(question["id"], prompt, abstract))
        alone.append(conversation(question["id"], task, abstract))
    return with_context, alone


def past_texts(label: str, items: list[tuple[str, str]]) -> str:
    """A section of past texts, as it stands in a prompt."""
    return "".join(f"{label}: {title}\nContent: {text}\n\n" for title, text in items)


def conversation(tid: str, prompt: str, answer: str) -> dict[str, Any]:
    """A record of a prompt and its answer."""
    turns = [{"from": "user", "value": prompt}, {"from": "assistant", "value": answer}]
    return {"tid": tid, "conversations": turns}


def derived(data: Path) -> dict[str, list[dict[str, Any]]]:
    """What the derived files must hold, by file name, according to the files written by hand."""
    structured = read(data / "cogenesis" / "context_aware_dev.json")
    questions = read(data / "lamp" / "LaMP_5" / "dev_questions.json")[:PAPERS]
    golds = read(data / "lamp" / "LaMP_5" / "dev_outputs.json")["golds"][:PAPERS]
    with_context, alone = papers(questions, golds)
    return {
        "ctx_dev.json": prompts_with_context(structured),
        "ctx_dev_wo.json": prompts_alone(structured),
        "paper_dev.json": with_context,
        "paper_dev_wo.json": alone,
    }


def read(path: Path) -> Any:
    """The body of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for name, records in derived(HERE).items():
        text = json.dumps(records, indent=2, separators=(",", ":"))
        (HERE / "cogenesis" / name).write_text(text + "\n", encoding="utf-8")
