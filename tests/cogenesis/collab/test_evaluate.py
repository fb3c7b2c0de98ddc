"""An evaluation of tiny models: its numbers equal those of torch and the runtime, and an interrupted run resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save
from transformers import AutoTokenizer
from typer.testing import CliRunner

from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.server.serve import ServerOptions, serving
from cogenesis.collab import app
from edge_runtime.assistant import load
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import CogenesisError
from edge_runtime.fusion.combiner_file import encode_combiner
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.generation.options import Options
from edge_runtime.generation.sampling import Sampling
from edge_runtime.generation.schedule import LearnedSchedule
from edge_runtime.text.prompt import user_message
from export.onnx.export import export_onnx
from personalization.collab.combiner.fused_nll import asks, fused_nll
from personalization.collab.combiner.reference import ReferenceCombiner
from personalization.collab.combiner.rows import combiner_rows
from personalization.collab.combiner.train import COMBINER_NAME, REFERENCE_NAME
from personalization.collab.evaluation.fusion_likelihood import by_learned_schedule, learned
from personalization.collab.evaluation.systems import Writer, parse_system
from personalization.collab.logprobs.file import read_logprobs
from personalization.collab.records.records import CollabRecord, write_collab_file
from personalization.errors import SettingsError
from tests.support.chat_server import chat_server
from tests.support.personal_data import text, torch_model
from tests.support.random_combiners import random_combiner
from tests.support.tiny_models import make_model, make_tokenizer

WRITING = ("--max-new-tokens", 5, "--threads", 1)


def records(count=5):
    found = []
    for number in range(count):
        user = f"user-{number // 2}"
        past = tuple(HistoryItem(f"Write {text((user, i), 3)}", text((user, i, "t"), 9)) for i in range(2))
        context = PrivateContext(f"Name: Ada{number // 2}\nLocation: Oslo", past)
        public = f"Write {text((number, 'q'), 4)}"
        reference = f"Ada{number // 2} of Oslo {text((number, 'a'), 8)}"
        task = f"{public}: {text((number, 'd'), 3)}"
        sketch = f"1. {text((number, 's'), 3)}"
        found.append(CollabRecord(f"r{number}", user, PublicInstruction(public), task, context, reference, sketch))
    return found


def run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def pair(llama, tmp_path_factory):
    """A small and a larger model with one tokenizer, as directories and bundles, and records of three users."""
    root = tmp_path_factory.mktemp("pair")
    large = make_model(root / "large", model_type="llama", num_hidden_layers=3)
    export_onnx(llama, root / "edge-bundle", "fp32")
    export_onnx(large, root / "large-bundle", "fp32")
    write_collab_file(root / "test.jsonl", records())
    run("logprobs", root / "test.jsonl", "--edge", llama, "--large", large, "--without", "-o", root / "scored")
    (root / "combiner").mkdir()
    (root / "combiner" / COMBINER_NAME).write_bytes(encode_combiner(random_combiner(1)))
    (root / "combiner" / REFERENCE_NAME).write_bytes(save(ReferenceCombiner(len(make_tokenizer())).state_dict()))
    return root


@pytest.fixture(scope="module")
def cloud(pair):
    engine = load_onnx_engine(str(pair / "large-bundle"), threads=1)  # outlines take torch ten times as long
    with serving(engine, ServerOptions(max_sessions=4, max_top_k=512)) as running:
        yield running.address


def torch_nll(directory, record, context, outline=None):
    """Compute nats and tokens of a reference with transformers, over the ids that have a token, as both sides do."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    context = context or PrivateContext()
    message = user_message(record.instruction, context, outline, range(len(context.history)))
    chat = [{"role": "user", "content": message}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer = tokenizer(record.reference, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        rows = torch_model(directory)(torch.tensor([prompt + answer[:-1]])).logits[
            0, len(prompt) - 1 :, : len(tokenizer)
        ]
    return float(torch.nn.functional.cross_entropy(rows.double(), torch.tensor(answer), reduction="sum")), len(answer)


def by_system(found):
    return {row["system"]: row for row in found["systems"]}


@pytest.fixture(scope="module")
def likelihood(pair, llama):
    beside = ("--beside", f"ceiling={pair / 'large'}", "--beside-sketch", f"sketch={llama}")
    return run(
        "evaluate", pair / "test.jsonl", "--rows", pair / "scored" / "rows.logprobs", "-o", pair / "likelihood",
        "--combiners", pair / "combiner", *beside, "--beside-without", f"bare={llama}", "--threads", 1,
    )["likelihood"]  # fmt: skip


def test_likelihoods_are_those_of_torch(likelihood, pair, llama):
    systems = by_system(likelihood)
    large = pair / "large"
    expected = {
        "edge": [torch_nll(llama, one, one.device_context) for one in records()],
        "edge-without": [torch_nll(llama, one, None) for one in records()],
        "cloud": [torch_nll(large, one, None) for one in records()],
        "ceiling": [torch_nll(large, one, one.device_context) for one in records()],
        "sketch": [torch_nll(llama, one, one.device_context, one.sketch) for one in records()],
    }
    for name, found in expected.items():
        nats, tokens = np.sum(found, axis=0)
        assert systems[name]["scores"]["nll"] == pytest.approx(nats / tokens, abs=1e-4), name
    assert systems["bare"]["scores"]["nll"] == pytest.approx(systems["edge-without"]["scores"]["nll"], abs=1e-5)
    assert likelihood["tokens"] == sum(tokens for _, tokens in expected["edge"])


def test_every_system_is_compared_with_learned_fusion_by_users(likelihood):
    assert likelihood["baseline"] == "learned"
    systems = by_system(likelihood)
    assert "CoGenesis' combiner" in systems
    learned = systems["learned"]["scores"]["nll"]
    for name, row in systems.items():
        if name != "learned":
            against = row["against"]["nll"]
            assert against["difference"] == pytest.approx(row["scores"]["nll"] - learned)
            assert against["low"] <= against["difference"] <= against["high"]


def test_fixed_mixes_have_the_best_of_all_weights_that_were_tried(likelihood):
    systems = by_system(likelihood)
    for strategy, points in likelihood["sweeps"].items():
        weight, nll = min(points, key=lambda point: point[1])
        assert systems[f"{strategy}:{weight:g}"]["scores"]["nll"] == pytest.approx(nll)


def test_asking_always_keeps_the_whole_gain_and_asking_less_is_told_by_its_share(likelihood):
    calls = {one["system"]: one for one in likelihood["calls"]}
    assert calls["learned"]["share"] == calls["learned"]["kept_over_edge"] == 1.0
    assert calls["learned@0,3,1"]["share"] == pytest.approx(0.25, abs=0.1)
    assert calls["learned@0,3,1"]["share"] < calls["learned@0,1,1"]["share"] < calls["learned@0,1,3"]["share"]
    for kind in ("learned:{:g}", "predicted {:.0%}", "known {:.0%}"):
        shares = [calls[f"learned@{kind.format(share)}"]["share"] for share in (0.25, 0.5, 0.75)]
        assert shares == sorted(shares)
    assert "learned@learned" in calls
    assert calls["learned"]["low"] == calls["learned"]["high"] == 1.0
    edge, always = (by_system(likelihood)[name]["scores"]["nll"] for name in ("edge", "learned"))
    for one in calls.values():
        assert one["kept_over_edge"] == pytest.approx((edge - one["nll"]) / (edge - always))
        assert one["low"] <= one["kept_over_edge"] <= one["high"]


def test_what_is_worth_most_by_what_fusion_changes_is_asked_first(pair):
    rows, combiner = read_logprobs(pair / "scored" / "rows.logprobs"), random_combiner(1)
    fused = learned(rows, combiner)
    known = {one.system: one for one in by_learned_schedule(rows, fused, combiner)}["learned@known 25%"]
    changed = ~np.isclose(known.nll, rows.edge_nll) | np.isclose(fused.nll, rows.edge_nll)
    found = list(combiner_rows(rows, without=False))
    worth = np.array([row.candidates.divergence(combiner.mix(row.candidates, row.step)) for row in found])
    assert (worth >= 0).all()
    assert changed[worth >= np.quantile(worth, 0.75)].all()


def test_the_schedule_that_ships_asks_where_the_device_would(likelihood, pair):
    rows, combiner = read_logprobs(pair / "scored" / "rows.logprobs"), random_combiner(1)
    schedule = LearnedSchedule(combiner)
    expected = fused_nll(rows, Fusion(Strategy.LEARNED, combiner=combiner), schedule).mean()
    found = {one["system"]: one for one in likelihood["calls"]}["learned@learned"]
    assert found["nll"] == pytest.approx(expected, abs=1e-5)
    assert found["share"] == pytest.approx(asks(rows, schedule).mean())


SYSTEMS = ("edge-without", "cloud", "cloud-with", "sketch", "arithmetic:0.5", "max@0,1,1")


@pytest.fixture(scope="module")
def written(pair, cloud):
    """The answers' part of `evaluate`, its arguments, and the judge's requests."""

    def say(body):
        return "[[6]] [[6]]"

    arguments = ["evaluate", pair / "test.jsonl", "--edge", pair / "edge-bundle", "--cloud", cloud, "--answer-limit", 2]
    arguments += ["--large", pair / "large-bundle", *WRITING, "-o", pair / "answers"]
    for system in SYSTEMS:
        arguments += ["--system", system]
    with chat_server(say) as server:
        found = run(*arguments, "--judge", server.url, "--judge-model", "judge")
        asked = len(server.requests)
    return found, arguments, asked


def test_answers_are_those_of_the_runtime(written, pair):
    sampling = Sampling(temperature=0.7, top_p=0.9)
    options = Options(max_new_tokens=5, sampling=sampling)
    noted = [json.loads(line) for line in (pair / "answers" / "answers" / "edge.jsonl").read_text().splitlines()[1:]]
    assistant = load(pair / "edge-bundle", threads=1)
    for record, (_, answer) in zip(records(), noted, strict=False):
        assistant.decoder.rewind(0)
        result = assistant.generate(record.instruction, record.device_context, options=options).finish()
        assert answer["text"] == result.text.strip()
        assert answer["tokens"] == len(result.token_ids)


def test_costs_tell_who_asks_the_cloud(written):
    systems = by_system(written[0]["answers"])
    assert set(systems) == {"edge", *SYSTEMS, "reference"}
    for name in ("edge", "edge-without", "cloud-with"):
        assert systems[name]["scores"]["bytes up"] == 0
    assert systems["cloud"]["scores"]["round trips"] == systems["sketch"]["scores"]["round trips"] == 1
    assert 0 < systems["max@0,1,1"]["scores"]["fused"] < systems["arithmetic:0.5"]["scores"]["fused"] <= 1
    assert systems["reference"]["scores"]["private facts"] == 1.0


def test_the_judge_compares_every_system_with_the_device_alone_in_both_orders(written):
    found, _, asked = written
    judged = found["judged"]["public"]
    assert asked == 2 * 2 * len(SYSTEMS)
    assert {row["system"]: row["scores"]["score"] for row in judged["systems"]} == dict.fromkeys(
        ("edge", *SYSTEMS), 6.0
    )


def test_a_killed_run_goes_on_where_it_was_to_the_same_answers(written, pair):
    path = pair / "answers" / "answers" / "edge-without.jsonl"
    before = path.read_bytes()
    head, first, *_ = before.splitlines(keepends=True)
    path.write_bytes(head + first + b'[1, {"te')
    again = run(*written[1])
    texts = [[json.loads(line)[1]["text"] for line in whole.splitlines()[1:]] for whole in (before, path.read_bytes())]
    assert texts[0] == texts[1]
    assert path.read_bytes().splitlines()[1] == first.strip()
    same = ("rouge-1", "rouge-l", "private facts", "style", "words")
    for one, other in zip(again["answers"]["systems"], written[0]["answers"]["systems"], strict=True):
        assert [one["scores"][name] for name in same] == [other["scores"][name] for name in same]


def test_the_report_has_every_number_and_picture(written, likelihood, pair):
    for name, pictures in (("likelihood", ["fusion.svg"]), ("answers", ["answers.svg"])):
        report = (pair / name / "report.md").read_text()
        assert [line for line in report.splitlines() if line.startswith("![")]
        for picture in pictures:
            assert f"]({picture})" in report
            assert (pair / name / picture).read_text().lstrip().startswith("<?xml")
    for row in likelihood["systems"]:
        assert f"| {row['system']} | {row['scores']['nll']:.4f} |" in (pair / "likelihood" / "report.md").read_text()


@pytest.mark.parametrize("name", ["", "edges", "fused", "arithmetic:x", "arithmetic:2", "geometric@1,2", "learned@x"])
def test_a_system_that_is_none_is_refused(name):
    with pytest.raises(SettingsError, match="There is no system"):
        parse_system(name)


def test_a_system_is_read_from_its_name():
    found = parse_system("geometric:0.8@4,3,1")
    assert (found.writer, found.fusion.weight, found.schedule.without) == (Writer.FUSED, 0.8, 3)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "nothing to measure"),
        (("--combiners", "x"), "nothing to measure"),
        (("--edge", "EDGE", "--beside", "a=b"), "belong to --rows"),
        (("--rows", "ROWS", "--system", "max"), "belong to answers"),
        (("--rows", "ROWS", "--beside", "edge"), "NAME=MODEL"),
        (("--rows", "ROWS", "--beside", "edge=EDGE"), "Two systems are called 'edge'"),
        (("--edge", "EDGE", "--judge", "http://127.0.0.1:1/v1"), "--judge-model"),
        (("--edge", "EDGE", "--system", "sketch"), "Give --cloud"),
        (("--edge", "EDGE", "--system", "cloud-with"), "Give --large"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_work_begins(arguments, why, pair, tmp_path):
    places = {"EDGE": pair / "edge-bundle", "ROWS": pair / "scored" / "rows.logprobs"}
    with pytest.raises(CogenesisError, match=why):
        run("evaluate", pair / "test.jsonl", "-o", tmp_path, *_placed(arguments, places))
    assert not list(tmp_path.iterdir())


def _placed(arguments, places):
    return [one.replace("EDGE", str(places["EDGE"])).replace("ROWS", str(places["ROWS"])) for one in arguments]
