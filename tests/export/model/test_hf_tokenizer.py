"""A tokenizer is read from its files, whatever class they name, and gives the ids of transformers' AutoTokenizer."""

from __future__ import annotations

import json

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from export.errors import SourceError
from export.model.hf_tokenizer import HFTokenizerFiles, hf_tokenizer
from tests.support.tiny_models import TEMPLATE, make_tokenizer

TEXTS = (
    "",
    "The mayor rang the bell twice.",
    "  two  spaces, a\ttab\nand a line ",
    "<|im_start|>user\nÜber 1,234 naïve cafés 👍🏽<|im_end|>",
    "中文 и кириллица <think>no</think> <tool_call>",
)
WORDS = (
    *("the", "mayor", "rang", "a", "bell", "twice", "and", "then", "once", "more", "user", "two"),
    *("spaces", "tab", "line", "naive", "cafes", "über", "no", "think"),
)


def byte_level() -> Tokenizer:
    return make_tokenizer().backend_tokenizer


def qwen() -> Tokenizer:
    """With Qwen's splitting, because transformers 5 splits so wherever its class is named."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return tokenizer


def sentence_pieces() -> Tokenizer:
    """As Llama 2 has it: no pre-tokenizer, a prepended space, bytes as a fallback, BOS by the post-processor."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
    return tokenizer


