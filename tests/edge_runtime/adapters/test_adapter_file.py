"""An adapter file reproduces its content within its precision; only complete and valid files are accepted."""

import hashlib
import json
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from edge_runtime.adapters.adapter import ADAPTER_FORMAT, Adapter, load_adapter, read_adapter_header
from edge_runtime.adapters.learned_text import LARGEST_TEXT, decode_learned
from edge_runtime.context import HistoryItem, PrivateContext
from edge_runtime.errors import AdapterError
from export.adapters.writer import encode_adapter
from export.errors import AdapterExportError
from tests.support.examples import examples

WIDTHS = {"q_proj": (48, 64), "v_proj": (48, 16), "down_proj": (96, 48)}
BASE = "5" * 64
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Relative error of a product A B: two roundings, each at most half a step of the row's largest number.
ERRORS = {"fp32": 0.0, "fp16": 1e-3, "int8": 2e-2}


def make(ranks=None, *, seed=0, size_a=0.3, size_b=0.01, user="anna"):
    rng = np.random.default_rng(seed)
    matrices = {
        (layer, name): (
            (rng.standard_normal((WIDTHS[name][0], rank)) * size_a).astype(np.float32),
            (rng.standard_normal((rank, WIDTHS[name][1])) * size_b).astype(np.float32),
        )
        for (layer, name), rank in (ranks or {(0, "q_proj"): 2, (2, "q_proj"): 5, (1, "down_proj"): 3}).items()
    }
    return Adapter(BASE, "", matrices, "Anna's mails", user, "SmolLM2")


def write(path, adapter, weights="fp16"):
    path.write_bytes(encode_adapter(adapter, weights))
    return path


def errors(written, read):
    """Return the relative Frobenius error of each product."""
    for place, (a, b) in written.matrices.items():
        exact = a.astype(np.float64) @ b
        found = read.matrices[place][0].astype(np.float64) @ read.matrices[place][1]
        yield np.linalg.norm(found - exact) / np.linalg.norm(exact)


PLACES = st.dictionaries(
    st.tuples(st.integers(0, 5), st.sampled_from(sorted(WIDTHS))), st.integers(1, 7), min_size=1, max_size=8
)


@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8"])
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranks=PLACES, seed=st.integers(0, 99), sizes=st.tuples(st.floats(1e-3, 10), st.floats(1e-6, 10)))
def test_products_come_back_within_the_precision_of_the_weights(weights, ranks, seed, sizes, tmp_path):
    adapter = make(ranks, seed=seed, size_a=sizes[0], size_b=sizes[1])
    read = load_adapter(write(tmp_path / "a", adapter, weights))
    assert read.matrices.keys() == adapter.matrices.keys()
    for a, b in read.matrices.values():
        assert a.dtype == b.dtype == np.float32
    assert max(errors(adapter, read)) <= ERRORS[weights]


@pytest.mark.parametrize("weights", ["fp16", "int8"])
@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(TEXT, TEXT), max_size=4), profile=TEXT)
def test_the_texts_that_it_was_trained_on_come_back(weights, texts, profile, tmp_path):
    learned = PrivateContext(profile, tuple(HistoryItem(*pair) for pair in texts))
    assert load_adapter(write(tmp_path / "a", replace(make(), learned=learned), weights)).learned == learned
    assert load_adapter(write(tmp_path / "b", make(), weights)).learned is None


def test_a_text_that_unpacks_to_more_than_a_user_can_have_written_is_refused(tmp_path):
    bomb = zlib.compress(b'{"profile": "' + b" " * LARGEST_TEXT + b'"}', 9)
    with pytest.raises(ValueError, match="too long"):
        decode_learned(bomb)


def test_the_file_says_whose_it_is_and_for_what_without_its_weights_being_read(tmp_path):
    path = write(tmp_path / "a", make(), "int8")
    header = read_adapter_header(path)
    assert (header.user, header.name, header.base, header.base_name) == ("anna", "Anna's mails", BASE, "SmolLM2")
    assert header.ranks == {"down_proj": (0, 3), "q_proj": (2, 0, 5)}
    assert (header.smallest_rank, header.largest_rank, header.weights) == (2, 5, "int8")
    assert header.size == path.stat().st_size
    assert header.created_by.startswith("cogenesis-edge")
    adapter = load_adapter(path)
    assert (adapter.base, adapter.user, adapter.name, adapter.base_name) == (BASE, "anna", "Anna's mails", "SmolLM2")
    assert adapter.fingerprint == header.sha256


