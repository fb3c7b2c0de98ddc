"""What the installed transformers would load wrongly is refused by name, with what to do instead."""

from __future__ import annotations

import json

import pytest

from cloud_bridge.server.engines import checkpoint_version
from cloud_bridge.server.engines.checkpoint_version import check_gguf, check_loadable
from cloud_bridge.server.engines.transformers_engine import load_engine
from cloud_bridge.server.errors import ServeError
from tests.support.tiny_families import SHAPES
from tests.support.tiny_gguf import write_family_gguf
from tests.support.tiny_models import FAMILIES, make_model


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (FAMILIES["llama3-rope"], r"rope_freqs\.weight"),
        (SHAPES["gemma3"], "architecture 'gemma3'"),
        (SHAPES["stablelm"], "architecture 'stablelm'"),
    ],
)
def test_a_gguf_file_of_which_transformers_ignores_a_part_is_refused(config, words, tmp_path):
    path = write_family_gguf(make_model(tmp_path / "model", **config), tmp_path / "tiny.gguf")
    with pytest.raises(ServeError, match=rf"ignores .*{words}.*`cogenesis export onnx`"):
        load_engine(str(path))


def test_a_gguf_file_that_transformers_reads_whole_is_not_refused(smollm2_gguf, tmp_path):
    check_gguf(smollm2_gguf)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(smollm2_gguf.read_bytes()[:1000])
    with pytest.raises(ServeError, match="not a usable GGUF file"):
        check_gguf(damaged)


@pytest.mark.parametrize(
    "config", [{"rope_parameters": {"rope_theta": 5e5}}, {"model_type": "gemma", "hidden_act": "gelu"}]
)
def test_what_only_version_5_reads_is_refused_by_version_4(config, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    monkeypatch.setattr(checkpoint_version, "_VERSION_5", True)
    check_loadable(tmp_path)
    monkeypatch.setattr(checkpoint_version, "_VERSION_5", False)
    with pytest.raises(ServeError, match="needs version 5"):
        check_loadable(tmp_path)
