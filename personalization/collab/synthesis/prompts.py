"""What a large model is asked to make a data set: groups of people, their members, what these write, and the texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

_PORTRAITS = """\
List {count} groups of people who often have something to write, at work or in private life.
Describe each group in 8 to 20 words: what they do, how old they are about, where and how they live.
Let the groups differ widely: trades and professions, students and pensioners, towns and countryside, many countries.
{known}
Reply with a JSON list of {count} texts, and nothing else."""

_KNOWN = "\nThese groups are taken; choose others:\n{groups}\n"

_CHARACTER = """\
Invent one person of this group: {portrait}
It is person {number} of {count}; each has a life of their own. The first name begins with the letter {letter}.

Reply with one JSON object, and nothing else. It has these fields:
"name": first and last name
"age": a number
"occupation": what they do for a living
"location": town and country
"personal_traits": a list of 3 to 6 traits and interests
"writing_style": a list of 3 to 6 marks of how they write: tone, length of sentences, favourite words, habits
"privacy_info": a list of 5 to 10 private facts with names, dates, places or numbers: family, health, money, plans
"smart_device_usage": a list of 3 to 8 things that their phone's log shows: appointments, searches, purchases, messages
"ai_assistant_usage": a list of 3 to 6 things that they have an assistant write"""

_TASKS = """\
This is a person:
{profile}

List {count} texts that this person will soon have an assistant write for them: e-mails, posts, speeches, notes, reports
and the like, each of another kind.

Reply with a JSON list of {count} objects, and nothing else. Each has two fields:
"title": the task in 6 to 14 words, as anybody could ask it of a stranger: no names, dates, places or private facts
"detail": one or two sentences on what the text must bring in; they draw on this person's private facts"""

_TEXT = """\
This is a person:
{profile}

Write this text for them, just as they would write it themselves, in their own style:
{task}

It has 120 to 300 words, and brings in what the person's facts tell where it fits. Use no placeholders in brackets.
Reply with the text alone: no heading, no remarks before or after it."""


def portraits_prompt(count: int, known: Sequence[str]) -> str:
    """Step 1: groups of people, none of which is known."""
    groups = "\n".join(f"- {portrait}" for portrait in known)
    return _PORTRAITS.format(count=count, known=_KNOWN.format(groups=groups) if known else "")


def character_prompt(portrait: str, number: int, count: int, letter: str) -> str:
    """Step 2: the `number`-th of `count` members of a group; a letter of its own varies even greedy models."""
    return _CHARACTER.format(portrait=portrait, number=number, count=count, letter=letter)


def tasks_prompt(profile: str, count: int) -> str:
    """Step 3: what a person has to write, what is public of each task apart from what is not."""
    return _TASKS.format(profile=profile, count=count)


def text_prompt(profile: str, task: str) -> str:
    """Step 4: what they write."""
    return _TEXT.format(profile=profile, task=task)


def prompts_digest() -> str:
    """SHA-256 of all prompts, lower-case hex: other prompts give other data."""
    return hashlib.sha256(json.dumps([_PORTRAITS, _KNOWN, _CHARACTER, _TASKS, _TEXT]).encode()).hexdigest()
