"""`cogenesis export verify` notices every kind of damage."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from edge_runtime.bundle.manifest import read_manifest, write_manifest
from edge_runtime.bundle.reader import open_bundle, sha256_of
from edge_runtime.errors import BundleError, DamagedFileError, MissingFileError
from export.bundle.conformance import read_vectors
from export.bundle.verify import verify_bundle
from export.errors import ConformanceError
from tests.support.tiny_models import decoder_of

FILES = ["golden.json", "manifest.json", "onnx/model.onnx", "onnx/model.onnx.data", "tokenizer.json"]


@pytest.fixture
def bundle(family_bundle, tmp_path):
    """A copy to damage."""
    return shutil.copytree(family_bundle("llama-tied", "int8"), tmp_path / "bundle")


def rehash(bundle, **changes) -> None:
    """Make the manifest agree with the files again, as whoever repackages a bundle could."""
    manifest = read_manifest((bundle / "manifest.json").read_bytes())
    files = tuple(
        dataclasses.replace(entry, size=(bundle / entry.path).stat().st_size, sha256=sha256_of(bundle / entry.path))
        for entry in manifest.files
        if (bundle / entry.path).exists()
    )
    (bundle / "manifest.json").write_text(write_manifest(dataclasses.replace(manifest, files=files, **changes)))


def test_a_sound_bundle_passes(bundle):
    result = verify_bundle(bundle)
    assert result.files == 4
    assert list(result.conformance) == ["onnx"]
    found = result.conformance["onnx"]
    assert found.vectors == 4
    assert found.max_difference < 1e-4
    assert found.greedy_equal == found.greedy_total == 64


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_in_any_file_is_noticed(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_off_file_is_noticed(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1] if name != "manifest.json" else content[:-3])
    with pytest.raises((DamagedFileError, BundleError), match=name):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(MissingFileError if name != "manifest.json" else BundleError, match=name):
        verify_bundle(bundle)


def test_other_weights_with_right_hashes_are_noticed_by_their_logits(bundle, family_bundle):
    weights = "onnx/model.onnx.data"
    content = np.frombuffer((bundle / weights).read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(0)
    damaged = rng.random(content.size) < 0.02
    content[damaged] ^= rng.integers(1, 16, damaged.sum(), dtype=np.uint8)
    (bundle / weights).write_bytes(content.tobytes())
    rehash(bundle)
    with pytest.raises(ConformanceError, match="Export it again"):
        verify_bundle(bundle)


def test_other_conformance_vectors_with_right_hashes_are_noticed(bundle):
    golden = json.loads((bundle / "golden.json").read_text())
    golden["vectors"][2]["top_logits"][7] += 3 * golden["tolerance"]
    (bundle / "golden.json").write_text(json.dumps(golden))
    rehash(bundle)
    with pytest.raises(ConformanceError, match="difference"):
        verify_bundle(bundle)


def test_another_tokenizer_with_right_hashes_is_noticed(bundle):
    text = (bundle / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = json.loads(text)
    names = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)[-2:]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[names[0]], vocabulary[names[1]] = vocabulary[names[1]], vocabulary[names[0]]
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    rehash(bundle)
    with pytest.raises(ConformanceError, match="tokenizer"):
        verify_bundle(bundle)


def test_a_bundle_without_conformance_vectors_does_not_pass(bundle):
    (bundle / "golden.json").unlink()
    rehash(bundle)
    with pytest.raises(BundleError, match=r"golden\.json"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "cogenesis-golden/2"}',
        '{"format": "cogenesis-golden/1", "tolerance": 1, "vectors": []}',
        '{"format": "cogenesis-golden/1", "tolerance": 1, "vectors": [{"name": "x", "token_ids": [999999], '
        '"top_ids": [1], "top_logits": [0.5], "greedy": []}]}',
        '{"format": "cogenesis-golden/1", "tolerance": 1, "vectors": [{"name": "x", "token_ids": [1], '
        '"top_ids": [1], "top_logits": [], "greedy": []}]}',
    ],
)
def test_conformance_vectors_of_another_form_are_refused(text):
    with pytest.raises(ConformanceError, match="can't be read"):
        read_vectors(text, "golden.json", 384)


def test_vectors_are_what_the_decoder_gives(family_bundle):
    root = family_bundle("qwen3", "fp32")
    golden = json.loads((root / "golden.json").read_text())
    decoder = decoder_of(root)
    assert {vector["name"] for vector in golden["vectors"]} == {"words", "unicode", "several chunks", "chat"}
    for vector in golden["vectors"]:
        decoder.rewind(0)
        # Another way through the cache than the one that made them: a token at a time.
        for token in vector["token_ids"]:
            row = decoder.extend([token])[-1]
        assert row.argsort()[::-1][:20].tolist() == vector["top_ids"]
        np.testing.assert_allclose(row[vector["top_ids"]], vector["top_logits"], atol=golden["tolerance"])
        for token in vector["greedy"]:
            assert row.argmax() == token
            row = decoder.extend([token])[-1]
    assert open_bundle(root).manifest.file("golden") is not None
