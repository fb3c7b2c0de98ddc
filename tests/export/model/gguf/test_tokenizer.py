"""The tokenizer of a GGUF file splits text as llama.cpp does; its own library is the oracle."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from export.errors import SourceError, UnsupportedModelError
from export.model.gguf.parts import read_parts
from export.model.gguf.tokenizer import KNOWN_SPLITS, gguf_tokenizer
from tests.support.llama_cpp import llama_cpp_vocabulary
from tests.support.tiny_models import __file__ as beside

TEXT = Path(beside).with_name("tokenizer_text.txt").read_text(encoding="utf-8")
LINES = [
    *TEXT.splitlines()[:40],
    "def f(x):\n\treturn x**2  # 12345 67",
    "  leading   spaces\n\n\n and\ttabs \r\n",
    "東京の天気 🙂 Grüße naïve",
    "don't we'll I'M they'VE",
    "שלום עולם مرحبا हिन्दी",
    "a1b22c333d4444 100,000.50 €/kg (50%)",
    "ÀÉÎõü mixedCASE HTMLParser iPhone ǅ ʰ ª",
    "foo/bar//baz ...!!!??? \u00a0 ",
    "<|im_start|>user\nhi<|im_end|>",
    "x<tool_call>y</tool_call> <think>z",
]
CONTROL, USER_DEFINED = ["<|im_start|>", "<|im_end|>", "<|fim_prefix|>"], ["<tool_call>", "</tool_call>", "<think>"]


@pytest.fixture(scope="module")
def bpe():
    """A byte-level vocabulary and its merges, which cross the borders of words so that every split matters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    model = json.loads(tokenizer.to_str())["model"]
    # The trained vocabulary must not hold the tokens that are added.
    tokens = [
        f"x{i}" if token in CONTROL else token for i, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))
    ]
    return tokens, [" ".join(pair) for pair in model["merges"]]


def finished(writer, path):
    """Add the sizes without which llama.cpp reads no vocabulary, and close the file."""
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_head_count(1)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def write(path, bpe, split, padding=2, kind="gpt2"):
    tokens, merges = bpe
    added = CONTROL + USER_DEFINED
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(split)
    writer.add_token_list([*tokens, *added, *(f"[PAD{i}]" for i in range(padding))])
    writer.add_token_types([*[1] * len(tokens), *[3] * len(CONTROL), *[4] * len(USER_DEFINED), *[5] * padding])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    return finished(writer, path)


def converted(path):
    fields = read_parts(path).fields
    own = {name.removeprefix("tokenizer."): value for name, value in fields.items() if name.startswith("tokenizer.")}
    return gguf_tokenizer(own, str(path))


def tokenizer_of(path):
    return Tokenizer.from_str(converted(path).json)


@pytest.mark.parametrize("split", sorted(KNOWN_SPLITS))
def test_text_is_split_as_llama_cpp_splits_it(split, bpe, tmp_path):
    path = write(tmp_path / "a.gguf", bpe, split)
    tokenizer = tokenizer_of(path)
    with llama_cpp_vocabulary(path) as vocabulary:
        for line in LINES:
            assert tokenizer.encode(line, add_special_tokens=False).ids == vocabulary.encode(line), line
        # The token in front of every text, or none.
        assert tokenizer.encode("hi").ids == vocabulary.encode("hi", add_special=True)


@pytest.mark.parametrize("split", ["llama-bpe", "smollm", "tekken", "gpt-4o"])
def test_any_text_is_split_as_llama_cpp_splits_it(split, bpe, tmp_path):
    path = write(tmp_path / "a.gguf", bpe, split)
    tokenizer = tokenizer_of(path)
    with llama_cpp_vocabulary(path) as vocabulary:

        @settings(max_examples=60, deadline=None)
        @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0", max_codepoint=0x2FFF)))
        def check(text):
            assert tokenizer.encode(text, add_special_tokens=False).ids == vocabulary.encode(text)

        check()


def test_control_tokens_are_special_and_user_defined_ones_are_text(bpe, tmp_path):
    tokenizer = tokenizer_of(write(tmp_path / "a.gguf", bpe, "gpt-2"))
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {**dict.fromkeys(CONTROL, True), **dict.fromkeys(USER_DEFINED, False)}
    assert tokenizer.decode(tokenizer.encode("a<think>b<|im_end|>").ids) == "a<think>b"


def test_placeholders_behind_the_vocabulary_are_no_tokens(bpe, tmp_path):
    tokens = len(bpe[0]) + len(CONTROL) + len(USER_DEFINED)
    assert tokenizer_of(write(tmp_path / "a.gguf", bpe, "qwen2", padding=7)).get_vocab_size() == tokens


@pytest.mark.parametrize("split", ["default", "deepseek-coder", "a-new-one"])
def test_a_split_that_is_not_known_is_refused_by_name(split, bpe, tmp_path):
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.ggml.pre is '{split}'.*Hugging Face directory"):
        converted(write(tmp_path / "a.gguf", bpe, split))


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv"])
def test_a_kind_that_is_not_known_is_refused_by_name(kind, bpe, tmp_path):
    with pytest.raises(UnsupportedModelError, match=f"tokenizer.ggml.model is '{kind}'"):
        converted(write(tmp_path / "a.gguf", bpe, "default", kind=kind))


def test_a_missing_field_is_named():
    with pytest.raises(SourceError, match=r"lacks the field tokenizer\.ggml\.merges"):
        gguf_tokenizer({"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": ["a"]}, "x")


def write_pieces(path, prefix):
    """Write a SentencePiece vocabulary: bytes, letters, and words with scores that contradict their lengths."""
    letters = sorted({letter for letter in TEXT if letter.isalpha() and letter.isascii()} | set(".,!?'"))
    words = ["he", "th", "the", "in", "er", "▁t", "▁the", "▁a", "ing", "▁w", "or", "ord", "▁word", "is", "▁i", "▁is"]
    plain = ["▁", *letters, *words]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *plain, "<think>"]
    types = [2, 3, 3, *[6] * 256, *[1] * len(plain), 4]
    scores = [0.0] * 259 + [-1e3 - i for i in range(1 + len(letters))] + [-float(i) for i in range(len(words))] + [0.0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    return finished(writer, path)


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_are_merged_as_llama_cpp_merges_them(prefix, tmp_path):
    path = write_pieces(tmp_path / "a.gguf", prefix)
    tokenizer = tokenizer_of(path)
    lines = [*LINES, "the other word is in the ring", " the  the", "<think>the</s>the word", "a<s> the"]
    with llama_cpp_vocabulary(path) as vocabulary:
        for line in lines:
            assert tokenizer.encode(line, add_special_tokens=False).ids == vocabulary.encode(line), line
        assert tokenizer.encode("hi").ids == vocabulary.encode("hi", add_special=True)
    assert tokenizer.decode(tokenizer.encode("the other word").ids) == "the other word"
