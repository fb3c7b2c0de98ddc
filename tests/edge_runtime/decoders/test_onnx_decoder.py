"""The onnxruntime decoder feeds, rewinds and forks one model without ever changing what it computes."""

import mmap
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders import kv_cache, onnx_decoder
from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import BundleError, CogenesisError, ContextOverflowError, PromptCacheError, RequestError
from tests.support.decoder_models import tiny_model, torch_rows
from tests.support.tiny_models import VOCABULARY, random_ids

IDS = random_ids(1000, seed=3)
TOLERANCE = 3e-4


@pytest.fixture(scope="module")
def expected(tiny):
    return torch_rows(tiny.torch(), IDS)


@pytest.fixture(scope="module")
def shared(tiny):
    return open_decoder(tiny.bundle, threads=1)


@pytest.fixture
def decoder(shared):
    shared.rewind(0)
    return shared


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=0)


def test_logits_are_those_of_torch(decoder, expected):
    close(decoder.extend(IDS, rows=len(IDS)), expected)
    assert decoder.length == len(IDS)
    assert decoder.token_ids == tuple(IDS)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_split_with_any_rewinds_gives_the_same_rows(data, shared, expected):
    shared.rewind(0)
    for _ in range(data.draw(st.integers(1, 8), label="steps")):
        shared.rewind(data.draw(st.integers(0, shared.length), label="rewind to"))
        start = shared.length
        count = data.draw(st.integers(1, min(len(IDS) - start, 300)) if start < len(IDS) else st.just(0), label="feed")
        if count:
            rows = data.draw(st.integers(0, count), label="rows")
            close(shared.extend(IDS[start : start + count], rows=rows), expected[start + count - rows : start + count])
        assert shared.token_ids == tuple(IDS[: start + count])


@pytest.mark.parametrize(
    "around", [onnx_decoder.PREFILL_CHUNK, 2 * onnx_decoder.PREFILL_CHUNK, kv_cache.FIRST_CAPACITY]
)
@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_rows_across_a_chunk_or_a_growing_cache_are_the_same(tiny, expected, around, offset):
    fresh = open_decoder(tiny.bundle, threads=1)
    length = around + offset
    close(fresh.extend(IDS[:length], rows=40), expected[length - 40 : length])
    close(fresh.extend(IDS[length : length + 20], rows=20), expected[length : length + 20])


def test_no_rows_are_returned_where_none_are_asked_for(decoder, expected):
    assert decoder.extend(IDS[:50], rows=0).shape == (0, VOCABULARY)
    close(decoder.extend(IDS[50:51]), expected[50:51])


def test_rows_belong_to_the_caller(decoder):
    first = decoder.extend(IDS[:5])
    kept = first.copy()
    decoder.extend(IDS[5:9])
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    assert first.flags.owndata or first.base is None


def test_what_was_rewound_leaves_no_trace(decoder, expected):
    decoder.extend(IDS[:30])
    decoder.extend(random_ids(200, seed=9))
    decoder.rewind(30)
    close(decoder.extend(IDS[30:60], rows=30), expected[30:60])


def test_forks_share_weights_and_nothing_else(decoder, expected):
    decoder.extend(IDS[:20])
    fork = decoder.fork()
    assert fork.length == 0
    assert fork._model is decoder._model
    other = random_ids(30, seed=5)
    alone = fork.extend(other, rows=30)
    close(decoder.extend(IDS[20:40], rows=20), expected[20:40])
    fork.rewind(10)
    decoder.rewind(0)
    close(fork.extend(other[10:], rows=20), alone[10:])


@pytest.mark.parametrize("bad", [[], [-1], [VOCABULARY], [0, 2**40], [-(2**63)]])
def test_tokens_the_model_does_not_know_are_refused_before_they_reach_it(decoder, bad):
    decoder.extend(IDS[:3])
    with pytest.raises(ValueError, match="token"):
        decoder.extend(bad)
    assert decoder.token_ids == tuple(IDS[:3])


@pytest.mark.parametrize("rows", [-1, 4])
def test_rows_that_are_not_there_are_refused(decoder, rows):
    with pytest.raises(ValueError, match="rows"):
        decoder.extend(IDS[:3], rows=rows)
    assert decoder.length == 0


@pytest.mark.parametrize("length", [-1, 4])
def test_only_what_was_fed_can_be_rewound_to_or_saved(decoder, length):
    decoder.extend(IDS[:3])
    with pytest.raises(ValueError, match="length"):
        decoder.rewind(length)
    with pytest.raises(ValueError, match="length"):
        decoder.save(length)


def test_a_full_context_is_used_to_its_last_position_and_not_beyond(tiny, expected):
    small = open_decoder(tiny.bundle, threads=1, context_length=64)
    close(small.extend(IDS[:60]), expected[59:60])
    with pytest.raises(ContextOverflowError, match="65 tokens"):
        small.extend(IDS[60:65])
    assert small.length == 60
    close(small.extend(IDS[60:64], rows=4), expected[60:64])
    with pytest.raises(ContextOverflowError):
        small.extend([1])


