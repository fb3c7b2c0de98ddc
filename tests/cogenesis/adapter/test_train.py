"""`cogenesis adapter train` and `evaluate` as a user runs them: many users, interruptions, bad data, shards."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cogenesis import adapter as commands
from edge_runtime.adapters.store import directory_name
from edge_runtime.errors import CogenesisError, MissingExtraError, WriteError
from export.model.hf_source import hf_provenance
from personalization.errors import DataError, ModelError, SettingsError, TrainingError
from tests.support.commands import ROOT, run_cogenesis
from tests.support.personal_data import record, write_json
from tests.support.warm_process import WarmProcess

PEOPLE = [record(f"{i}_0_0", user_id=name) for i, name in enumerate(["ann", "Ben Ö.", "eve"])]
WEIGHTS = "adapter_model.safetensors"
QUICK = ("--epochs", 1, "--threads", 1)


def run(*arguments):
    """Run a command in this process; return its output, or the error message."""
    result = CliRunner().invoke(commands.app, list(map(str, arguments)))
    if isinstance(result.exception, CogenesisError):
        return result.stdout, result.exception
    assert result.exception is None, result.exception
    return result.stdout, None


def train(model, records, out, *more):
    output, error = run("train", "-m", model, "--records", records, "-o", out, *QUICK, "--json", *more)
    return json.loads(output) if output else {}, error


@pytest.fixture
def records(tmp_path):
    return write_json(tmp_path / "records.json", PEOPLE)


@pytest.fixture(scope="module")
def trained(llama, tmp_path_factory):
    """Three users' adapters, which tests must not change."""
    root = tmp_path_factory.mktemp("trained")
    answer, error = train(llama, write_json(root / "records.json", PEOPLE), root / "out")
    assert error is None
    return root / "out", answer


def test_every_user_gets_a_directory_that_says_what_it_is(llama, trained):
    out, answer = trained
    assert (answer["trained"], answer["kept"], answer["failed"]) == (3, 0, 0)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*map(directory_name, ("ann", "Ben Ö.", "eve")), "users.json"]
    )
    for row in answer["users"]:
        card = json.loads((out / row["directory"] / "cogenesis.json").read_text())
        assert (card["format"], card["user"], card["task"]) == ("cogenesis-training/1", row["user"], "CoGenesis")
        assert card["base"] == {"sha256": hf_provenance(llama).sha256, "name": "tiny-llama"}
        assert card["examples"] == 4
        assert card["loss"] == row["loss"]
        assert card["settings"]["epochs"] == 1
        config = json.loads((out / row["directory"] / "adapter_config.json").read_text())
        assert (config["peft_type"], config["target_modules"]) == ("LORA", ["q_proj", "v_proj"])
        assert str(llama.parent) not in json.dumps(config)
    assert json.loads((out / "users.json").read_text())["users"] == answer["users"]


def test_the_same_bytes_come_out_of_another_process_shard_and_order(llama, trained, tmp_path):
    out, _ = trained
    shuffled = write_json(tmp_path / "shuffled.json", [PEOPLE[2], PEOPLE[0], record("9_9_9"), PEOPLE[1]])
    done = run_cogenesis(
        *("adapter", "train", "-m", llama, "--records", shuffled, "-o", tmp_path / "out", *QUICK, "--shard", "1/2")
    )
    assert done.returncode == 0, done.stderr
    assert [line[:3] for line in done.stderr.splitlines()] == ["[1/", "[2/"], done.stderr
    answer, error = train(llama, shuffled, tmp_path / "out", "--shard", "2/2")
    assert (answer["trained"], answer["kept"], error) == (2, 0, None)
    assert (tmp_path / "out" / "users.1-of-2.json").exists()
    for path in out.glob("*/*"):
        assert (tmp_path / "out" / path.relative_to(out)).read_bytes() == path.read_bytes(), path.name


def test_who_is_done_is_not_trained_again(llama, trained, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "out")
    (out / "ann" / WEIGHTS).unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    more = write_json(tmp_path / "more.json", [*PEOPLE, record("new_0_0")])
    answer, error = train(llama, more, out)
    assert error is None
    assert [(row["user"], row["status"]) for row in answer["users"]] == [
        ("ann", "trained"),  # her weights were missing
        ("Ben Ö.", "kept"),
        ("eve", "kept"),
        ("new_0", "trained"),
    ]
    assert answer["users"][2]["loss"] == trained[1]["users"][2]["loss"]
    changed = {
        path.parent.name for path, time in before.items() if not path.exists() or path.stat().st_mtime_ns != time
    }
    assert changed == {"ann"}


