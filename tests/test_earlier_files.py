"""Bundles, adapters, combiners, stores and prompt caches of version 0.1.0 still open with the same content.

`tests/made_by_0.1.0` was written by commit 40598ac, with a random Llama of two layers.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_runtime
from edge_runtime import Options, PrivateContext, PublicInstruction
from edge_runtime.bundle import open_bundle
from edge_runtime.decoders import read_prompt_cache
from edge_runtime.fusion.combiner_file import combiner_of
from edge_runtime.retrieval import StoreSearch
from edge_runtime.store import ProfileStore
from export.bundle.verify import verify_bundle
from tests.support.commands import ROOT

FILES = ROOT / "tests" / "made_by_0.1.0"
TOKENS = 376


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Make a copy, so that a test can write next to the files that it reads."""
    shutil.copytree(FILES, tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((FILES / "expected.json").read_text(encoding="utf-8"))


def test_a_bundle_and_its_adapter_write_the_same_answers(made, expected):
    assistant = edge_runtime.load(made / "bundle")
    with ProfileStore(made / "profile.db") as store:
        context = PrivateContext(store.profile, ())
    for user in (None, "ada"):
        if user is not None:
            assistant.use_user(user)
        answer = assistant.generate(
            PublicInstruction(expected["instruction"]), context, options=Options(max_new_tokens=24)
        )
        # 0.1.0 also wrote padding: ids that no token has.
        earlier = expected[user or "bare"]
        told = next((at for at, token in enumerate(earlier) if token >= TOKENS), len(earlier))
        assert list(answer.finish().token_ids)[:told] == earlier[:told]


def test_a_bundle_passes_its_own_conformance_vectors(made):
    found = verify_bundle(made / "bundle").conformance["onnx"]
    assert found.vectors > 0 and found.greedy_equal == found.greedy_total


def test_a_prompt_cache_goes_on_where_it_was_saved(made, expected):
    decoder = edge_runtime.load(made / "bundle").decoder
    decoder.restore(read_prompt_cache(made / "prompt.cache"))
    assert decoder.length == len(expected["prompt_ids"])
    row = decoder.extend([expected["next_id"]])[-1]
    ids, values = zip(*expected["next_top"], strict=True)
    assert np.argsort(-row)[: len(ids)].tolist() == list(ids)
    np.testing.assert_allclose(row[list(ids)], values, atol=1e-4)


def test_a_combiner_opens(made):
    assert combiner_of(open_bundle(made / "bundle")).base == open_bundle(made / "bundle").base


def test_a_store_is_searched_and_takes_more(made, expected):
    with ProfileStore(made / "profile.db") as store:
        search = StoreSearch(store)
        found = search.find("a toast for a party", "bm25", 2)
        assert [[one.item.title, one.score] for one in found] == expected["search"]
        store.add("Another toast", "A toast, a toast, and one more toast for the party.")
        assert search.find("toast", "bm25", 1)[0].item.title == "Another toast"
