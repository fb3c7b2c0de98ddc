"""Scoring reference answers: the same rows from every source, resumable, and exactly those that generation fuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import edge_runtime.generation.speculate
from cloud_bridge.client import connect
from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.server.serve import ServerOptions, serving
from cogenesis.cli import app
from edge_runtime.assistant import Assistant, load
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import BundleError, WriteError
from edge_runtime.fusion.combiner_file import encode_combiner
from edge_runtime.fusion.fuse import Fusion, Strategy
from edge_runtime.fusion.sparse import THIN, RowFormat
from edge_runtime.generation.drafter import PromptedDecoder
from edge_runtime.generation.options import Options
from edge_runtime.generation.sampling import choose
from edge_runtime.generation.schedule import LearnedSchedule, parse_schedule
from edge_runtime.privacy.gate import Policy
from edge_runtime.privacy.guard import Guard
from export.bundle.combiner import add_combiner
from export.onnx.export import export_onnx
from personalization.collab.combiner.fused_nll import asks, fused_nll
from personalization.collab.logprobs.file import read_logprobs
from personalization.collab.logprobs.model_spec import BridgeSpec, ModelSpec
from personalization.collab.logprobs.open_scorer import open_scorer
from personalization.collab.logprobs.score import LogProbPlan, LogProbWorker, score_records
from personalization.collab.logprobs.scorer import LocalCloudRows
from personalization.collab.records.records import CollabRecord, write_collab_file
from personalization.errors import DataError
from personalization.jobs.runners import LocalRunner
from personalization.jobs.shard import Shard
from tests.support.random_combiners import random_combiner
from tests.support.tiny_models import make_model

CONTEXT = PrivateContext("Trade: zither maker", (HistoryItem("Letter", "The quince tree blooms."),))


def record(number: int, reference: str = "it is what the other one said, and that was good") -> CollabRecord:
    instruction = PublicInstruction(f"Write note {number}")
    return CollabRecord(f"r{number}", f"u{number}", instruction, f"{instruction.text}: now", CONTEXT, reference)


@dataclass(frozen=True)
class Pair:
    """Two models with a shared tokenizer, as directories, and their bundles."""

    edge: Path
    cloud: Path
    edge_bundle: Path
    address: str

    def plan(self, rows: RowFormat = THIN, **changes: object) -> LogProbPlan:
        edge = ModelSpec(self.edge, "edge", "base", is_bundle=False, threads=1)
        cloud = ModelSpec(self.cloud, "cloud", "cloud", is_bundle=False, threads=1)
        return replace(LogProbPlan(edge, cloud, rows, without_context=True), **changes)

    @property
    def bundle_spec(self) -> ModelSpec:
        return ModelSpec(self.edge_bundle, "bundle", "base", is_bundle=True, threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    # Peaked enough to make the models differ.
    edge = make_model(root / "edge", model_type="llama", initializer_range=0.2)
    cloud = make_model(root / "cloud", model_type="llama", initializer_range=0.2, rope_theta=500.0)
    for name, source in (("edge", edge), ("cloud", cloud)):
        export_onnx(source, root / f"{name}-bundle", "fp32")
    with serving(load_onnx_engine(str(root / "cloud-bundle"), threads=1), ServerOptions()) as running:
        yield Pair(edge, cloud, root / "edge-bundle", running.address)


def test_rows_are_those_of_transformers_over_the_devices_prompt(pair: Pair):
    one = record(1)
    rows = LogProbWorker(pair.plan(RowFormat(400, value_type="float32"))).score(one, [5, 17, 300, 42])
    prompts = {
        "edge": load(pair.edge_bundle).prompt(one.instruction, one.device_context).token_ids,
        "cloud": AutoTokenizer.from_pretrained(pair.cloud).apply_chat_template(
            [{"role": "user", "content": one.instruction.text}], add_generation_prompt=True, return_dict=False
        ),
    }
    for name, nll in (("edge", rows.edge_nll), ("cloud", rows.cloud_nll)):
        model = AutoModelForCausalLM.from_pretrained(getattr(pair, name), dtype=torch.float32).eval()
        ids = torch.tensor([[*prompts[name], 5, 17, 300, 42]])
        with torch.inference_mode():
            # Neither offers ids that the tokenizer lacks.
            known = len(AutoTokenizer.from_pretrained(pair.cloud))
            expected = model(ids).logits[0, :, :known].double().log_softmax(-1)
        np.testing.assert_allclose(nll, [-expected[-5 + i, t] for i, t in enumerate([5, 17, 300, 42])], atol=1e-4)


def test_a_bundle_and_the_bridge_say_what_directories_say(pair: Pair):
    from_directories = LogProbWorker(pair.plan()).score(record(1), list(range(40, 140)))
    bridge = BridgeSpec(pair.address, "cloud")
    served = LogProbWorker(pair.plan(edge=pair.bundle_spec, cloud=bridge)).score(record(1), list(range(40, 140)))
    for mix in (Fusion(), Fusion(Strategy.DELTA, 1.0), Fusion(Strategy.ARITHMETIC, 0.3)):
        np.testing.assert_allclose(fused_nll(served, mix), fused_nll(from_directories, mix), atol=2e-3)
    sent = served.is_sent[served.target_at]
    assert np.array_equal(np.isnan(served.cloud_nll), ~sent)
    np.testing.assert_allclose(served.cloud_nll[sent], from_directories.cloud_nll[sent], atol=0.05)


def test_rows_of_bundles_are_bit_for_bit_those_of_a_device_and_a_cloud(pair: Pair, tmp_path: Path):
    """Also for quantised models, whose kernels round a single row differently than several."""
    bundle, one, answer = tmp_path / "int8", record(1), [5, 17, 300, 42, 7]
    export_onnx(pair.edge, bundle, "int8")
    spec = replace(pair.bundle_spec, source=bundle)

    assistant = load(bundle, threads=1)
    prompt = assistant.prompt(one.instruction, one.device_context, max_new_tokens=len(answer))
    edge = PromptedDecoder(assistant.decoder, prompt.token_ids, open_scorer(spec).known)
    on_the_device = [edge.prefill(), *(edge.step(token, at) for at, token in enumerate(answer[:-1]))]
    assert np.array_equal(open_scorer(spec).score(one.instruction, one.device_context, answer), on_the_device)

    runner = load_onnx_engine(bundle)
    form, window = RowFormat(100_000), range(len(answer))
    served = runner.score(runner.open(one.instruction.text), keep=0, tokens=answer[:-1], rows=window, form=form)
    scored, _ = LocalCloudRows(open_scorer(spec, for_cloud=True), form).rows(one.instruction, answer)
    assert [row.log_probs.tolist() for row in scored] == [row.log_probs.tolist() for row in served]


def test_the_context_changes_the_edges_rows_and_none_of_the_clouds(pair: Pair):
    worker = LogProbWorker(pair.plan())
    private, other = record(1), replace(record(1), context=PrivateContext("Trade: miller"))
    first, second = worker.score(private, [9, 8, 7]), worker.score(other, [9, 8, 7])
    assert not np.array_equal(first.edge_nll, second.edge_nll)
    assert np.array_equal(first.without_nll, second.without_nll)
    assert np.array_equal(first.cloud, second.cloud)
    assert np.array_equal(first.cloud_nll, second.cloud_nll)


def test_killed_anywhere_or_in_shards_the_file_is_the_same(pair: Pair, tmp_path: Path, monkeypatch):
    records = [record(number) for number in range(4)]
    plan, scored = pair.plan(), []

    class Counting(LogProbWorker):
        def __call__(self, one: CollabRecord) -> dict[str, str]:
            scored.append(one.id)
            return super().__call__(one)

    monkeypatch.setattr("personalization.collab.logprobs.score.LogProbWorker", Counting)

    def run(out: Path, shard: Shard | None = None):
        return score_records(records, plan, LocalRunner(), out, shard=shard, report=lambda *_: None)

    done = run(tmp_path / "whole")
    assert done is not None
    expected = done.path.read_bytes()
    assert [one.user for one in read_logprobs(done.path).records] == ["u0", "u1", "u2", "u3"]
    journal = tmp_path / "whole" / "logprobs.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    done.path.unlink()
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:100])
    scored.clear()
    assert run(tmp_path / "whole").path.read_bytes() == expected
    assert scored == ["r2", "r3"]
    assert run(tmp_path / "parts", Shard(1, 2)) is None
    assert run(tmp_path / "parts", Shard(2, 2)).path.read_bytes() == expected


def test_records_that_do_not_fit_are_named_and_left_out(pair: Pair, tmp_path: Path):
    long = replace(record(1), instruction=PublicInstruction("long " * 2000))
    done = score_records([long, record(2)], pair.plan(), LocalRunner(), tmp_path, report=lambda *_: None)
    assert [one.id for one in done.rows.records] == ["r2"]
    assert [one.where for one in done.skipped] == ["record 'r1'"]
    with pytest.raises(DataError, match="r1"):
        score_records([long], pair.plan(), LocalRunner(), tmp_path / "none", report=lambda *_: None)


def test_the_command_tells_the_likelihoods_and_what_is_missing(pair: Pair, tmp_path: Path):
    write_collab_file(tmp_path / "records.jsonl", [record(1), record(2)])
    command = ["collab", "logprobs", str(tmp_path / "records.jsonl"), "--edge", str(pair.edge_bundle)]
    command += ["--out", str(tmp_path / "out"), "--threads", "1", "--max-reference-tokens", "5"]
    said = CliRunner().invoke(app, [*command, "--cloud", pair.address, "--json"], catch_exceptions=False).stdout
    body = json.loads(said)
    assert (body["records"], body["rows"], body["skipped"], body["cloud_nll"]) == (2, 10, 0, None)
    assert body["edge_nll"] == pytest.approx(read_logprobs(Path(body["out"])).edge_nll.mean())
    assert "--large DIR" in str(CliRunner().invoke(app, command).exception)


def shown_as_it_is(one: CollabRecord, answer: tuple[int, ...], assistant: Assistant) -> bool:
    """Whether the guard released the whole answer; the cloud's rows can't be teacher-forced on replaced words."""
    guard = Guard(assistant.tokenizer, one.instruction, one.device_context)
    for token in answer:
        guard.push(token)
    return tuple(guard.released) == answer[: len(guard.released)]


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize(("window", "policy"), [(1, Policy.OPEN), (None, Policy.GUARDED)])
@pytest.mark.parametrize("when", ["0,0,1", "learned", "learned:0.4"])
def test_learned_fusion_writes_what_its_evaluation_predicts(
    pair: Pair, tmp_path: Path, monkeypatch, window, policy, when, without
):
    """Greedy, over a real connection: each fused row gives its token the same log-prob as the file."""
    assistant = load(pair.edge_bundle, threads=1)
    combiner = random_combiner(3, without=without, base=assistant.bundle.base, gap=0.7)
    said: dict[int, float] = {}

    def noting(log_probs, position, sampling, written):
        token = choose(log_probs, position, sampling, written)
        said[position] = float(log_probs[token])
        return token

    monkeypatch.setattr(edge_runtime.generation.speculate, "choose", noting)
    fusion, schedule = Fusion(Strategy.LEARNED, combiner=combiner), parse_schedule(when)
    if isinstance(schedule, LearnedSchedule):
        schedule = replace(schedule, combiner=combiner)
    # A longer answer would not fit into the small cloud's context.
    options = Options(max_new_tokens=16, fusion=fusion, schedule=schedule, rows=THIN, window=window, policy=policy)
    with connect(pair.address) as cloud:
        for one in map(record, range(30)):  # random models end most answers soon
            said.clear()
            given = one.instruction, one.device_context
            result = assistant.generate(*given, mode="fused", cloud=cloud, options=options).finish()
            if len(result.token_ids) > 8 and (
                policy is Policy.OPEN or shown_as_it_is(one, result.token_ids, assistant)
            ):
                break
    rows = LogProbWorker(pair.plan(edge=pair.bundle_spec)).score(one, result.token_ids)
    written = [-said[position] for position in range(len(result.token_ids))]
    # The guard requests no row while a possibly private word is being written: the edge decides alone.
    expected = np.where(result.fused, fused_nll(rows, fusion), rows.edge_nll)
    np.testing.assert_allclose(written, expected, atol=1e-4)
    wanted = asks(rows, schedule)
    if policy is Policy.OPEN:
        assert list(result.fused) == wanted.tolist()
    assert not (np.array(result.fused) & ~wanted).any()
    assert any(result.fused)
    assert len(written) > 8


def test_a_bundle_brings_its_combiner_and_refuses_anothers(pair: Pair, tmp_path: Path):
    bundle = tmp_path / "bundle"
    export_onnx(pair.edge, bundle, "fp32")
    base = load(bundle).bundle.base
    files = [tmp_path / name for name in ("one", "two", "other")]
    for file, combiner in zip(
        files, (random_combiner(1, base=base), random_combiner(2, base=base), random_combiner(1)), strict=True
    ):
        file.write_bytes(encode_combiner(combiner))

    def write(options: Options) -> tuple[int, ...]:
        with connect(pair.address) as cloud:
            answer = load(bundle).generate(record(1).instruction, CONTEXT, mode="fused", cloud=cloud, options=options)
            return answer.finish().token_ids

    learned = Options(max_new_tokens=8, fusion=Fusion(Strategy.LEARNED), schedule=LearnedSchedule(), rows=THIN)
    with pytest.raises(BundleError, match="no combiner"):
        write(learned)
    with pytest.raises(BundleError, match="another edge model"):
        add_combiner(files[2], bundle)
    add_combiner(files[0], bundle)
    own = random_combiner(1, base=base)
    given = replace(learned, fusion=Fusion(Strategy.LEARNED, combiner=own), schedule=LearnedSchedule(own))
    assert write(learned) == write(given)
    request = tmp_path / "request.json"
    context = {
        "profile": CONTEXT.profile,
        "history": [{"title": item.title, "text": item.text} for item in CONTEXT.history],
    }
    request.write_text(json.dumps({"instruction": record(1).instruction.text, "context": context}))
    command = [
        "generate",
        "--bundle",
        bundle,
        "--request",
        request,
        "--mode",
        "fused",
        "--cloud",
        pair.address,
        "--json",
    ]
    command += ["--fusion", "learned", "--schedule", "learned", "--max-new-tokens", "8"]
    said = CliRunner().invoke(app, [str(part) for part in command], catch_exceptions=False).stdout
    assert tuple(json.loads(said)["token_ids"]) == write(learned)
    with pytest.raises(WriteError, match="Set `replace_existing`"):
        add_combiner(files[1], bundle)
    second = add_combiner(files[1], bundle, replace_existing=True)
    load(bundle)  # every file matches the manifest
    assert list((bundle / "fusion").iterdir()) == [second.path]
    export_onnx(pair.edge, bundle, "fp32", force=True)
    assert load(bundle).bundle.manifest.file("combiner") is not None
    second.path.write_bytes(b"damaged")
    with pytest.raises(BundleError, match="damaged"):
        load(bundle)
