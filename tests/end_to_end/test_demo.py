"""`cogenesis demo`, whole: four modes, the table, the ledger, the private words."""

import json

from conftest import run_cogenesis


def test_the_demo_writes_in_four_modes_and_says_what_left(tmp_path):
    for run in range(2):
        done = run_cogenesis("demo", "--dir", tmp_path / "demo", "--max-new-tokens", 24, timeout=600)
        assert done.returncode == 0, done.stderr
        shown = " ".join(done.stdout.split())
        for words in ("edge:", "cloud:", "sketch:", "fused:", "What each mode cost", "round trips", "ledger.jsonl"):
            assert words in shown
        assert "private word" in shown
        assert ("Exporting" in done.stdout) == (run == 0)
    entries = [json.loads(line) for line in (tmp_path / "demo" / "ledger.jsonl").read_text().splitlines()]
    up = [entry["kind"] for entry in entries if entry["direction"] == "up"]
    assert up[:3] == ["answer", "sketch", "open"]
    assert set(up[3:]) == {"verify"}
