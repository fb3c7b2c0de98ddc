"""LaMP's tasks: the searched, displayed, asked and learned parts of a question and a profile item."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personalization.errors import DataError, SettingsError
from personalization.lamp.tasks import LAMP_TASKS, cut_text, find_task
from tests.support.lamp_data import INPUTS

FIELDS = {
    "title": "T t",
    "abstract": "A a",
    "description": "D d",
    "tag": "comedy",
    "text": "X x",
    "score": "4",
    "category": "crime",
}
NEWS = 'the category for the article: "X x" is "crime" '
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
TWEETS = st.lists(st.text("abcdef#@é漢", min_size=1, max_size=12), min_size=1, max_size=40).map(" ".join)


@pytest.mark.parametrize(
    ("name", "source", "answer"),
    [
        ("LaMP-1", "T t", "A a"),
        ("LaMP-2", "D d", "comedy"),
        ("LaMP-2-news", "X x", "crime"),
        ("LaMP-3", "X x", "4"),
        ("LaMP-4", "X x", "T t"),
        ("LaMP-5", "A a", "T t"),
        ("LaMP-6", "X x", "T t"),
    ],
)
def test_an_item_becomes_the_task_and_the_answer_of_lamps_peft_work(name, source, answer):
    pair = LAMP_TASKS[name].pair(FIELDS, seed=0)
    assert pair.answer == answer
    assert pair.task.endswith(f": {source}")
    assert len(pair.task) > len(source) + 20  # an instruction comes first


def test_all_fifteen_tags_are_offered():
    tags = re.search(r"The tags are: (.*?)\.", LAMP_TASKS["LaMP-2"].instruction).group(1).split(", ")
    assert len(set(tags)) == 15
    assert {"sci-fi", "based on a book", "true story"} <= set(tags)


@pytest.mark.parametrize("name", LAMP_TASKS)
def test_an_item_with_an_empty_text_makes_no_pair(name):
    task = LAMP_TASKS[name]
    for field in filter(None, (task.source, task.target)):
        assert task.pair({**FIELDS, field: "  \n"}, seed=0) is None


@given(TWEETS, st.integers(0, 5))
def test_a_tweet_is_cut_before_a_word_where_a_tenth_to_a_quarter_is_over(tweet, seed):
    start, rest = cut_text(tweet, seed)
    if " " not in tweet:
        assert (start, rest) == ("", "")
        return
    assert f"{start} {rest}" == tweet
    cut = len(start) + 1
    possible = [match.end() for match in re.finditer(" ", tweet)]
    inside = [place for place in possible if 0.10 * len(tweet) <= place <= 0.25 * len(tweet)]
    if inside:
        assert cut in inside
    else:
        assert cut == next((place for place in possible if place > 0.25 * len(tweet)), possible[-1])


@given(LINES, st.integers())
def test_any_text_is_cut_without_losing_a_character_but_the_space_between(line, seed):
    start, rest = cut_text(line, seed)
    if start:
        assert re.sub(r"\s", "", start + rest) == re.sub(r"\s", "", line)
        assert start == start.strip()
        assert rest == rest.strip()
    assert bool(start) == bool(rest)
    assert cut_text(line, seed) == (start, rest)


def test_the_seed_decides_where_a_tweet_is_cut():
    tweet = " ".join("abcdefghij" * 10)
    assert len({cut_text(tweet, seed) for seed in range(50)}) > 5


def test_what_is_searched_for_is_taken_out_of_each_tasks_input():
    asked = {name: task.query(INPUTS[name].format("A: a", "B b", "C c")) for name, task in LAMP_TASKS.items()}
    alone = dict.fromkeys(LAMP_TASKS, "A: a")
    assert asked == alone | {"LaMP-1": "B b C c"}


@pytest.mark.parametrize("name", LAMP_TASKS)
def test_an_input_of_another_form_is_refused(name):
    with pytest.raises(DataError, match="the input has"):
        LAMP_TASKS[name].query("Say something about movies")


def test_documents_are_made_of_the_fields_that_lamp_searches():
    documents = {name: task.document_text(FIELDS) for name, task in LAMP_TASKS.items()}
    assert documents == {
        "LaMP-1": "T t A a",
        "LaMP-2": "D d",
        "LaMP-2-news": "T t X x",
        "LaMP-3": "X x",
        "LaMP-4": "T t X x",
        "LaMP-5": "T t A a",
        "LaMP-6": "X x",
        "LaMP-7": "X x",
    }
    dated = {**FIELDS, "date": "2001-2-3"}
    assert LAMP_TASKS["LaMP-7"].document_text(dated, use_date=True) == "X x date: 2001-2-3"
    assert LAMP_TASKS["LaMP-7"].document_text(dated) == "X x"


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("LaMP-1", 'The title, and "T t", and "T t" "Q": title?'),
        ("LaMP-2", 'the tag for the movie: "D d" is "comedy" , and the tag for the movie: "D d" is "comedy" . {}'),
        ("LaMP-2-news", f"{NEWS}, and {NEWS}. {{}}"),
        ("LaMP-3", '4 is the score for "X x" , and 4 is the score for "X x" . {}'),
        ("LaMP-4", '"T t" is the title for "X x" , and "T t" is the title for "X x" . {}'),
        ("LaMP-5", '"T t" is the title for "A a" , and "T t" is the title for "A a" . Following the given patterns {}'),
        ("LaMP-6", '"T t" is the title for "X x" , and "T t" is the title for "X x" . {}'),
        ("LaMP-7", '"X x" , and "X x"  are written by a person. Following the given patterns {}'),
    ],
)  # fmt: skip
def test_prompts_are_those_of_the_papers(name, prompt):
    template, question = LAMP_TASKS[name].prompt, 'The title "Q": title?'
    assert template.assemble([template.show(FIELDS)] * 2, question) == prompt.format(question)
    assert template.assemble([], question) == question


def test_a_task_is_found_however_its_name_is_written():
    assert find_task("lamp_5") is find_task(" LaMP-5 ") is LAMP_TASKS["LaMP-5"]
    assert find_task("LaMP_2N") is find_task("lamp-2n") is LAMP_TASKS["LaMP-2-news"]
    assert find_task("LaMP_2M") is LAMP_TASKS["LaMP-2"]
    with pytest.raises(SettingsError, match=r"no task 'LaMP-8'. Use one of: LaMP-1, .*LaMP-7"):
        find_task("LaMP-8")
