"""What tests of training share: tiny models of both kinds, users' texts, and plain torch and PEFT as the oracle."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

from personalization.users.data import Pair, UserData
from tests.support.tiny_models import VOCABULARY, make_tokenizer

WORDS = (
    *("the", "a", "boat", "wind", "river", "letter", "friend", "market", "morning"),
    *("old", "quiet", "bright", "writes", "sails", "reads", "under", "over", "with"),
)


def make_t5(directory: Path) -> Path:
    """Save a tiny random T5, whose tokenizer ends every text as T5's does."""
    torch.manual_seed(3)
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**shape, **special))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", 1)]
    )
    tokenizer.save_pretrained(directory)
    return directory


def text(seed: object, words: int) -> str:
    """Some words, always the same for a seed."""
    return " ".join(random.Random(str(seed)).choices(WORDS, k=words))


def user(name: str, items: int = 4, words: int = 12) -> UserData:
    """A user who wrote some texts."""
    pairs = tuple(Pair(f"Write {text((name, i), 4)}", text((name, i, "answer"), words + i)) for i in range(items))
    return UserData(name, "CoGenesis", pairs, profile=f"Name: {name}")


def record(tid: str, items: int = 4, **fields: Any) -> dict[str, Any]:
    """A CoGenesis record of a user who wrote some texts."""
    pairs = user(tid, items).pairs
    return {
        "tid": tid,
        "conversations": [
            {"from": "user", "value": f"Write {text((tid, 'q'), 5)}"},
            {"from": "assistant", "value": text((tid, "a"), 15)},
        ],
        "profile": [{"id": str(i), "title": pair.task, "text": pair.answer} for i, pair in enumerate(pairs)],
        "additional_profile": f"Age: 40\nName: {tid}\nLocation: Here",
        **fields,
    }


def write_json(path: Path, body: Any) -> Path:
    path.write_text(json.dumps(body), encoding="utf-8")
    return path


def torch_model(directory: Path) -> Any:
    """A model as transformers loads it, a new copy."""
    kind = AutoModelForSeq2SeqLM if "T5" in (directory / "config.json").read_text() else AutoModelForCausalLM
    return kind.from_pretrained(directory, dtype=torch.float32).eval()


def peft_model(directory: Path, adapter: Path) -> Any:
    """A model with an adapter as PEFT loads both."""
    return PeftModel.from_pretrained(torch_model(directory), adapter).eval()
