"""Exported text encoders against torch, a tiny one of each family and the real MiniLM."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from cogenesis.export import app
from edge_runtime.errors import (
    BundleError,
    DamagedFileError,
    MissingFileError,
    RequestError,
    UnsupportedVersionError,
    WriteError,
)
from edge_runtime.retrieval.text_encoder import TextEncoder
from export.encoders.export import export_encoder
from export.errors import ExportError, SourceError, UnsupportedModelError, UnsupportedQuantizationError
from personalization.models.text_encoder import Encoder
from tests.support.commands import ROOT
from tests.support.examples import examples
from tests.support.tiny_encoders import make_encoder
from tests.support.tiny_models import make_model

FAMILIES = {
    "bert": {},
    "bert-relu": {"kind": "bert", "hidden_act": "relu", "num_hidden_layers": 3},
    "bert-tanh": {"kind": "bert", "hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "roberta": {"kind": "roberta"},
    "xlm-roberta": {"kind": "xlm-roberta", "num_attention_heads": 2},
    "distilbert": {"kind": "distilbert", "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}
TEXTS = ["word1 word2 asks3", "", "tells0", "word3 " * 200, "nothing of it is known", "word5 word6 tells1 asks1 word7"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny BERT's directory, and its export."""
    root = tmp_path_factory.mktemp("tiny-encoder")
    model = make_encoder(root / "model")
    export_encoder(model, root / "exported")
    return model, root / "exported"


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_torch(tmp_path, family):
    model = make_encoder(tmp_path / "model", **({"kind": "bert"} | FAMILIES[family]))
    assert export_encoder(model, tmp_path / "out").difference < 1e-5
    found = TextEncoder.load(tmp_path / "out", threads=1).embed(TEXTS)
    assert found == pytest.approx(Encoder.load(model).embed(TEXTS), abs=1e-5)


@settings(max_examples=examples(30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=40) | st.just("\ud800 word1"), max_size=8))
def test_any_texts_have_vectors_that_do_not_depend_on_their_company(tiny, texts):
    encoder = TextEncoder.load(tiny[1], threads=1, verify=False)
    together = encoder.embed(texts)
    assert together.shape == (len(texts), 32)
    for text, vector in zip(texts, together, strict=True):
        assert encoder.embed([text])[0] == pytest.approx(vector, abs=1e-5)


def test_the_real_minilm_is_exact_in_fp32_and_nearly_so_in_int8(minilm, minilm_device, tmp_path):
    texts = [item["text"] for item in json.loads((ROOT / "examples/user/user.json").read_text())["history"]][:4]
    texts += ["a letter to the residents' association", "Grüße aus Köln"]
    wanted = Encoder.load(minilm).embed(texts)
    sizes = {}
    export_encoder(minilm, tmp_path / "int8", "int8")
    for scheme, directory in (("fp32", minilm_device), ("int8", tmp_path / "int8")):
        encoder = TextEncoder.load(directory)
        assert (encoder.card.dimension, encoder.card.max_tokens, encoder.card.quantization) == (384, 512, scheme)
        sizes[scheme] = sum(file.size for file in encoder.card.files)
        found = encoder.embed(texts)
        if scheme == "fp32":
            assert found == pytest.approx(wanted, abs=1e-5)
        else:
            cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
            assert cosines.min() > 0.999
    assert sizes["int8"] < 0.3 * sizes["fp32"]


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