def test_who_has_written_more_is_trained_again(llama, trained, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "out")
    newer = json.loads(json.dumps(PEOPLE))
    newer[0]["profile"].append({"title": "One more", "text": "A new text."})
    answer, _ = train(llama, write_json(tmp_path / "newer.json", newer), out)
    assert [row["status"] for row in answer["users"]] == ["trained", "kept", "kept"]
    assert answer["users"][0]["examples"] == 5


def test_other_settings_are_refused_until_forced(llama, trained, records, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "out")
    _, error = train(llama, records, out, "--rank", 2)
    assert isinstance(error, SettingsError)
    assert "rank 8, now 2" in str(error)
    assert "--force" in str(error)
    assert (out / "ann" / WEIGHTS).read_bytes() == (trained[0] / "ann" / WEIGHTS).read_bytes()
    answer, error = train(llama, records, out, "--rank", 2, "--only", "ann", "--force")
    assert (answer["trained"], error) == (1, None)
    answer, _ = train(llama, records, out, "--rank", 2, "--force")
    assert [row["status"] for row in answer["users"]] == ["kept", "trained", "trained"]


def test_another_base_is_refused_until_forced(llama, trained, records, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(data)
    out = shutil.copytree(trained[0], tmp_path / "out")
    _, error = train(other, records, out)
    assert "base model tiny-llama, now other" in str(error)
    _, error = train(other, records, out, "--force")
    assert error is None


def test_users_who_fail_are_named_and_leave_the_others_alone(llama, trained, tmp_path):
    nobody, broken, empty = (
        record("n", 0, user_id="nobody"),
        record("b", user_id="broken"),
        record("e", user_id="empty"),
    )
    del broken["profile"][1]["text"]
    for item in empty["profile"]:
        item["text"] = " "
    huge = record("h", 1, user_id="huge", additional_profile="word " * 3000)
    mixed = write_json(tmp_path / "mixed.json", [nobody, PEOPLE[0], broken, empty, huge, PEOPLE[2]])
    out = tmp_path / "out"
    answer, error = train(llama, mixed, out)
    assert isinstance(error, TrainingError)
    assert error.exit_code == 9
    assert "3 of 6 users failed: nobody, broken, empty" in str(error)
    reasons = {row["user"]: row.get("error") for row in answer["users"]}
    assert "no items" in reasons["nobody"]
    assert "profile[1]" in reasons["broken"]
    assert "'text'" in reasons["broken"]
    assert "empty" in reasons["empty"]
    assert json.loads((out / "users.json").read_text())["users"] == answer["users"]
    for name in ("ann", "eve"):
        assert (out / name / WEIGHTS).read_bytes() == (trained[0] / name / WEIGHTS).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["ann", "eve", "huge", "users.json"]
    # With the context in the prompt, the huge profile fails, and no other user does.
    answer, error = train(llama, mixed, tmp_path / "context", "--with-context", "--only", "huge", "--only", "eve")
    assert "huge" in str(error)
    assert [row["status"] for row in answer["users"]] == ["failed", "trained"]


def test_a_loss_that_is_no_number_fails_the_user_and_leaves_no_directory(llama, records, tmp_path):
    answer, error = train(llama, records, tmp_path / "out", "--rate", "1e38", "--clip", 0, "--steps", 30)
    assert "not a finite number" in str(error)
    assert answer["failed"] == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["users.json"]


def test_an_interrupted_run_goes_on_where_it_was(llama, trained, tmp_path):
    out = tmp_path / "out"
    many = write_json(tmp_path / "many.json", [*PEOPLE, *(record(f"p{i}_0_0", 6) for i in range(200))])
    command = ["adapter", "train", "-m", llama, "--records", many, "-o", out, *QUICK]
    process = WarmProcess(*command)
    for line in process.stderr:
        if line.startswith("[4/"):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    process.close()
    done = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("[!.]*/cogenesis.json")}
    assert 4 <= len(done) < 203
    answer, error = train(llama, many, out, "--limit", 10)
    assert error is None
    assert answer["kept"] == len([row for row in answer["users"] if row["directory"] in done])
    assert all((out / name / "cogenesis.json").stat().st_mtime_ns == when for name, when in done.items())
    assert (out / "ann" / WEIGHTS).read_bytes() == (trained[0] / "ann" / WEIGHTS).read_bytes()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_something_else_in_a_users_place_is_not_replaced(llama, records, tmp_path):
    (tmp_path / "out" / "ann").mkdir(parents=True)
    (tmp_path / "out" / "ann" / "letter.txt").write_text("mine")
    answer, error = train(llama, records, tmp_path / "out")
    assert [row["status"] for row in answer["users"]] == ["failed", "trained", "trained"]
    assert "Something else is in this place" in str(error)
    assert (tmp_path / "out" / "ann" / "letter.txt").read_text() == "mine"


