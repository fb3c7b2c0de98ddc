"""LaMP's prompts: the papers' words, and never more tokens than there is room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.text.tokenizer import Tokenizer
from personalization.answering.token_counter import TokenizerCounter
from personalization.errors import DataError
from personalization.lamp.prompt import fit_prompt
from personalization.lamp.tasks import LAMP_TASKS
from tests.support.tiny_models import make_tokenizer

COUNTER = TokenizerCounter(Tokenizer(make_tokenizer().backend_tokenizer))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class Words:
    """Counts words, so that a test can be counted by hand."""

    def count(self, text: str) -> int:
        return len(text.split())

    def cut(self, text: str, most: int) -> str:
        return text if self.count(text) <= most else " ".join(text.split()[:most])


def fitted(task: str, question: str, items: list[dict[str, str]], max_length: int) -> str:
    return fit_prompt(LAMP_TASKS[task].prompt, question, items, Words(), max_length)


PAPERS = [{"title": "T one", "abstract": "a b c d"}, {"title": "T two", "abstract": "e f g h"}]


@pytest.mark.parametrize(
    ("task", "items", "question", "prompt"),
    [
        (
            "LaMP-1",
            [{"title": "A", "abstract": "x"}, {"title": "B", "abstract": "y"}],
            'An author of the title "M": is it [1]: "P" or [2]: "Q", by title?',
            'An author of the title, and "A", and "B" "M": is it [1]: "P" or [2]: "Q", by title?',
        ),
        (
            "LaMP-2",
            [{"description": "A robot.", "tag": "sci-fi"}],
            "Which tag? description: A clown.",
            'the tag for the movie: "A robot." is "sci-fi" . Which tag? description: A clown.',
        ),
        (
            "LaMP-2-news",
            [{"text": "He ran.", "title": "Run", "category": "sports"}],
            "Which category? article: She sings.",
            'the category for the article: "He ran." is "sports" . Which category? article: She sings.',
        ),
        (
            "LaMP-3",
            [{"text": "Nice.", "score": "5"}, {"text": "Bad.", "score": "1"}],
            "What score? review: Fine.",
            '5 is the score for "Nice." , and 1 is the score for "Bad." . What score? review: Fine.',
        ),
        (
            "LaMP-4",
            [{"title": "Up", "text": "It rose."}],
            "Headline for the article: It fell.",
            '"Up" is the title for "It rose." . Headline for the article: It fell.',
        ),
        (
            "LaMP-5",
            [{"title": "Up", "abstract": "We rise."}],
            "Title for: We fall.",
            '"Up" is the title for "We rise." . Following the given patterns Title for: We fall.',
        ),
        (
            "LaMP-6",
            [{"title": "Up", "text": "We rise."}],
            "Subject for: We fall.",
            '"Up" is the title for "We rise." . Subject for: We fall.',
        ),
        (
            "LaMP-7",
            [{"text": "so good"}, {"text": "so bad"}],
            "Paraphrase: It is fine.",
            '"so good" , and "so bad"  are written by a person. Following the given patterns Paraphrase: It is fine.',
        ),
    ],
)
def test_with_room_for_all_the_prompt_is_the_papers(task, items, question, prompt):
    assert fitted(task, question, items, 512) == prompt
    assert fitted(task, question, [], 512) == question


def test_items_get_equal_shares_less_two_tokens_a_separator():
    # 24 less 4 of the input and 2 of the separator are 9 an item, of which its other words, with "", take 7.
    assert fitted("LaMP-5", "1 2 3 4", PAPERS, 24) == (
        # The phrase behind the items is not counted: it costs the input its end.
        '"T one" is the title for "a b" , and "T two" is the title for "e f" . Following the given patterns 1'
    )


def test_what_an_item_leaves_unused_goes_to_the_next():
    items = [{"text": "short"}, {"text": "one two three four five six"}]
    # 10 of 14 tokens for items, less 2: 4 each, less 1 for the quotes' word; the first needs 1 of its 3.
    prompt = fitted("LaMP-7", "a b c d", items, 14)
    assert prompt.startswith('"short" , and "one two three four five"')


def test_the_input_keeps_no_more_than_its_share_while_items_are_there():
    question = " ".join(map(str, range(100)))
    items = [{"title": "T", "text": " ".join("x" * 100)}]
    prompt = fitted("LaMP-4", question, items, 50)
    # 60 % of 50 for the input leave 20, of which the other words take 6.
    assert prompt.count("x") == 14
    assert Words().count(prompt) == 50


def test_where_the_items_words_do_not_fit_the_inputs_share_falls():
    question = " ".join(map(str, range(100)))
    long_title = [{"title": " ".join("t" * 30), "text": "x y z"}]
    # Its other words are 35: 60 % and 40 % of 50 leave 20 and 30, at 30 % there are 35.
    assert fitted("LaMP-4", question, long_title, 50) == f'"{" ".join("t" * 30)}" is the title for "" . ' + " ".join(
        map(str, range(14))
    )


def test_below_zero_the_prompt_is_the_input_alone():
    question = " ".join(map(str, range(100)))
    assert fitted("LaMP-4", question, [{"title": " ".join("t" * 60), "text": "x"}], 50) == " ".join(map(str, range(50)))


def test_a_question_of_another_task_is_refused():
    with pytest.raises(DataError, match="no word 'title'"):
        fitted("LaMP-1", "Which one?", [{"title": "A", "abstract": "x"}], 50)


@given(TEXT, st.lists(st.fixed_dictionaries({"title": TEXT, "abstract": TEXT}), max_size=5), st.integers(1, 120))
def test_a_prompt_never_passes_its_length_and_shows_beginnings_alone(question, items, max_length):
    template = LAMP_TASKS["LaMP-5"].prompt
    prompt = fit_prompt(template, question, items, COUNTER, max_length)
    assert COUNTER.count(prompt) <= max_length
    if COUNTER.count(question) <= max_length and not items:
        assert prompt == question
    whole = template.assemble([template.show(item) for item in items], question)
    if COUNTER.count(whole) <= max_length // 2 and items:
        shares = [COUNTER.count(template.show(item)) + 2 for item in items]
        if max(shares) * len(items) < max_length // 2:
            assert prompt == whole


@given(TEXT, st.integers(0, 40))
def test_a_cut_is_the_beginning_of_its_text(text, most):
    cut = COUNTER.cut(text, most)
    assert text.startswith(cut)
    assert COUNTER.count(cut) <= most
    if COUNTER.count(text) <= most:
        assert cut == text
