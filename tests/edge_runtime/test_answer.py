"""Control of an answer: closing it from anywhere, waiting for it with asyncio, and the choice of adapter."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

import edge_runtime
from edge_runtime import Fusion, Options, Policy, PublicInstruction, Strategy
from edge_runtime.adapters.adapter import Adapter
from edge_runtime.assistant import Assistant
from edge_runtime.cloud import Verified
from edge_runtime.decoders.open import open_decoder
from tests.support.decoder_models import TinyModel
from tests.support.local_cloud import LocalCloud, Weather

INSTRUCTION = PublicInstruction("Write.")


@pytest.fixture
def assistant(tiny: TinyModel) -> Assistant:
    return edge_runtime.load(tiny.bundle.root, threads=1, context_length=512)


class SilentCloud:
    """Accepts every request and answers none."""

    def __init__(self) -> None:
        self.id = ""
        self.room = None
        self.asked = threading.Event()
        self.closed = False

    def open(self, request):
        return self

    def verify(self, request) -> Future[Verified]:
        self.asked.set()
        return Future()

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        self.closed = True


def test_closing_an_answer_that_waits_for_the_cloud_ends_it_at_once_and_frees_the_session(assistant):
    cloud = SilentCloud()
    options = Options(16, patience=3000, policy=Policy.OPEN)
    answer = assistant.generate(INSTRUCTION, mode="fused", cloud=cloud, options=options)
    writer = threading.Thread(target=answer.finish)
    writer.start()
    cloud.asked.wait()
    time.sleep(0.2)
    answer.close()
    writer.join(timeout=20)
    assert not writer.is_alive()
    assert answer.result.finish_reason == "cancelled"
    assert cloud.closed
    assert assistant.generate(INSTRUCTION, options=Options(4)).finish().token_ids  # ready for the next answer


def test_a_piece_that_a_caller_gave_up_waiting_for_is_not_lost(assistant):
    async def read() -> tuple[str, str]:
        answer = assistant.generate(INSTRUCTION, options=Options(24))
        text = ""
        while True:
            try:
                text += await asyncio.wait_for(anext(answer), 0.0005)
            except TimeoutError:
                continue
            except StopAsyncIteration:
                return text, answer.result.text

    streamed, whole = asyncio.run(read())
    assert streamed == whole != ""


def test_delta_steering_uses_the_adapter_of_the_user_who_asks_with_context_and_without(assistant, tiny, other_tiny):
    """An adapter used for an earlier answer has no effect on a later one."""

    def adapter(seed: int) -> Adapter:
        random = np.random.default_rng(seed)
        spec = tiny.bundle.manifest.decoder
        matrices = {
            (layer, name): (
                random.normal(size=(site.in_features, 4)).astype(np.float32),
                random.normal(size=(4, width)).astype(np.float32),
            )
            for layer in range(spec.layers)
            for site in spec.lora
            for name, width in site.projections
        }
        return Adapter(tiny.bundle.base, f"{seed:064}", matrices)

    def write(assistant: Assistant, user: Adapter | None) -> tuple[int, ...]:
        assistant.use_adapter(user)
        cloud = LocalCloud(open_decoder(other_tiny.bundle, threads=1), (5, 17, 12), Weather())
        options = Options(16, fusion=Fusion(Strategy.DELTA, 2.0), policy=Policy.OPEN, patience=60)
        context = edge_runtime.PrivateContext("Name: Ada")
        return assistant.generate(INSTRUCTION, context, mode="fused", cloud=cloud, options=options).finish().token_ids

    one, other = adapter(1), adapter(2)
    first = write(assistant, one)
    fresh = edge_runtime.load(tiny.bundle.root, threads=1, context_length=512)
    assert write(assistant, other) == write(fresh, other) != first


@pytest.mark.parametrize("stop", ["END", "E"])
def test_one_stop_text_must_be_given_as_several(stop):
    with pytest.raises(edge_runtime.CogenesisError, match="`stop` must be a tuple of texts"):
        Options(stop=stop)


@pytest.mark.parametrize("patience", [0, -1, float("inf"), float("nan"), 1e9])
def test_patience_is_a_number_of_seconds_that_a_user_could_wait(patience):
    with pytest.raises(edge_runtime.CogenesisError, match="patience"):
        Options(patience=patience)
