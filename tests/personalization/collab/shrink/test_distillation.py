"""`collab shrink`: useless layers go without loss, training recovers the rest, interruptions change nothing."""

from __future__ import annotations

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from cogenesis.collab import app
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import CogenesisError, WriteError
from export.onnx.export import export_onnx
from export.progress import silent
from personalization.collab.records.records import CollabRecord, write_collab_file
from personalization.collab.shrink.distillation import Healing, Size, divergence, read_note, shrink_model
from personalization.collab.shrink.healing_text import read_windows
from personalization.errors import DataError, ModelError, SettingsError
from personalization.models.base_model import Base
from personalization.models.precision import Precision
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings
from tests.support.personal_data import text, torch_model
from tests.support.tiny_models import make_model

WINDOW = 24
SETTINGS = TuningSettings(epochs=1, batch=4, rate=1e-3, warmup=0.1, threads=1, save_every=2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(text("healing", 280), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model of four layers; the second and third change their inputs little."""
    directory = tmp_path_factory.mktemp("deep") / "model"
    make_model(directory, model_type="llama", num_hidden_layers=4, tie_word_embeddings=True)
    weaken(directory, 0.3)
    return directory


def weaken(directory, factor):
    model = torch_model(directory)
    with torch.no_grad():
        for layer in model.model.layers[1:3]:
            layer.self_attn.o_proj.weight.mul_(factor)
            layer.mlp.down_proj.weight.mul_(factor)
    model.save_pretrained(directory)


def shrink(model, out, texts, *, layers=2, settings=SETTINGS, progress=silent, states=1.0):
    return shrink_model(
        model,
        out,
        lambda base: read_windows(texts, base.writer, WINDOW, 10_000),
        Size(layers=layers),
        Healing(states, Precision.FLOAT32, settings),
        Team(cpu=True),
        force=False,
        progress=progress,
    )


@pytest.fixture(scope="module")
def shrunk(deep, texts, tmp_path_factory):
    """A sibling of two layers, which tests must not change."""
    return shrink(deep, tmp_path_factory.mktemp("shrunk") / "out", texts)


def test_layers_that_do_nothing_go_and_the_model_says_the_same(texts, tmp_path):
    make_model(tmp_path / "idle", model_type="llama", num_hidden_layers=4, tie_word_embeddings=True)
    weaken(tmp_path / "idle", 0)
    made = shrink(tmp_path / "idle", tmp_path / "out", texts, settings=TuningSettings(epochs=1, rate=1e-9, threads=1))
    assert read_note(tmp_path / "out").kept == (0, 3)
    assert made.report.losses[0] == pytest.approx(0, abs=1e-4)
    ids = torch.arange(2, 40)[None]
    before, after = (torch_model(tmp_path / name)(ids).logits.detach() for name in ("idle", "out"))
    torch.testing.assert_close(after, before, atol=2e-3, rtol=0)


def test_healing_brings_the_sibling_nearer_to_the_whole_model(shrunk, deep):
    report, note = shrunk.report, read_note(shrunk.path)
    assert max(report.gains) == report.gains[1] > report.gains[0]
    whole, own = torch_model(deep), torch_model(shrunk.path)
    assert note.share == pytest.approx(own.num_parameters() / whole.num_parameters())
    assert own.config.num_hidden_layers == len(note.kept) == 2
    # Both models keep the same vocabulary.
    torch.testing.assert_close(own.get_input_embeddings().weight, whole.get_input_embeddings().weight, atol=0, rtol=0)


def test_what_judges_is_each_20th_window(shrunk, deep, texts):
    base = Base(deep, threads=1)
    windows = torch.from_numpy(read_windows(texts, base.writer, WINDOW, 10_000))[19::20]
    assert len(windows) > 1
    for directory, expected in ((deep, read_note(shrunk.path).whole_loss), (shrunk.path, -max(shrunk.report.gains))):
        with torch.no_grad():
            loss = torch_model(directory)(windows, labels=windows).loss
        assert float(loss) == pytest.approx(expected, abs=1e-4)


def test_the_loss_is_the_divergence_of_torch():
    torch.manual_seed(0)
    own, whole = (torch.randn(1, 5, 30) * 3 for _ in range(2))
    distributions = [torch.distributions.Categorical(logits=logits) for logits in (whole, own)]
    expected = torch.distributions.kl_divergence(*distributions).mean()
    torch.testing.assert_close(divergence(own, whole), expected)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("phase", ["Fitting the layers that stay", "Training"])
def test_an_interrupted_shrinking_goes_on_to_the_same_bytes(phase, deep, texts, shrunk, tmp_path):
    def interrupt(what, done, _total):
        if what == phase and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(deep, tmp_path / "out", texts, progress=interrupt)
    assert not (tmp_path / "out").exists()
    seen = []
    shrink(deep, tmp_path / "out", texts, progress=lambda what, done, _total: seen.append((what, done)))
    # Once the training has been saved, choosing and fitting are not repeated.
    assert seen[0] == (("Training", 2) if phase == "Training" else ("Measuring the layers", 0))
    assert files(tmp_path / "out") == files(shrunk.path)
    assert shrink(deep, tmp_path / "out", texts).kept


def test_the_result_exports(shrunk, tmp_path):
    export_onnx(shrunk.path, tmp_path / "bundle", "fp32")


def test_records_are_healed_on_as_chats(deep, tmp_path):
    record = CollabRecord(
        "1", "ann", PublicInstruction("Write a letter"), "Write a letter: on boats", None, "Dear wind, we sail"
    )
    write_collab_file(tmp_path / "records.jsonl", [record])
    writer = Base(deep, threads=1).writer
    windows = read_windows(tmp_path / "records.jsonl", writer, 12, 1000)
    start = windows[0, 0]
    assert (windows[:, 0] == start).all()
    assert writer.tokenizer.decode(windows[:, 1:].flatten().tolist(), skip_special_tokens=False).startswith(
        "<|im_start|>user\nWrite a letter: on boats<|im_end|>\n<|im_start|>assistant\nDear"
    )


def run(*arguments):
    result = CliRunner().invoke(app, ["shrink", *map(str, arguments), "--threads", "1", "--json"])
    if isinstance(result.exception, CogenesisError):
        return None, result.exception
    assert result.exception is None, result.exception
    return json.loads(result.stdout), None


def test_the_command_tells_losses_and_draws_them(deep, texts, tmp_path):
    command = ("-m", deep, "--texts", texts, "-o", tmp_path / "out", "--share", 0.9, "--window-tokens", WINDOW)
    answer, error = run(*command)
    assert error is None
    assert set(answer["layers"]) < {0, 1, 2, 3}
    assert answer["share"] <= 0.9
    assert answer["held_out"].keys() == {"whole", "fitted", "healed"}
    drawn = (tmp_path / "out" / "curves.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    assert run(*command)[0] == {**answer, "kept": True}
    assert (tmp_path / "out" / "curves.svg").read_bytes() == drawn
    assert isinstance(run(*command[:-4], "--layers", 1, "--window-tokens", WINDOW)[1], WriteError)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (
            ("-m", "{deep}", "--texts", "{texts}", "--layers", 4),
            SettingsError,
            "--layers must be in 1 .. 3",
        ),
        (("-m", "{deep}", "--texts", "{texts}", "--share", 0.01), SettingsError, "--share must be in"),
        (("-m", "{deep}", "--texts", "{texts}", "--share", 0.9, "--layers", 2), SettingsError, "Give one of them"),
        (("-m", "{deep}", "--texts", "{texts}", "--window-tokens", 400), DataError, "too little text: .* windows"),
        (("-m", "{deep}", "--texts", "nowhere.txt"), DataError, "nowhere.txt"),
        (("-m", "{t5}", "--texts", "{texts}"), ModelError, "not of the Llama family"),
    ],
)
def test_what_can_not_be_done_says_why(deep, t5, texts, tmp_path, arguments, kind, words):
    places = {"deep": deep, "t5": t5, "texts": texts}
    _, error = run(*(str(argument).format(**places) for argument in arguments), "-o", tmp_path / "out")
    assert isinstance(error, kind)
    assert re.search(words, str(error)), error
    assert not (tmp_path / "out").exists()
