"""Training one user: what it computes, what it keeps, and that nothing else changes its bytes."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from personalization.adapters.lora_config import lora_config
from personalization.adapters.settings import AdapterSettings
from personalization.adapters.train import mean_loss, train_user
from personalization.errors import SettingsError, TrainingError
from personalization.models.base_model import Base
from personalization.models.examples import Example
from personalization.training.batches import passes_of, rate_factor, steps_of_epoch
from personalization.training.rate_schedule import RateSchedule
from personalization.users.data import Pair, UserData, user_seed
from personalization.users.held_out import FEWEST_ITEMS, split_pairs
from tests.support.personal_data import torch_model, user

SETTINGS = AdapterSettings(epochs=2, dropout=0.1, rate=5e-3, threads=1)


def assert_same_bytes(one, other):
    assert one.config == other.config
    assert one.report == other.report
    assert one.state.keys() == other.state.keys()
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def by_hand(base, data, settings):
    """The adapter of a loop in plain torch and PEFT that takes one item a step, unpadded."""
    model = get_peft_model(
        torch_model(base.path),
        LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=["q_proj", "v_proj"]),
    )
    seed = user_seed(settings.seed, data.user)
    with base.new_adapter(lora_config(base, settings), seed):
        initial = {name.replace(".weight", ".default.weight"): tensor for name, tensor in base.state().items()}
    model.load_state_dict(initial, strict=False)
    examples, order = base.writer.write_all(data.pairs, settings.max_length), random.Random(f"{seed}\0order")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    steps = [step for _ in range(settings.epochs) for step in steps_of_epoch(len(examples), settings.batch, order)]
    for number, step in enumerate(steps):
        loss = 0.0
        for index in step:
            example = examples[index]
            ids = torch.tensor([[*example.prompt, *example.answer]])
            labels = torch.tensor([[-100] * len(example.prompt) + list(example.answer)])
            loss = loss + model(input_ids=ids, labels=labels).loss * len(example.answer)
        (loss / sum(len(examples[index].answer) for index in step)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate_factor(settings.schedule, number, len(steps), settings.warmup)
        optimizer.step()
        optimizer.zero_grad()
    return get_peft_model_state_dict(model)


@pytest.mark.parametrize("batch", [1, 3])
def test_training_is_what_plain_torch_and_peft_compute(llama_base, batch):
    settings = AdapterSettings(
        epochs=3, batch=batch, rate=5e-3, weight_decay=0.1, schedule=RateSchedule.COSINE, threads=1
    )
    data = user("ann", items=5)
    expected = by_hand(llama_base, data, settings)
    found = train_user(llama_base, data, settings)
    assert found.report.steps == 3 * math.ceil(5 / batch)
    assert found.state.keys() == expected.keys()
    for name, tensor in found.state.items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=2e-3)


def test_passes_bound_the_memory_and_change_nothing_else(llama_base):
    data = user("ann", items=6)
    one, many = (
        train_user(llama_base, data, AdapterSettings(epochs=1, batch=6, pass_tokens=tokens, threads=1))
        for tokens in (1, 10_000)
    )
    for name, tensor in one.state.items():
        torch.testing.assert_close(tensor, many.state[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_loss_falls_for_both_kinds_of_models(kind, request):
    base = request.getfixturevalue(f"{kind}_base")
    report = train_user(base, user("ann"), AdapterSettings(epochs=8, rate=1e-2, targets="all", threads=1)).report
    assert report.judged_by == "training"
    assert report.after < report.before - 0.5


def test_context_in_the_prompt_is_trained_with_when_asked_for(llama_base):
    data = user("ann")
    alone, context = (
        train_user(llama_base, data, AdapterSettings(epochs=1, with_context=on, threads=1)) for on in (False, True)
    )
    history = llama_base.writer.write_all(data.pairs, 1024, profile=data.profile, history=data.pairs)
    assert context.report.before == mean_loss(llama_base, history, 1024)
    assert alone.report.before == mean_loss(llama_base, llama_base.writer.write_all(data.pairs, 1024), 1024)


def test_bytes_depend_on_neither_process_nor_order_nor_other_users(llama, llama_base):
    people = [user("ann"), user("ben", items=2), user("eve", items=6)]
    there = {data.user: train_user(llama_base, data, SETTINGS) for data in people}
    torch.rand(17)
    another = Base(llama, threads=1)
    back = {data.user: train_user(another, data, SETTINGS) for data in reversed(people)}
    for name, adapter in there.items():
        assert_same_bytes(adapter, back[name])


def test_seed_and_user_decide_the_bytes(llama_base):
    data = user("ann")
    first = train_user(llama_base, data, SETTINGS)
    twin = UserData("bob", data.task, data.pairs, data.profile)
    other = AdapterSettings(epochs=2, dropout=0.1, rate=5e-3, threads=1, seed=1)
    for changed in (train_user(llama_base, twin, SETTINGS), train_user(llama_base, data, other)):
        assert not any(torch.equal(first.state[name], changed.state[name]) for name in first.state)


def test_training_stops_early_and_keeps_the_best_state_of_the_held_out_pairs(llama_base):
    data = user("ann", items=12)
    settings = AdapterSettings(epochs=30, rate=3e-2, held_out=0.25, patience=2, threads=1)
    adapter = train_user(llama_base, data, settings)
    report = adapter.report
    assert (report.examples, report.held_out, report.judged_by) == (9, 3, "held-out")
    assert report.steps < 30 * 9
    assert report.steps == report.kept_step + 2 * 9
    split = split_pairs(data.pairs, 0.25, user_seed(0, "ann"))
    judges = llama_base.writer.write_all(split.held_out, 1024)
    config = lora_config(llama_base, settings)
    with llama_base.new_adapter(config, 0):
        pass
    with llama_base.saved_adapter(config, adapter.state):
        assert mean_loss(llama_base, judges, 1024) == pytest.approx(report.after, abs=1e-6)
    assert mean_loss(llama_base, judges, 1024) == pytest.approx(report.before, abs=1e-6)
    assert report.after <= report.before


def test_held_out_pairs_are_never_learnt_nor_shown(llama_base):
    data = user("ann", items=12)
    settings = AdapterSettings(epochs=1, held_out=0.25, with_context=True, threads=1, max_length=2048)
    held = split_pairs(data.pairs, 0.25, user_seed(0, "ann")).held_out
    seen: list[Example] = []

    class Watched(Base):
        def losses(self, examples):
            if torch.is_grad_enabled():
                seen.extend(examples)
            return super().losses(examples)

    train_user(Watched(llama_base.path, threads=1), data, settings)
    assert len(seen) == 9
    shown = " ".join(llama_base.writer.tokenizer.decode([*example.prompt, *example.answer]) for example in seen)
    assert not [pair for pair in held if pair.answer in shown]


def test_steps_bound_a_training_in_the_middle_of_an_epoch(llama_base):
    report = train_user(llama_base, user("ann", items=5), AdapterSettings(steps=7, threads=1)).report
    assert (report.steps, report.kept_step) == (7, 7)


def test_long_items_are_cut_and_counted(llama_base):
    data = user("ann", items=3)
    long = UserData("ann", data.task, (*data.pairs, Pair("Write.", "word " * 900)))
    assert train_user(llama_base, long, AdapterSettings(epochs=1, max_length=256, threads=1)).report.cut == 1


def test_a_length_beyond_the_models_context_is_cut_to_it(llama_base):
    data = UserData("ann", "CoGenesis", (Pair("Write.", "word " * 2000),))
    report = train_user(
        llama_base, data, AdapterSettings(epochs=1, max_length=100_000, pass_tokens=1, threads=1)
    ).report
    assert report.cut == 1
    assert report.tokens < 1024


def test_a_loss_that_is_no_number_is_an_error_and_the_base_stays_usable(llama_base):
    before = train_user(llama_base, user("ann"), SETTINGS)
    with pytest.raises(TrainingError, match=r"not a finite number.*lower --rate"):
        train_user(llama_base, user("ann"), AdapterSettings(epochs=20, rate=1e38, clip=0, threads=1))
    assert_same_bytes(train_user(llama_base, user("ann"), SETTINGS), before)


def test_a_user_without_items_is_an_error(llama_base):
    with pytest.raises(TrainingError, match="no items"):
        train_user(llama_base, UserData("ann", "CoGenesis", ()), SETTINGS)


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers())
def test_pairs_are_held_out_from_ten_items_on_and_something_is_left_to_learn(count, share, seed):
    pairs = [Pair(str(i), str(i)) for i in range(count)]
    split = split_pairs(pairs, share, seed)
    assert sorted((*split.training, *split.held_out), key=lambda pair: int(pair.task)) == pairs
    assert split.training
    if count < FEWEST_ITEMS or share == 0:
        assert not split.held_out
    else:
        assert len(split.held_out) in (math.ceil(share * count), count - 1)
    assert split_pairs(pairs, share, seed) == split


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_passes_hold_every_example_once_and_no_more_tokens_than_allowed(lengths, most):
    examples = [Example(tuple(range(length)), (index,), 0) for index, length in enumerate(lengths)]
    passes = passes_of(examples, most)
    assert sorted(example.answer for part in passes for example in part) == [(i,) for i in range(len(lengths))]
    for part in passes:
        assert len(part) == 1 or len(part) * max(example.length for example in part) <= most
    assert passes_of(examples[::-1], most) == passes


@given(st.integers(1, 40), st.integers(1, 10), st.integers())
def test_an_epoch_takes_every_item_once(count, batch, seed):
    steps = list(steps_of_epoch(count, batch, random.Random(seed)))
    assert sorted(index for step in steps for index in step) == list(range(count))
    assert all(len(step) == batch for step in steps[:-1])


@given(st.sampled_from(RateSchedule), st.integers(1, 300), st.floats(0, 1))
def test_the_rate_rises_to_its_highest_and_falls_as_the_schedule_says(schedule, steps, warmup):
    factors = [rate_factor(schedule, step, steps, warmup) for step in range(steps)]
    rising = math.ceil(warmup * steps)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert max(factors) == 1
    if schedule is RateSchedule.CONSTANT:
        assert set(factors[rising:]) <= {1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0},
        {"dropout": 1.0},
        {"targets": "q_proj,,"},
        {"epochs": 0},
        {"steps": 0},
        {"rate": -1e-3},
        {"rate": math.nan},
        {"schedule": "stairs"},
        {"warmup": 1.5},
        {"batch": 0},
        {"held_out": 1.0},
        {"patience": 0},
        {"max_length": 3},
        {"threads": 0},
        {"clip": -1},
    ],
)
def test_settings_that_make_no_sense_are_named(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        AdapterSettings(**wrong)
