"""The base: its losses are those of transformers, and adapters come and go without a trace."""

from __future__ import annotations

import gc

import pytest
import torch

from export.errors import ModelNotFoundError, SourceError
from personalization.adapters.lora_config import lora_config
from personalization.adapters.settings import AdapterSettings
from personalization.adapters.train import train_user
from personalization.adapters.trained_adapter import BaseIdentity, save_adapter
from personalization.errors import SettingsError, TrainingError
from personalization.models.base_model import Base
from personalization.users.data import Pair
from tests.support.personal_data import peft_model, text, torch_model, user
from tests.support.tiny_models import FAMILIES, make_model

PAIRS = [Pair(f"Write {text(i, 3 + 7 * i)}", text(("answer", i), 4 + 5 * i)) for i in range(4)]
SETTINGS = AdapterSettings(epochs=1, threads=1)


def one_by_one(model, example, seq2seq):
    """Loss of every answer token by transformers' own shifting of labels."""
    with torch.no_grad():
        if seq2seq:
            labels = torch.tensor([example.answer])
            logits = model(input_ids=torch.tensor([example.prompt]), labels=labels).logits[0]
        else:
            logits = model(torch.tensor([[*example.prompt, *example.answer]])).logits[0, len(example.prompt) - 1 : -1]
    return -torch.log_softmax(logits, -1)[torch.arange(len(example.answer)), torch.tensor(example.answer)]


def assert_losses(base, model, examples):
    with torch.no_grad():
        found = base.losses(examples)
    for row, example in zip(found, examples, strict=True):
        count = len(example.answer)
        own, rest = (row[:count], row[count:]) if base.seq2seq else (row[-count:], row[:-count])
        assert not rest.any()
        torch.testing.assert_close(own, one_by_one(model, example, base.seq2seq), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied-biases", "qwen3", "gemma"])
def test_losses_of_a_batch_are_those_of_each_text_alone(family, tmp_path):
    base = Base(make_model(tmp_path / "model", **FAMILIES[family]), threads=1)
    assert_losses(base, torch_model(base.path), base.writer.write_all(PAIRS, 1024))


def test_losses_of_an_encoder_decoder_model_are_those_of_each_text_alone(t5_base):
    assert_losses(t5_base, torch_model(t5_base.path), t5_base.writer.write_all(PAIRS, 1024))


def test_a_model_that_takes_neither_positions_nor_rows_gives_the_same(tmp_path):
    base = Base(make_model(tmp_path / "model", model_type="bloom", n_layer=2, n_head=4), threads=1)
    assert_losses(base, torch_model(base.path), base.writer.write_all(PAIRS, 1024))


def test_a_new_adapter_changes_nothing_until_it_is_trained(llama_base):
    examples = llama_base.writer.write_all(PAIRS, 1024)
    with torch.no_grad():
        before = llama_base.losses(examples)
        with llama_base.new_adapter(lora_config(llama_base, SETTINGS), seed=1):
            assert torch.equal(llama_base.losses(examples), before)
            assert not torch.equal(llama_base.state()[next(iter(llama_base.state()))], torch.zeros(()))


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_adapter_written_is_the_one_that_peft_loads(kind, request, tmp_path):
    base, data = request.getfixturevalue(f"{kind}_base"), user("Ann B.")
    settings = AdapterSettings(epochs=2, targets="all", rank=4, rate=1e-2, threads=1)
    adapter = train_user(base, data, settings)
    directory = save_adapter(tmp_path, adapter, data, BaseIdentity("0" * 64, "tiny"), settings)
    model = peft_model(base.path, directory)
    examples = base.writer.write_all(PAIRS, 1024)
    plain = torch_model(base.path)
    assert not torch.allclose(
        one_by_one(model, examples[0], base.seq2seq), one_by_one(plain, examples[0], base.seq2seq)
    )
    with base.saved_adapter(model.peft_config["default"], adapter.state):
        assert_losses(base, model, examples)
    assert_losses(base, plain, examples)  # and taken away again it leaves the base alone


def test_many_users_take_no_more_memory_than_one_and_leave_the_base_as_it_was(llama):
    base = Base(llama, threads=1)
    before = {name: tensor.clone() for name, tensor in torch_model(llama).state_dict().items()}

    def tensors():
        gc.collect()
        return sorted(
            tuple(found.shape) for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)
        )

    train_user(base, user("first"), SETTINGS)
    after_one = tensors()
    for number in range(5):
        train_user(base, user(f"user {number}", items=2 + number), SETTINGS)
    assert tensors() == after_one
    for name, tensor in base._model.state_dict().items():
        assert torch.equal(tensor, before[name.replace(".base_layer", "")])


@pytest.mark.parametrize(
    ("targets", "sites"),
    [
        ("qv", {"q_proj", "v_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("all", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("down_proj, k_proj", {"down_proj", "k_proj"}),
    ],
)
def test_targets_are_groups_or_names_of_layers(llama_base, targets, sites):
    config = lora_config(llama_base, AdapterSettings(targets=targets, rank=3))
    with llama_base.new_adapter(config, seed=0):
        assert config.target_modules == sites
        shapes = {name.split(".")[-3]: tensor.shape for name, tensor in llama_base.state().items() if "lora_A" in name}
    assert {site: shape[0] for site, shape in shapes.items()} == dict.fromkeys(sites, 3)


def test_targets_of_a_t5_are_found_by_its_own_names(t5_base):
    config = lora_config(t5_base, AdapterSettings(targets="qv"))
    with t5_base.new_adapter(config, seed=0):
        assert config.target_modules == {"q", "v"}
    config = lora_config(t5_base, AdapterSettings(targets="all"))
    with t5_base.new_adapter(config, seed=0):
        assert config.target_modules == {"q", "k", "v", "o", "wi", "wo"}


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(llama_base):
    with pytest.raises(SettingsError, match=r"no linear layers for --targets c_attn.*down_proj.*q_proj"):
        train_user(llama_base, user("ann"), AdapterSettings(targets="c_attn", threads=1))
    train_user(llama_base, user("ann"), SETTINGS)  # and the base is as good as before


def test_an_adapter_that_does_not_fit_is_refused(llama_base):
    adapter = train_user(llama_base, user("ann"), SETTINGS)
    config = lora_config(llama_base, SETTINGS)
    with llama_base.new_adapter(config, seed=0):
        pass
    wrong = {name: tensor[..., :-1] for name, tensor in adapter.state.items()}
    more = {**adapter.state, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)}
    for state in (wrong, more):
        with pytest.raises(TrainingError, match="does not fit"), llama_base.saved_adapter(config, state):
            pass


def test_a_directory_that_holds_no_model_says_so(llama, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        Base(tmp_path, threads=1)
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(SourceError, match="can't be loaded"):
        Base(tmp_path, threads=1)
