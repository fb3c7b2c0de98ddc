"""Retriever selection: data of a pool, what selectors learn from prompts and outputs, bounds, predictions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from cogenesis import rspg as rspg_commands
from edge_runtime.errors import BundleError, CogenesisError, WriteError
from edge_runtime.retrieval import selector as device
from edge_runtime.retrieval.selector_card import SelectorMode
from edge_runtime.retrieval.selector_tokens import candidate_tokens
from export.errors import SourceError
from export.progress import silent
from personalization.errors import DataError, SettingsError
from personalization.lamp.outputs import read_outputs
from personalization.retrievers.feedback import Answer
from personalization.retrievers.rspg import select, train_selector
from personalization.retrievers.selector import Selector
from personalization.retrievers.selector_data import Selection, SelectionQuestion, bounds, combine, read_selection
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from tests.support.tiny_encoders import FILLERS, make_encoder

POOL = ("none", "bm25", "recency")
# What was of use, and what was not; nothing else tells them apart.
USEFUL, USELESS = "tells0", "tells1"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("rspg") / "encoder")


@pytest.fixture(scope="module")
def tokenizer(encoder: Path) -> Tokenizer:
    return AutoTokenizer.from_pretrained(encoder).backend_tokenizer


def run(*arguments):
    """Run a command in this process: its output, or the error that would be printed."""
    result = CliRunner().invoke(rspg_commands.app, [*map(str, arguments), "--json"])
    if isinstance(result.exception, CogenesisError):
        return {}, result.exception
    assert result.exception is None, result.exception
    return json.loads(result.stdout), None


def write_pool(root: Path, numbers, tells: str) -> list[str]:
    """Feedback on a pool of which another retriever is the best for each question, as "input" or "output" tells."""
    scores: dict[str, dict] = {name: {} for name in POOL}
    for number in numbers:
        draw = random.Random(number)
        best = draw.choice(POOL)
        for name in POOL:
            words = {field: draw.choices(FILLERS, k=4) for field in ("input", "output")}
            words[tells][draw.randrange(4)] = USEFUL if name == best else USELESS
            texts = {field: " ".join(chosen) for field, chosen in words.items()}
            scores[name][str(number)] = {"metric": {"rouge-1": 0.9 if name == best else 0.3}, **texts}
    options = []
    for name in POOL:
        (root / name).mkdir(parents=True)
        (root / name / "scores.json").write_text(json.dumps(scores[name]))
        options += ["--pool", f"{name}={root / name}"]
    return options


@pytest.mark.parametrize(("mode", "tells"), [("pre", "input"), ("post", "output")])
def test_a_selector_beats_every_retriever_where_the_best_differs(encoder, tmp_path, mode, tells):
    files = {}
    for name, numbers in (("train", range(60)), ("dev", range(100, 130)), ("test", range(200, 260))):
        files[name] = tmp_path / f"{name}.json"
        made, error = run("data", *write_pool(tmp_path / name, numbers, tells), "-o", files[name])
        assert error is None
        assert made == {
            "out": str(files[name]),
            "questions": len(numbers),
            "metric": "rouge-1",
            "retrievers": list(POOL),
        }
    out = tmp_path / "selector"
    settings = ("--epochs", 4, "--batch", 4, "--rate", 1e-2, "--temperature", 0.1, "--threads", 1)
    arguments = ("--data", files["train"], "--dev-data", files["dev"], "--encoder", encoder, "--mode", mode, "-o", out)
    trained, error = run("train", *arguments, *settings)
    assert error is None
    assert trained["gains"][0] < 0.7 < trained["gains"][trained["kept_epoch"]]
    again, _ = run("train", *arguments, *settings)
    assert again["kept"]

    predicted, error = run(
        *("predict", "--task", "LaMP-5", "--data", files["test"], "--selector", out, "--threads", 1),
        *("-o", tmp_path / "predictions.json"),
    )
    assert error is None
    assert predicted["oracle"] == pytest.approx(0.9)
    assert predicted["random"] == pytest.approx(0.5)
    assert predicted["selected"] > predicted["retrievers"][predicted["best"]] + 0.2
    assert predicted["against_best"]["p"] < 0.01
    assert sum(predicted["chosen"].values()) == 60
    outputs = read_outputs(tmp_path / "predictions.json")
    assert outputs.task == "LaMP_5"
    scores = {name: json.loads((tmp_path / "test" / name / "scores.json").read_text()) for name in POOL}
    gains = [
        max(scores[name][key]["metric"]["rouge-1"] for name in POOL if scores[name][key]["output"] == output)
        for key, output in outputs.by_id.items()
    ]
    assert np.mean(gains) == pytest.approx(predicted["selected"])


def test_before_generation_the_output_is_not_read(encoder):
    selector = Selector.new(encoder, SelectorMode.PRE, POOL, None, "cpu")
    assert selector.tokens("word1 tells0", "word2") == selector.tokens("word1 tells0", "")
    after = Selector.new(encoder, SelectorMode.POST, POOL, None, "cpu")
    assert after.tokens("word1 tells0", "word2") != after.tokens("word1 tells0", "")


def test_an_untrained_selector_takes_the_first_of_the_pool(encoder):
    answers = tuple(Answer(f"word{number}", "word5", 0.5) for number in range(3))
    selection = Selection("rouge-1", POOL, (SelectionQuestion("a", answers), SelectionQuestion("b", answers)))
    assert select(Selector.new(encoder, SelectorMode.PRE, POOL, None, "cpu"), selection, silent) == [0, 0]


def test_a_saved_selector_scores_as_it_did(encoder, tmp_path):
    selector = Selector.new(encoder, SelectorMode.POST, POOL, 20, "cpu")
    torch.nn.init.normal_(selector.module.head.weight)
    (tmp_path / "saved").mkdir()
    selector.save(tmp_path / "saved")
    loaded = Selector.load(tmp_path / "saved")
    assert loaded.card == selector.card
    candidates = [selector.tokens("word1 word2", "tells0"), selector.tokens("asks1", "word3 " * 40)]
    assert len(candidates[1]) == 20
    torch.testing.assert_close(loaded.scores(candidates), selector.scores(candidates), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", list(SelectorMode))
def test_on_a_device_an_exported_selector_scores_and_chooses_as_in_training(encoder, tmp_path, mode):
    selector = Selector.new(encoder, mode, POOL, 20, "cpu")
    torch.nn.init.normal_(selector.module.head.weight)
    torch.nn.init.constant_(selector.module.head.bias, 0.3)
    (tmp_path / "trained").mkdir()
    selector.save(tmp_path / "trained")
    done, error = run("export", "--selector", tmp_path / "trained", "-o", tmp_path / "device")
    assert error is None and done["difference"] < 1e-5

    exported = device.Selector.load(tmp_path / "device", threads=1)
    assert (exported.card.mode, exported.card.retrievers) == (mode, POOL)
    for number in range(20):
        draw = random.Random(number)
        texts = [[" ".join(draw.choices(FILLERS, k=draw.randrange(30))) for _ in range(2)] for _ in POOL]
        with torch.no_grad():
            scores = selector.scores([selector.tokens(prompt, output) for prompt, output in texts])
        chosen = exported.choose([device.Candidate(prompt, output) for prompt, output in texts])
        assert chosen == int(scores.argmax())

    _, error = run("export", "--selector", tmp_path / "trained", "-o", tmp_path / "device")
    assert isinstance(error, WriteError) and "--force" in str(error)
    _, error = run("export", "--selector", tmp_path / "trained", "-o", tmp_path / "trained", "--force")
    assert isinstance(error, WriteError) and "not replaced" in str(error)


def test_selectors_that_can_not_be_used_are_named(encoder, tmp_path):
    with pytest.raises(SettingsError, match="takes 64 tokens, not 100"):
        Selector.new(encoder, SelectorMode.PRE, POOL, 100, "cpu")
    with pytest.raises(BundleError, match=r"no selector\.json"):
        Selector.load(encoder)
    selector = Selector.new(encoder, SelectorMode.PRE, POOL, None, "cpu")
    (tmp_path / "saved").mkdir()
    selector.save(tmp_path / "saved")
    answers = tuple(Answer("word1", "word2", 0.5) for _ in range(2))
    other = Selection("rouge-1", ("none", "kd"), (SelectionQuestion("a", answers),))
    with pytest.raises(SettingsError, match="pool none, kd, the selector of none, bm25, recency"):
        select(selector, other, silent)
    (tmp_path / "saved" / "head.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(SourceError, match="head can't be read"):
        Selector.load(tmp_path / "saved")
    (tmp_path / "saved" / "selector.json").write_text('{"format": "cogenesis-selector/2"}')
    with pytest.raises(BundleError, match="format is not cogenesis-selector/1"):
        Selector.load(tmp_path / "saved")


def test_an_interrupted_training_gives_the_same_bytes(tmp_path):
    encoder = make_encoder(tmp_path / "forgetful", dropout=0.2)
    for part, numbers in (("train", range(6)), ("dev", range(10, 14))):
        run("data", *write_pool(tmp_path / part, numbers, "output"), "-o", tmp_path / f"{part}.json")
    training, judging = (read_selection(tmp_path / f"{part}.json") for part in ("train", "dev"))
    settings = TuningSettings(epochs=2, batch=2, rate=1e-2, threads=1, save_every=1)

    def train(out, progress):
        selector = Selector.new(encoder, SelectorMode.POST, POOL, None, "cpu")
        train_selector(selector, out, training, judging, settings, Team(cpu=True), force=False, progress=progress)

    train(tmp_path / "whole", silent)
    for step in range(6):

        def stop(_what, done, total, step=step):
            if done > step or done == total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "broken", stop)
    train(tmp_path / "broken", silent)
    for file in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes(), file


@given(
    st.integers(2, 4).flatmap(
        lambda pool: st.lists(st.lists(st.floats(-1, 1), min_size=pool, max_size=pool), min_size=1, max_size=5)
    )
)
def test_every_way_to_select_lies_between_the_bounds(gains):
    names = tuple("abcd"[: len(gains[0])])
    questions = tuple(
        SelectionQuestion(str(number), tuple(Answer("", "", gain) for gain in row)) for number, row in enumerate(gains)
    )
    found = bounds(Selection("rouge-1", names, questions))
    array = np.array(gains)
    assert found.retrievers == pytest.approx(dict(zip(names, array.mean(axis=0), strict=True)))
    assert found.oracle == pytest.approx(np.mean([max(row) for row in gains]))
    assert found.random == pytest.approx(np.mean(array))
    assert found.oracle >= found.retrievers[found.best] - 1e-12 >= found.random - 2e-12


def test_the_bounds_are_shown(tmp_path):
    run("data", *write_pool(tmp_path / "pool", range(8), "input"), "-o", tmp_path / "data.json")
    shown, _ = run("bounds", tmp_path / "data.json")
    assert shown["oracle"] == pytest.approx(0.9) and set(shown["retrievers"]) == set(POOL)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda scores: scores.pop("3"), DataError, "different questions.*'3'"),
        (lambda scores: scores["3"].pop("output"), DataError, "question '3' has no 'output'"),
        (lambda scores: scores["3"].update(metric={"rouge-1": "1"}), DataError, "must be a finite number"),
        (lambda scores: scores.update({"3": 1}), DataError, "question '3' must be an object"),
        (lambda scores: scores.clear(), DataError, "an entry or more"),
        (lambda scores: [s.update(metric={"rouge-l": 1}) for s in scores.values()], SettingsError, "different metrics"),
        (lambda scores: scores["3"]["metric"].update(mae=1), SettingsError, "several metrics"),
        (lambda scores: [s.update(metric={"mae": 1}) for s in scores.values()], SettingsError, "less is better"),
    ],
)
def test_feedback_that_does_not_fit_together_is_named(tmp_path, change, error, says):
    write_pool(tmp_path, range(5), "input")
    file = tmp_path / "bm25" / "scores.json"
    scores = json.loads(file.read_text())
    change(scores)
    file.write_text(json.dumps(scores))
    with pytest.raises(error, match=says):
        combine({name: tmp_path / name for name in POOL})


@pytest.mark.parametrize(
    ("pool", "says"),
    [(["a=x"], "two retrievers or more"), (["a=x", "a=y"], "two retrievers named a"), (["a=x", "b"], "NAME=FOLDER")],
)
def test_a_pool_must_be_named(tmp_path, pool, says):
    _, error = run("data", *(part for one in pool for part in ("--pool", one)), "-o", tmp_path / "out.json")
    assert isinstance(error, SettingsError) and says in str(error)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda body: body.update(format="other"), "no data of retriever selection"),
        (lambda body: body.update(retrievers=["a"]), "two texts or more"),
        (lambda body: body.update(questions=[]), "no questions"),
        (lambda body: body["questions"][0]["answers"].pop(), "one of each retriever"),
        (lambda body: body["questions"][0]["answers"][0].update(gain=None), "must be a finite number"),
    ],
)
def test_damaged_data_is_named(tmp_path, change, says):
    file = tmp_path / "data.json"
    run("data", *write_pool(tmp_path / "pool", range(3), "input"), "-o", file)
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))
    with pytest.raises(DataError, match=says):
        read_selection(file)


@given(words=st.integers(0, 40), answered=st.integers(0, 40), post=st.booleans(), most=st.integers(3, 64))
def test_a_candidate_is_what_the_tokenizers_template_makes_of_it_cut_from_the_end(
    tokenizer, words, answered, post, most
):
    prompt, answer = (" ".join(FILLERS[i % 20] for i in range(count)) for count in (words, answered))
    found = candidate_tokens(tokenizer, prompt, answer if post else None, most)

    room = most - (3 if post else 2)
    kept = min(answered, max(room - words, room // 2)) if post else 0
    first, second = (" ".join(text.split()[:count]) for text, count in ((prompt, room - kept), (answer, kept)))
    assert found == (tokenizer.encode(first, second) if post else tokenizer.encode(first)).ids
    assert len(found) <= most
