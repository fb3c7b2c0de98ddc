"""Users' adapters in a directory: every id has a place of its own, and nothing about one user touches another."""

import re
import stat
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.adapters.adapter import load_adapter
from edge_runtime.adapters.store import AdapterStore, directory_name
from edge_runtime.errors import AdapterError
from tests.support.tiny_adapters import adapter_file

DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(10))}
BASE = "b" * 64
OTHER = "c" * 64


@given(st.text())
@example("")
@example("..")
@example("../../etc/passwd")
@example("C:\\Users\\anna")
@example("nul.txt")
@example("\ud800")
@example("x" * 5000)
def test_a_directory_name_is_safe_on_every_file_system(user):
    name = directory_name(user)
    assert re.fullmatch(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?", name)
    assert len(name) <= 86
    assert name.split(".")[0] not in DEVICES


@given(st.lists(st.text(alphabet=st.sampled_from("aA.-_ é/0")), min_size=2, unique=True))
@example(["Anna", "anna", "ANNA", "änna", "anna ", "anna.", ".anna"])
@example(["con", "CON", "user-con", "user", "", "con.", "con.a"])
@example(["x" * 64, "x" * 65, "x" * 66])
def test_different_users_have_different_directories(users):
    assert len({directory_name(user) for user in users}) == len(users)


@pytest.mark.parametrize("user", ["Anna", "", "naïve", "x" * 100])
def test_an_id_that_looks_like_anothers_directory_gets_one_of_its_own(user):
    assert directory_name(directory_name(user)) != directory_name(user)


@pytest.mark.parametrize("user", ["anna", "user-17", "a.b_c-9", "x" * 64, "1234"])
def test_plain_ids_are_their_own_directories(user):
    assert directory_name(user) == user


def test_names_are_the_same_everywhere():
    assert directory_name("Anna") == "anna-bf4fccd616251b67"  # printf Anna | sha256sum


@pytest.fixture
def store(tmp_path):
    return AdapterStore(tmp_path / "bundle" / "adapters", BASE)


def install(store, *users, base=BASE, **options):
    for number, user in enumerate(users):
        AdapterStore(store.root, base).install(adapter_file(base, user, seed=number), **options)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def listed(store, **options):
    return {entry.directory: entry for entry in store.entries(**options)}


@pytest.mark.parametrize("user", ["anna", "Anna", "../../anna", "アンナ", "con", "a" * 300, "\n\x1b[31m"])
def test_what_is_put_in_place_is_what_is_loaded(store, user, tmp_path):
    content = adapter_file(BASE, user)
    path = store.install(content)
    assert path.read_bytes() == content
    assert path.is_relative_to(store.root)
    assert user in store
    found = store.load(user)
    assert (found.user, found.fingerprint) == (user, load_adapter(path).fingerprint)
    assert names(tmp_path) == ["bundle"]


def test_only_the_owner_can_read_an_adapter(store):
    path = store.install(adapter_file(BASE, "anna"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_adapter_is_replaced_only_if_told_so_and_in_one_step(store):
    path = store.install(adapter_file(BASE, "anna", seed=1))
    first = store.load("anna")
    with pytest.raises(AdapterError, match="--force"):
        store.install(adapter_file(BASE, "anna", seed=2))
    assert store.load("anna") is first
    store.install(adapter_file(BASE, "anna", seed=2), replace=True)
    assert store.load("anna").fingerprint != first.fingerprint
    assert names(path.parent) == [path.name]


def test_a_failed_write_leaves_the_old_adapter_and_nothing_else(store, monkeypatch):
    path = store.install(adapter_file(BASE, "anna", seed=1))
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AdapterError, match="No space left"):
        store.install(adapter_file(BASE, "anna", seed=2), replace=True)
    assert path.read_bytes() == old
    assert names(path.parent) == [path.name]


def test_an_adapter_of_another_base_is_neither_put_in_place_nor_loaded(store):
    with pytest.raises(AdapterError, match="another base"):
        store.install(adapter_file(OTHER, "anna"))
    install(store, "anna", base=OTHER)
    with pytest.raises(AdapterError, match=r"another base.*tiny"):
        store.load("anna")
    assert "another base" in listed(store)["anna"].problem


@pytest.mark.parametrize("content", [b"", b"garbage", adapter_file(BASE, "anna")[:-1], adapter_file(BASE, "")])
def test_what_is_no_users_adapter_is_not_put_in_place(store, content):
    with pytest.raises(AdapterError):
        store.install(content)
    assert not store.root.exists()


def test_a_user_without_an_adapter_is_told_how_to_get_one(store):
    for prepare in (lambda: None, lambda: install(store, "ben")):
        prepare()
        assert "anna" not in store
        with pytest.raises(AdapterError, match=r"'anna' has no adapter here.*export adapter"):
            store.load("anna")
        with pytest.raises(AdapterError, match="'anna' has no adapter here"):
            store.remove("anna")


def test_an_empty_store_lists_nothing(store):
    assert listed(store) == {}


def test_all_are_listed_and_none_stops_the_others(store, tmp_path):
    install(store, "ben", "Anna", "cut", "copied", "linked", "weights")
    install(store, "foreign", base=OTHER)
    good = (store.root / "ben" / "adapter.safetensors").read_bytes()
    (store.root / "cut" / "adapter.safetensors").write_bytes(good[:500])
    (store.root / "copied" / "adapter.safetensors").write_bytes(good)
    (store.root / "linked").rename(tmp_path / "elsewhere")
    (store.root / "linked").symlink_to(tmp_path / "elsewhere")
    flipped = bytearray((store.root / "weights" / "adapter.safetensors").read_bytes())
    flipped[-1] ^= 1
    (store.root / "weights" / "adapter.safetensors").write_bytes(flipped)
    (store.root / ".DS_Store").write_bytes(b"x")
    (store.root / "README").write_bytes(b"x")
    (store.root / "empty").mkdir()

    entries = list(store.entries())
    assert [entry.directory for entry in entries] == sorted(
        ["ben", directory_name("Anna"), "cut", "copied", "linked", "weights", "foreign"]
    )
    problems = {entry.directory: entry.problem for entry in entries}
    assert [name for name, problem in problems.items() if not problem] == [directory_name("Anna"), "ben", "weights"]
    assert "can't be read" in problems["cut"]
    assert "'ben'" in problems["copied"]
    assert "link" in problems["linked"]
    assert "another base" in problems["foreign"]
    assert "SHA-256" in listed(store, whole=True)["weights"].problem
    for user in ("cut", "copied", "linked", "foreign", "weights"):
        with pytest.raises(AdapterError):
            store.load(user)
    assert store.load("ben").user == "ben"


def test_the_list_says_what_each_adapter_is(store):
    install(store, "anna")
    header = listed(store)["anna"].header
    assert header is not None
    assert (header.user, header.weights, header.ranks) == ("anna", "fp16", {"q_proj": (4, 4), "v_proj": (4, 4)})
    assert header.size == store.path("anna").stat().st_size


def test_another_users_adapter_is_not_taken_for_ones_own(store):
    """Two ids whose digests begin alike would share a directory; somebody may also have copied files."""
    install(store, "anna", "ben")
    store.path("anna").write_bytes(store.path("ben").read_bytes())
    with pytest.raises(AdapterError, match="'ben'"):
        store.load("anna")
    with pytest.raises(AdapterError, match="taken by user 'ben'"):
        store.install(adapter_file(BASE, "anna"), replace=True)
    assert store.load("ben").user == "ben"


def test_a_damaged_adapter_can_be_replaced(store):
    install(store, "anna")
    store.path("anna").write_bytes(b"damaged")
    with pytest.raises(AdapterError, match="already"):
        store.install(adapter_file(BASE, "anna"))
    store.install(adapter_file(BASE, "anna"), replace=True)
    assert store.load("anna").user == "anna"


def test_removing_one_leaves_the_others_and_nothing_of_it(store):
    install(store, "Anna", "ben")
    store.load("Anna")
    (store.path("Anna").parent / ".adapter.safetensors.interrupted").write_bytes(b"private")
    store.remove("Anna")
    assert "Anna" not in store
    with pytest.raises(AdapterError):
        store.load("Anna")
    assert names(store.root) == ["ben"]


def test_what_no_id_leads_to_is_removed_by_its_directory_and_what_is_sound_by_its_id_alone(store):
    install(store, "Anna", "ben")
    (store.root / "copied-by-hand").mkdir()
    (store.root / "copied-by-hand" / "adapter.safetensors").write_bytes(store.path("ben").read_bytes())
    directory = store.path("Anna").parent
    with pytest.raises(AdapterError, match="no adapter here"):
        store.remove(directory.name)
    store.path("Anna").write_bytes(b"damaged")
    store.remove(directory.name)
    store.remove("copied-by-hand")
    assert names(store.root) == ["ben"]


@pytest.mark.parametrize("user", ["..", "../other", "/", "ben/../ben"])
def test_nothing_outside_can_be_removed(store, tmp_path, user):
    install(store, "ben")
    (tmp_path / "bundle" / "other").mkdir()
    for place in (tmp_path / "bundle", tmp_path / "bundle" / "other"):
        (place / "adapter.safetensors").write_bytes(b"someone's")
    with pytest.raises(AdapterError, match="no adapter here"):
        store.remove(user)
    assert (tmp_path / "bundle" / "adapter.safetensors").exists()
    assert "ben" in store


def test_a_loaded_adapter_is_not_read_again_until_its_file_changes(store):
    install(store, "anna")
    first = store.load("anna")
    assert store.load("anna") is first
    store.install(adapter_file(BASE, "anna", seed=5), replace=True)
    again = store.load("anna")
    assert again is not first
    assert not np.array_equal(again.matrices[0, "q_proj"][0], first.matrices[0, "q_proj"][0])


def test_memory_does_not_grow_with_the_number_of_users(tmp_path):
    users = [f"user-{number}" for number in range(300)]
    one = adapter_file(BASE, users[0])
    room = 3 * len(one)

    def peak(root, users):
        store = AdapterStore(root, BASE, loaded_bytes=room)
        tracemalloc.start()
        assert sum(not entry.problem for entry in store.entries()) == len(users)
        for user in users:
            assert store.load(user).user == user
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    for count in (20, 300):
        install(AdapterStore(tmp_path / str(count), BASE), *users[:count])
    peak(tmp_path / "20", users[:20])  # what Python itself keeps from the first time
    few, many = peak(tmp_path / "20", users[:20]), peak(tmp_path / "300", users)
    # The names of the directories, 100 bytes each, are all that there is more of.
    assert many - few < 300 * 150
