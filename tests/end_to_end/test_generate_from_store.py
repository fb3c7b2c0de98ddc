"""Answers with past texts of a store: by a retriever that is named, or by one that a trained selector picks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cogenesis.cli import app
from edge_runtime.assistant import load
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import RequestError
from edge_runtime.generation.options import Options
from edge_runtime.retrieval.selector_card import SelectorMode
from edge_runtime.store.profile_store import ProfileStore
from edge_runtime.text.prompt import user_message
from export.encoders.export import export_encoder
from export.onnx.export import export_onnx
from export.progress import silent
from personalization.retrievers.selector import Selector
from personalization.retrievers.selector_export import export_selector
from tests.support.tiny_encoders import FILLERS, make_encoder
from tests.support.tiny_models import make_model

POOL = ("none", "recency", "bm25", "mine")
INSTRUCTION = "word1 word2 word3"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A tiny random Llama with a tiny encoder called `mine`."""
    root = tmp_path_factory.mktemp("retrieval")
    export_onnx(make_model(root / "llama", model_type="llama"), root / "bundle", "fp32")
    export_encoder(make_encoder(root / "encoder"), root / "bundle" / "retrieval" / "mine")
    return root / "bundle"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose newest text, nearest text and text with the most words in common are different ones."""
    path = tmp_path_factory.mktemp("store") / "profile.db"
    with ProfileStore(path) as opened:
        opened.set_profile("Name: Ada")
        for place, text in enumerate(("word1 word2", *FILLERS[4:], "the newest")):
            opened.add(f"word{place}", text, f"2024-01-{place + 1:02}")
    return path


@pytest.fixture
def request_file(tmp_path):
    path = tmp_path / "request.json"
    own = {"profile": "Likes tea.", "history": [{"title": "Own", "text": "own text"}]}
    path.write_text(json.dumps({"instruction": INSTRUCTION, "context": own}))
    return path


def generate(*arguments):
    result = CliRunner().invoke(app, ["generate", *map(str, arguments), "--json", "--max-new-tokens", "5"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout)


def written_with(bundle: Path, *items: HistoryItem) -> str:
    """The answer where just these past texts are known, besides the request's own and both profiles."""
    own = HistoryItem("Own", "own text")
    context = PrivateContext("Likes tea.\nName: Ada", (own, *items))
    answer = load(bundle, threads=1).generate(PublicInstruction(INSTRUCTION), context, options=Options(5))
    return "".join(answer)


def found_by(store: Path, kit: Path, retriever: str, count: int, query: str = INSTRUCTION) -> tuple[HistoryItem, ...]:
    options = ("--retriever", retriever, "-k", count, "--retrieval", kit, "--store", store, "--json")
    found = CliRunner().invoke(app, ["store", "search", query, *map(str, options)])
    return tuple(HistoryItem(item["title"], item["text"]) for item in json.loads(found.stdout)["items"])


def test_what_a_retriever_finds_is_in_the_prompt_and_the_rest_is_not(bundle, store, request_file):
    common = ("--bundle", bundle, "--request", request_file, "--store", store)
    texts = {}
    for retriever in POOL[1:]:
        items = found_by(store, bundle / "retrieval", retriever, 2)
        assert len(items) == 2
        result = generate(*common, "--retriever", retriever, "--items", 2)
        assert (result["retriever"], result["dropped_history"]) == (retriever, 0)
        assert result["text"] == written_with(bundle, *items)
        texts[retriever] = items
    assert len(set(texts.values())) == 3
    assert generate(*common, "--retriever", "none")["text"] == written_with(bundle)
    assert generate("--bundle", bundle, "--request", request_file)["retriever"] is None
    assert generate(*common)["retriever"] == "all"


@pytest.mark.parametrize("mode", list(SelectorMode))
def test_a_selector_picks_what_it_scores_best(bundle, store, request_file, tmp_path, mode):
    encoder = make_encoder(tmp_path / "encoder", max_position_embeddings=512)
    config = json.loads((encoder / "tokenizer_config.json").read_text())
    (encoder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 512}))
    selector = Selector.new(encoder, mode, POOL, None, "cpu")
    torch.manual_seed(3)
    torch.nn.init.normal_(selector.module.head.weight)
    export_encoder(tmp_path / "encoder", tmp_path / "kit" / "mine")
    instruction, candidates = PublicInstruction(INSTRUCTION), []
    for name in POOL:
        items = (HistoryItem("Own", "own text"), *found_by(store, tmp_path / "kit", name, 3))
        prompt = user_message(instruction, PrivateContext("Likes tea.\nName: Ada", items), None, range(len(items)))
        candidates.append(selector.tokens(prompt, written_with(bundle, *items[1:])))
    with torch.no_grad():
        scores = selector.scores(candidates)
        if scores.argmax() == 0:  # a selector that reads nothing would choose the first, too
            selector.module.head.weight.neg_()
            scores = selector.scores(candidates)
    assert len(set(scores.tolist())) == len(POOL) and scores.argmax() > 0
    wanted = POOL[int(scores.argmax())]

    (tmp_path / "trained").mkdir()
    selector.save(tmp_path / "trained")
    export_selector(tmp_path / "trained", tmp_path / "kit" / "selector", "fp32", force=False, progress=silent)

    options = ("--bundle", bundle, "--request", request_file, "--store", store, "--items", 3)
    result = generate(*options, "--retriever", "auto", "--retrieval", tmp_path / "kit")
    assert result["retriever"] == wanted
    assert result["text"] == written_with(bundle, *found_by(store, tmp_path / "kit", wanted, 3))


def test_what_can_not_be_retrieved_is_said(bundle, store, request_file):
    with pytest.raises(RequestError, match="Name one with --store"):
        generate("--bundle", bundle, "--request", request_file, "--retriever", "bm25")
    with pytest.raises(RequestError, match=r"no retriever 'contriever', only: .*mine"):
        generate("--bundle", bundle, "--request", request_file, "--store", store, "--retriever", "contriever")
    with pytest.raises(RequestError, match="no selector for the retriever 'auto'"):
        generate("--bundle", bundle, "--request", request_file, "--store", store, "--retriever", "auto")


def test_in_a_chat_each_line_has_past_texts_of_its_own(bundle, store):
    options = ("--store", store, "--retriever", "bm25", "--items", 2, "--temperature", 0, "--max-new-tokens", 5)
    lines = "word1 word2\nword5 word6\n/quit\n"
    said = CliRunner().invoke(app, ["chat", *map(str, (bundle, *options))], input=lines)
    assert said.exit_code == 0, said.output
    answers = []
    for line in lines.splitlines()[:2]:
        items = found_by(store, bundle / "retrieval", "bm25", 2, line)
        context = PrivateContext("Name: Ada", items)
        answers.append("".join(load(bundle).generate(PublicInstruction(line), context, options=Options(5))))
    assert answers[0] != answers[1] and all(answer in said.output for answer in answers)
    refused = CliRunner().invoke(app, ["chat", str(bundle), "--store", str(store), "--retriever", "x"], input="a\nb\n")
    assert refused.exit_code == 0 and refused.output.count("There is no retriever 'x'") == 2
