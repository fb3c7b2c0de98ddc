"""A directory written from another model keeps that one's identity for as long as its weights are those."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.errors import SourceError
from export.model.hf_source import hf_provenance, weight_files
from export.model.lineage import LINEAGE_NAME, write_lineage
from export.model.weights import Provenance

ORIGIN = Provenance("gguf", "tiny.Q4_1.gguf", "a" * 64, "tiny", "r1", "Apache-2.0", 123)


def make_directory(root, shards=1):
    root.mkdir()
    names = [f"model-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
    for index, name in enumerate(names):
        save_file({f"w{index}": np.full((2, 3), index, np.float32)}, root / name)
    index_file = {"weight_map": {f"w{index}": name for index, name in enumerate(names)}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index_file))
    return root


@pytest.mark.parametrize("shards", [1, 3])
def test_a_written_directory_has_the_identity_of_its_origin_and_an_own_parameter_count(tmp_path, shards):
    directory = make_directory(tmp_path / "hf", shards)
    own = hf_provenance(directory)
    write_lineage(directory, ORIGIN, weight_files(directory))
    assert hf_provenance(directory) == replace(ORIGIN, parameters=6 * shards)
    assert own.sha256 != ORIGIN.sha256


def test_a_moved_directory_keeps_it(tmp_path):
    directory = make_directory(tmp_path / "hf")
    write_lineage(directory, ORIGIN, weight_files(directory))
    assert hf_provenance(directory.rename(tmp_path / "elsewhere")).sha256 == ORIGIN.sha256


@pytest.mark.parametrize("shard", [0, 1])
def test_other_weights_are_a_model_of_their_own(tmp_path, shard):
    directory = make_directory(tmp_path / "hf", shards=2)
    own = hf_provenance(directory)
    write_lineage(directory, ORIGIN, weight_files(directory))
    trained = weight_files(directory)[shard]
    save_file({f"w{shard}": np.ones((2, 3), np.float32) * 7}, trained)
    changed = hf_provenance(directory)
    assert changed.kind == "huggingface"
    assert changed.sha256 not in (ORIGIN.sha256, own.sha256)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "cogenesis-source/2"}',
        b'{"format": "cogenesis-source/1", "origin": {"kind": "gguf"}}',
        b'{"format": "cogenesis-source/1", "origin": null}',
    ],
)
def test_a_damaged_note_is_refused_by_name(tmp_path, note):
    directory = make_directory(tmp_path / "hf")
    (directory / LINEAGE_NAME).write_bytes(note)
    with pytest.raises(SourceError, match=LINEAGE_NAME):
        hf_provenance(directory)
