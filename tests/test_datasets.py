"""Our own data set has the authors' formats, and a run names what it leaves out where theirs are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.make import PAPERS, derived, papers, prompts_alone, prompts_with_context
from tests.support.datasets import OWN, SHARED, left_out

FILES = sorted(path.relative_to(OWN.root).as_posix() for path in OWN.root.rglob("*.json"))


def shape(value: Any) -> Any:
    """What a file is made of: keys and types; of a list, the shapes that its entries have."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return {repr(shape(inner)) for inner in value}
    return type(value).__name__


def test_a_clone_has_every_file():
    assert len(FILES) == 8
    assert sum((OWN.root / name).stat().st_size for name in FILES) < 900_000


@pytest.mark.shared_data
@pytest.mark.parametrize("name", FILES)
def test_our_files_have_the_shape_of_the_authors_files(name):
    assert shape(OWN.read(name)) == shape(SHARED.read(name))


def test_derived_files_hold_what_the_others_hold():
    for name, records in derived(OWN.root).items():
        assert OWN.read(f"cogenesis/{name}") == records, "run tests/data/make.py"


def test_prompts_are_derived_as_the_authors_made_theirs(dataset):
    structured = dataset.read("cogenesis/context_aware_dev.json")
    assert prompts_with_context(structured) == dataset.read("cogenesis/ctx_dev.json")
    assert prompts_alone(structured) == dataset.read("cogenesis/ctx_dev_wo.json")


def test_papers_are_derived_as_the_authors_made_theirs(dataset):
    questions = dataset.read("lamp/LaMP_5/dev_questions.json")[:PAPERS]
    with_context, alone = papers(questions, dataset.read("lamp/LaMP_5/dev_outputs.json")["golds"][:PAPERS])
    assert alone == dataset.read("cogenesis/paper_dev_wo.json")[:PAPERS]
    for ours, theirs in zip(with_context, dataset.read("cogenesis/paper_dev.json"), strict=False):
        # Some of the authors' prompts have empty lines to spare.
        assert [turn["value"].split() for turn in ours["conversations"]] == [
            turn["value"].split() for turn in theirs["conversations"]
        ]


def test_one_line_names_what_was_left_out_and_why():
    skipped = ["tests/a.py::test_one[shared]", "tests/b.py::test_two[0-shared]", "tests/b.py::test_two[1-shared]"]
    missing = Path("somewhere")
    assert left_out(skipped, missing) == "Left out, because somewhere is missing: test_one, test_two (2 cases)"
    assert left_out([], missing) == ""
