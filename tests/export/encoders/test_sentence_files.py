"""An encoder's vectors are made as sentence-transformers' own files say, or the encoder is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel

from edge_runtime.retrieval.text_encoder import TextEncoder
from export.encoders.export import export_encoder
from export.encoders.sentence_files import read_pooling
from export.errors import ExportError, SourceError, UnsupportedModelError
from personalization.errors import ModelError
from personalization.models.text_encoder import Encoder
from tests.support.tiny_encoders import make_encoder

TEXTS = ["word1 word2 asks3", "tells0", "word3 " * 200, "word5 word6 tells1 asks1 word7"]
MODES = ("mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def with_files(model, *chosen, modules=("Transformer", "Pooling", "Normalize"), extra=None, prompt=None):
    """Write sentence-transformers' files into a model's directory."""
    (model / "1_Pooling").mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": 32, "include_prompt": True, **(extra or {})}
    settings |= {f"pooling_mode_{mode}": mode in chosen for mode in MODES}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    names = {"Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [
        {"idx": i, "name": str(i), "path": names.get(kind, ""), "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (model / "modules.json").write_text(json.dumps(listed))
    body = {"prompts": {"query": "query: "}, "default_prompt_name": prompt, "similarity_fn_name": "cosine"}
    (model / "config_sentence_transformers.json").write_text(json.dumps(body))
    return model


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_cls_pooling_takes_the_first_token(scheme, tmp_path):
    model = with_files(make_encoder(tmp_path / "model", intermediate_size=64), "cls_token")
    export_encoder(model, tmp_path / "out", scheme)
    encoder = TextEncoder.load(tmp_path / "out", threads=1)
    network = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    for text, found in zip(TEXTS, encoder.embed(TEXTS), strict=True):
        with torch.no_grad():
            states = network(input_ids=torch.tensor([encoder.token_ids(text)])).last_hidden_state[0]
        first, mean = states[0].numpy(), states.mean(0).numpy()
        difference = np.linalg.norm(found - first) / np.linalg.norm(first)
        assert difference < (1e-5 if scheme == "fp32" else 0.05)
        assert np.linalg.norm(found - mean) > 5 * np.linalg.norm(found - first)


def test_the_export_finds_a_wrong_pooling(tmp_path, monkeypatch):
    import export.encoders.export as module

    model = with_files(make_encoder(tmp_path / "model"), "cls_token")
    write = module.write_network
    monkeypatch.setattr(module, "write_network", lambda *args, pooling: write(*args, pooling="mean"))
    with pytest.raises(ExportError, match="differs from torch"):
        export_encoder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mean_pooling_is_the_same_with_and_without_the_files(tmp_path):
    model = make_encoder(tmp_path / "model")
    assert read_pooling(model) == "mean"
    assert read_pooling(with_files(model, "mean_tokens")) == "mean"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"chosen": ["lasttoken"]}, "pooling can't be exported: lasttoken"),
        ({"chosen": ["max_tokens"]}, "max"),
        ({"chosen": ["mean_tokens", "cls_token"]}, "cls, mean"),
        ({"chosen": ["weightedmean_tokens"]}, "weightedmean"),
        ({"chosen": ["mean_tokens"], "extra": {"pooling_mode_new": True}}, "'pooling_mode_new'"),
        ({"chosen": ["mean_tokens"], "modules": ("Transformer", "Pooling", "Dense")}, "module 'Dense'"),
        ({"chosen": ["mean_tokens"], "prompt": "query"}, "prompt 'query'"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(given, words, tmp_path):
    model = with_files(make_encoder(tmp_path / "model"), *given.pop("chosen"), **given)
    with pytest.raises(UnsupportedModelError, match=words):
        export_encoder(model, tmp_path / "out")


def test_damaged_files_are_named(tmp_path):
    model = with_files(make_encoder(tmp_path / "model"), "mean_tokens")
    (model / "1_Pooling" / "config.json").write_text("[")
    with pytest.raises(SourceError, match=r"1_Pooling.config\.json"):
        export_encoder(model, tmp_path / "out")


def test_training_refuses_an_encoder_whose_pooling_it_does_not_have(tmp_path):
    with pytest.raises(ModelError, match="first token"):
        Encoder.load(with_files(make_encoder(tmp_path / "model"), "cls_token"))