def test_an_encoder_goes_into_a_bundle_and_is_verified_with_it(tiny, tmp_path):
    llama = make_model(tmp_path / "llama", model_type="llama")
    bundle = tmp_path / "bundle"
    run("onnx", "--model", llama, "--out", bundle, "--quantize", "fp32", "--context-length", 128)
    said = json.loads(run("encoder", "-m", tiny[0], "--bundle", bundle, "--name", "mine", "--json"))
    assert Path(said["directory"]) == bundle / "retrieval" / "mine"
    assert json.loads(run("verify", bundle, "--json"))["encoders"]["mine"] < 1e-5
    assert "Encoder mine: all files have the right hash" in run("verify", bundle)
    assert list(json.loads(run("verify", bundle / "retrieval" / "mine", "--json"))["encoders"]) == ["dense"]
    (bundle / "retrieval" / "mine" / "model.onnx.data").write_bytes(b"x")
    with pytest.raises(DamagedFileError):
        run("verify", bundle)
    with pytest.raises(RequestError, match="can't be called 'bm25'"):
        run("encoder", "-m", tiny[0], "--bundle", bundle, "--name", "bm25")
    with pytest.raises(ExportError, match="--out DIR or with --bundle"):
        run("encoder", "-m", tiny[0])


def test_models_that_can_not_be_exported_are_refused_by_name(tmp_path, tiny):
    model, out = make_encoder(tmp_path / "model", hidden_size=24), tmp_path / "out"
    with pytest.raises(UnsupportedQuantizationError, match="24 numbers, not a multiple of 32"):
        export_encoder(model, out, "int8")
    config = json.loads((model / "config.json").read_text())
    for change, error, said in (
        ({"model_type": "longformer"}, UnsupportedModelError, "'longformer' can't be exported"),
        ({"hidden_act": "silu"}, UnsupportedModelError, "no activation 'silu'"),
        ({"position_embedding_type": "relative_key"}, UnsupportedModelError, "positions"),
        ({"hidden_size": "many"}, UnsupportedModelError, "no 'hidden_size'"),
        ({"num_hidden_layers": 2}, SourceError, "lacks weights"),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(error, match=said):
            export_encoder(model, out)
    assert not out.exists()
    with pytest.raises(WriteError, match="Set `force`"):
        export_encoder(*tiny)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(WriteError, match="not replaced"):
        export_encoder(tiny[0], tmp_path / "else", force=True)


def test_damage_is_told_with_file_and_mend(tiny, tmp_path):
    def copy(name):
        return Path(shutil.copytree(tiny[1], tmp_path / name))

    with pytest.raises(BundleError, match=r"no encoder\.json.*export encoder"):
        TextEncoder.load(tmp_path)
    for name, content, error, said in (
        ("model.onnx.data", b"x", DamagedFileError, r"model\.onnx\.data.*SHA-256"),
        ("model.onnx", None, MissingFileError, r"model\.onnx \("),
        ("encoder.json", b"{", BundleError, r"can't be read: .*encoder\.json"),
        ("encoder.json", b'{"format": "cogenesis-encoder/2"}', UnsupportedVersionError, "another version"),
        ("encoder.json", b'{"format": "cogenesis-encoder/1", "files": []}', BundleError, "its files are not"),
    ):
        directory = copy(f"{name}-{error.__name__}-{said[:3]}")
        if content is None:
            (directory / name).unlink()
        else:
            (directory / name).write_bytes(content)
        with pytest.raises(error, match=said):
            TextEncoder.load(directory)
    changed = copy("golden")
    card = json.loads((changed / "encoder.json").read_text())
    card["golden"][0]["vector"][0] += 5
    (changed / "encoder.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="not give its own vectors"):
        TextEncoder.load(changed).check()


def test_a_port_that_follows_the_page_gives_the_golden_vectors(tiny, minilm_device):
    for root in (tiny[1], minilm_device):
        card = json.loads((root / "encoder.json").read_text(encoding="utf-8"))
        assert card["format"] == "cogenesis-encoder/1"
        for file in card["files"]:
            content = (root / file["path"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
        tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
        tokenizer.enable_truncation(card["max_tokens"])
        session = ort.InferenceSession(root / "model.onnx", providers=["CPUExecutionProvider"])
        for golden in card["golden"]:
            ids = np.array([tokenizer.encode(golden["text"]).ids or [0]], np.int64)
            [[vector]] = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            apart = np.linalg.norm(vector - golden["vector"]) / np.linalg.norm(golden["vector"])
            assert apart <= min(card["tolerance"], 1e-5) and vector.shape == (card["dimension"],)
