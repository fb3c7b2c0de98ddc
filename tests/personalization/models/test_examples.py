"""Token ids for training: the edge runtime's input, then the user's own words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edge_runtime import PrivateContext, PublicInstruction
from edge_runtime.assistant import load
from edge_runtime.context import HistoryItem
from export.model.tokenizer_assets import assets
from export.onnx.export import export_onnx
from personalization.errors import TrainingError
from personalization.models.base_model import Base
from personalization.models.examples import ExampleWriter
from personalization.users.data import Pair, context_of
from tests.support.personal_data import text, user
from tests.support.tiny_models import make_base_tokenizer, make_model, make_tokenizer

END = 1  # <|im_end|> of the tiny tokenizer
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(lambda text: text.strip())


@pytest.fixture(scope="module")
def assistant(llama, tmp_path_factory):
    """The edge runtime, on a bundle made from the training directory."""
    bundle = tmp_path_factory.mktemp("bundle") / "bundle"
    export_onnx(llama, bundle, "fp32")
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def writer():
    return ExampleWriter(tokenizer_assets(), seq2seq=False)


def tokenizer_assets(**changes):
    tokenizer = make_tokenizer()
    template = changes.get("template", tokenizer.chat_template)
    return assets(tokenizer.backend_tokenizer, template, "<|im_start|>", "<|im_end|>", changes.get("stops", [END]))


def test_the_prompt_is_the_edge_runtimes_for_the_task_alone(llama_base, assistant):
    pair = user("ann").pairs[0]
    example = llama_base.writer.write(pair, None, 1024)
    assert example.prompt == assistant.prompt(PublicInstruction(pair.task)).token_ids
    assert example.answer == (*assistant.tokenizer.encode(pair.answer), END)
    assert (example.ending, example.cut, example.dropped) == (1, False, 0)


def test_the_prompt_is_the_edge_runtimes_with_context(llama_base, assistant):
    data = user("ann")
    history = tuple(HistoryItem(pair.task, pair.answer) for pair in data.pairs[1:])
    example = llama_base.writer.write(data.pairs[0], context_of(data.profile, data.pairs[1:]), 1024)
    context = PrivateContext(data.profile, history)
    assert example.prompt == assistant.prompt(PublicInstruction(data.pairs[0].task), context).token_ids
    assert "Name: ann" in assistant.tokenizer.decode(example.prompt)


def test_history_that_does_not_fit_is_dropped_as_the_edge_runtime_drops_it(llama_base, assistant):
    data = user("ann", items=30, words=20)
    context = PrivateContext(data.profile, tuple(HistoryItem(pair.task, pair.answer) for pair in data.pairs[1:]))
    example = llama_base.writer.write(data.pairs[0], context, 900)
    room = assistant.decoder.context_length - 900 + len(example.answer)
    prompt = assistant.prompt(PublicInstruction(data.pairs[0].task), context, max_new_tokens=room)
    assert example.prompt == prompt.token_ids
    assert example.dropped == len(prompt.dropped) > 0


def test_each_pair_sees_the_others_as_context_but_never_itself(writer):
    data = user("ann", items=3)
    examples = writer.write_all(data.pairs, 1024, profile=data.profile, history=data.pairs)
    for pair, example in zip(data.pairs, examples, strict=True):
        prompt = writer.tokenizer.decode(example.prompt)
        assert pair.answer not in prompt
        assert all(other.answer in prompt for other in data.pairs if other != pair)


def test_an_encoder_gets_the_message_and_the_decoder_the_answer_as_the_tokenizer_writes_them(t5, t5_base):
    tokenizer, pair = AutoTokenizer.from_pretrained(t5), user("ann").pairs[0]
    example = t5_base.writer.write(pair, None, 1024)
    assert list(example.prompt) == tokenizer(pair.task).input_ids
    assert list(example.answer) == tokenizer(text_target=pair.answer).input_ids
    assert example.ending == 1


@settings(max_examples=60)
@given(TEXTS, TEXTS, st.integers(60, 200), st.booleans())
def test_what_is_too_long_is_cut_to_fit_and_said_to_be(writer, task, answer, length, with_context):
    task, answer = task * 3, answer * 3
    context = PrivateContext("p", (HistoryItem("t", "u" * 30),)) if with_context else None
    try:
        example = writer.write(Pair(task, answer), context, length)
    except TrainingError:
        assert with_context  # only the template of a context can take more than half
        return
    whole = writer.write(Pair(task, answer), None, 1 << 20)
    assert example.length <= length
    assert example.cut == (example.ending == 0 or len(example.prompt) < len(whole.prompt))
    assert example.answer == whole.answer[: len(example.answer)]
    assert example.ending == (example.answer == whole.answer)
    if not example.ending:  # an answer gets less than the prompt leaves only to make room for the task
        assert len(example.answer) >= length // 2


def test_a_long_task_loses_its_end_and_the_answer_stays_whole(writer):
    pair = Pair(f"Summarize: {text('task', 300)}", text("answer", 10))
    example = writer.write(pair, None, 200)
    shown = writer.tokenizer.decode(example.prompt)
    assert "Summarize: " in shown
    assert example.answer == (*writer.tokenizer.encode(pair.answer), END)
    assert 190 <= example.length <= 200  # no more of it is lost than necessary


def test_a_profile_that_fills_the_prompt_is_an_error(writer):
    with pytest.raises(TrainingError, match="Raise `max_length`"):
        writer.write(Pair("Write.", "Yes."), PrivateContext(text("profile", 300)), 120)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (
            "{% for m in messages %}[{{ m['content'] }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}[{% endif %}",
            1,
        ),
        ("{% for m in messages %}{{ m['content'] }}<|im_start|>{% endfor %}", 0),
        ("{{ messages[-1]['content'] }}", 0),  # no end of a turn: takes the first token that ends an answer
    ],
)
def test_an_answer_ends_as_the_template_ends_it(template, end):
    writer = ExampleWriter(tokenizer_assets(template=template, stops=[0, 1]), seq2seq=False)
    assert writer.write(Pair("Write.", "Yes."), None, 100).answer[-1] == end


def test_a_decoder_without_a_chat_template_reads_plain_text_behind_its_own_bos(tmp_path):
    make_model(tmp_path, model_type="llama")
    make_base_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    expected = AutoTokenizer.from_pretrained(tmp_path)("Write of the sea.\n\n").input_ids
    assert expected[0] == 0
    writer = Base(tmp_path, threads=1).writer
    assert list(writer.prompt("Write of the sea.")) == expected
    example = writer.write(Pair("Write of the sea.", "Waves."), None, 100)
    assert list(example.prompt) == expected
    assert (example.answer[-1], example.ending) == (1, 1)
