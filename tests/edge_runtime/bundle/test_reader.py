"""Opening a bundle: every file in turn missing, cut short, changed, or a link to somewhere else."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.manifest import MANIFEST_NAME, write_manifest
from edge_runtime.bundle.reader import open_bundle, sha256_of
from edge_runtime.errors import BundleError, DamagedFileError, ManifestError, MissingFileError, UnsafePathError
from tests.support.manifests import CONTENTS, small_manifest, write_small_bundle

FILES = sorted(CONTENTS)


@pytest.fixture
def root(tmp_path):
    return write_small_bundle(tmp_path / "bundle")


def test_a_whole_bundle_opens(root):
    bundle = open_bundle(root)
    assert bundle.manifest == small_manifest()
    for path, (_, content) in CONTENTS.items():
        assert bundle.path(path).read_bytes() == content
        assert sha256_of(bundle.path(path)) == next(e.sha256 for e in bundle.manifest.files if e.path == path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(MissingFileError, match=f"missing.*{name}.*again"):
        open_bundle(root)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_length_is_named(root, name):
    for content in (CONTENTS[name][1][:-1], CONTENTS[name][1] + b"x", b""):
        (root / name).write_bytes(content)
        with pytest.raises(DamagedFileError, match=f"damaged.*{name}.*bytes"):
            open_bundle(root)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), data=st.data())
def test_a_flipped_bit_in_any_file_is_noticed(root, name, data):
    content = bytearray(CONTENTS[name][1])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (root / name).write_bytes(content)
    with pytest.raises(DamagedFileError, match="SHA-256"):
        open_bundle(root)
    (root / name).write_bytes(CONTENTS[name][1])
    open_bundle(root)


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_bundle_is_refused_even_where_the_content_fits(root, tmp_path, name):
    outside = tmp_path / "outside"
    shutil.move(root / name, outside)
    (root / name).symlink_to(outside)
    with pytest.raises(UnsafePathError, match="leads outside"):
        open_bundle(root)


def test_a_linked_directory_out_of_the_bundle_is_refused(root, tmp_path):
    shutil.move(root / "onnx", tmp_path / "elsewhere")
    (root / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match="leads outside"):
        open_bundle(root)


def test_a_link_inside_the_bundle_and_a_link_to_the_bundle_are_fine(root, tmp_path):
    shutil.move(root / "golden.json", root / "onnx" / "moved.json")
    (root / "golden.json").symlink_to("onnx/moved.json")
    (tmp_path / "link").symlink_to(root)
    open_bundle(tmp_path / "link")


def test_a_directory_or_a_pipe_in_place_of_a_file_is_an_error(root):
    (root / "golden.json").unlink()
    (root / "golden.json").mkdir()
    with pytest.raises(BundleError, match=r"golden\.json"):
        open_bundle(root)
    (root / "golden.json").rmdir()
    os.mkfifo(root / "golden.json")
    with pytest.raises(BundleError, match=r"golden\.json"):
        open_bundle(root)


def test_no_bundle_and_no_manifest_say_what_to_do(tmp_path, root):
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BundleError, match="cogenesis export"):
            open_bundle(place)
    (root / MANIFEST_NAME).unlink()
    (root / MANIFEST_NAME).mkdir()
    with pytest.raises(ManifestError, match="can't be read"):
        open_bundle(root)


def test_a_file_in_place_of_the_bundle_is_an_error(root):
    with pytest.raises(BundleError):
        open_bundle(root / "tokenizer.json")


def test_without_verification_the_manifest_is_still_checked(root):
    (root / "onnx/model.data").unlink()
    assert open_bundle(root, verify=False).manifest == small_manifest()
    (root / MANIFEST_NAME).write_text("{}")
    with pytest.raises(ManifestError):
        open_bundle(root, verify=False)


def test_the_fingerprint_is_that_of_graph_and_weights_alone(root):
    bundle = open_bundle(root)
    manifest = bundle.manifest
    same = replace(manifest, created_by="someone else", files=tuple(reversed(manifest.files)))
    spec = manifest.decoder
    assert replace(bundle, manifest=same).fingerprint(spec) == bundle.fingerprint(spec)
    for entry in manifest.files:
        other = tuple(replace(e, sha256="f" * 64) if e.path == entry.path else e for e in manifest.files)
        changed = replace(bundle, manifest=replace(manifest, files=other))
        changed = changed.fingerprint(spec) != bundle.fingerprint(spec)
        assert changed == (entry.role in ("graph", "weights"))


def test_a_rewritten_manifest_opens(root):
    (root / MANIFEST_NAME).write_text(write_manifest(open_bundle(root).manifest), encoding="utf-8")
    open_bundle(root)
