"""An adapter's training texts are as private as the profile: the guard hides them, or nothing is sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

import edge_runtime
from edge_runtime import Ledger, Options, Policy, PrivateContext, PublicInstruction
from edge_runtime.assistant import Assistant
from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import PolicyError
from edge_runtime.privacy.audit import audit
from tests.support.decoder_models import TinyModel
from tests.support.local_cloud import LocalCloud, Weather
from tests.support.tiny_adapters import PLACES, make_adapter
from tests.support.tiny_models import make_tokenizer

INSTRUCTION = PublicInstruction("Write.")


@pytest.fixture
def assistant(tiny: TinyModel) -> Assistant:
    return edge_runtime.load(tiny.bundle.root, threads=1, context_length=512)


def write(assistant, tiny, policy, context=None, mode="fused"):
    ledger = Ledger()
    cloud = LocalCloud(open_decoder(tiny.bundle, threads=1), (5, 17, 12), Weather(), width=len(make_tokenizer()))
    options = Options(64, policy=policy, patience=60)
    result = assistant.generate(INSTRUCTION, context, mode=mode, cloud=cloud, options=options, ledger=ledger).finish()
    return result.text, ledger.entries


def test_what_the_adapter_learned_does_not_leave_under_guarded(assistant, tiny):
    adapter = make_adapter(tiny.bundle.base, dict.fromkeys(PLACES, 4))
    assistant.use_adapter(adapter)
    written, entries = write(assistant, tiny, Policy.OPEN)
    learned = PrivateContext(profile=written)
    assert audit(entries, INSTRUCTION, learned)  # this text is sent if the policy allows everything
    assistant.use_adapter(None)
    assistant.use_adapter(replace(adapter, learned=learned))
    _, entries = write(assistant, tiny, Policy.GUARDED)
    assert audit(entries, INSTRUCTION, learned) == ()


def test_an_adapter_that_nobody_knows_the_texts_of_is_not_guarded_and_says_what_to_do(assistant, tiny):
    assistant.use_adapter(make_adapter(tiny.bundle.base, dict.fromkeys(PLACES, 4)))
    with pytest.raises(PolicyError, match="Export it again with the text that it learned, or use `policy` open"):
        write(assistant, tiny, Policy.GUARDED)
    assert write(assistant, tiny, Policy.OPEN)[0]
    assert write(assistant, tiny, Policy.GUARDED, mode="edge")[0]
    assistant.use_adapter(None)
    assert write(assistant, tiny, Policy.GUARDED)[0]
