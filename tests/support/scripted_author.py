"""A large model without a model: replies to the prompts of `collab data generate` as a good one would, in each form."""

from __future__ import annotations

import json
import random
import re
from typing import Any

TRADES = (
    "bakers",
    "nurses",
    "sailors",
    "teachers",
    "farmers",
    "violinists",
    "mechanics",
    "judges",
    "potters",
    "pilots",
)
PLACES = ("Lisbon", "Oslo", "Kyoto", "Quito", "Cork", "Turin", "Accra", "Perth", "Riga", "Tunis")
NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Joe", "Kim", "Lou", "May", "Ned", "Oda")
WORDS = ("harbour", "letter", "winter", "garden", "market", "song", "river", "bread", "engine", "court", "clay", "sky")


def reply(body: dict[str, Any]) -> str:
    """What is answered; the same prompt always gets the same."""
    prompt = body["messages"][-1]["content"].split("\n\nAn earlier reply")[0]
    rng = random.Random(prompt)
    if prompt.startswith("List") and "groups" in prompt:
        count = int(prompt.split()[1])
        known = prompt.count("\n- ")
        groups = [
            f"{PLACES[i]} {TRADES[i]} who {' and '.join(rng.sample(WORDS, 5))}" for i in range(known, known + count)
        ]
        return f"Sure!\n```json\n{json.dumps(groups)}\n```"
    if prompt.startswith("Invent"):
        letter = re.search(r"letter (\w)", prompt)
        first, last = rng.choice(NAMES).lower(), rng.choice(WORDS).title()
        name = f"{letter[1] if letter else 'X'}{first} {last}{rng.randrange(999)}"
        facts = [f"{rng.choice(WORDS)} {rng.choice(WORDS)} {rng.randrange(9999)}" for _ in range(6)]
        many = {key: rng.sample(WORDS, 4) for key in ("personal_traits", "writing_style", "smart_device_usage")}
        person = {"name": name, "age": rng.randrange(18, 90), "occupation": "works", "location": "here"}
        return json.dumps(person | many | {"privacy_info": facts, "ai_assistant_usage": ["mails"]})
    if "List" in prompt:
        count = int(re.search(r"List (\d+) texts", prompt)[1])
        kinds = ("speech", "mail", "post", "note", "report", "poem", "review", "toast")
        titles = [f"Write a {kind} about {rng.random()} {rng.choice(WORDS)}" for kind in kinds[:count]]
        return json.dumps([{"title": title, "detail": f"Say {rng.random()}."} for title in titles])
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(99)}" for _ in range(60))
