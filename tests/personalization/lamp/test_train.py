"""`lamp train`: its steps equal plain torch on transformers' own loss, and interruptions change nothing."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from cogenesis.lamp import app
from edge_runtime.errors import CogenesisError, WriteError
from export.onnx.export import export_onnx
from export.progress import silent
from personalization.answering.token_counter import TokenizerCounter
from personalization.errors import DataError, SettingsError
from personalization.lamp.prompt import fit_prompt
from personalization.lamp.questions import QuestionFile
from personalization.lamp.shown_items import with_first_items
from personalization.lamp.tasks import LAMP_TASKS
from personalization.lamp.train import Lengths, Lesson, train_model
from personalization.models.base_model import Base
from personalization.training.batches import steps_of_epoch
from personalization.training.data_parallel import Team
from personalization.training.rate_schedule import RateSchedule
from personalization.training.settings import TuningSettings
from tests.support.lamp_data import merged, merged_file, questions
from tests.support.personal_data import torch_model, write_json

TASK = LAMP_TASKS["LaMP-5"]
LENGTHS = Lengths(prompt=96, answer=12)
SETTINGS = TuningSettings(
    epochs=2, batch=3, rate=3e-3, schedule=RateSchedule.CONSTANT, warmup=0, weight_decay=0.1, threads=1, save_every=1
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return merged_file(tmp_path_factory.mktemp("lamp"), "LaMP-5")


def lessons(file, items=2):
    found = QuestionFile(file, TASK)
    asked = with_first_items(found, None, items, own_adapter=False)
    return [Lesson(one, question.output) for one, question in zip(asked, found, strict=True)]


def train(model, out, training, judging=(), settings=SETTINGS, progress=silent, **options):
    team = Team(cpu=True)
    arguments = (model, out, TASK, training, judging, LENGTHS, settings, team)
    return train_model(*arguments, force=options.get("force", False), progress=progress)


def by_torch(directory, base, training, settings):
    """The same training written plainly: whole batches at once, and transformers' own loss."""
    model = torch_model(directory)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    tokens = TokenizerCounter(base.writer.tokenizer)
    for epoch in range(settings.epochs):
        order = random.Random(f"{settings.seed}\0{epoch}")
        for step in steps_of_epoch(len(training), settings.batch, order):
            losses = []
            for index in step:
                lesson = training[index]
                room = LENGTHS.prompt - base.writer.added_tokens
                text = fit_prompt(TASK.prompt, lesson.asked.question, lesson.asked.items, tokens, room)
                prompt = list(base.writer.prompt(text))
                answer = base.writer.tokenizer.backend.encode(lesson.gold).ids
                if base.seq2seq:
                    inputs = {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([answer[: LENGTHS.answer]])}
                else:
                    answer = [*answer, 1][: LENGTHS.answer]
                    labels = [-100] * len(prompt) + answer
                    inputs = {"input_ids": torch.tensor([prompt + answer]), "labels": torch.tensor([labels])}
                losses.append(model(**inputs).loss)
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
            optimizer.step()
    return model.state_dict()


@pytest.fixture
def still_t5(t5, tmp_path):
    """The tiny T5 without dropout, because an oracle would have to draw the same masks."""
    model = torch_model(t5)
    model.config.dropout_rate = 0.0
    model.save_pretrained(tmp_path / "still")
    AutoTokenizer.from_pretrained(t5).save_pretrained(tmp_path / "still")
    return tmp_path / "still"