def test_the_digest_is_the_one_that_is_documented(tmp_path):
    path = write(tmp_path / "a", make())
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    stated = header["__metadata__"].pop("sha256")
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical + content[8 + length :]).hexdigest() == stated


def test_other_tools_read_it_as_safetensors(tmp_path):
    adapter = make()
    with safe_open(write(tmp_path / "a", adapter, "fp32"), "numpy") as file:
        assert file.metadata()["format"] == ADAPTER_FORMAT
        rows = file.get_tensor("q_proj.lora_A")
    np.testing.assert_array_equal(rows[:2].T, adapter.matrices[0, "q_proj"][0])
    np.testing.assert_array_equal(rows[2:].T, adapter.matrices[2, "q_proj"][0])


def test_the_same_adapter_gives_the_same_bytes_and_another_one_another_fingerprint(tmp_path):
    def fingerprint(adapter):
        path.write_bytes(encode_adapter(adapter))
        return load_adapter(path).fingerprint

    path = tmp_path / "a"
    assert encode_adapter(make()) == encode_adapter(make())
    variants = [make(), make(seed=1), make(user="ben"), replace(make(), base="6" * 64)]
    assert len({fingerprint(variant) for variant in variants}) == 4


def test_a_rank_that_does_nothing_survives_every_precision(tmp_path):
    adapter = make(size_b=0.0)
    for weights in ("fp32", "fp16", "int8"):
        read = load_adapter(write(tmp_path / weights, adapter, weights))
        assert all(not b.any() for _, b in read.matrices.values())


def test_a_b_too_small_for_half_precision_is_not_lost(tmp_path):
    adapter = make(size_b=1e-7)
    assert max(errors(adapter, load_adapter(write(tmp_path / "a", adapter, "fp16")))) < 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("half", [0, 1])
def test_numbers_that_are_not_finite_are_not_written(value, half):
    adapter = make()
    adapter.matrices[2, "q_proj"][half][0, 1] = value
    with pytest.raises(AdapterExportError, match=r"anna.*not finite.*q_proj"):
        encode_adapter(adapter)


def test_numbers_too_large_for_half_precision_are_refused_by_name():
    adapter = make(size_a=1e6, size_b=1e6)
    with pytest.raises(AdapterExportError, match=r"too large for fp16.*`weights` int8"):
        encode_adapter(adapter, "fp16")
    encode_adapter(adapter, "int8")


def test_an_adapter_without_matrices_is_not_written():
    with pytest.raises(AdapterExportError, match="no matrices"):
        encode_adapter(replace(make(), matrices={}))


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), weights=st.sampled_from(["fp16", "int8"]))
def test_any_changed_byte_is_noticed(data, weights, tmp_path):
    whole = encode_adapter(make(), weights)
    position = data.draw(st.one_of(st.integers(0, 900), st.integers(0, len(whole) - 1)), label="position")
    flipped = data.draw(st.integers(1, 255), label="flip")
    changed = whole[:position] + bytes([whole[position] ^ flipped]) + whole[position + 1 :]
    (tmp_path / "changed").write_bytes(changed)
    try:
        read = load_adapter(tmp_path / "changed")
    except AdapterError as error:
        assert str(tmp_path / "changed") in str(error)
        return
    # The rest is white space around the header's JSON.
    (tmp_path / "whole").write_bytes(whole)
    assert read.fingerprint == load_adapter(tmp_path / "whole").fingerprint
    assert bytes([whole[position]]) in b' "'


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_short_or_made_of_anything_else_is_refused(data, tmp_path):
    whole = encode_adapter(make())
    cut = st.integers(0, len(whole) - 1).map(lambda end: whole[:end])
    longer = st.binary(min_size=1, max_size=9).map(lambda more: whole + more)
    (tmp_path / "a").write_bytes(data.draw(st.one_of(cut, longer, st.binary(max_size=200)), label="content"))
    for read in (load_adapter, read_adapter_header):
        with pytest.raises(AdapterError):
            read(tmp_path / "a")


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def signed(path, tensors, metadata=None, data=b""):
    """Write a file with any header and a correct digest: only the checks of its content can reject it."""
    texts = {"format": ADAPTER_FORMAT, "base": BASE, "user": "anna", "ranks": '{"q_proj":[2]}'} | (metadata or {})
    header = {name: text for name, text in ({"__metadata__": texts} | tensors).items() if text is not None}
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    texts["sha256"] = hashlib.sha256(canonical + data).hexdigest()
    return raw(path, header, data)


