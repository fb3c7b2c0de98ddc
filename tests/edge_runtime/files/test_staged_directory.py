"""Directories appear complete or not at all, whatever occupies the target."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edge_runtime.adapters.store import AdapterStore
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.errors import WriteError
from edge_runtime.files.staged_directory import staged_directory
from export.bundle.writer import is_bundle
from export.onnx.export import export_onnx
from tests.support.commands import run_cogenesis
from tests.support.tiny_adapters import adapter_file
from tests.support.tiny_models import make_model


def stage(target: Path, *, replace: bool = False, fail: Exception | None = None) -> None:
    with staged_directory(target, replaceable=lambda path: (path / "mine").exists(), replace=replace) as root:
        (root / "mine").write_text("new")
        (root / "part").mkdir()
        (root / "part" / "file").write_text("x")
        if fail is not None:
            raise fail


def contents(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def test_a_result_appears_with_its_parents(tmp_path):
    stage(tmp_path / "a" / "b" / "out")
    assert contents(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/mine", "a/b/out/part", "a/b/out/part/file"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a" / "b" / "out").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_remains_of_a_failure(tmp_path, failure):
    with pytest.raises(WriteError if isinstance(failure, OSError) else type(failure)):
        stage(tmp_path / "out", fail=failure)
    assert contents(tmp_path) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("old")
    with pytest.raises(RuntimeError):
        stage(tmp_path / "out", replace=True, fail=RuntimeError("no"))
    assert contents(tmp_path) == ["out", "out/mine"]
    assert (tmp_path / "out" / "mine").read_text() == "old"


def test_what_is_ours_is_replaced_only_if_told_so(tmp_path):
    stage(tmp_path / "out")
    (tmp_path / "out" / "left over").write_text("x")
    with pytest.raises(WriteError, match="Set `force`"):
        stage(tmp_path / "out")
    stage(tmp_path / "out", replace=True)
    assert contents(tmp_path) == ["out", "out/mine", "out/part", "out/part/file"]


def test_anything_else_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for name in ("photos", "file", "link"):
        with pytest.raises(WriteError, match="not replaced"):
            stage(tmp_path / name, replace=True)
    assert contents(tmp_path) == ["file", "link", "photos", "photos/cat.jpg"]


def test_an_empty_directory_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    stage(tmp_path / "out")
    assert contents(tmp_path) == ["out", "out/mine", "out/part", "out/part/file"]


def test_a_place_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="can't be written"):
        stage(tmp_path / "file" / "out")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("staging") / "model", model_type="llama")


@pytest.mark.parametrize("limit", [10_000, 60_000, 400_000])
def test_a_file_system_that_is_full_leaves_nothing(model, tmp_path, limit):
    """The kernel itself refuses to let files grow, as it does on a full disk, at several stages of an export."""
    arguments = ("--model", model, "--out", tmp_path / "bundle", "--quantize", "fp32")
    done = run_cogenesis("export", "onnx", *arguments, file_limit=limit)
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: The disk is full")
    assert contents(tmp_path) == []


def test_a_small_disk_that_fills_up_leaves_nothing(model, tmp_path):
    """A real file system of 256 KiB, if the process may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        with pytest.raises(WriteError, match="disk is full"):
            export_onnx(model, disk / "bundle", "fp32")
        assert contents(disk) == []
        usage = os.statvfs(disk)
        assert usage.f_bfree == usage.f_blocks
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_bundle_is_replaced_whole(model, tmp_path):
    export_onnx(model, tmp_path / "bundle", "fp32")
    (tmp_path / "bundle" / "onnx" / "left over").write_text("x")
    assert is_bundle(tmp_path / "bundle")
    with pytest.raises(WriteError, match="Set `force`"):
        export_onnx(model, tmp_path / "bundle", "int8")
    export_onnx(model, tmp_path / "bundle", "int8", force=True)
    names = ["golden.json", "manifest.json", "onnx", "onnx/model.onnx", "onnx/model.onnx.data", "tokenizer.json"]
    assert contents(tmp_path) == ["bundle", *(f"bundle/{name}" for name in names)]


def test_a_bundle_that_is_replaced_keeps_the_adapters_of_its_model(model, tmp_path):
    export_onnx(model, tmp_path / "bundle", "fp32")
    opened = open_bundle(tmp_path / "bundle")
    store = AdapterStore(opened.root / "adapters", opened.base)
    path = store.install(adapter_file(opened.base, "anna"))
    content = path.read_bytes()
    export_onnx(model, tmp_path / "bundle", "int8", force=True)
    assert open_bundle(tmp_path / "bundle").base == opened.base
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_bundle_with_adapters_is_not_replaced_by_one_of_another_model(model, tmp_path):
    export_onnx(model, tmp_path / "bundle", "fp32")
    opened = open_bundle(tmp_path / "bundle")
    store = AdapterStore(opened.root / "adapters", opened.base)
    store.install(adapter_file(opened.base, "anna"))
    before = contents(tmp_path)
    other = make_model(tmp_path / "other", model_type="llama", rope_theta=5e3)
    with pytest.raises(WriteError, match=r"1 adapters.*Move them away"):
        export_onnx(other, tmp_path / "bundle", "fp32", force=True)
    assert [path for path in contents(tmp_path) if not path.startswith("other")] == before
    assert open_bundle(tmp_path / "bundle").base == opened.base
    store.remove("anna")
    export_onnx(other, tmp_path / "bundle", "fp32", force=True)
