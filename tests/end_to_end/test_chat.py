"""`cogenesis chat`, as a person uses it."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from edge_runtime.adapters.adapter import Adapter
from edge_runtime.adapters.store import AdapterStore
from edge_runtime.bundle.reader import open_bundle
from export.adapters.writer import encode_adapter
from tests.support.commands import ROOT, run_cogenesis


def chat(bundle, lines, *arguments):
    command = [sys.executable, "-m", "cogenesis", "chat", str(bundle), "--max-new-tokens", "12"]
    command += ["--context-length", "1024", *arguments]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_writes_and_shows_that_nothing_left(bundle_keep):
    output = chat(bundle_keep, ["Write a toast.", "/left", "/context", "/quit"], "--context", "examples/user/user.json")
    assert re.search(r"edge: \d+ tokens", output)
    assert "Nothing left the device." in output
    assert "12 past texts" in output


def test_it_shows_what_left_and_changes_modes(bundle_keep, cloud_address):
    lines = ["Write a toast for Oskar.", "/left", "/mode edge", "/mode nonsense", "/nonsense", "/quit"]
    output = chat(bundle_keep, lines, "--cloud", cloud_address)
    assert re.search(r"fused: \d+ tokens, .* round trips", output)
    assert '"instruction": "Write a toast for Oskar."' in output
    assert "Mode edge." in output
    assert "There is no mode 'nonsense'" in output
    assert "/left" in output


def test_a_mode_that_needs_a_cloud_is_explained(bundle_keep):
    assert "--cloud HOST:PORT" in chat(bundle_keep, ["/mode fused", "/quit"])


@pytest.fixture(scope="module")
def personal_bundle(bundle_keep, tmp_path_factory):
    """The bundle, with links to its files, and an adapter that changes anna's text."""
    bundle = tmp_path_factory.mktemp("personal") / "bundle"
    shutil.copytree(bundle_keep, bundle, copy_function=os.link)
    opened = open_bundle(bundle)
    spec = opened.manifest.decoder
    random = np.random.default_rng(0)
    matrices = {
        (layer, "v_proj"): (random.normal(0, 0.05, (576, 4)), random.normal(0, 0.05, (4, 192)))
        for layer in range(spec.layers)
    }
    adapters = AdapterStore(bundle / "adapters", opened.base)
    adapters.install(encode_adapter(Adapter(opened.base, "", matrices, "anna", "anna")))
    return bundle


def test_users_swap_at_any_turn(personal_bundle):
    lines = ["Write a toast.", "/user anna", "Write a toast.", "/user nobody", "/user", "Write a toast.", "/quit"]
    output = chat(personal_bundle, lines, "--temperature", "0")
    assert "With the adapter of anna." in output
    assert "User 'nobody' has no adapter here" in " ".join(output.split())
    assert "Without an adapter." in output
    bare, annas, again = re.findall(r"> ([^>]*?)edge: \d+ tokens", output.replace("With the adapter of anna.", ""))[:3]
    assert annas.strip() != bare.strip()
    assert again.split("adapter.")[-1].strip() == bare.strip()


def test_a_chat_can_begin_with_a_users_adapter(personal_bundle):
    chosen = chat(personal_bundle, ["Write a toast.", "/quit"], "--temperature", "0", "--as", "anna")
    later = chat(personal_bundle, ["/user anna", "Write a toast.", "/quit"], "--temperature", "0")
    assert re.search(r"([^>]*)edge: \d+ tokens", chosen)[1] == re.search(r"([^>]*)edge: \d+ tokens", later)[1]


def test_an_adapter_is_chosen_by_user_or_by_file_and_not_by_both(personal_bundle):
    request = ("--request", "examples/requests/mentor.json", "--max-new-tokens", "2")
    done = run_cogenesis("generate", "--bundle", personal_bundle, *request, "--user", "anna", "--adapter", "file")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "not both" in done.stderr