def tensor(shape, start, dtype="F16"):
    size = {"F16": 2, "F32": 4, "I8": 1}.get(dtype, 2)
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size * int(np.prod(shape))]}


GOOD = {"q_proj.lora_A": tensor((2, 3), 0), "q_proj.lora_B": tensor((2, 4), 12)}
BYTES = np.ones(14, np.float16).tobytes()


def test_the_good_file_that_the_bad_ones_are_made_of_is_good(tmp_path):
    read = load_adapter(signed(tmp_path / "a", GOOD, data=BYTES))
    np.testing.assert_array_equal(read.matrices[0, "q_proj"][0], np.ones((3, 2)))
    assert read_adapter_header(tmp_path / "a").ranks == {"q_proj": (2,)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "data"),
    [
        pytest.param({**GOOD, "q_proj.lora_A": tensor((2, 3), 0, "BF16")}, {}, BYTES, id="bfloat16"),
        pytest.param(
            {**GOOD, "q_proj.lora_A": tensor((2, 3), 0) | {"dtype": ["F16"]}}, {}, BYTES, id="dtype is a list"
        ),
        pytest.param({**GOOD, "q_proj.lora_B": tensor((2, 4), 0)}, {}, BYTES, id="overlap"),
        pytest.param({**GOOD, "q_proj.lora_B": tensor((2, 4), 14)}, {}, BYTES + b"00", id="gap"),
        pytest.param({**GOOD, "q_proj.lora_B": tensor((2, 4), -16)}, {}, BYTES, id="before the file"),
        pytest.param({**GOOD, "q_proj.lora_B": tensor((2, 4), 2**60)}, {}, BYTES, id="beyond the file"),
        pytest.param({**GOOD, "q_proj.lora_B": tensor((2, 4), 12) | {"x": 1}}, {}, BYTES, id="further field"),
        pytest.param({**GOOD, "q_proj.lora_B": {"dtype": "F16"}}, {}, BYTES[:12], id="no shape"),
        pytest.param({**GOOD, "q_proj.lora_B": 7}, {}, BYTES[:12], id="no object"),
        pytest.param({**GOOD, "q_proj.lora_A": tensor((2, 3), 0) | {"shape": [2.0, 3]}}, {}, BYTES, id="float shape"),
        pytest.param({**GOOD, "q_proj.lora_A": tensor((2, 3), 0) | {"shape": [True, 6]}}, {}, BYTES, id="bool shape"),
        pytest.param({**GOOD, "q_proj.lora_A": tensor((6,), 0)}, {}, BYTES, id="one dimension"),
        pytest.param({**GOOD, "q_proj.lora_A": tensor((3, 2), 0)}, {}, BYTES, id="ranks don't add up"),
        pytest.param({**GOOD, "k_proj.lora_A": tensor((2, 1), 28)}, {}, BYTES + b"0000", id="tensor without ranks"),
        pytest.param({"q_proj.lora_A": GOOD["q_proj.lora_A"]}, {}, BYTES[:12], id="half is missing"),
        pytest.param({}, {}, b"", id="no tensors"),
        pytest.param({**GOOD, "q_proj.lora_B": tensor((2, 4), 12, "F32")}, {}, BYTES + bytes(16), id="two types"),
        pytest.param(
            {"q_proj.lora_A": tensor((2, 3), 0, "I8"), "q_proj.lora_B": tensor((2, 4), 6, "I8")}, {}, bytes(14), id="I8"
        ),
        pytest.param({**GOOD, "q_proj.lora_A.scale": tensor((2,), 28, "F32")}, {}, BYTES + bytes(8), id="odd scales"),
        pytest.param(GOOD, {"format": "cogenesis-adapter/2"}, BYTES, id="another version"),
        pytest.param(GOOD, {"user": None}, BYTES, id="user is null"),
        pytest.param(GOOD, {"user": "\ud800"}, BYTES, id="half a character"),
        pytest.param(GOOD, {"ranks": ""}, BYTES, id="empty ranks"),
        pytest.param(GOOD, {"ranks": "[" * 100_000}, BYTES, id="deep ranks"),
        pytest.param(GOOD, {"ranks": "[2]"}, BYTES, id="ranks are a list"),
        pytest.param(GOOD, {"ranks": "{}"}, BYTES, id="no projections"),
        pytest.param(GOOD, {"ranks": '{"q_proj":2}'}, BYTES, id="one number"),
        pytest.param(GOOD, {"ranks": '{"q_proj":[]}'}, BYTES, id="no layers"),
        pytest.param(GOOD, {"ranks": '{"q_proj":[3,-1]}'}, BYTES, id="negative rank"),
        pytest.param(GOOD, {"ranks": '{"q_proj":[2.0]}'}, BYTES, id="float rank"),
        pytest.param(GOOD, {"ranks": '{"q_proj":[true,1]}'}, BYTES, id="bool rank"),
        pytest.param(GOOD, {"ranks": json.dumps({"q_proj": [2] + [0] * 5000})}, BYTES, id="many layers"),
        pytest.param(GOOD, {"ranks": '{"../q":[2]}'}, BYTES, id="odd projection"),
        pytest.param(
            {"q_proj.lora_A": tensor((2000, 1), 0), "q_proj.lora_B": tensor((2000, 1), 4000)},
            {"ranks": '{"q_proj":[2000]}'},
            bytes(8000),
            id="huge rank",
        ),
        pytest.param(GOOD, {}, np.full(14, np.nan, np.float16).tobytes(), id="NaN"),
        pytest.param(GOOD, {}, np.full(14, np.inf, np.float16).tobytes(), id="infinity"),
    ],
)
def test_a_file_that_is_signed_but_not_sane_is_refused(tmp_path, tensors, metadata, data):
    with pytest.raises(AdapterError, match="a hostile file"):
        load_adapter(signed(tmp_path / "a hostile file", tensors, metadata, data))