@pytest.mark.parametrize("kind", ["llama", "still_t5"])
def test_the_weights_are_those_of_plain_torch(kind, file, request, tmp_path):
    directory, training = request.getfixturevalue(kind), lessons(file)
    train(directory, tmp_path / "out", training)
    found = torch_model(tmp_path / "out").state_dict()
    expected = by_torch(directory, Base(directory, threads=1), training, SETTINGS)
    before = torch_model(directory).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=2e-4)
        assert not torch.equal(tensor, before[name]), name


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_an_interrupted_training_goes_on_to_the_same_bytes(t5, file, tmp_path):
    training, judging = lessons(file), lessons(file, items=0)
    train(t5, tmp_path / "whole", training, judging)

    def interrupt(_what, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(t5, tmp_path / "part", training, judging, progress=interrupt)
    assert not (tmp_path / "part").exists()
    steps = []
    train(t5, tmp_path / "part", training, judging, progress=lambda _what, done, _total: steps.append(done))
    assert steps[0] == 3
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part", "whole"]
    assert train(t5, tmp_path / "part", training, judging).kept


def test_the_epoch_is_kept_after_which_other_questions_are_answered_best(llama, file, tmp_path):
    training, wild = lessons(file)[:2], TuningSettings(epochs=6, batch=1, rate=0.02, threads=1)
    report = train(llama, tmp_path / "out", training, lessons(file)[2:], wild).report
    assert report.gains[report.kept_epoch] == max(report.gains)
    assert 0 < report.kept_epoch < 6  # the last epochs memorize, which does not generalize
    best = train(llama, tmp_path / "best", training, (), TuningSettings(epochs=6, batch=1, rate=0.02, threads=1))
    assert best.report.kept_epoch == 6
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(tmp_path / "best" / "model.safetensors").keys()
    )


def test_the_result_is_a_model_like_the_one_it_began_with(llama, file, tmp_path):
    train(llama, tmp_path / "out", lessons(file))
    for directory in (llama, tmp_path / "out"):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).startswith(
            "<|im_start"
        )
    assert Base(llama, threads=1).writer.prompt("x") == Base(tmp_path / "out", threads=1).writer.prompt("x")
    export_onnx(tmp_path / "out", tmp_path / "bundle", "fp32")


def run(*arguments):
    result = CliRunner().invoke(app, ["train", "--task", "LaMP-5", *map(str, arguments), "--json"])
    if isinstance(result.exception, CogenesisError):
        return None, result.exception
    assert result.exception is None, result.exception
    return json.loads(result.stdout), None


def test_the_command_trains_on_files_and_tells_its_losses(t5, file, tmp_path):
    command = ("-q", file, "--dev-questions", file, "-m", t5, "-o", tmp_path / "out", "-k", 1, "--epochs", 2)
    answer, error = run(*command, "--rate", "0.01", "--threads", 1)
    assert error is None
    assert (answer["questions"], answer["dev_questions"], answer["steps"], answer["kept"]) == (4, 4, 2, False)
    assert len(answer["dev_losses"]) == 3
    assert answer["dev_losses"][answer["kept_epoch"]] < answer["dev_losses"][0]
    assert run(*command, "--rate", "0.01", "--threads", 1)[0]["kept"]
    _, error = run(*command, "--rate", "0.02", "--threads", 1)
    assert isinstance(error, WriteError)
    assert "--force" in str(error)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("-q", "{plain}", "-m", "{llama}"), DataError, "4 questions have no gold output"),
        (("-q", "{none}", "-m", "{llama}"), DataError, "nothing to learn"),
        (("-q", "{long}", "-m", "{llama}", "--max-prompt-tokens", 2000), SettingsError, "context has 1,024"),
        (("-q", "{file}", "-m", "{llama}", "--weight-decay", -1), SettingsError, "--weight-decay must be"),
        (("-q", "{file}", "-m", "nowhere"), CogenesisError, "nowhere"),
    ],
)
def test_what_can_not_be_done_says_why(llama, tmp_path, arguments, kind, words):
    places = {
        "plain": write_json(tmp_path / "plain.json", questions("LaMP-5")),
        "none": write_json(tmp_path / "none.json", []),
        "file": merged_file(tmp_path, "LaMP-5", items=1),
        "long": write_json(tmp_path / "long.json", [body | {"input": "boat " * 900} for body in merged("LaMP-5")]),
        "llama": llama,
    }
    arguments = [str(argument).format(**places) for argument in arguments]
    _, error = run(*arguments, "-k", 1, "-o", tmp_path / "out")
    assert isinstance(error, kind)
    assert re.search(words, str(error)), error
    assert not (tmp_path / "out").exists()
