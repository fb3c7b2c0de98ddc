"""`cogenesis demo`, whole: four modes, the table, the ledger, the private words."""

import json
import shutil

from rich.console import Console

from cogenesis import demo
from tests.support.commands import run_cogenesis


def test_the_demo_writes_in_four_modes_and_says_what_left(bundle_keep, smollm2_hf, tmp_path):
    """As on its second run, when the models are there; the README's test runs the first."""
    shutil.copytree(bundle_keep, tmp_path / "bundle")
    (tmp_path / "cloud-model").symlink_to(smollm2_hf)
    done = run_cogenesis("demo", "--dir", tmp_path, "--max-new-tokens", 24, timeout=600)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for words in ("edge:", "cloud:", "sketch:", "fused:", "What each mode cost", "round trips", "ledger.jsonl"):
        assert words in shown
    assert "private word" in shown
    assert "Exporting" not in shown
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    up = [entry["kind"] for entry in entries if entry["direction"] == "up"]
    assert up[:3] == ["answer", "sketch", "open"]
    assert set(up[3:]) == {"verify"}


def test_a_bundle_of_an_earlier_version_is_exported_again(tmp_path, monkeypatch):
    for path, content in (("bundle/manifest.json", '{"schema": {"major": 1}}'), ("cloud-model/config.json", "{}")):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(content)
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "_run", lambda *arguments: commands.append(arguments))
    demo._prepare(tmp_path, Console(quiet=True))
    assert [command[:2] for command in commands] == [("export", "onnx")]
    assert "--force" in commands[0]
