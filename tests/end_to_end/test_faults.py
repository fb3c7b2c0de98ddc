"""Hundreds of generations whose connections fail: a right answer or a typed error each, and nothing left behind."""

import threading

import pytest

from benchmarks import faults
from benchmarks.links.chaos import Kind
from tests.support.decoder_models import tiny_model
from tests.support.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two models with one vocabulary."""
    # All ids are tokens: a random model would generate ids from a padded vocabulary, which a server rejects.
    shape = {"model_type": "llama", "vocab_size": len(make_tokenizer())}
    edge = tiny_model(tmp_path_factory.mktemp("edge"), **shape, tie_word_embeddings=True)
    cloud = tiny_model(tmp_path_factory.mktemp("cloud"), **shape, tie_word_embeddings=False)
    return edge.bundle.root, cloud.bundle.root


@pytest.mark.parametrize("generations", [400, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_fails_an_answer_is_right_or_an_error_typed_and_no_session_is_left(generations, bundles, tmp_path):
    threads = threading.active_count()
    tally, left = faults.run(*bundles, tmp_path, generations=generations, clients=16)
    print(str(tally)[:3000], left)
    assert tally.failures[:3] == []
    assert tally.generations == generations
    assert (left["sessions_active"], left["sessions_parked"], left["cache_bytes"]) == (0, 0, 0)
    assert left["sessions_opened"] <= left["sessions_closed"]  # some streams break before they are open
    # The test is valid only if faults struck and many answers succeeded.
    assert set(tally.faults) == {kind.value for kind in Kind}
    assert left["server_kills"] >= generations // 200
    assert tally.answers > 0.6 * generations
    assert tally.interrupted > 0.2 * generations
    assert tally.recovered > 0.03 * generations
    assert left["sessions_opened"] > 0.2 * generations
    assert left["sessions_resumed"] > 0
    assert tally.fused > 0.3 * tally.tokens
    assert threading.active_count() <= threads + 2  # gRPC's own threads
