"""The Python API on the real model: streaming, async, stopping, schedules, and wrong calls."""

import asyncio

import pytest

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import (
    CogenesisError,
    HistoryItem,
    Ledger,
    Options,
    Policy,
    PrivateContext,
    PublicInstruction,
    RowFormat,
    Sampling,
    Schedule,
)
from edge_runtime.errors import PolicyError, RequestError

INSTRUCTION = PublicInstruction("Write a short story about a lighthouse keeper and her dog.")
CONTEXT = PrivateContext("Name: Ada Lindqvist", (HistoryItem("A note to Oskar", "The sea was calm today."),))
SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def assistant(bundle_keep):
    return edge_runtime.load(bundle_keep)


@pytest.fixture(scope="module")
def cloud(cloud_address):
    connection = connect(cloud_address, call_timeout=120)
    yield connection
    connection.close()


def test_pieces_add_up_to_the_text_and_the_text_to_the_tokens(assistant):
    answer = assistant.generate(INSTRUCTION, CONTEXT, options=Options(max_new_tokens=24, sampling=SAMPLED))
    pieces = list(answer)
    result = answer.result
    assert "".join(pieces) == result.text
    assert assistant.tokenizer.decode(result.token_ids) == result.text
    assert result.finish_reason == "length"
    assert result.stats.first_token_seconds >= result.stats.prefill_seconds > 0
    assert len(result.fused) == 24
    assert not any(result.fused)


def test_asyncio_gets_the_same_answer_without_blocking_its_loop(assistant):
    options = Options(max_new_tokens=16, sampling=SAMPLED)
    expected = assistant.generate(INSTRUCTION, CONTEXT, options=options).finish().text
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def write():
        ticking = asyncio.create_task(tick())
        answer = assistant.generate(INSTRUCTION, CONTEXT, options=options)
        pieces = [piece async for piece in answer]
        ticking.cancel()
        return "".join(pieces), answer.result.text

    assert asyncio.run(write()) == (expected, expected)
    assert ticks > 10


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(assistant, cloud):
    for mode in ("edge", "cloud"):
        plain = assistant.generate(
            INSTRUCTION, None, mode=mode, cloud=cloud, options=Options(max_new_tokens=24)
        ).finish()
        stop = plain.text[len(plain.text) // 2 :][:4]
        cut = assistant.generate(
            INSTRUCTION, None, mode=mode, cloud=cloud, options=Options(max_new_tokens=24, stop=(stop,))
        ).finish()
        assert cut.finish_reason == "stop"
        assert cut.text == plain.text[: plain.text.index(stop)]


def test_an_answer_that_is_closed_is_cancelled_and_frees_the_assistant(assistant):
    answer = assistant.generate(INSTRUCTION, CONTEXT, options=Options(max_new_tokens=200))
    first = next(answer)
    with pytest.raises(CogenesisError, match="not finished"):
        _ = answer.result
    with pytest.raises(CogenesisError, match="another answer"):
        assistant.generate(INSTRUCTION).finish()
    answer.close()
    assert answer.result.finish_reason == "cancelled"
    assert answer.result.text == first
    assert assistant.generate(INSTRUCTION, options=Options(max_new_tokens=2)).finish().finish_reason == "length"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(assistant):
    def write(seed):
        options = Options(max_new_tokens=24, sampling=Sampling(temperature=1.0, seed=seed))
        return assistant.generate(INSTRUCTION, CONTEXT, options=options).finish().token_ids

    assert write(1) == write(1)
    assert write(1) != write(2)


def test_a_schedule_asks_the_cloud_only_where_it_says_and_sends_the_rest_along(assistant, cloud):
    schedule = Schedule(2, 3, 1)
    options = Options(max_new_tokens=14, sampling=SAMPLED, schedule=schedule, policy=Policy.OPEN, window=1)
    ledger = Ledger()
    result = assistant.generate(
        INSTRUCTION, CONTEXT, mode="fused", cloud=cloud, options=options, ledger=ledger
    ).finish()
    asked = [schedule.asks(step) for step in range(len(result.token_ids))]
    assert list(result.fused) == asked
    assert result.stats.round_trips == sum(asked)
    sent = [token for entry in ledger.entries if entry.kind == "verify" for token in entry.content.get("tokens", ())]
    assert sent == list(result.token_ids[: len(sent)])


def test_thinner_rows_take_fewer_bytes(assistant, cloud):
    def bytes_down(value_type):
        options = Options(max_new_tokens=8, rows=RowFormat(256, 1.0, value_type), window=1)
        return (
            assistant.generate(INSTRUCTION, CONTEXT, mode="fused", cloud=cloud, options=options)
            .finish()
            .stats.bytes_down
        )

    assert bytes_down("bits12") < 0.9 * bytes_down("float16") < 0.65 * bytes_down("float32")


def test_the_policy_sketch_lets_no_fused_answer_begin(assistant, cloud):
    ledger = Ledger()
    answer = assistant.generate(
        INSTRUCTION, CONTEXT, mode="fused", cloud=cloud, options=Options(policy=Policy.SKETCH), ledger=ledger
    )
    with pytest.raises(PolicyError, match="Use `mode` sketch"):
        answer.finish()
    assert ledger.entries == ()


def test_wrong_calls_are_refused_before_anything_happens(assistant):
    with pytest.raises(RequestError, match="needs a cloud"):
        assistant.generate(INSTRUCTION, mode="fused")
    with pytest.raises(RequestError, match="edge, cloud, sketch, fused"):
        assistant.generate(INSTRUCTION, mode="magic")
    with pytest.raises(RequestError, match="PublicInstruction"):
        assistant.generate("Write something.")  # type: ignore[arg-type]


def test_the_second_answer_about_a_profile_does_not_read_it_again(assistant):
    long = PrivateContext("Name: Ada Lindqvist\n" + "Likes: the sea, the light, the dog.\n" * 60)
    options = Options(max_new_tokens=2)
    assistant.generate(INSTRUCTION, long, options=options).finish()
    shared = assistant.decoder.token_ids
    assistant.generate(PublicInstruction("Write a toast for a wedding."), long, options=options).finish()
    again = assistant.decoder.token_ids
    common = next(i for i, (a, b) in enumerate(zip(shared, again, strict=False)) if a != b)
    assert common > 500  # this much of the KV cache was kept
