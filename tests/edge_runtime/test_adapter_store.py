"""Users' adapters in a bundle: every id has a directory of its own, and nothing about one user touches another."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.adapter_store import directory_name

DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(10))}


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
