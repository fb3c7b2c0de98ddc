"""On the real model and a real server, speculation changes the number of round trips, but no token."""

import pytest

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import Options, PrivateContext, Sampling
from tests.support.commands import served

pytestmark = pytest.mark.slow_on_shared_data


@pytest.fixture(scope="module")
def assistant(bundle_keep):
    return edge_runtime.load(bundle_keep, context_length=1024)


@pytest.fixture(scope="module")
def onnx_cloud(bundle_keep):
    """The same model as the cloud's, without the context: rows as a PC at home serves them."""
    with served(bundle_keep, engine="onnx") as address, connect(address) as cloud:
        yield cloud


def write(assistant, cloud, record, window, seed, tokens):
    context = PrivateContext(record.context.profile, record.context.history[:1])
    options = Options(tokens, Sampling(0.7, seed=seed), window=window)
    return assistant.generate(record.instruction, context, mode="fused", cloud=cloud, options=options).finish()


# Any window on any link is tried on tiny models: tests/edge_runtime/generation/test_speculative_identity.py.
@pytest.mark.parametrize(("records", "length"), [(3, 64), pytest.param(10, 128, marks=pytest.mark.slow)])
def test_answers_are_the_same_token_for_token_with_a_fraction_of_the_round_trips(
    records, length, assistant, onnx_cloud, ctx_records
):
    trips, fused = 0, 0
    for seed, record in enumerate(ctx_records[:records]):
        one_by_one = write(assistant, onnx_cloud, record, 1, seed, length)
        window = (8, None)[seed % 2]
        speculative = write(assistant, onnx_cloud, record, window, seed, length)
        assert one_by_one.token_ids == speculative.token_ids
        assert one_by_one.fused == speculative.fused
        assert one_by_one.stats.interruptions == speculative.stats.interruptions == 0
        if window:
            trips += speculative.stats.round_trips
            fused += one_by_one.stats.fused_tokens
    assert fused > records / 2 * length / 2
    assert trips < fused / 2


def test_a_float32_server_may_round_a_tie_otherwise_but_no_more(assistant, cloud_address, ctx_records):
    """Torch's matrix products differ in the last digits between one and several rows; no choice may depend on that."""
    different = total = 0
    with connect(cloud_address) as cloud:
        for seed, record in enumerate(ctx_records[:2]):
            one_by_one, adaptive = (write(assistant, cloud, record, size, seed, 32) for size in (1, None))
            total += len(one_by_one.token_ids)
            different += one_by_one.token_ids != adaptive.token_ids
    assert total > 40
    assert different == 0