@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e38])
def test_scales_that_make_numbers_infinite_are_refused(tmp_path, scale):
    tensors = {
        "q_proj.lora_A.scale": tensor((2,), 0, "F32"),
        "q_proj.lora_B.scale": tensor((2,), 8, "F32"),
        "q_proj.lora_A": tensor((2, 3), 16, "I8"),
        "q_proj.lora_B": tensor((2, 4), 22, "I8"),
    }
    codes = np.full(14, 127, np.int8).tobytes()
    good = signed(tmp_path / "a", tensors, data=np.ones(4, np.float32).tobytes() + codes)
    assert load_adapter(good).matrices[0, "q_proj"][0].max() == 127
    bad = signed(tmp_path / "b", tensors, data=np.array([1, scale, 1, 1], np.float32).tobytes() + codes)
    with pytest.raises(AdapterError, match="not finite"):
        load_adapter(bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {}, optional={"dtype": st.sampled_from(["F16", "I8", "Q"]) | JSON, "shape": JSON, "data_offsets": JSON}
)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(st.sampled_from([*GOOD, "x"]), FIELDS | JSON, max_size=3),
    metadata=st.dictionaries(st.sampled_from(["base", "user", "ranks", "format"]), JSON, max_size=2),
    ranks=JSON,
)
def test_any_header_is_refused_or_read_and_nothing_else_happens(tensors, metadata, ranks, tmp_path):
    texts = {"ranks": json.dumps(ranks)} | metadata
    try:
        path = signed(tmp_path / "a", GOOD | tensors, texts, BYTES)
    except UnicodeEncodeError:
        return
    for read in (load_adapter, read_adapter_header):
        try:
            read(path)
        except AdapterError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 1 << 21) + b" " * (1 << 21), b"\0" * 64],
)
def test_headers_of_an_impossible_length_are_refused(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    for read in (load_adapter, read_adapter_header):
        with pytest.raises(AdapterError, match="bad"):
            read(tmp_path / "bad")


@pytest.mark.parametrize("header", [b"[]", b"{", b"\xff\xff", b"[" * 200_000, b'{"__metadata__": 1}', b"1" * 5000])
def test_headers_that_are_not_an_object_are_refused(tmp_path, header):
    with pytest.raises(AdapterError):
        load_adapter(raw(tmp_path / "bad", header))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").write_bytes(b"")
    os.truncate(tmp_path / "huge", 1 << 40)
    for name, words in {"none": "no adapter here", "pipe": "not a file", "": "not a file", "huge": "bytes"}.items():
        with pytest.raises(AdapterError, match=words):
            load_adapter(tmp_path / name)


def test_adapters_of_peft_and_others_are_refused(tmp_path):
    save_file({"base_model.model.x.lora_A.weight": np.ones((2, 3), np.float32)}, tmp_path / "a", {"format": "pt"})
    with pytest.raises(AdapterError, match="format"):
        load_adapter(tmp_path / "a")
