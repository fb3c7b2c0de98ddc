"""A tiny model whose likeliest ids have no token: padding behind the tokenizer, and holes in it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.tiny_models import SHAPE, VOCABULARY, make_tokenizer

HOLES = (300, 301)


def make_padded_model(directory: Path) -> Path:
    """Save a Llama with 384 rows for 376 tokens, which have the ids 0 to 377 except for two in the middle."""
    torch.manual_seed(5)
    config = AutoConfig.for_model("llama", **{**SHAPE, "tie_word_embeddings": False})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.15)
        # One of each pair is far above all tokens, whatever the text.
        for first in (HOLES[0], 378, 382):
            model.lm_head.weight[first] *= 20
            model.lm_head.weight[first + 1] = -model.lm_head.weight[first]
    model.save_pretrained(directory)
    with_holes().save_pretrained(directory)
    return directory


def with_holes() -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with the ids from 300 on moved up by two."""
    source = make_tokenizer()
    body = json.loads(source.backend_tokenizer.to_str())
    vocabulary = body["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(VOCABULARY - 8))
    body["model"]["vocab"] = {token: at + 2 * (at >= HOLES[0]) for token, at in vocabulary.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(body)),
        bos_token=source.bos_token,
        eos_token=source.eos_token,
        chat_template=source.chat_template,
    )


UNKNOWN = (*HOLES, *range(378, VOCABULARY))
"""Ids of the model that no token has."""
KNOWN = tuple(token for token in range(VOCABULARY) if token not in UNKNOWN)