def test_a_place_that_can_not_be_written_is_one_error(llama, records, tmp_path):
    (tmp_path / "file").write_text("")
    _, error = train(llama, records, tmp_path / "file" / "out")
    assert isinstance(error, WriteError | TrainingError)
    assert "can't be written" in str(error)


def test_an_encoder_decoder_model_learns_lamps_tasks(t5, tmp_path):
    items = [{"id": str(i), "title": f"Title {i}", "abstract": f"This paper sails the river {i}."} for i in range(3)]
    questions = write_json(tmp_path / "q.json", [{"id": "7", "input": "Title for: x", "profile": items}])
    outputs = write_json(tmp_path / "o.json", {"task": "LaMP_5", "golds": [{"id": "7", "output": "Title 9"}]})
    lamp = ("--task", "lamp-5", "--questions", questions)
    output, error = run("train", "-m", t5, *lamp, "-o", tmp_path / "out", "--epochs", 6, "--rate", 1e-2, "--json")
    assert error is None
    (row,) = json.loads(output)["users"]
    assert row["loss"]["after"] < row["loss"]["before"]
    output, error = run("evaluate", "-m", t5, "-a", tmp_path / "out", *lamp, "--outputs", outputs, "--json")
    assert error is None
    assert json.loads(output)["users"][0]["user"] == "7"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ([], SettingsError, "either --records"),
        (["--records", "{records}", "--questions", "x"], SettingsError, "either --records"),
        (["--records", "{records}", "--task", "LaMP-5"], SettingsError, "belong to --questions"),
        (["--questions", "x"], SettingsError, "needs a --task"),
        (["--questions", "x", "--task", "LaMP-8"], SettingsError, "no task 'LaMP-8'.*LaMP-1.*LaMP-7"),
        (["--records", "nowhere.json"], DataError, "no such file: nowhere.json"),
        (["--records", "{records}", "--only", "zoe"], DataError, "no such users.*zoe"),
        (["--records", "{records}", "--shard", "3/2"], SettingsError, "--shard must be"),
        (["--records", "{records}", "--rank", "0"], SettingsError, "rank must be"),
        (["--records", "{records}", "--address", "h:1"], CogenesisError, "Set --runner to ray"),
    ],
)
def test_what_can_not_be_done_says_why_and_writes_nothing(llama, records, tmp_path, arguments, kind, words):
    arguments = [argument.format(records=records) for argument in arguments]
    _, error = run("train", "-m", llama, "-o", tmp_path / "out", *arguments)
    assert isinstance(error, kind)
    assert re.search(words, str(error)), error
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_no_failed_export(records, tmp_path):
    _, error = train(tmp_path / "nowhere", records, tmp_path / "out")
    assert isinstance(error, ModelError) and "There is no model here" in str(error)
    assert error.exit_code == 9


def test_a_gguf_file_is_sent_to_the_exporter(records, tmp_path, smollm2_gguf):
    _, error = train(smollm2_gguf, records, tmp_path / "out")
    assert "cogenesis export hf" in str(error)


def test_a_missing_extra_is_named_with_its_remedy(monkeypatch, llama, records, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else found(name))
    for arguments in (("train", "-o", tmp_path / "out"), ("evaluate", "-a", tmp_path)):
        _, error = run(*arguments, "-m", llama, "--records", records)
        assert isinstance(error, MissingExtraError)
        assert re.search(r"peft.*pip install 'cogenesis-edge\[train\]'", str(error))


def test_the_commands_load_nothing_heavy_before_they_run():
    names = "sys, cogenesis.adapter, personalization.adapters.worker, personalization.adapters.train_users"
    code = f"import {names}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "transformers", "peft", "ray"} & set(done.stdout.split())


def test_errors_are_one_line_and_help_has_an_example(llama, tmp_path):
    done = run_cogenesis("adapter", "train", "-m", llama, "--records", "nowhere.json", "-o", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (9, 1)
    assert done.stderr.startswith("error: ")
    for command in ("train", "evaluate"):
        assert f"cogenesis adapter {command}" in run_cogenesis("adapter", command, "--help").stdout


def test_the_table_names_users_with_their_losses(llama, trained, records, tmp_path):
    output, error = run("train", "-m", llama, "--records", records, "-o", trained[0], *QUICK)
    assert error is None
    lines = output.splitlines()
    assert lines[0].split()[:2] == ["user", "status"]
    for row, line in zip(trained[1]["users"], lines[1:], strict=True):
        assert line.startswith(row["user"])
        assert f"{row['loss']['after']:.4f}" in line
