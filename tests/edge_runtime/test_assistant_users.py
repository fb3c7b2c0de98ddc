"""One assistant answers for many users: each with their own adapter, and with nothing that another one left behind."""

from dataclasses import replace

import numpy as np
import pytest

import edge_runtime
from edge_runtime import Options, PrivateContext, PublicInstruction
from edge_runtime.adapters.store import AdapterStore
from edge_runtime.decoders.prompt_cache import read_prompt_cache, write_prompt_cache
from edge_runtime.errors import AdapterError, PromptCacheError
from tests.support.tiny_adapters import adapter_file

INSTRUCTION = PublicInstruction("Write a short toast for a retirement party.")
CONTEXT = PrivateContext("Name: Ada. She keeps bees and writes letters.")
USERS = ("anna", "Ben", "chloé")


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    store = AdapterStore(tmp_path_factory.mktemp("users") / "adapters", tiny.bundle.base)
    for seed, user in enumerate(USERS, start=1):
        store.install(adapter_file(tiny.bundle.base, user, seed=seed))
    return store


@pytest.fixture
def open_assistant(tiny, adapters):
    def open_():
        return edge_runtime.load(tiny.bundle.root, threads=1, context_length=512, adapters=adapters.root)

    return open_


def write(assistant):
    return assistant.generate(INSTRUCTION, CONTEXT, options=Options(16)).finish().token_ids


def test_answers_for_a_user_are_those_with_the_users_file(open_assistant, adapters):
    assistant = open_assistant()
    seen = {write(assistant)}
    for user in USERS:
        assistant.use_user(user)
        by_id = write(assistant)
        by_file = open_assistant()
        by_file.use_adapter(adapters.path(user))
        assert write(by_file) == by_id
        seen.add(by_id)
    assert len(seen) == 1 + len(USERS)


def test_users_in_any_order_get_what_they_get_alone(open_assistant):
    def alone(user):
        assistant = open_assistant()
        assistant.use_user(user)
        return write(assistant)

    expected = {user: alone(user) for user in (*USERS, None)}
    assistant = open_assistant()
    for user in (*USERS, None, USERS[1], USERS[1], USERS[0], None, USERS[2]):
        assistant.use_user(user)
        assert write(assistant) == expected[user]


def test_the_same_user_keeps_the_prompt_and_another_one_starts_over(open_assistant):
    assistant = open_assistant()
    assistant.use_user("anna")
    write(assistant)
    length = assistant.decoder.length
    assistant.use_user("anna")
    assert assistant.decoder.length == length > 0
    for user in ("Ben", None):
        assistant.use_user(user)
        assert assistant.decoder.length == 0
        write(assistant)


def test_a_users_saved_prompt_is_theirs_alone(open_assistant, tmp_path):
    assistant = open_assistant()
    assistant.use_user("anna")
    expected = write(assistant)
    prompt = assistant.prompt(INSTRUCTION, CONTEXT, max_new_tokens=16).token_ids
    write_prompt_cache(assistant.decoder.save(len(prompt) - 1), tmp_path / "anna.cache")

    later = open_assistant()
    for user in ("Ben", None):
        later.use_user(user)
        with pytest.raises(PromptCacheError, match="another adapter"):
            later.decoder.restore(read_prompt_cache(tmp_path / "anna.cache"))
        assert later.decoder.length == 0
    later.use_user("anna")
    later.decoder.restore(read_prompt_cache(tmp_path / "anna.cache"))
    assert write(later) == expected


def test_a_saved_prompt_does_not_outlive_its_adapter(open_assistant, tiny, adapters, tmp_path):
    """Trained anew, the user's adapter is another one, whatever it is called."""
    store = AdapterStore(tmp_path / "adapters", tiny.bundle.base)
    store.install(adapters.path("anna").read_bytes())
    assistant = edge_runtime.load(tiny.bundle.root, threads=1, context_length=512, adapters=store.root)
    assistant.use_user("anna")
    old = write(assistant)
    saved = assistant.decoder.save()
    store.install(adapter_file(tiny.bundle.base, "anna", seed=77), replace=True)
    assistant.use_user("anna")
    with pytest.raises(PromptCacheError, match="another adapter"):
        assistant.decoder.restore(saved)
    assert write(assistant) != old


def test_a_cache_of_the_base_is_not_taken_for_an_adapters(open_assistant):
    assistant = open_assistant()
    write(assistant)
    bare = assistant.decoder.save()
    assistant.use_user("anna")
    with pytest.raises(PromptCacheError, match="another adapter"):
        assistant.decoder.restore(bare)
    with pytest.raises(PromptCacheError, match="another adapter"):
        assistant.decoder.restore(replace(bare, adapter="0" * 64))


def test_a_user_who_has_none_changes_nothing(open_assistant):
    assistant = open_assistant()
    assistant.use_user("anna")
    expected = write(assistant)
    with pytest.raises(AdapterError, match="'nobody' has no adapter"):
        assistant.use_user("nobody")
    assert write(assistant) == expected


def test_a_damaged_adapter_stops_its_user_alone(open_assistant, tiny, adapters, tmp_path):
    store = AdapterStore(tmp_path / "adapters", tiny.bundle.base)
    for user in ("anna", "Ben"):
        store.install(adapters.path(user).read_bytes())
    store.path("Ben").write_bytes(b"damaged")
    assistant = edge_runtime.load(tiny.bundle.root, threads=1, context_length=512, adapters=store.root)
    with pytest.raises(AdapterError, match=r"ben.*can't be read|can't be read.*ben"):
        assistant.use_user("Ben")
    assistant.use_user("anna")
    other = open_assistant()
    other.use_user("anna")
    assert write(assistant) == write(other)


def test_a_bundles_own_adapters_are_found(tiny, open_assistant, tmp_path):
    root = tmp_path / "bundle"
    root.mkdir()
    for path in tiny.bundle.root.iterdir():
        (root / path.name).symlink_to(path)
    assistant = edge_runtime.load(root, threads=1, context_length=512, verify=False)
    assistant.adapters.install(adapter_file(tiny.bundle.base, "anna", seed=1))
    assert (root / "adapters" / "anna" / "adapter.safetensors").is_file()
    assistant.use_user("anna")
    other = open_assistant()
    other.use_user("anna")
    assert write(assistant) == write(other)


def test_users_whose_adapters_memory_does_not_hold_get_their_own_answers(tiny, tmp_path):
    store = AdapterStore(tmp_path, tiny.bundle.base, loaded_bytes=1)
    users = [f"user-{number}" for number in range(6)]
    for seed, user in enumerate(users):
        store.install(adapter_file(tiny.bundle.base, user, seed=seed))
    assistant = edge_runtime.load(tiny.bundle.root, threads=1, context_length=512)
    assistant.adapters = store
    rows = {}
    for _ in range(2):
        for user in users:
            assistant.use_user(user)
            row = assistant.decoder.extend([1, 2, 3])[0]
            np.testing.assert_array_equal(rows.setdefault(user, row), row)
    assert len({row.tobytes() for row in rows.values()}) == len(users)