def word_pieces() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = list("abcdefghijklmnopqrstuvwxyz")
    words = [*special, *WORDS, *alphabet, *(f"##{letter}" for letter in alphabet)]
    tokenizer = Tokenizer(
        models.WordPiece({word: at for at, word in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


CHAT = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
PIECES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BERT = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
THINK = {"content": "<think>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
CASES = {
    "byte level": (byte_level, {"tokenizer_class": "PreTrainedTokenizerFast", **CHAT}),
    "no class": (byte_level, {"tokenizer_class": "PreTrainedTokenizerFast", **CHAT, "pad_token": "<|im_end|>"}),
    "objects as special tokens": (
        byte_level,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": {"__type": "AddedToken", **THINK, "content": "<|im_start|>"},
        },
    ),
    "tokens beside the file": (
        byte_level,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **CHAT,
            "added_tokens_decoder": {
                "376": {**THINK, "special": False},
                "377": {**THINK, "content": "<tool_call>", "special": True},
            },
        },
    ),
    "special tokens that no file numbers": (
        byte_level,
        {"tokenizer_class": "PreTrainedTokenizerFast", **CHAT, "pad_token": "<think>"},
    ),
    "Qwen": (qwen, {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
                          "unk_token": None, "pad_token": "<|im_end|>", "add_bos_token": False}),
    "Llama": (sentence_pieces, {"tokenizer_class": "PreTrainedTokenizerFast", **PIECES}),
    "BERT": (word_pieces, {"tokenizer_class": "PreTrainedTokenizerFast", **BERT}),
    "BERT's own class": (word_pieces, {"tokenizer_class": "BertTokenizer", "do_lower_case": True, **BERT}),
}  # fmt: skip


def saved(directory, make, config, **files):
    directory.mkdir(parents=True, exist_ok=True)
    make().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


@pytest.mark.parametrize("case", CASES)
def test_the_ids_are_those_of_transformers(case, tmp_path):
    directory = saved(tmp_path, *CASES[case])
    files, oracle = HFTokenizerFiles(directory), AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        for special in (False, True):
            found = files.backend.encode(text, add_special_tokens=special).ids
            assert found == oracle(text, add_special_tokens=special)["input_ids"], (text, special)
    assert files.backend.get_vocab() == oracle.get_vocab()
    names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    assert files.special_tokens == {name: str(getattr(oracle, name)) for name in names if getattr(oracle, name)}
    again = files.fast_tokenizer()
    assert [again(text)["input_ids"] for text in TEXTS] == [oracle(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("name", ["TokenizersBackend", "SomeTokenizerOfNextYear", "Qwen2Tokenizer", None])
def test_the_name_of_the_class_changes_nothing(name, tmp_path):
    plain = saved(tmp_path / "plain", byte_level, {"tokenizer_class": "PreTrainedTokenizerFast", **CHAT})
    other = saved(tmp_path / "other", byte_level, {"tokenizer_class": name, "backend": "tokenizers", **CHAT})
    expected, found = HFTokenizerFiles(plain), HFTokenizerFiles(other)
    assert [found.backend.encode(text).ids for text in TEXTS] == [expected.backend.encode(text).ids for text in TEXTS]
    assert {kind: found.special_tokens[kind] for kind in CHAT} == expected.special_tokens == CHAT


def test_special_tokens_that_the_files_leave_out_are_the_defaults_of_the_class(tmp_path):
    files = HFTokenizerFiles(saved(tmp_path, word_pieces, {"tokenizer_class": "BertTokenizer"}))
    assert files.special_tokens == BERT


def test_bos_and_eos_are_added_as_the_configuration_says(tmp_path):
    def ids(name, **switches):
        config = {"tokenizer_class": "TokenizersBackend", **PIECES, **switches}
        return HFTokenizerFiles(saved(tmp_path / name, sentence_pieces, config)).backend.encode("mayor").ids

    plain = ids("plain")
    assert plain[0] == 1
    assert ids("both", add_bos_token=True, add_eos_token=True) == [*plain, 2]
    assert ids("same", add_bos_token=True) == plain
    assert ids("none", add_bos_token=False) == plain[1:]
    assert ids("end", add_bos_token=False, add_eos_token=True) == [*plain[1:], 2]


@pytest.mark.parametrize("where", ["file", "configuration", "list", "file before configuration", "files"])
def test_the_chat_template_is_found_where_transformers_finds_it(where, tmp_path):
    config, files = {"tokenizer_class": "PreTrainedTokenizerFast", **CHAT}, {}
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE}]
    if where == "list":
        config["chat_template"] = several
    elif where == "configuration":
        config["chat_template"] = TEMPLATE
    else:
        files["chat_template__jinja"] = TEMPLATE
    if where == "file before configuration":
        config["chat_template"] = "the older one"
    directory = saved(tmp_path, byte_level, config, **files)
    if where == "files":
        (directory / "additional_chat_templates").mkdir()
        (directory / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    messages = [{"role": "user", "content": "Hello"}]
    oracle = AutoTokenizer.from_pretrained(directory).apply_chat_template(messages, tokenize=False)
    read = HFTokenizerFiles(directory)
    assert read.chat_template == TEMPLATE
    assert read.fast_tokenizer().apply_chat_template(messages, tokenize=False) == oracle


def test_stop_tokens_come_from_all_files(tmp_path):
    directory = saved(tmp_path, byte_level, {**CHAT}, generation_config__json='{"eos_token_id": [5, 6]}')
    assert hf_tokenizer(directory, {"eos_token_id": 7}).stop_token_ids == (1, 5, 6, 7)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"added_tokens_decoder": {"9": THINK}}, "'<think>' has the id 376 .* and 9"),
        ({"added_tokens_decoder": {"0": {"content": 3}}}, "no token"),
        ({"split_special_tokens": True}, "'split_special_tokens'"),
        ({"chat_template": 3}, "not text"),
    ],
)
def test_files_that_disagree_are_refused(config, words, tmp_path):
    with pytest.raises(SourceError, match=words):
        HFTokenizerFiles(saved(tmp_path, byte_level, {**CHAT, **config}))


def test_damaged_and_missing_files_are_named(tmp_path):
    directory = saved(tmp_path / "damaged", byte_level, CHAT)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        HFTokenizerFiles(directory)
    saved(directory, byte_level, CHAT)
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json"):
        HFTokenizerFiles(directory)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="tokenizer can't be read"):
        HFTokenizerFiles(tmp_path / "empty")
