"""The edge prompt: CoGenesis' format, fitted by dropping the least relevant history."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import ContextOverflowError
from edge_runtime.text.chat_template import ChatTemplate
from edge_runtime.text.prompt import TASK_WITH_CONTEXT, build_prompt
from edge_runtime.text.relevance import rank
from tests.support.examples import examples

TEMPLATE = ChatTemplate(
    "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
INSTRUCTION = PublicInstruction("Write a letter about the roof.")
CONTEXT = PrivateContext(
    "Name: Ada\nAge: 40",
    (
        HistoryItem("My bees", "Our bees do well."),
        HistoryItem("The roof again", "The roof leaks, and the roof must be mended."),
        HistoryItem("Good cake", "Take two eggs."),
    ),
)

relaxed = settings(
    max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
phrase = st.lists(
    st.sampled_from(["roof", "letter", "bees", "rain", "thanks", "Köln", "你好", "🙂", "and", "the"]),
    min_size=1,
    max_size=25,
).map(" ".join)
items = st.builds(HistoryItem, phrase, phrase)
contexts = st.builds(PrivateContext, st.one_of(st.just(""), phrase), st.lists(items, max_size=7).map(tuple))


def test_the_prompt_with_context_has_cogenesis_sections(byte_level_tokenizer):
    prompt = build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, CONTEXT, None, 4000)
    assert prompt.text == (
        f"<|user|>{TASK_WITH_CONTEXT}\n\n## User Profile\nName: Ada\nAge: 40\n\n## User Writing History\n"
        "Task: My bees\nContent: Our bees do well.\n\n"
        "Task: The roof again\nContent: The roof leaks, and the roof must be mended.\n\n"
        "Task: Good cake\nContent: Take two eggs.\n\n"
        "## Task\nWrite a letter about the roof.\n<|end|><|assistant|>"
    )
    assert list(prompt.token_ids) == byte_level_tokenizer.encode(prompt.text)
    assert (prompt.kept, prompt.dropped) == ((0, 1, 2), ())


def test_without_context_the_prompt_is_the_instruction_alone(byte_level_tokenizer):
    for context in (None, PrivateContext(), PrivateContext("  \n")):
        prompt = build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, context, None, 4000)
        assert prompt.text == f"<|user|>{INSTRUCTION.text}<|end|><|assistant|>"
        assert (prompt.kept, prompt.dropped) == ((), ())


def test_an_empty_section_is_left_out(byte_level_tokenizer):
    profile_only = build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, PrivateContext("Name: Ada"), None, 4000)
    assert "## User Profile\nName: Ada\n\n## Task\n" in profile_only.text
    assert "## User Writing History" not in profile_only.text
    history_only = PrivateContext("", CONTEXT.history)
    assert (
        "## User Profile"
        not in build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, history_only, None, 4000).text
    )


def test_the_outline_follows_the_task(byte_level_tokenizer):
    prompt = build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, CONTEXT, "1. Greeting\n2. The roof\n", 4000)
    task = prompt.text.split("## Task\n")[1]
    assert task.startswith(INSTRUCTION.text + "\n\n")
    assert task.endswith("\n1. Greeting\n2. The roof\n<|end|><|assistant|>")


def test_the_least_relevant_history_goes_first_and_the_rest_keeps_its_order(byte_level_tokenizer):
    whole = build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, CONTEXT, None, 4000)
    order = rank(INSTRUCTION.text, [f"{item.title}\n{item.text}" for item in CONTEXT.history])
    limit, kept_sets = len(whole.token_ids), [whole.kept]
    while kept_sets[-1]:
        prompt = build_prompt(byte_level_tokenizer, TEMPLATE, INSTRUCTION, CONTEXT, None, limit - 1)
        assert prompt.kept == tuple(sorted(order[: len(prompt.kept)]))
        limit = len(prompt.token_ids)
        kept_sets.append(prompt.kept)
    # The letter about the roof is dropped last; of the two unrelated texts, the older was dropped first.
    assert kept_sets == [(0, 1, 2), (1, 2), (1,), ()]


@relaxed
@given(context=contexts, instruction=phrase.map(PublicInstruction), spare=st.integers(0, 400))
def test_as_much_history_as_fits_is_kept(byte_level_tokenizer, context, instruction, spare):
    def tokens(kept):
        chosen = PrivateContext(context.profile, tuple(context.history[i] for i in kept))
        return build_prompt(byte_level_tokenizer, TEMPLATE, instruction, chosen, None, 10**9).token_ids

    limit = len(tokens(())) + spare
    order = rank(instruction.text, [f"{item.title}\n{item.text}" for item in context.history])
    count = 0
    while count < len(order) and len(tokens(sorted(order[: count + 1]))) <= limit:
        count += 1
    prompt = build_prompt(byte_level_tokenizer, TEMPLATE, instruction, context, None, limit)
    assert len(prompt.token_ids) <= limit
    assert prompt.kept == tuple(sorted(order[:count]))
    assert prompt.token_ids == tokens(prompt.kept)
    assert sorted(prompt.kept + prompt.dropped) == list(range(len(context.history)))


@relaxed
@given(
    context=contexts, instruction=phrase.map(PublicInstruction), outline=st.one_of(st.none(), phrase), data=st.data()
)
def test_too_long_even_without_history_is_an_error_with_the_counts(
    byte_level_tokenizer, context, instruction, outline, data
):
    bare = PrivateContext(context.profile)
    needed = len(build_prompt(byte_level_tokenizer, TEMPLATE, instruction, bare, outline, 10**9).token_ids)
    limit = data.draw(st.integers(-5, needed - 1))
    with pytest.raises(ContextOverflowError) as caught:
        build_prompt(byte_level_tokenizer, TEMPLATE, instruction, context, outline, limit)
    message = str(caught.value)
    assert f"{needed:,} tokens" in message and f"room for {max(limit, 0):,}" in message
    assert f"instruction {len(byte_level_tokenizer.encode(instruction.text)):,}" in message
    assert "Shorten the " in message
    build_prompt(byte_level_tokenizer, TEMPLATE, instruction, context, outline, needed)


@relaxed
@given(context=contexts, instruction=phrase.map(PublicInstruction))
def test_private_text_is_in_no_repr(byte_level_tokenizer, context, instruction):
    assume(len(context.profile) > 8)
    prompt = build_prompt(byte_level_tokenizer, TEMPLATE, instruction, context, None, 10**9)
    assert context.profile not in repr(prompt)


def test_the_form_is_that_of_cogenesis_own_data(byte_level_tokenizer, dataset):
    structured = dataset.read("cogenesis/context_aware_dev.json")
    prompts = {r["tid"]: r["conversations"][0]["value"] for r in dataset.read("cogenesis/ctx_dev.json")}
    checked = 0
    for record in structured:
        history = tuple(HistoryItem(item["title"], item["text"]) for item in record["profile"])
        instruction = PublicInstruction(record["conversations"][0]["value"])
        context = PrivateContext(record["additional_profile"], history)
        text = build_prompt(byte_level_tokenizer, TEMPLATE, instruction, context, None, 10**9).text
        ours = text.removeprefix("<|user|>").removesuffix("<|end|><|assistant|>").split("\n\n## User Profile\n", 1)
        theirs = prompts[record["tid"]].split("\n\n## User Profile\n", 1)
        checked += ours[1].split() == theirs[1].split()
    assert checked == len(structured) == dataset.tasks
