"""GGUF files on disk: any part of a split model opens it whole, and what is missing or no model is named."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from export.errors import ExportError, ModelNotFoundError, SourceError, UnsupportedModelError
from export.model.gguf.file import read_gguf
from export.model.gguf.source import GGUFSource
from export.model.locate import locate_model
from export.onnx.export import export_onnx
from tests.export.model.gguf.test_source import write_gguf
from tests.support.tiny_models import decoder_of, make_model, random_ids, torch_logits


@pytest.fixture(scope="module")
def hf_model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("whole"), model_type="llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def whole(hf_model, tmp_path_factory):
    return write_gguf(hf_model, tmp_path_factory.mktemp("gguf") / "tiny-f32.gguf", [Kind.F32])


@pytest.fixture
def parts(whole, tmp_path):
    return split(whole, tmp_path / "parts", 3)


def split(whole: Path, folder: Path, count: int) -> list[Path]:
    """Split a file as llama.cpp's gguf-split does: the metadata is in the first part, tensors are in all of them."""
    folder.mkdir()
    reader = gguf.GGUFReader(whole)
    # The head goes to the last part, far from the embedding.
    tensors = sorted(reader.tensors, key=lambda tensor: tensor.name == "output.weight")
    files = []
    for number in range(count):
        path = folder / f"{whole.stem}-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for field in reader.fields.values():
            if number or field.name.startswith("GGUF.") or field.name == "general.architecture":
                continue
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for tensor in tensors[number * len(tensors) // count : (number + 1) * len(tensors) // count]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        files.append(path)
    return files


def test_the_header_is_what_the_gguf_package_reads(whole):
    ours, theirs = read_gguf(whole), gguf.GGUFReader(whole)
    assert ours.fields == {
        name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")
    }
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.shape, mine.tensor_type) == (tuple(other.shape.tolist()), other.tensor_type)
        assert (mine.n_elements, mine.n_bytes) == (other.n_elements, other.n_bytes)
        np.testing.assert_array_equal(mine.data, other.data)


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.F64, Kind.Q8_0, Kind.Q4_K, Kind.Q6_K])
def test_stored_numbers_are_those_of_the_gguf_package(kind, tmp_path):
    values = np.random.default_rng(1).normal(size=(6, 512))
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    if kind in (Kind.F16, Kind.F64):
        writer.add_tensor("odd", np.ones(3, np.float32))  # so that the next must be aligned
        writer.add_tensor("one", values.astype(np.float16 if kind == Kind.F16 else np.float64))
    elif kind in (Kind.Q4_K, Kind.Q6_K):  # the package can't make these
        size = gguf.GGML_QUANT_SIZES[kind][1] * 2
        writer.add_tensor("one", np.arange(6 * size, dtype=np.uint8).reshape(6, size), raw_dtype=kind)
    else:
        writer.add_tensor("one", gguf.quants.quantize(values.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    mine, other = read_gguf(tmp_path / "one.gguf").tensors[-1], gguf.GGUFReader(tmp_path / "one.gguf").tensors[-1]
    assert mine.data.dtype == other.data.dtype
    np.testing.assert_array_equal(mine.data, other.data)


@pytest.mark.parametrize("named", [0, 1, 2, "directory"])
def test_a_split_model_is_read_whole_whatever_part_is_named(named, parts, hf_model, tmp_path):
    model = parts[0].parent if named == "directory" else parts[named]
    exported = export_onnx(model, tmp_path / "bundle", "fp32")
    ids = random_ids(40)
    np.testing.assert_allclose(
        decoder_of(tmp_path / "bundle").extend(ids, rows=40), torch_logits(hf_model, ids), atol=3e-4
    )
    assert exported.manifest.source.name == parts[0].name
    assert exported.manifest.model.id == "tiny"


def test_each_part_counts_in_the_models_identity(parts, tmp_path):
    before = GGUFSource(parts[0]).provenance().sha256
    assert before == GGUFSource(parts[2]).provenance().sha256
    content = bytearray(parts[1].read_bytes())
    content[-5] ^= 1
    parts[1].write_bytes(content)
    assert GGUFSource(parts[0]).provenance().sha256 != before


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_missing_part_is_named(gone, parts):
    parts[gone].unlink()
    rest = [part for part in parts if part.exists()]
    for model in (rest[0], rest[1], parts[0].parent):
        with pytest.raises(SourceError, match=parts[gone].name):
            GGUFSource(locate_model(model))


def test_parts_that_do_not_belong_together_are_refused(parts, tmp_path):
    shutil.copy(parts[0], parts[1])
    with pytest.raises(SourceError, match=r"part 2 of 3, but not by its content"):
        GGUFSource(parts[0])
    renamed = tmp_path / "renamed.gguf"
    shutil.copy(parts[2], renamed)
    with pytest.raises(SourceError, match=r"one of 3 parts, but its name"):
        GGUFSource(renamed)


def test_a_part_with_too_few_tensors_is_refused(parts):
    writer = gguf.GGUFWriter(parts[1], "llama")
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 3)
    writer.add_tensor("blk.0.attn_norm.bias", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"should hold 21"):
        GGUFSource(parts[0])


def test_a_projector_is_no_model(whole, tmp_path):
    (tmp_path / "dir").mkdir()
    projector = tmp_path / "dir" / "mmproj-tiny.gguf"
    writer = gguf.GGUFWriter(projector, "clip")
    writer.add_type("mmproj")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="projector for images or sound"):
        GGUFSource(projector)
    with pytest.raises(ModelNotFoundError, match="only a projector"):
        locate_model(projector.parent)
    shutil.copy(whole, projector.with_name("model.gguf"))
    assert locate_model(projector.parent).name == "model.gguf"
    shutil.copy(whole, projector.with_name("other.gguf"))
    with pytest.raises(ModelNotFoundError, match="2 GGUF models"):
        locate_model(projector.parent)


def test_an_adapter_in_a_gguf_file_is_no_model(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="type 'adapter'"):
        GGUFSource(tmp_path / "lora.gguf")


def test_a_damaged_header_is_one_clear_error(whole, tmp_path):
    content = whole.read_bytes()
    header = read_gguf(whole).tensors[0].offset
    rng = np.random.default_rng(5)
    damaged = tmp_path / "damaged.gguf"
    opened = 0
    for _ in range(300):
        changed = bytearray(content[: header + 64])
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(0, header)] = rng.integers(0, 256)
        damaged.write_bytes(changed + content[header + 64 :])
        try:
            read_gguf(damaged)
            opened += 1
        except ExportError:
            pass
    assert opened < 300
    for version in (1, 4, 3 << 24):
        damaged.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
        with pytest.raises(UnsupportedModelError, match=r"version|big-endian"):
            read_gguf(damaged)
    damaged.write_bytes(b"")
    with pytest.raises(SourceError):
        read_gguf(damaged)
