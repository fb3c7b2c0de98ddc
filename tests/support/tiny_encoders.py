"""Tiny random text encoders, and questions whose best items are known: topics are asked and told in other words."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from personalization.retrievers.examples import RetrieverExample

TOPICS = 6
FILLERS = tuple(f"word{index}" for index in range(20))
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_VOCABULARY = (
    *_SPECIAL,
    *FILLERS,
    *(f"{verb}{topic}" for verb in ("asks", "tells") for topic in range(TOPICS)),
)


def make_encoder(directory: Path, kind: str = "bert", *, dropout: float = 0.0, **config: Any) -> Path:
    """Save a tiny random encoder whose words are those of `topic_question`, and whose scores are not far apart."""
    torch.manual_seed(5)
    shape = {
        "vocab_size": len(_VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**shape, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("output.LayerNorm.weight") and "attention" not in name:
                parameter.mul_(0.5)
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, _SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(directory)
    return directory


def topic_question(seed: object, items: int = 4, topics: int = TOPICS) -> RetrieverExample:
    """A question about one of some topics, and items of different ones: that of the same topic alone is worth 1."""
    draw = random.Random(str(seed))
    told = draw.sample(range(topics), items)
    asked = draw.choice(told)
    return RetrieverExample(
        _text(draw, f"asks{asked}"),
        tuple(_text(draw, f"tells{topic}") for topic in told),
        tuple(float(topic == asked) for topic in told),
    )


def _text(draw: random.Random, word: str) -> str:
    words = [*draw.choices(FILLERS, k=2), word]
    draw.shuffle(words)
    return " ".join(words)


def write_feedback(directory: Path, examples: Sequence[RetrieverExample]) -> dict[str, Path]:
    """Write examples as LaMP-5 questions and feedback on their profile items; options of `ropg` and their files."""
    questions, feedback = [], {}
    for number, example in enumerate(examples):
        profile = []
        for place, (document, gain) in enumerate(zip(example.documents, example.gains, strict=True)):
            title, abstract = document.split(" ", 1)
            profile.append({"id": f"{number}-{place}", "title": title, "abstract": abstract})
            feedback[f"{number}-{number}-{place}"] = {"rouge-1": gain}
        questions.append({"id": str(number), "input": f"A title for: {example.query}", "profile": profile})
    directory.mkdir(parents=True, exist_ok=True)
    files = {"--questions": directory / "questions.json", "--feedback": directory / "feedback.json"}
    for file, body in zip(files.values(), (questions, feedback), strict=True):
        file.write_text(json.dumps(body), encoding="utf-8")
    return files
