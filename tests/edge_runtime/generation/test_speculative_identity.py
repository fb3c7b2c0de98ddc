"""Speculative fused decoding gives the same tokens as one round trip per token, over any link."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.decoders.open import open_decoder
from edge_runtime.decoders.protocol import Decoder
from edge_runtime.fusion.fuse import Fusion, Strategy, fuse
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.fusion.logprobs import log_softmax
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.generation.backoff import Backoff
from edge_runtime.generation.cloud_link import CloudLink
from edge_runtime.generation.drafter import PromptedDecoder
from edge_runtime.generation.loop import Ending, Token, generate_fused
from edge_runtime.generation.options import Options
from edge_runtime.generation.pace import Measured
from edge_runtime.generation.sampling import Sampling, choose
from edge_runtime.generation.schedule import Decision, LearnedSchedule, Schedule
from edge_runtime.privacy.cloud_view import OpenView
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.guard import Guard
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.tokenizer import Tokenizer
from tests.support.decoder_models import TinyModel
from tests.support.examples import examples
from tests.support.local_cloud import LocalCloud, Weather
from tests.support.random_combiners import random_combiner

LENGTH = 24
INSTRUCTION = PublicInstruction("Write.")
# Short names, so that random text often begins one.
CONTEXT = PrivateContext("Name: Abe Ro\nTown: Ste\nBorn: 1984", (HistoryItem("Note", "Uli saw the old Zed mill."),))
PROMPT, PUBLIC_PROMPT = (5, 17, 300, 42, 8, 99, 12), (5, 17, 12)


@dataclass
class Pair:
    edge: Decoder
    without: Decoder
    cloud: Decoder
    reference: Decoder
    tokenizer: Tokenizer


@pytest.fixture(scope="module")
def pair(tiny: TinyModel, other_tiny: TinyModel) -> Pair:
    edge = open_decoder(tiny.bundle, threads=1)
    cloud = open_decoder(other_tiny.bundle, threads=1)
    tokenizer = Tokenizer.load(tiny.bundle.path(tiny.bundle.manifest.tokenizer.path))
    return Pair(edge, edge.fork(), cloud, edge.fork(), tokenizer)


def write(
    pair: Pair, cloud: LocalCloud, options: Options, length: int = LENGTH, ends: Collection[int] = ()
) -> tuple[list[Token], CloudLink]:
    """Write an answer on the device."""
    gate = Gate(options.policy, Ledger())
    measured = Measured()
    link = CloudLink(
        cloud,
        lambda resume: gate.open(INSTRUCTION, tokenizer_fingerprint="0" * 64, rows=options.row_format, resume=resume),
        gate.conversation(INSTRUCTION, CONTEXT, pair.tokenizer),
        options.schedule,
        KnownTokens.all(pair.edge.vocab_size),
        options.patience,
        measured,
        Backoff(lambda low, _: low / 50),
    )
    without = (
        PromptedDecoder(pair.without, PUBLIC_PROMPT, KnownTokens.all(pair.without.vocab_size))
        if options.fusion.needs_without
        else None
    )
    edge = PromptedDecoder(pair.edge, PROMPT, KnownTokens.all(pair.edge.vocab_size))
    try:
        return list(generate_fused(edge, without, link, options, measured, Ending(length, ends))), link
    finally:
        link.close()


def one_by_one(pair: Pair, cloud: LocalCloud, options: Options, asked: list[bool]) -> list[int]:
    """Write the same answer without drafts, links or windows: both models read the answer so far at every position."""

    def rows(prompt: tuple[int, ...]) -> Iterator[np.ndarray]:
        pair.reference.rewind(0)
        pair.reference.extend(prompt[:-1], rows=0)
        token = prompt[-1]
        while True:
            token = yield log_softmax(pair.reference.extend([token])[0])

    def all_rows(prompt: tuple[int, ...], answer: list[int]) -> np.ndarray:
        # One sequence serves both prompts, so it reads the answer again at each position.
        stream = rows(prompt)
        row = next(stream)
        for token in answer:
            row = stream.send(token)
        return row

    answer: list[int] = []
    told: list[float] = []
    asks = asking(options.schedule)
    for position, fused in enumerate(asked):
        row = own = all_rows(PROMPT, answer)
        wanted = asks(position, own, told)
        if fused:
            without = all_rows(PUBLIC_PROMPT, answer) if options.fusion.needs_without else None
            seen = cloud.row(view(pair, answer, options.policy), options.row_format)
            assert wanted
            row = fuse(row, seen, options.fusion, without, position)
        answer.append(choose(row, position, options.sampling, answer))
        told.append(float(own[answer[-1]]))
    return answer


def asking(schedule: Schedule | LearnedSchedule) -> Callable[[int, np.ndarray, list[float]], bool]:
    """Return a function that tells whether the schedule asks at the next position, without any drafts."""
    decisions: list[Decision] = []

    def asks(position: int, row: np.ndarray, told: list[float]) -> bool:
        known = schedule.asks(position)
        if known is not None:
            return known
        assert isinstance(schedule, LearnedSchedule)
        decisions.append(schedule.decide(position, row, told, decisions))
        return decisions[-1].asks

    return asks


def view(pair: Pair, answer: list[int], policy: Policy) -> tuple[int, ...]:
    """Return the view of a cloud that saw this answer, and no drafts."""
    shown = Guard(pair.tokenizer, INSTRUCTION, CONTEXT) if policy is Policy.GUARDED else OpenView()
    for token in answer:
        shown.push(token)
    assert shown.asks
    return tuple(shown.released)


LEARNED = [Fusion(Strategy.LEARNED, combiner=random_combiner(seed, without=seed > 1, gap=0.2)) for seed in range(4)]
WORTH = [LearnedSchedule(fusion.combiner, share) for fusion in LEARNED[2:] for share in (None, 0.3, 0.6)]
STRATEGIES = st.sampled_from(
    [
        *(Fusion(name, weight) for name in Strategy if name is not Strategy.LEARNED for weight in (0.3, 0.5, 0.8)),
        *LEARNED,
    ]
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**64 - 1),
)
SCHEDULES = st.sampled_from(
    [Schedule(), Schedule(4, 2, 1), Schedule(0, 3, 2), Schedule(2, 1, 4), Schedule(30, 1, 0), *WORTH]
)
FORMATS = st.sampled_from([RowFormat(16, 0.9), RowFormat(384), RowFormat(1), RowFormat(8, 0.5)])
WINDOWS = st.sampled_from([None, 1, 2, 3, 4, 8, 64])
FAULTS = st.builds(
    Weather,
    seed=st.integers(0, 2**32),
    latency=st.sampled_from([0.0, 0.002]),
    jitter=st.sampled_from([0.0, 0.004]),
    breaks=st.sampled_from([0.0, 0.2]),
    stalls=st.sampled_from([0.0, 0.15]),
    stall_seconds=st.just(0.03),
)


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STRATEGIES, SAMPLINGS, SCHEDULES, FORMATS, WINDOWS, FAULTS, st.sampled_from([Policy.OPEN, Policy.GUARDED]))
def test_any_window_schedule_strategy_and_link_gives_the_answer_of_one_token_a_trip(
    pair: Pair,
    fusion: Fusion,
    sampling: Sampling,
    schedule: Schedule | LearnedSchedule,
    form: RowFormat,
    window: int | None,
    faults: Weather,
    policy: Policy,
) -> None:
    options = Options(
        sampling=sampling, fusion=fusion, schedule=schedule, rows=form, window=window, patience=0.015, policy=policy
    )
    cloud = LocalCloud(pair.cloud, PUBLIC_PROMPT, faults)
    tokens, _ = write(pair, cloud, options)
    fused = [token.fused for token in tokens]
    assert [token.id for token in tokens] == one_by_one(pair, cloud, options, fused)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STRATEGIES, SAMPLINGS, SCHEDULES, WINDOWS, st.sampled_from([Policy.OPEN, Policy.GUARDED]), st.data())
def test_on_a_good_link_the_cloud_has_a_part_wherever_schedule_and_policy_let_it(
    pair: Pair, fusion, sampling, schedule, window, policy, data: st.DataObject
) -> None:
    """Also with tokens that end the answer, which the edge may draft although the fused choice differs."""
    options = Options(sampling=sampling, fusion=fusion, schedule=schedule, window=window, patience=60, policy=policy)
    cloud = LocalCloud(pair.cloud, PUBLIC_PROMPT, Weather(latency=data.draw(st.sampled_from([0.0, 0.002]))))
    whole = [token.id for token in write(pair, cloud, options)[0]]
    ends = data.draw(st.sets(st.sampled_from(whole), max_size=2))
    expected = whole[: next((at for at, token in enumerate(whole) if token in ends), len(whole)) + 1]
    before = len(cloud.requests)
    tokens, link = write(pair, cloud, options, ends=ends)
    if policy is Policy.OPEN:
        assert not ends & {token for request in cloud.requests[before:] for token in request.tokens}
    assert [token.id for token in tokens] == expected
    assert link.counts.interruptions == 0
    told: list[float] = []
    asks = asking(schedule)
    for position, token in enumerate(tokens):
        shown = Guard(pair.tokenizer, INSTRUCTION, CONTEXT) if policy is Policy.GUARDED else OpenView()
        for earlier in expected[:position]:
            shown.push(earlier)
        own = edge_row(pair, expected[:position])
        assert token.fused == (asks(position, own, told) and shown.asks)
        told.append(float(own[token.id]))


def edge_row(pair: Pair, answer: list[int]) -> np.ndarray:
    pair.reference.rewind(0)
    pair.reference.extend(PROMPT[:-1], rows=0)
    return log_softmax([pair.reference.extend([token])[0] for token in (PROMPT[-1], *answer)][-1])


@pytest.mark.parametrize("window", [1, 2, 4, 8, None])
def test_without_faults_every_window_writes_the_same_and_larger_ones_need_fewer_trips(pair: Pair, window) -> None:
    options = Options(sampling=Sampling(0.7, seed=3), fusion=Fusion(weight=0.8), window=window, policy=Policy.OPEN)
    calm = Weather(latency=0.004)
    alone, _ = write(pair, LocalCloud(pair.cloud, PUBLIC_PROMPT, calm), Options(**{**vars_of(options), "window": 1}))
    tokens, link = write(pair, LocalCloud(pair.cloud, PUBLIC_PROMPT, calm), options)
    assert [token.id for token in tokens] == [token.id for token in alone]
    if window == 1:
        assert link.counts.round_trips >= LENGTH - 1
    elif window is not None:
        assert link.counts.round_trips < LENGTH


def vars_of(options: Options) -> dict:
    return {name: getattr(options, name) for name in Options.__slots__}
