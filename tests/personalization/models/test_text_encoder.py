"""Text encoders: their vectors against transformers' own, and what can't be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from edge_runtime.errors import CogenesisError
from personalization.errors import SettingsError
from personalization.models.text_encoder import Encoder
from tests.support.personal_data import make_t5
from tests.support.tiny_encoders import make_encoder

TEXTS = ["word1 word2 asks3", "tells0", "", "word4 " * 200, "unknown words", "tells5 word7"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "bert", num_hidden_layers=2, dropout=0.1)


def test_a_vector_is_the_mean_of_the_last_hidden_states(directory):
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    encoder = Encoder.load(directory)
    vectors = encoder.embed(TEXTS, batch=4)

    assert vectors.shape == (len(TEXTS), encoder.dimension) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors, strict=True):
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
        with torch.no_grad():
            expected = model(**tokens).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.vectors(TEXTS).detach().numpy(), vectors, atol=1e-5)


def test_vectors_do_not_depend_on_what_else_is_embedded(directory):
    encoder = Encoder.load(directory)
    together = encoder.embed(TEXTS, batch=len(TEXTS))
    np.testing.assert_allclose(together, encoder.embed(TEXTS, batch=1), atol=1e-5)
    assert encoder.embed([]).shape == (0, encoder.dimension)


def test_a_saved_encoder_gives_the_same_bits(directory, tmp_path):
    encoder = Encoder.load(directory)
    encoder.save(tmp_path / "copy")
    np.testing.assert_array_equal(Encoder.load(tmp_path / "copy").embed(TEXTS), encoder.embed(TEXTS))


@pytest.mark.parametrize(
    ("kind", "config", "longest"),
    [
        ("roberta", {"max_position_embeddings": 66, "pad_token_id": 0}, 64),
        ("distilbert", {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 48}, 64),
        ("longformer", {"attention_window": [4], "max_position_embeddings": 40}, 39),
    ],
)
def test_long_texts_are_cut_to_what_the_model_has_positions_for(tmp_path, kind, config, longest):
    encoder = Encoder.load(make_encoder(tmp_path / kind, kind, **config))
    assert encoder.max_tokens == longest
    assert np.isfinite(encoder.embed(["word1 " * 100])).all()


def test_of_an_encoder_decoder_model_the_encoder_is_taken(tmp_path):
    directory = make_t5(tmp_path / "t5")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.bos_token
    tokenizer.save_pretrained(directory)
    assert Encoder.load(directory).embed(["a boat on the river"]).shape == (1, 32)


def test_weights_as_torch_saves_them_load_as_well(directory, tmp_path):
    copy = tmp_path / "old"
    AutoModel.from_pretrained(directory).save_pretrained(copy, safe_serialization=False)
    AutoTokenizer.from_pretrained(directory).save_pretrained(copy)
    np.testing.assert_array_equal(Encoder.load(copy).embed(TEXTS), Encoder.load(directory).embed(TEXTS))


def test_what_is_no_encoder_is_named(directory, tmp_path):
    with pytest.raises(CogenesisError, match=r"no config\.json"):
        Encoder.load(tmp_path)
    with pytest.raises(SettingsError, match="device can't be used: cuda:7"):
        Encoder.load(directory, "cuda:7")
    deeper = tmp_path / "deeper"
    AutoModel.from_pretrained(directory).save_pretrained(deeper)
    AutoTokenizer.from_pretrained(directory).save_pretrained(deeper)
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CogenesisError, match=r"lacks weights: .*layer\.2"):
        Encoder.load(deeper)
    without = tmp_path / "without"
    make_t5(without)
    with pytest.raises(CogenesisError, match="no padding token"):
        Encoder.load(without)
