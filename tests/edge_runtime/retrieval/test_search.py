"""Searching the store: the same rankings as offline with any retriever, and vectors that follow every change."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from cogenesis.store import app
from edge_runtime.errors import BundleError, RequestError, StoreError
from edge_runtime.retrieval.kit import open_retrieval_kit
from edge_runtime.retrieval.search import StoreSearch
from edge_runtime.store.item import NewItem
from edge_runtime.store.profile_store import ProfileStore
from export.encoders.export import export_encoder
from personalization.lamp.questions import ProfileItem, Question
from personalization.lamp.rankers import RankerName, Searched, ranker_of
from personalization.models.text_encoder import Encoder
from tests.support.tiny_encoders import FILLERS, make_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("search") / "model")


@pytest.fixture(scope="module")
def kit_root(model):
    """A directory with two different encoders, `dense` and `other`."""
    root = model.parent / "kit"
    export_encoder(model, root / "dense")
    export_encoder(make_encoder(model.parent / "other", num_hidden_layers=2), root / "other")
    return root


@pytest.fixture
def kit(kit_root):
    return open_retrieval_kit(kit_root)


@pytest.fixture
def store(tmp_path):
    with ProfileStore(tmp_path / "profile.db") as opened:
        yield opened


def texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices(FILLERS, k=draw.randint(1, 8))) for _ in range(count)]


def dated(count, seed=0):
    draw = random.Random(f"dates {seed}")
    return [
        NewItem("", text, f"20{draw.randint(10, 24)}-0{draw.randint(1, 9)}-01", str(place), False)
        for place, text in enumerate(texts(count, seed))
    ]


@pytest.mark.parametrize(
    ("name", "ranker"),
    [
        ("bm25", RankerName.BM25),
        ("recency", RankerName.RECENCY),
        ("dense", RankerName.DENSE),
        ("hybrid", RankerName.HYBRID),
        ("mixed", RankerName.MIXED),
    ],
)
@pytest.mark.parametrize("count", [3, 40])
def test_every_retriever_ranks_as_its_namesake_offline(store, kit, model, name, ranker, count):
    items = dated(count)
    store.import_items(items)
    profile = tuple(ProfileItem(item.origin, {"text": item.text, "date": item.date}) for item in items)
    question = Question(id="1", input="?", user="1", profile=profile)
    rank = ranker_of(ranker, encoder=Encoder.load(model), batch=8, seed=0)
    for query in texts(5, seed=1):
        [order] = rank([Searched(question, query, tuple(item.text for item in items))])
        for wanted in (5, count):
            found = StoreSearch(store, kit).find(query, name, wanted)
            assert [one.item.origin for one in found] == [str(place) for place in order[:wanted]]


def test_of_equal_texts_the_last_added_comes_first(store, kit):
    store.import_items([NewItem("", "word1", origin=str(place), title_counts=False) for place in range(30)])
    for name in ("bm25", "dense", "recency"):
        found = StoreSearch(store, kit).find("word1", name, 4)
        assert [one.item.origin for one in found] == ["29", "28", "27", "26"]


def test_nothing_is_found_where_nothing_is_asked_for(store, kit):
    for name in ("bm25", "recency", "dense", "hybrid", "mixed", "none"):
        assert StoreSearch(store, kit).find("word1", name, 3) == ()
    store.add("t", "word1")
    assert StoreSearch(store, kit).find("word1", "none", 3) == ()
    assert len(StoreSearch(store, kit).find("\ud800 word1", "hybrid", 3)) == 1


def test_vectors_follow_every_change_in_either_connection(store, kit, kit_root, tmp_path):
    encoder = kit.encoder("dense")
    contents = {store.add("t", text): f"t {text}" for text in texts(10)}
    with ProfileStore(tmp_path / "profile.db") as other:
        searches = [StoreSearch(one, open_retrieval_kit(kit_root)) for one in (store, other)]
        draw = random.Random(2)
        for step in range(25):
            writer, text = draw.choice([store, other]), texts(1, seed=step + 9)[0]
            if step % 3 == 0:
                contents[writer.add("t", text)] = f"t {text}"
            elif step % 3 == 1:
                changed = draw.choice(sorted(contents))
                writer.update(changed, text=text)
                contents[changed] = f"t {text}"
            else:
                gone = draw.choice(sorted(contents))
                writer.remove(gone)
                del contents[gone]
            found = draw.choice(searches).find("word3 word4", "dense", 99)
            scores = encoder.embed(list(contents.values())) @ encoder.embed(["word3 word4"])[0]
            wanted = dict(zip(contents, scores.tolist(), strict=True))
            assert {one.item.id: one.score for one in found} == pytest.approx(wanted, abs=1e-5)


def test_a_text_that_changes_while_it_is_embedded_gets_no_old_vector(store, kit):
    encoder, item_id = kit.encoder("dense"), store.add("t", "word1")
    waiting = store.without_vector(encoder.card.fingerprint, 5)
    store.update(item_id, text="word2")
    store.put_vectors(encoder.card.fingerprint, waiting, encoder.embed([one.text for one in waiting]))
    assert [one.text for one in store.without_vector(encoder.card.fingerprint, 5)] == ["t word2"]


def test_embedding_that_is_killed_goes_on_where_it_was(tmp_path, kit_root):
    path = tmp_path / "profile.db"
    with ProfileStore(path) as store:
        store.import_items(dated(3000))
    command = [sys.executable, "-m", "cogenesis", "store", "embed", "--retrieval", str(kit_root), "--store", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ProfileStore(path) as store:
        name = open_retrieval_kit(kit_root).encoder("dense").card.fingerprint
        while process.poll() is None and store.count_without_vector(name) > 2800:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -9, "it was over before it could be killed"
        left = store.count_without_vector(name)
        assert 0 < left < 3000
        kit = open_retrieval_kit(kit_root)
        assert StoreSearch(store, kit).embed_missing(kit.encoder("dense")) == left
        ids, scores = store.vector_scores(name, kit.encoder("dense").embed(["word7"])[0])
        every = {item.id: item.text for item in store.items}
    wanted = kit.encoder("dense").embed([every[item_id] for item_id in ids.tolist()])
    assert scores == pytest.approx(wanted @ kit.encoder("dense").embed(["word7"])[0], abs=1e-4)


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def test_the_commands_search_embed_and_forget(tmp_path, kit_root):
    path, one = tmp_path / "p.db", tmp_path / "one"
    shutil.copytree(kit_root / "other", one)
    options = ("--store", path, "--json")
    run("add", "--title", "Roof", "--text", "word1 leaks", "--date", "2024-05-01", *options)
    run("add", "--title", "Bees", "--text", "word2 hum", *options)
    assert run("embed", "--retrieval", kit_root, *options)["embedded"] == {"dense": 2, "other": 2}
    for retriever in ("bm25", "dense", "other", "hybrid", "mixed"):
        found = run("search", "word1 leaks", "--retriever", retriever, "--retrieval", kit_root, "--items", 1, *options)
        assert found["retriever"] == retriever and len(found["items"]) == 1
    run("add", "--title", "Boat", "--text", "word3 sails", *options)
    [best] = run("search", "leaks", "--items", 1, *options)["items"]
    assert (best["title"], best["date"]) == ("Roof", "2024-05-01") and best["score"] > 0
    assert "Roof" in run("search", "leaks", "--store", path)
    assert run("embed", "--retrieval", one, *options) == {"embedded": {"dense": 1}, "removed": 2, "store": str(path)}
    assert run("update", 2, "--text", "word1 leaks too", "--date", "2025-01-31", *options) == {"id": 2}
    assert [item["id"] for item in run("search", "too", "--items", 1, *options)["items"]] == [2]
    assert run("embed", "--retrieval", one, *options)["embedded"] == {"dense": 1}


def test_what_is_not_there_is_named(tmp_path, store, kit_root):
    store.add("t", "word1")
    for retriever in ("contriever", "dense", "hybrid", "mixed"):
        with pytest.raises(
            RequestError, match=r"There is no retriever .*none, recency, bm25\. Give a directory for retrieval, made by"
        ):
            StoreSearch(store).find("x", retriever, 1)
    with pytest.raises(RequestError, match=r"no retriever 'contriever', only: .*dense, other, hybrid, mixed"):
        StoreSearch(store, open_retrieval_kit(kit_root)).find("x", "contriever", 1)
    with pytest.raises(RequestError, match="no selector"):
        open_retrieval_kit(kit_root).selector()
    with pytest.raises(RequestError, match="cogenesis generate"):
        run("search", "x", "--retriever", "auto", "--store", tmp_path / "p.db")
    with pytest.raises(BundleError, match="can't be read"):
        open_retrieval_kit(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no encoder\.json, no selector\.json"):
        open_retrieval_kit(tmp_path)
    with pytest.raises(RequestError, match="nothing to change"):
        run("update", 1, "--store", tmp_path / "p.db")


def test_vectors_of_the_wrong_length_are_a_store_error(store, kit):
    store.add("t", "word1")
    encoder = kit.encoder("dense")
    waiting = store.without_vector(encoder.card.fingerprint, 5)
    store.put_vectors(encoder.card.fingerprint, waiting, np.zeros((1, 7), np.float32))
    with pytest.raises(StoreError, match="index is damaged"):
        StoreSearch(store, kit).find("word1", "dense", 1)


def test_the_real_minilm_finds_by_meaning_what_words_do_not_say(store, minilm_device):
    for title, text in (
        ("Letter to the landlord", "Water drips through the ceiling whenever it storms."),
        ("Note", "The hives need a new frame before the colony swarms."),
        ("Minutes", "The council postponed the vote on parking fees."),
    ):
        store.add(title, text)
    search = StoreSearch(store, open_retrieval_kit(minilm_device))
    wanted = {"my roof is leaking": "Letter to the landlord", "beekeeping": "Note", "local politics": "Minutes"}
    for query, title in wanted.items():
        assert search.find(query, "dense", 1)[0].item.title == title
