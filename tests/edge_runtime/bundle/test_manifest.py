"""The manifest: written manifests can be read, and everything else is rejected with a typed error."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.json_fields import safe_path
from edge_runtime.bundle.manifest import SCHEMA_MAJOR, _checksum, read_manifest, write_manifest
from edge_runtime.errors import ManifestError, UnsafePathError, UnsupportedVersionError
from tests.support.examples import examples
from tests.support.manifests import small_manifest

relaxed = settings(max_examples=examples(300), deadline=None)
VALID = json.loads(write_manifest(small_manifest()))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(VALID)) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=15,
)

PATHS = [("tokenizer", "path"), ("decoders", 0, "graph"), ("decoders", 0, "golden"), ("files", 1, "path")]
UNSAFE = [
    "..",
    "../weights",
    "onnx/../../weights",
    "onnx/..",
    "/etc/passwd",
    "//server/share",
    "onnx\\..\\..\\weights",
    "C:/windows/system32",
    "C:weights",
    "c:\\weights",
    "onnx/model\0.onnx",
    "",
    ".",
    "./onnx/model.onnx",
    "onnx//model.onnx",
    "onnx/",
]


def sealed(body):
    """Return JSON of a changed manifest with a matching checksum, as an attacker would write it."""
    body = {key: value for key, value in body.items() if key != "checksum"}
    return json.dumps(body | {"checksum": _checksum(body)})


def places(value, path=()):
    """Return the paths to all values in a JSON document."""
    if path:
        yield path
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from places(value[key], (*path, key))


def changed(path, value):
    body = copy.deepcopy(VALID)
    parent = body
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return body


PLACES = sorted(places({key: value for key, value in VALID.items() if key != "checksum"}), key=str)


# A missing minor version is harmless: nothing depends on it. Version 2.0 had no checks, special tokens and template
# variables.
OPTIONAL = [("schema", "minor"), ("tokenizer", "special_tokens"), ("template_variables",), ("decoders", 0, "checked")]
NAMED = [path for path in PLACES if isinstance(path[-1], str) and path not in OPTIONAL]


@relaxed
@given(
    template=st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    length=st.integers(1, 2**40),
    stops=st.lists(st.integers(0, 2**20), max_size=4),
)
def test_what_is_written_is_read(template, length, stops):
    manifest = small_manifest()
    tokenizer = replace(manifest.tokenizer, stop_token_ids=tuple(stops), eos_token=template[:5])
    manifest = replace(manifest, chat_template=template, context_length=length, tokenizer=tokenizer)
    assert read_manifest(write_manifest(manifest)) == manifest
    assert read_manifest(write_manifest(manifest).encode()) == manifest


@relaxed
@given(text=st.text(max_size=80) | st.binary(max_size=80) | json_values.map(json.dumps))
def test_anything_else_is_a_manifest_error(text):
    with pytest.raises(ManifestError):
        read_manifest(text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, b"\xff\xfe{}", "NaN"])
def test_hostile_json_is_a_manifest_error(text):
    with pytest.raises(ManifestError):
        read_manifest(text, "here/manifest.json")


@relaxed
@given(path=st.sampled_from(PLACES), value=st.one_of(st.just(...), json_values))
def test_a_forged_change_is_read_as_it_stands_or_refused_with_a_typed_error(path, value):
    body = changed(path, value)
    try:
        manifest = read_manifest(sealed(body), "here/manifest.json")
    except (ManifestError, UnsupportedVersionError, UnsafePathError) as error:
        assert "here/manifest.json" in str(error)
        return
    assert read_manifest(write_manifest(manifest)) == manifest


@pytest.mark.parametrize("path", NAMED, ids=str)
def test_a_missing_field_is_named(path):
    with pytest.raises(ManifestError) as caught:
        read_manifest(sealed(changed(path, ...)), "here/manifest.json")
    assert f"'{path[-1]}'" in str(caught.value) or f".{path[-1]}'" in str(caught.value)


@pytest.mark.parametrize("unsafe", UNSAFE)
@pytest.mark.parametrize(
    "path", [("tokenizer", "path"), ("decoders", 0, "graph"), ("decoders", 0, "golden"), ("files", 1, "path")], ids=str
)
def test_a_path_that_may_lead_out_of_the_bundle_is_refused(path, unsafe):
    with pytest.raises(UnsafePathError, match="Don't use this bundle"):
        read_manifest(sealed(changed(path, unsafe)))


@relaxed
@given(st.text(alphabet="ab./\\:C\0 ~", max_size=12))
def test_a_safe_path_stays_inside(path):
    assume(safe_path(path))
    root = Path("/bundle")
    inside = Path(f"{root}/{path}")
    assert ".." not in inside.parts and "\\" not in path and "\0" not in path
    assert inside.is_relative_to(root) and inside != root
    assert (root / path) == inside


@pytest.mark.parametrize("major", [SCHEMA_MAJOR + 1, SCHEMA_MAJOR + 1000, 0])
def test_another_major_version_is_refused_whatever_else_is_in_it(major):
    future = {"format": VALID["format"], "schema": {"major": major, "minor": 0}, "all": "different"}
    with pytest.raises(UnsupportedVersionError, match=str(major)):
        read_manifest(json.dumps(future))


def test_a_bundle_of_version_2_0_has_no_template_variables():
    body = changed(("tokenizer", "special_tokens"), ...)
    del body["template_variables"]
    assert read_manifest(sealed(body)) == small_manifest()


def test_special_tokens_and_template_variables_are_kept():
    tokens = {"pad_token": "<pad>", "additional_special_tokens": ("<x>", "<y>")}
    manifest = small_manifest()
    tokenizer = replace(manifest.tokenizer, special_tokens=tokens, eos_token="")
    manifest = replace(
        manifest, tokenizer=tokenizer, template_variables={"enable_thinking": False, "n": [1, {"a": None}]}
    )
    assert read_manifest(write_manifest(manifest)) == manifest
    # A token that the model lacks is undefined in the template.
    assert tokenizer.template_tokens == {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["<x>", "<y>"],
    }


@pytest.mark.parametrize("value", [1, None, {}, ["a", 1], True])
def test_a_special_token_is_text(value):
    with pytest.raises(ManifestError, match=r"tokenizer\.special_tokens\.pad_token"):
        read_manifest(sealed(changed(("tokenizer", "special_tokens"), {"pad_token": value})))


def test_fields_of_a_later_minor_version_are_passed_over():
    body = changed(("schema", "minor"), 7) | {"later": {"field": 1}}
    body["model"]["later"] = True
    assert read_manifest(sealed(body)) == small_manifest()


@relaxed
@given(data=st.data())
def test_a_flipped_bit_is_noticed(data):
    text = bytearray(write_manifest(small_manifest()).encode())
    place, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 7))
    text[place] ^= 1 << bit
    try:
        manifest = read_manifest(bytes(text))
    except (ManifestError, UnsupportedVersionError, UnsafePathError):
        return
    # White space between the fields has no meaning.
    assert manifest == small_manifest()
    assert chr(text[place]).isspace()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("decoders", 0, "kind"), "unknown"),
        (("decoders", 0, "graph"), "onnx/not_listed.onnx"),
        (("tokenizer", "path"), "not_listed.json"),
        (("files", 1, "path"), "onnx/model.onnx"),
        (("files", 0, "sha256"), "A" * 64),
        (("files", 0, "size"), -1),
        (("files", 0, "size"), True),
        (("vocab_size"), 0),
        (("context_length",), 1.0),
        (("tokenizer", "stop_token_ids"), [1, -1]),
        (("decoders", 0, "lora", 0, "projections"), [["q", 0]]),
        (("decoders", 0, "lora", 0, "projections"), ["q"]),
    ],
)
def test_values_that_make_no_sense_are_refused(path, value):
    path = (path,) if isinstance(path, str) else path
    with pytest.raises(ManifestError):
        read_manifest(sealed(changed(path, value)))
