"""The decoder over optimum's graph keeps the same promises as the one over ours."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.portable_decoder import PREFILL_CHUNK, PortableDecoder
from edge_runtime.errors import AdapterError, BundleError, ContextOverflowError, PromptCacheError
from tests.support.decoder_models import torch_rows
from tests.support.tiny_models import VOCABULARY, random_ids

IDS = random_ids(200, seed=4)


@pytest.fixture(scope="module")
def expected(tiny_portable):
    return torch_rows(tiny_portable.torch(), IDS)


@pytest.fixture(scope="module")
def shared(tiny_portable):
    return open_decoder(tiny_portable.bundle, threads=1)


@pytest.fixture
def decoder(shared):
    shared.rewind(0)
    return shared


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)


def test_logits_are_those_of_torch(decoder, expected):
    assert isinstance(decoder, PortableDecoder)
    close(decoder.extend(IDS, rows=len(IDS)), expected)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_split_with_any_rewinds_gives_the_same_rows(data, shared, expected):
    shared.rewind(0)
    for _ in range(data.draw(st.integers(1, 6), label="steps")):
        shared.rewind(data.draw(st.integers(0, shared.length), label="rewind to"))
        start = shared.length
        count = data.draw(st.integers(0, len(IDS) - start), label="feed")
        if count:
            rows = data.draw(st.integers(0, count), label="rows")
            close(shared.extend(IDS[start : start + count], rows=rows), expected[start + count - rows : start + count])
        assert shared.token_ids == tuple(IDS[: start + count])


@pytest.mark.parametrize("length", [PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK])
def test_rows_across_a_chunk_are_the_same(decoder, expected, length):
    close(decoder.extend(IDS[:length], rows=30), expected[length - 30 : length])


def test_forks_are_independent(decoder, expected):
    decoder.extend(IDS[:20])
    fork = decoder.fork()
    fork.extend(random_ids(30, seed=6))
    close(decoder.extend(IDS[20:30], rows=10), expected[20:30])


def test_a_saved_state_continues_exactly(decoder):
    decoder.extend(IDS[:50])
    saved = decoder.save()
    first = decoder.extend(IDS[50:80], rows=30)
    fork = decoder.fork()
    fork.restore(saved)
    np.testing.assert_array_equal(fork.extend(IDS[50:80], rows=30), first)
    with pytest.raises(PromptCacheError):
        open_decoder_with_other_fingerprint(decoder).restore(saved)


def open_decoder_with_other_fingerprint(decoder):
    other = decoder.fork()
    other.fingerprint = "0" * 64
    return other


def test_a_full_context_is_an_error_and_nothing_is_fed(tiny_portable, expected):
    small = open_decoder(tiny_portable.bundle, threads=1, context_length=32)
    small.extend(IDS[:30])
    with pytest.raises(ContextOverflowError):
        small.extend(IDS[30:33])
    close(small.extend(IDS[30:32], rows=2), expected[30:32])


@pytest.mark.parametrize("bad", [[], [-1], [VOCABULARY]])
def test_unknown_tokens_are_refused(decoder, bad):
    with pytest.raises(ValueError, match="token"):
        decoder.extend(bad)


def test_adapters_are_refused(decoder):
    decoder.use_adapter(None)
    with pytest.raises(AdapterError, match="takes no adapters"):
        decoder.use_adapter(Adapter("0" * 64, "a", {(0, "q_proj"): (np.ones((64, 1)), np.ones((1, 64)))}))


@pytest.mark.parametrize("content", [b"", b"\xff" * 4000])
def test_a_damaged_graph_gives_an_error_that_names_it(tiny_portable, tmp_path, content):
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_portable.bundle.root, copy)
    (copy / tiny_portable.bundle.manifest.decoder.graph).write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        open_decoder(open_bundle(copy, verify=False), threads=1)
