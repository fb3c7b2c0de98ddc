"""A prompt cache survives the disk unchanged, and nothing but a whole one is taken for one."""

import json
import stat
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.prompt_cache import PROMPT_CACHE_FORMAT, read_prompt_cache, write_prompt_cache
from edge_runtime.decoders.protocol import PromptCache
from edge_runtime.errors import PromptCacheError
from tests.support.tiny_models import random_ids

IDS = random_ids(60, seed=11)


@pytest.fixture(scope="module")
def shared(tiny):
    return open_decoder(tiny.bundle, threads=1)


@pytest.fixture
def decoder(shared):
    shared.rewind(0)
    shared.use_adapter(None)
    shared.extend(IDS[:50])
    return shared


@pytest.fixture
def path(decoder, tmp_path):
    write_prompt_cache(decoder.save(), tmp_path / "profile.cache")
    return tmp_path / "profile.cache"


def test_an_answer_goes_on_exactly_from_a_file(decoder, path):
    expected = decoder.extend(IDS[50:], rows=10)
    fresh = decoder.fork()
    fresh.restore(read_prompt_cache(path))
    assert fresh.token_ids == tuple(IDS[:50])
    np.testing.assert_array_equal(fresh.extend(IDS[50:], rows=10), expected)


def test_an_empty_state_can_be_kept_too(decoder, tmp_path):
    write_prompt_cache(decoder.save(0), tmp_path / "empty")
    decoder.restore(read_prompt_cache(tmp_path / "empty"))
    assert decoder.length == 0


def test_only_the_owner_can_read_the_file(path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_is_replaced_in_one_step_and_nothing_is_left_over(decoder, path):
    path.chmod(0o644)
    before = path.stat().st_ino
    write_prompt_cache(decoder.save(10), path)
    assert path.stat().st_ino != before
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert len(read_prompt_cache(path).token_ids) == 10


def test_a_failed_write_leaves_the_old_file(decoder, path, monkeypatch):
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PromptCacheError, match="No space left"):
        write_prompt_cache(decoder.save(), path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_a_typed_error(decoder, tmp_path):
    with pytest.raises(PromptCacheError, match="can't be written"):
        write_prompt_cache(decoder.save(), tmp_path / "nowhere" / "cache")


def test_a_missing_file_is_a_typed_error(tmp_path):
    with pytest.raises(PromptCacheError, match="no prompt cache here"):
        read_prompt_cache(tmp_path / "none")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_is_noticed(data, path):
    whole = path.read_bytes()
    position = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(whole) - 1)), label="position")
    flipped = data.draw(st.integers(1, 255), label="flip")
    changed = path.parent / "changed"
    changed.write_bytes(whole[:position] + bytes([whole[position] ^ flipped]) + whole[position + 1 :])
    original = read_prompt_cache(path)
    try:
        read = read_prompt_cache(changed)
    except PromptCacheError:
        return
    # What is left are spaces in the header and the names of the model and adapter, which `restore` compares.
    np.testing.assert_array_equal(read.keys, original.keys)
    np.testing.assert_array_equal(read.values, original.values)
    assert read.token_ids == original.token_ids


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_short_or_made_of_anything_else_is_refused(data, path):
    whole = path.read_bytes()
    other = path.parent / "other"
    cut = st.integers(0, len(whole) - 1).map(lambda end: whole[:end])
    other.write_bytes(data.draw(st.one_of(cut, st.binary(max_size=200)), label="content"))
    with pytest.raises(PromptCacheError):
        read_prompt_cache(other)


@pytest.mark.parametrize(
    "header",
    [
        {"keys": {"dtype": "F32", "shape": [2**31, 2**31, 64], "data_offsets": [0, 8]}},
        {"keys": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}},
        {"keys": {"dtype": "F8_E5M2", "shape": [8], "data_offsets": [0, 8]}},
        {"__metadata__": {"format": PROMPT_CACHE_FORMAT}},
        {"__metadata__": {"format": "something else"}},
        {"__metadata__": {"format": 7}},
        {},
    ],
)
def test_hostile_headers_are_refused(tmp_path, header):
    text = json.dumps({"__metadata__": {"format": PROMPT_CACHE_FORMAT}} | header).encode()
    (tmp_path / "hostile").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(PromptCacheError):
        read_prompt_cache(tmp_path / "hostile")


def test_a_header_that_claims_to_be_huge_is_refused(tmp_path):
    (tmp_path / "hostile").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(PromptCacheError):
        read_prompt_cache(tmp_path / "hostile")


def test_half_precision_tensors_of_the_right_size_do_not_fit(decoder):
    cache = decoder.save()
    with pytest.raises(PromptCacheError, match="does not fit"):
        decoder.restore(replace(cache, keys=cache.keys.astype(np.float16)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "f" * 64}, "another model"),
        ({"adapter": "f" * 64}, "another adapter"),
        ({"token_ids": (1, 2, 3)}, "does not fit"),
        ({"token_ids": (5000,) * 50}, "does not know"),
        ({"token_ids": (-1,) * 50}, "does not know"),
        ({"token_ids": (1,) * 2000}, "longer than the context"),
        ({"keys": np.zeros((2, 2, 50, 15), np.float32)}, "does not fit"),
        ({"values": np.zeros((2, 1, 50, 16), np.float32)}, "does not fit"),
    ],
)
def test_a_state_that_is_not_this_decoders_is_refused_and_the_present_one_kept(decoder, change, words):
    expected = decoder.extend(IDS[50:], rows=10)
    decoder.rewind(50)
    with pytest.raises(PromptCacheError, match=words):
        decoder.restore(replace(decoder.save(), **change))
    np.testing.assert_array_equal(decoder.extend(IDS[50:], rows=10), expected)


def test_a_state_belongs_to_the_adapter_it_was_made_with(tiny, decoder, path):
    bare = read_prompt_cache(path)
    adapter = Adapter(tiny.bundle.base, "a" * 64, {(0, "q_proj"): (np.ones((64, 1)), np.ones((1, 64)))})
    decoder.use_adapter(adapter)
    with pytest.raises(PromptCacheError, match="another adapter"):
        decoder.restore(bare)
    decoder.extend(IDS[:20])
    write_prompt_cache(decoder.save(), path)
    adapted = read_prompt_cache(path)
    assert adapted.adapter == "a" * 64
    decoder.restore(adapted)
    decoder.use_adapter(None)
    with pytest.raises(PromptCacheError, match="another adapter"):
        decoder.restore(adapted)


def test_tokens_of_another_type_are_refused(decoder, path):
    cache = decoder.save()
    tensors = {"token_ids": np.array(cache.token_ids, np.float32), "keys": cache.keys, "values": cache.values}
    save_file(tensors, path, {"format": PROMPT_CACHE_FORMAT, "model": cache.model, "adapter": "", "sha256": ""})
    with pytest.raises(PromptCacheError, match="damaged"):
        read_prompt_cache(path)


def test_a_written_cache_is_the_one_that_was_saved(tmp_path):
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, 3, 2, 5, 8)).astype(np.float32)
    write_prompt_cache(PromptCache("m", "a", (1, 2, 3, 4, 5), keys, values), tmp_path / "c")
    read = read_prompt_cache(tmp_path / "c")
    assert (read.model, read.adapter, read.token_ids) == ("m", "a", (1, 2, 3, 4, 5))
    np.testing.assert_array_equal(read.keys, keys)
    np.testing.assert_array_equal(read.values, values)
