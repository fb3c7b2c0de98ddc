"""What was used last is kept, within a number of bytes."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapters.lru_cache import LruCache


def test_the_least_recently_used_goes_first():
    recent = LruCache[str](30)
    for key in "abc":
        recent.put(key, key.upper(), 10)
    assert recent.get("a") == "A"
    recent.put("d", "D", 10)
    assert [recent.get(key) for key in "abcd"] == ["A", None, "C", "D"]


def test_one_that_is_larger_than_all_room_is_kept_alone():
    recent = LruCache[str](30)
    recent.put("a", "A", 10)
    recent.put("b", "B", 100)
    assert (recent.get("a"), recent.get("b"), recent.nbytes) == (None, "B", 100)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40), st.sampled_from(["put", "get", "drop"]))))
def test_any_use_keeps_to_the_bytes_and_gives_back_what_was_put_last(uses):
    recent, last = LruCache[int](60), {}
    for number, (key, size, use) in enumerate(uses):
        if use == "put":
            recent.put(key, number, size)
            last[key] = (number, size)
            assert recent.get(key) == number
        elif use == "get":
            found = recent.get(key)
            assert found is None or found == last[key][0]
        else:
            recent.drop(key)
            assert recent.get(key) is None
        kept = [key for key in last if recent.get(key) is not None]
        assert recent.nbytes == sum(last[key][1] for key in kept)
        assert recent.nbytes <= 60
        assert len(recent) == len(kept)