@pytest.mark.parametrize("length", [0, -5, 1025])
def test_a_context_the_bundle_does_not_have_is_refused(tiny, length):
    with pytest.raises(RequestError, match="context length"):
        open_decoder(tiny.bundle, context_length=length)


def test_a_restored_state_continues_exactly_as_the_saved_one(decoder):
    decoder.extend(IDS[:300])
    saved = decoder.save()
    first = decoder.extend(IDS[300:330], rows=30)
    fork = decoder.fork()
    fork.extend(random_ids(600, seed=8))
    fork.restore(saved)
    assert fork.token_ids == tuple(IDS[:300])
    np.testing.assert_array_equal(fork.extend(IDS[300:330], rows=30), first)
    # The saved state is a copy: going on did not change it.
    decoder.restore(saved)
    np.testing.assert_array_equal(decoder.extend(IDS[300:330], rows=30), first)


def test_part_of_a_state_can_be_saved(decoder, expected):
    decoder.extend(IDS[:100])
    saved = decoder.save(70)
    assert saved.keys.shape == (2, 2, 70, 16)
    decoder.rewind(0)
    decoder.restore(saved)
    close(decoder.extend(IDS[70:80], rows=10), expected[70:80])


def test_another_models_state_is_refused(decoder, other_tiny):
    stranger = open_decoder(other_tiny.bundle, threads=1)
    stranger.extend(IDS[:10])
    decoder.extend(IDS[:5])
    with pytest.raises(PromptCacheError, match="another model"):
        decoder.restore(stranger.save())
    assert decoder.token_ids == tuple(IDS[:5])


def test_memory_is_taken_only_as_tokens_come(tiny):
    cache = kv_cache.KeyValueCache(layers=1, kv_heads=2, head_dim=64, limit=1 << 20)
    assert cache.capacity == kv_cache.FIRST_CAPACITY
    cache.arrays[0][0, 1, 511] = 7
    cache.reserve(513, used=512)
    assert cache.capacity == 768
    before = cache.arrays[0]
    cache.reserve(768, used=513)
    assert cache.arrays[0] is before
    assert before[0, 1, 511].max() == 7
    assert cache.arrays[0].ctypes.data % mmap.PAGESIZE == 0
    cache.reserve((1 << 20) - 1, used=600)
    assert cache.capacity == 1 << 20


@pytest.mark.parametrize(
    ("role", "damage"),
    # Garbage of the right length is not here: all bytes are weights, and only the hash can tell.
    [
        ("graph", "truncated"),
        ("graph", "garbage"),
        ("graph", "missing"),
        ("weights", "truncated"),
        ("weights", "missing"),
    ],
)
def test_a_damaged_graph_or_weights_give_an_error_that_names_the_graph(tiny, tmp_path, role, damage):
    copy = tmp_path / "bundle"
    shutil.copytree(tiny.bundle.root, copy)
    path = copy / tiny.bundle.manifest.file(role).path
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\xff" * len(content))
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_decoder(open_bundle(copy, verify=False), threads=1)


def test_a_graph_that_the_manifest_does_not_describe_is_refused(tiny):
    manifest = tiny.bundle.manifest
    for change in ({"layers": 3}, {"layers": 1}, {"kv_heads": 1}, {"head_dim": 8}, {"lora": ()}):
        lying = replace(manifest, decoders=(replace(manifest.decoder, **change),))
        with pytest.raises(BundleError, match="not the one its manifest describes"):
            open_decoder(replace(tiny.bundle, manifest=lying), threads=1)
    with pytest.raises(BundleError, match="not the one its manifest describes"):
        open_decoder(replace(tiny.bundle, manifest=replace(manifest, vocab_size=VOCABULARY + 1)), threads=1)


def test_no_thread_at_all_is_refused(tiny):
    with pytest.raises(ValueError, match="threads"):
        open_decoder(tiny.bundle, threads=0)


def test_tokens_come_out_as_they_went_in_whatever_integers_they_are(decoder, expected):
    close(decoder.extend(np.array(IDS[:7], np.int32), rows=7), expected[:7])
    assert decoder.token_ids == tuple(IDS[:7])
    assert all(type(token) is int for token in decoder.token_ids)


def test_quantized_bundles_rewind_to_the_same_rows(tmp_path):
    decoder = open_decoder(tiny_model(tmp_path, "int8", model_type="llama").bundle, threads=1)
    first = decoder.extend(IDS[:40], rows=40)
    decoder.rewind(0)
    again = decoder.extend(IDS[:40], rows=40)
    np.testing.assert_array_equal(first, again)


def test_two_threads_in_one_sequence_are_refused_and_nothing_is_written_through_each_others_pointers(tiny):
    decoder = open_decoder(tiny.bundle, threads=1)
    refused = []

    def feed() -> None:
        for _ in range(3000):
            try:
                decoder.extend(IDS[:100], rows=100)
                decoder.rewind(0)
            except CogenesisError as error:
                refused.append(error)
            except ValueError:  # the other one has rewound
                pass
            if refused:
                return

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "its own fork" in str(refused[0])
    decoder.rewind(0)
    assert decoder.extend([5]).shape == (1, decoder.vocab_size)
