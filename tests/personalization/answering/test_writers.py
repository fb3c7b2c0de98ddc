"""Answers equal those of transformers and PEFT for single prompts, with any writer and in any batch."""

from __future__ import annotations

import shutil

import pytest
import torch

from edge_runtime.adapters.store import directory_name
from edge_runtime.errors import AdapterError, BundleError, ContextOverflowError
from export.adapters.export import export_adapters
from export.model.hf_source import hf_provenance
from export.onnx.export import export_onnx
from personalization.adapters.settings import AdapterSettings
from personalization.adapters.train import train_user
from personalization.adapters.trained_adapter import BaseIdentity, save_adapter
from personalization.answering.open_writer import open_writer
from personalization.answering.writer import WriterSpec, first_line
from personalization.errors import SettingsError, TrainingError
from personalization.models.base_model import Base
from tests.support.personal_data import peft_model, text, torch_model, user
from tests.support.tiny_models import make_tokenizer

PROMPTS = [f"Write {text(index, 3 + 6 * index)}" for index in range(4)]
MOST = 12


def spec(source, **options):
    identity = hf_provenance(source).sha256
    return WriterSpec(source, identity, is_bundle=False, **{"most_tokens": MOST, "threads": 1, **options})


def by_transformers(model, directory, prompt, beams):
    """Generate for a single prompt with transformers."""
    base = Base(directory, threads=1)
    ids = torch.tensor([base.writer.prompt(prompt)])
    with torch.no_grad():
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=MOST,
            num_beams=beams,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=1,
        )[0]
    own = written[1:] if base.seq2seq else written[ids.shape[1] :]
    return make_tokenizer().decode(own, skip_special_tokens=True)


@pytest.fixture(scope="module")
def lively_t5(t5, tmp_path_factory):
    """A tiny T5 that gives every prompt a different answer."""
    directory = shutil.copytree(t5, tmp_path_factory.mktemp("lively") / "t5")
    model = torch_model(t5)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" not in name:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def with_lines(llama, directory):
    """A tiny Llama that breaks a line in the middle of an answer."""
    shutil.copytree(llama, directory)
    tokenizer, model = make_tokenizer(), torch_model(llama)
    (line_break,) = tokenizer.encode("\n")
    instead = tokenizer.encode(open_writer(spec(llama, beams=1, one_line=False)).write(PROMPTS, None)[0])[3]
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[[line_break, instead]] = head[[instead, line_break]]
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", ["llama", "lively_t5"])
def test_a_batch_gets_the_answers_of_each_prompt_alone(kind, beams, request):
    directory = request.getfixturevalue(kind)
    model = torch_model(directory)
    # Without the padding behind the tokenizer, whose ids are never written.
    model.resize_token_embeddings(len(make_tokenizer()))
    answers = open_writer(spec(directory, beams=beams, one_line=False)).write(PROMPTS, None)
    assert answers == [by_transformers(model, directory, prompt, beams).strip() for prompt in PROMPTS]
    assert len(set(answers)) > 1


def test_what_a_model_says_of_sampling_is_left_out(llama, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    config = '{"do_sample": true, "repetition_penalty": 9.0, "min_new_tokens": 9, "eos_token_id": 1}'
    (other / "generation_config.json").write_text(config)
    written = [open_writer(spec(source, beams=1)).write(PROMPTS, None) for source in (llama, other)]
    assert written[0] == written[1]


@pytest.fixture(scope="module")
def adapters(llama_base, tmp_path_factory):
    """Two users' adapters, strong enough to change the answers."""
    out = tmp_path_factory.mktemp("adapters")
    settings = AdapterSettings(epochs=3, targets="all", rate=5e-2, threads=1)
    base = BaseIdentity(hf_provenance(llama_base.path).sha256, "tiny")
    for name in ("ann", "Ben Ö."):
        save_adapter(out, train_user(llama_base, user(name), settings), user(name), base, settings)
    return out


def test_a_users_adapter_writes_what_peft_writes_and_is_taken_away_again(llama, adapters):
    writer = open_writer(spec(llama, adapters=adapters, beams=1, one_line=False))
    plain = writer.write(PROMPTS, None)
    for name in ("ann", "Ben Ö."):
        model = peft_model(llama, adapters / directory_name(name))
        answers = writer.write(PROMPTS, name)
        assert answers == [by_transformers(model, llama, prompt, 1).strip() for prompt in PROMPTS]
        assert answers != plain
    assert writer.write(PROMPTS, None) == plain
    with pytest.raises(TrainingError, match="no adapter of this user"):
        writer.write(PROMPTS, "zoe")


@pytest.fixture(scope="module")
def bundle(llama, adapters, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    export_onnx(llama, out, "fp32")
    export_adapters(adapters, out, weights="fp32")
    return out


def test_a_bundle_writes_what_its_model_writes_with_adapters_and_without(llama, adapters, bundle):
    torch_writer = open_writer(spec(llama, adapters=adapters, beams=1))
    edge_writer = open_writer(
        WriterSpec(bundle, "", is_bundle=True, adapters=bundle / "adapters", most_tokens=MOST, beams=1, threads=1)
    )
    for name in (None, "ann", "Ben Ö.", None):
        assert edge_writer.write(PROMPTS, name) == torch_writer.write(PROMPTS, name)
    with pytest.raises(AdapterError, match="'zoe' has no adapter"):
        edge_writer.write(PROMPTS, "zoe")


def test_an_answer_is_the_first_line_of_all_that_would_be_written(llama, tmp_path):
    directory = with_lines(llama, tmp_path / "llama")
    whole, lines = (
        open_writer(spec(directory, beams=1, one_line=one_line)).write(PROMPTS, None) for one_line in (False, True)
    )
    assert any("\n" in text for text in whole)
    assert lines == [first_line(text) for text in whole]


def test_an_answer_is_one_line_unless_all_of_it_is_wanted():
    assert first_line("\n\n  A title \nIntroduction") == "A title"
    assert first_line("A title") == "A title"
    assert first_line(" \n ") == ""


def test_a_prompt_that_leaves_no_room_is_refused(llama, bundle):
    with pytest.raises(SettingsError, match=r"context has 1,024.*`max_length`"):
        open_writer(spec(llama, most_tokens=1000)).write([text(0, 200)], None)
    writer = open_writer(WriterSpec(bundle, "", is_bundle=True, most_tokens=1000, beams=1, threads=1))
    with pytest.raises(ContextOverflowError):
        writer.write([text(0, 200)], None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"is_bundle": True, "beams": 4}, "Set `beams` to 1 for a bundle, not to 4"),
        ({"is_bundle": True, "beams": 1, "device": "cuda"}, "Leave out `device`"),
        ({"is_bundle": False, "backend": "onnx"}, "`backend` is for a bundle"),
        ({"is_bundle": False, "beams": 0}, "`beams` must be at least 1"),
        ({"is_bundle": False, "most_tokens": 0}, "`most_tokens` must be"),
    ],
)
def test_options_that_do_not_go_together_say_so(tmp_path, options, words):
    with pytest.raises(SettingsError, match=f"(?i){words}"):
        WriterSpec(tmp_path, "", **options)


def test_a_device_that_is_not_there_and_a_bundle_that_is_none_say_so(llama):
    with pytest.raises(SettingsError, match="device can't be used: cuda:9"):
        open_writer(spec(llama, device="cuda:9"))
    with pytest.raises(BundleError, match="no bundle here"):
        open_writer(WriterSpec(llama, "", is_bundle=True, beams=1))
