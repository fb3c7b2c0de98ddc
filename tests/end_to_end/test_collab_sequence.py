"""The whole learning side by its script, on tiny models: data, pair, tuning, combiner, answers, report; and again."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cogenesis.collab import app
from edge_runtime.bundle.reader import open_bundle
from personalization.collab.evaluation.run_report import BEGIN, END
from personalization.collab.records.records import read_collab_file
from tests.support.chat_server import chat_server
from tests.support.command_server import run_script
from tests.support.commands import ROOT
from tests.support.personal_data import record, text, write_json
from tests.support.tiny_models import make_model

SCRIPT = ROOT / "examples" / "collab" / "run.sh"
PAIR = ROOT / "benchmarks" / "pair.py"
# The least that does every step.
QUICK = {
    "SHRINK": "--layers 2 --max-tokens 600 --window 16 --threads 1",
    "BEGIN": "--epochs 1 --threads 1",
    "TUNE": "--epochs 1 --threads 1",
    "EXPORT": "--quantize fp32",
    "LOGPROBS": "--threads 1",
    "FUSE": "--epochs 3",
    "ANSWERS": "--limit 1 --max-new-tokens 4 --threads 1",
}

THINGS = ("harbour", "letter", "market", "garden", "bridge", "winter", "kitchen", "library", "teacher")
OUTLINE = "\n".join(f"{number}. Tell of the {thing}" for number, thing in enumerate(THINGS, start=1))


def authors_files(directory: Path) -> Path:
    """Files of the authors' form, of made-up users."""
    directory.mkdir()
    tasks = [
        {**record(f"1_{user}_0", items=1), "conversations": [
            {"from": "user", "value": f"Write {text((user, 't'), 3)}: for {text((user, 'd'), 2)}"},
            {"from": "assistant", "value": f"{text((user, 'a'), 10)} 1_{user}"},
        ]}
        for user in range(10)
    ]  # fmt: skip
    write_json(directory / "context_aware_dev.json", tasks)
    without = [{name: one[name] for name in ("tid", "conversations")} for one in (record(f"2_{u}_0") for u in range(9))]
    write_json(directory / "ctx_train_wo.json", without)
    return directory


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the script left, how it was called, and its commands."""
    root = tmp_path_factory.mktemp("sequence")
    model = make_model(root / "model", model_type="llama", num_hidden_layers=3, max_position_embeddings=4096)
    data = authors_files(root / "data")
    settings = {"MODEL": model, "DATA": data, "OUT": root / "out", "SETS": "ctx", "PORT": free_port(), **QUICK}
    # Random weights have nothing to outline.
    with chat_server(lambda body: OUTLINE) as server:
        settings["SKETCH"] = f"--endpoint {server.url} --name outliner"
        yield root / "out", settings, run_script(SCRIPT, ROOT, **settings)


def printed(out, step):
    return json.loads((out / f"{step}.json").read_text())


def test_no_user_is_in_two_parts(run):
    out = run[0]
    parts = {part: read_collab_file(out / "ctx" / f"{part}.jsonl").records for part in ("tune", "dev", "fuse", "test")}
    users = [{one.user for one in records} for records in parts.values()]
    assert all(users)
    assert sum(map(len, users)) == len(set.union(*users)) == 10


def test_the_edge_is_a_smaller_model_with_its_own_combiner(run):
    out = run[0]
    edge, large = open_bundle(out / "ctx" / "edge-bundle"), open_bundle(out / "large-bundle")
    assert edge.manifest.tokenizer.fingerprint == large.manifest.tokenizer.fingerprint
    sizes = [sum(entry.size for entry in one.decoder_files(one.decoder())) for one in (edge, large)]
    assert sizes[0] < sizes[1]
    assert any(entry.path.startswith("fusion/") for entry in edge.manifest.files)


def test_every_way_to_write_is_measured_on_users_that_nothing_was_trained_on(run):
    found = printed(run[0], "ctx/evaluate")
    assert found["users"] == 2
    likelihood = {row["system"]: row["scores"]["nll"] for row in found["likelihood"]["systems"]}
    assert {"edge", "edge-without", "cloud", "learned", "max", "untuned", "cloud-with", "tuned with sketch"} <= set(
        likelihood
    )
    assert all(0 < nll < 20 for nll in likelihood.values())
    answered = {row["system"] for row in found["answers"]["systems"]}
    assert {"edge", "cloud", "cloud-with", "sketch", "learned", "learned@learned", "reference"} <= answered


def test_the_report_stands_in_the_document_with_pictures_and_nothing_else_of_it_changes(run, tmp_path):
    bundles = [run[0] / "ctx" / "edge-bundle", run[0] / "large-bundle"]
    quick = ["--rounds", "2", "--prompt-tokens", "8", "--new-tokens", "2", "--json"]
    speed = subprocess.run([sys.executable, PAIR, *bundles, *quick], capture_output=True, check=True)
    (run[0] / "pair.json").write_bytes(speed.stdout)
    document = tmp_path / "guide.md"
    document.write_text(f"# Guide\n\n{BEGIN}\nold\n{END}\n\nThe end.\n")
    arguments = ["report", str(run[0]), "--into", str(document)]
    for _ in range(2):
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None, result.exception
    written = document.read_text()
    assert written.startswith("# Guide\n\n" + BEGIN)
    assert written.endswith(END + "\n\nThe end.\n")
    assert "\nold\n" not in written
    pair = ("**The pair.**", "times as fast", "It was then tuned")
    for part in (*pair, "### ctx", "| learned |", "#### Tuning", "#### The combiner"):
        assert part in written
    for picture in ("fusion.svg", "answers.svg"):
        assert f"](guide/ctx/{picture})" in written
        assert (tmp_path / "guide" / "ctx" / picture).stat().st_size > 1000


def test_run_again_it_does_nothing_twice(run):
    out, settings, commands = run
    kept = [
        *out.glob("ctx/tuned-*/*.safetensors"), *out.glob("ctx/scored-*/rows.logprobs"),
        *out.glob("ctx/evaluation/answers/*"), out / "edge" / "model.safetensors",
        out / "ctx" / "edge-bundle" / "manifest.json",
    ]  # fmt: skip
    assert len(kept) > 12
    before = {path: path.read_bytes() for path in kept}
    again = run_script(SCRIPT, ROOT, **settings)
    assert len(again) < len(commands)  # exports
    assert {path: path.read_bytes() for path in kept} == before
    assert printed(out, "shrink")["kept"]
    assert all(printed(out, f"ctx/tune-{context}")["kept"] for context in ("with", "without", "sketch"))
