"""`cogenesis chat`, as a person uses it."""

import re
import subprocess
import sys

from conftest import ROOT


def chat(bundle, lines, *arguments):
    command = [sys.executable, "-m", "cogenesis", "chat", str(bundle), "--max-new-tokens", "12", *arguments]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_writes_and_shows_that_nothing_left(bundle_keep):
    output = chat(bundle_keep, ["Write a toast.", "/left", "/context", "/quit"], "--user", "examples/user/user.json")
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
