"""One bundle, two runtimes, and a user's adapter: trained, exported, and used in fused answers on both."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import Ledger, Options, Policy, PrivateContext, PublicInstruction, Sampling
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.errors import PromptCacheError
from edge_runtime.privacy.audit import audit
from edge_runtime.request import load_request
from edge_runtime.text.token_bytes import TokenBytes
from tests.support.commands import cogenesis, run_cogenesis
from tests.support.datasets import Dataset

pytestmark = pytest.mark.slow_on_shared_data

BACKENDS = ("onnx", "executorch")
REQUEST = Path(__file__).parents[2] / "examples" / "requests" / "workshop.json"
INSTRUCTION = PublicInstruction("Write a short toast for a retirement party.")
# The request's prompt has three times as many tokens with all past texts.
CONTEXT_LENGTH = 1024
SAMPLED = Sampling(temperature=0.8, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def users(dataset: Dataset) -> Path:
    return dataset.cogenesis / "context_aware_dev.json"


@pytest.fixture(scope="module")
def personal(bundle_both, smollm2_hf, users, tmp_path_factory):
    """Follow the documented way from users' texts to a bundle with their adapters, with fewer training steps."""
    trained = tmp_path_factory.mktemp("trained")
    train = ("adapter", "train", "--model", smollm2_hf, "--records", users, "--limit", 2, "--out", trained)
    summary = json.loads(cogenesis(*train, "--steps", 2, "--max-length", 160, "--json"))
    assert [user["status"] for user in summary["users"]] == ["trained", "trained"]
    exported = json.loads(
        cogenesis("export", "adapter", "--peft", trained, "--bundle", bundle_both, "--force", "--json")
    )
    assert [user["user"] for user in summary["users"]] == sorted(
        (adapter["user"] for adapter in exported["exported"]), key=[u["user"] for u in summary["users"]].index
    )
    assert all(adapter["size_bytes"] <= 1_000_000 for adapter in exported["exported"])
    return bundle_both, [user["user"] for user in summary["users"]]


@pytest.fixture(scope="module", params=BACKENDS)
def assistant(personal, request):
    return edge_runtime.load(personal[0], request.param, context_length=CONTEXT_LENGTH, verify=False)


@pytest.fixture(scope="module")
def cloud(cloud_address):
    connection = connect(cloud_address, call_timeout=120)
    yield connection
    connection.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_documented_commands_end_in_a_fused_answer_of_which_nothing_private_leaves(
    backend, personal, cloud_address, tmp_path
):
    bundle, (user, _) = personal
    ledger = tmp_path / "ledger.jsonl"
    answer = ("generate", "--bundle", bundle, "--backend", backend, "--user", user, "--request", REQUEST)
    short = ("--context-length", CONTEXT_LENGTH, "--max-new-tokens", 12)
    fused = ("--mode", "fused", "--cloud", cloud_address, "--ledger", ledger, "--json")
    result = json.loads(cogenesis(*answer, *short, *fused))
    assert (result["mode"], len(result["token_ids"]), result["cloud_error"]) == ("fused", 12, "")
    assert any(result["fused"])
    assert (
        run_cogenesis("privacy", "audit", "--ledger", ledger, "--request", REQUEST, "--bundle", bundle).returncode == 0
    )


def test_what_a_user_wrote_does_not_leave_with_their_adapter_even_without_a_prompt_of_it(assistant, personal, cloud):
    _, (user, _) = personal
    assistant.use_user(user)
    learned = assistant.adapters.load(user).learned
    assert learned is not None and len(learned.history) == 4
    ledger = Ledger()
    task = PublicInstruction(learned.history[0].title)
    options = Options(24, SAMPLED, patience=100)
    result = assistant.generate(task, None, mode="fused", cloud=cloud, options=options, ledger=ledger).finish()
    assert result.cloud_error == ""
    token_bytes = TokenBytes(assistant.tokenizer).__getitem__
    assert audit(ledger.entries, task, learned, token_bytes) == ()


def test_users_swap_at_any_turn_and_each_gets_their_own_answer(assistant, personal):
    _, (one, other) = personal
    rows = {}
    for user in (one, None, other, one, None, other):
        assistant.use_user(user)
        assistant.decoder.rewind(0)
        row = assistant.decoder.extend([1, 2683, 198, 6068, 253], rows=5)
        np.testing.assert_array_equal(rows.setdefault(user, row), row)
    for first, second in pairwise(rows.values()):
        assert np.abs(first - second).max() > 1e-3


def test_windows_change_the_speed_and_not_the_answer(assistant, personal, cloud):
    assistant.use_user(personal[1][0])
    answers = [
        assistant.generate(
            INSTRUCTION,
            PrivateContext("Name: Ada"),
            mode="fused",
            cloud=cloud,
            options=Options(20, SAMPLED, window=window, policy=Policy.OPEN, patience=100),
        )
        .finish()
        .token_ids
        for window in (None, 1, 5)
    ]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("mode", ["edge", "cloud", "sketch", "fused"])
def test_every_mode_works_on_both_runtimes(mode, assistant, cloud):
    assistant.use_user(None)
    request = load_request(REQUEST)
    cloud = None if mode == "edge" else cloud
    result = assistant.generate(
        request.instruction, request.context, mode=mode, cloud=cloud, options=Options(6)
    ).finish()
    assert len(result.token_ids) == 6
    assert result.text


def test_a_prompt_cache_of_one_runtime_is_refused_by_the_other(bundle_both):
    bundle = open_bundle(bundle_both, verify=False)
    onnx, executorch = (open_decoder(bundle, backend, context_length=64) for backend in BACKENDS)
    for decoder, other in ((onnx, executorch), (executorch, onnx)):
        decoder.extend([1, 2, 3])
        with pytest.raises(PromptCacheError, match="another model"):
            other.restore(decoder.save())


def test_both_runtimes_are_the_same_model(bundle_both, ctx_records):
    """The runtimes round inputs differently, so they agree as closely as two quantizations do."""
    bundle = open_bundle(bundle_both, verify=False)
    tokenizer = edge_runtime.load(bundle_both, context_length=512, verify=False).tokenizer
    token_ids = tokenizer.encode(ctx_records[0].answer)[:256]
    one, other = (
        open_decoder(bundle, backend, context_length=512).extend(token_ids, rows=len(token_ids)) for backend in BACKENDS
    )
    assert (one.argmax(axis=1) == other.argmax(axis=1)).mean() > 0.85


def test_the_bundle_verifies(bundle_both):
    found = json.loads(cogenesis("export", "verify", bundle_both, "--json"))["decoders"]
    assert set(found) == set(BACKENDS)
    assert found["onnx"]["greedy_equal"] == found["onnx"]["greedy_total"]
    # Another number of threads sums in another order, which can change how ExecuTorch rounds its inputs.
    assert found["executorch"]["greedy_equal"] >= 0.8 * found["executorch"]["greedy_total"]
    assert all(decoder["max_difference"] <= decoder["tolerance"] for decoder in found.values())
