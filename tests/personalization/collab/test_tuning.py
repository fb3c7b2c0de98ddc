"""`collab tune`: examples of a row don't see each other, the loss is the answers', interruptions leave no trace."""

from __future__ import annotations

import json
import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cogenesis.collab import app
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import CogenesisError, WriteError
from export.adapters.export import export_adapter
from export.onnx.export import export_onnx
from export.progress import silent
from personalization.adapters.settings import AdapterSettings
from personalization.collab.records.records import CollabRecord, write_collab_file
from personalization.collab.records.shown import Shown
from personalization.collab.tuning import TuningPlan, tune_model
from personalization.errors import DataError, SettingsError
from personalization.models.base_model import Base
from personalization.models.examples import Example
from personalization.models.precision import Precision
from personalization.training.batches import packs_of, steps_of_epoch
from personalization.training.data_parallel import Team
from personalization.training.rate_schedule import RateSchedule
from personalization.training.settings import TuningSettings
from personalization.users.data import Pair
from tests.support.personal_data import peft_model, text, torch_model
from tests.support.tiny_models import FAMILIES, make_model

SETTINGS = TuningSettings(
    epochs=2, batch=2, rate=3e-3, schedule=RateSchedule.CONSTANT, warmup=0, threads=1, save_every=1
)
LORA = AdapterSettings(rank=4, alpha=8, targets="all")
LENGTH = 500


def record(name, *, context=True, sketch=None):
    history = tuple(HistoryItem(f"Task {i}", text((name, i), 6)) for i in range(2))
    return CollabRecord(
        id=f"{name}_0",
        user=name,
        instruction=PublicInstruction(f"Write {text((name, 'q'), 3)}"),
        task=f"Write {text((name, 'q'), 3)}: for my cat",
        context=PrivateContext(f"Name: {name}", history) if context else None,
        reference=text((name, "a"), 10),
        sketch=sketch,
    )


TRAINING = [record(name, sketch=f"1. {name} sails") for name in ("ann", "ben", "eve", "kim", "zoe")]
JUDGING = [record(name, sketch=f"1. {name} reads") for name in ("lou", "mia")]


def plan(**changes):
    fields = {
        "shown": Shown.WITH,
        "max_length": LENGTH,
        "pack_tokens": 2 * LENGTH,
        "lora": None,
        "checkpointing": False,
        "precision": Precision.FLOAT32,
        "settings": SETTINGS,
    }
    return TuningPlan(**{**fields, **changes})


def tune(model, out, training=TRAINING, judging=(), progress=silent, **changes):
    return tune_model(model, out, training, judging, plan(**changes), Team(cpu=True), force=False, progress=progress)


def pair_of(one):
    return Pair(one.instruction.text, one.reference)


def examples_of(base, records=TRAINING):
    return [base.writer.write(pair_of(one), one.device_context, LENGTH) for one in records]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_examples_in_one_row_are_as_likely_as_each_alone(family, tmp_path):
    base = Base(make_model(tmp_path / family, **FAMILIES[family]), threads=1)
    assert base.packs
    examples = examples_of(base)[:3]
    with torch.no_grad():
        packed = base.packed_losses(examples)
        alone = torch.cat([base.losses([example]).flatten() for example in examples])
        torch.testing.assert_close(packed, alone, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(
            base.packed_losses(examples[:1]), alone[: len(examples[0].answer)], atol=2e-4, rtol=0
        )


def test_encoder_decoder_models_take_one_example_at_a_time(t5_base):
    example = t5_base.writer.write(pair_of(TRAINING[0]), None, LENGTH)
    assert not t5_base.packs
    torch.testing.assert_close(t5_base.packed_losses([example]), t5_base.losses([example])[0])


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 40))
def test_packs_hold_every_example_once_and_no_more_than_fits(lengths, most):
    examples = [Example((index,), (1,) * (length - 1), 0) for index, length in enumerate(lengths)]
    packs = packs_of(examples, most)
    assert sorted(example.prompt for pack in packs for example in pack) == [example.prompt for example in examples]
    sums = [sum(example.length for example in pack) for pack in packs]
    assert all(total <= most or len(pack) == 1 for total, pack in zip(sums, packs, strict=True))
    # First fit: the smallest example of a pack had no room in any pack before.
    for index, pack in enumerate(packs):
        assert all(min(example.length for example in pack) + before > most for before in sums[:index])


def by_torch(directory, settings):
    """The same training as anybody would write it: an example a pass, transformers' labels, and the packs' shares."""
    base, model = Base(directory, threads=1), torch_model(directory)
    packs = packs_of(examples_of(base), 2 * LENGTH)
    tokens = sum(len(example.answer) for pack in packs for example in pack) / len(packs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    for epoch in range(settings.epochs):
        for step in steps_of_epoch(len(packs), settings.batch, random.Random(f"{settings.seed}\0{epoch}")):
            optimizer.zero_grad()
            for example in (example for index in step for example in packs[index]):
                ids = torch.tensor([[*example.prompt, *example.answer]])
                labels = torch.tensor([[-100] * len(example.prompt) + [*example.answer]])
                loss = model(input_ids=ids, labels=labels).loss * len(example.answer)
                (loss / tokens / len(step)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
    return model.state_dict()


def test_the_weights_are_those_of_plain_torch(llama, tmp_path):
    tuned = tune(llama, tmp_path / "out")
    assert tuned.packs < tuned.examples == len(TRAINING)
    found, before = torch_model(tmp_path / "out").state_dict(), torch_model(llama).state_dict()
    for name, expected in by_torch(llama, SETTINGS).items():
        torch.testing.assert_close(found[name], expected, atol=1e-4, rtol=1e-3)
        assert not torch.equal(expected, before[name]), name


def test_the_losses_are_nats_a_token_of_the_answers(llama, tmp_path):
    settings = TuningSettings(epochs=1, rate=1e-9, threads=1)
    report = tune(llama, tmp_path / "out", judging=JUDGING, settings=settings).trained.report
    base = Base(llama, threads=1)
    for records, told in ((TRAINING, report.losses[0]), (JUDGING, -report.gains[0])):
        examples = examples_of(base, records)
        with torch.no_grad():
            nats = sum(float(base.losses([example]).sum()) for example in examples)
        assert told == pytest.approx(nats / sum(len(example.answer) for example in examples), rel=1e-4)


@pytest.mark.parametrize(
    ("shown", "inside", "outside"),
    [
        (Shown.WITHOUT, (), ("Name: ann", "for my cat", "ann sails")),
        (Shown.WITH, ("Name: ann", "for my cat", "Task 1"), ("ann sails",)),
        (Shown.SKETCH, ("Name: ann", "for my cat", "Task 1", "1. ann sails"), ()),
    ],
)
def test_prompts_hold_what_is_asked_for(llama, tmp_path, monkeypatch, shown, inside, outside):
    seen = []
    plain = Base.packed_losses

    def watched(base, examples):
        seen.extend(base.writer.tokenizer.decode(example.prompt) for example in examples)
        return plain(base, examples)

    monkeypatch.setattr(Base, "packed_losses", watched)
    tune(llama, tmp_path / "out", TRAINING[:1], shown=shown, settings=TuningSettings(epochs=1, threads=1))
    assert TRAINING[0].instruction.text in seen[0]
    assert all(words in seen[0] for words in inside)
    assert not any(words in seen[0] for words in outside)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_interrupted_tuning_goes_on_to_the_same_bytes(lora, llama, tmp_path):
    tune(llama, tmp_path / "whole", judging=JUDGING, lora=lora)

    def interrupt(_what, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(llama, tmp_path / "part", judging=JUDGING, lora=lora, progress=interrupt)
    assert not (tmp_path / "part").exists()
    if lora:  # what is saved of a run is the adapter, not the model
        assert (tmp_path / ".part.training").stat().st_size < (llama / "model.safetensors").stat().st_size
    steps = []
    tune(llama, tmp_path / "part", judging=JUDGING, lora=lora, progress=lambda _what, done, _total: steps.append(done))
    assert steps[0] == 3
    assert files(tmp_path / "part") == files(tmp_path / "whole")
    assert tune(llama, tmp_path / "part", judging=JUDGING, lora=lora).trained.kept


@pytest.mark.parametrize("lora", [None, LORA])
def test_checkpointing_changes_no_bit(lora, llama, tmp_path):
    for name, on in (("plain", False), ("spare", True)):
        tune(llama, tmp_path / name, TRAINING[:2], lora=lora, checkpointing=on)
    assert files(tmp_path / "spare") == files(tmp_path / "plain")


def test_bfloat16_learns_nearly_the_same(llama, tmp_path):
    exact, half = (
        tune(llama, tmp_path / precision, TRAINING[:2], precision=precision).trained.report for precision in Precision
    )
    assert half.losses == pytest.approx(exact.losses, rel=0.02)
    assert half.losses != exact.losses


def test_an_adapter_is_what_peft_loads_and_goes_into_a_bundle(llama, tmp_path):
    report = tune(llama, tmp_path / "out", judging=JUDGING, lora=LORA).trained.report
    assert report.gains[report.kept_epoch] > report.gains[0]
    model, examples = peft_model(llama, tmp_path / "out"), examples_of(Base(llama, threads=1), JUDGING)
    nats = 0.0
    for example in examples:
        labels = torch.tensor([[-100] * len(example.prompt) + [*example.answer]])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([[*example.prompt, *example.answer]]), labels=labels).loss
        nats += float(loss) * len(example.answer)
    expected = -report.gains[report.kept_epoch] * sum(len(example.answer) for example in examples)
    assert nats == pytest.approx(expected, rel=1e-4)
    export_onnx(llama, tmp_path / "bundle", "fp32")
    export_adapter(tmp_path / "out", tmp_path / "bundle", "all", "fp32", base=str(llama), learned=None, force=False)


@pytest.fixture(scope="module")
def record_files(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write_collab_file(root / "train.jsonl", [*TRAINING, record("bare", context=False)])
    write_collab_file(root / "dev.jsonl", JUDGING)
    write_collab_file(root / "bare.jsonl", [record("bare", context=False)])
    return root


def run(*arguments):
    result = CliRunner().invoke(app, ["tune", *map(str, arguments), "--threads", "1", "--json"])
    if isinstance(result.exception, CogenesisError):
        return None, result.exception
    assert result.exception is None, result.exception
    return json.loads(result.stdout), None


def test_the_command_tells_losses_and_draws_them(llama, record_files, tmp_path):
    command = [record_files / "train.jsonl", "--dev", record_files / "dev.jsonl", "-m", llama, "-o", tmp_path / "out"]
    command += ["--epochs", 1, "--max-length", LENGTH]
    answer, error = run(*command)
    assert error is None
    assert (answer["records"], answer["dev_records"], answer["kept"]) == (5, 2, False)
    assert answer["left_out"] == [{"where": "record 'bare_0'", "reason": "has no context"}]
    assert len(answer["dev_losses"]) == 2
    drawn = (tmp_path / "out" / "curves.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    (tmp_path / "out" / "curves.svg").unlink()  # a run that was killed before it drew them
    assert run(*command)[0] == {**answer, "kept": True}
    assert (tmp_path / "out" / "curves.svg").read_bytes() == drawn
    _, error = run(*command, "--context", "without")
    assert isinstance(error, WriteError)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("{files}/bare.jsonl",), DataError, "No record can be used, .* 'bare_0' has no context"),
        (("{files}/train.jsonl", "--context", "sketch", "--dev", "{files}/bare.jsonl"), DataError, "has no context"),
        (("{files}/train.jsonl", "--max-length", 80), DataError, "'ann_0' does not fit into 80 tokens"),
        (("{files}/train.jsonl", "--max-length", 5000), SettingsError, "context has 1,024"),
        (("{files}/train.jsonl", "--rate", 0), SettingsError, "rate must be above 0"),
        (("{files}/train.jsonl", "--lora", "--targets", "nose"), SettingsError, "no linear layers for --targets nose"),
        (("{files}/none.jsonl",), DataError, "none.jsonl"),
    ],
)
def test_what_can_not_be_done_says_why(llama, record_files, tmp_path, arguments, kind, words):
    filled = [str(argument).format(files=record_files) for argument in arguments]
    _, error = run("--max-length", LENGTH, *filled, "-m", llama, "-o", tmp_path / "out")
    assert isinstance(error, kind)
    assert re.search(words, str(error)), error
    assert not (tmp_path / "out").exists()
