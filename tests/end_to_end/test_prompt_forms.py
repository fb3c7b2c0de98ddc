"""Base models are asked in plain text behind their BOS, chat models with their template; transformers is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizerFast

from cloud_bridge.client import connect
from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.server.engines.transformers_engine import load_engine
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.assistant import load
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import BundleError, RequestError
from edge_runtime.generation.options import Mode, Options
from export.onnx.export import export_onnx
from personalization.answering.open_writer import open_writer
from personalization.answering.writer import WriterSpec
from tests.support.commands import cogenesis, run_cogenesis
from tests.support.tiny_models import make_base_tokenizer, make_model, make_tokenizer

TASK = PublicInstruction("Say something about the sea.")
THINKS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def model_with(directory: Path, tokenizer: Any) -> Path:
    make_model(directory, model_type="llama")
    (directory / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_with(tmp_path_factory.mktemp("base") / "model", make_base_tokenizer())


@pytest.fixture(scope="module")
def base_bundle(base: Path) -> Path:
    export_onnx(base, base.parent / "bundle", "fp32")
    return base.parent / "bundle"


@pytest.fixture(scope="module")
def thinks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model whose template writes the BOS that its tokenizer also adds."""
    tokenizer = make_base_tokenizer()
    tokenizer.chat_template = THINKS
    return model_with(tmp_path_factory.mktemp("thinks") / "model", tokenizer)


def in_transformers(model: Path, **variables: Any) -> list[int]:
    """Return the ids of the task's prompt: by the template, or as the tokenizer encodes plain text."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        return list(tokenizer(f"{TASK.text}\n\n").input_ids)
    messages = [{"role": "user", "content": TASK.text}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **variables))


def test_a_base_model_writes_what_it_writes_in_transformers(base, base_bundle):
    prompt = in_transformers(base)
    assert prompt.count(0) == 1 == prompt.index(0) + 1
    assistant = load(base_bundle, threads=1)
    assert list(assistant.prompt(TASK).token_ids) == prompt
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    unknown = list(range(len(AutoTokenizer.from_pretrained(base)), model.config.vocab_size))
    written = model.generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, suppress_tokens=unknown
    )[0, len(prompt) :].tolist()  # fmt: skip
    result = assistant.generate(TASK, options=Options(16)).finish()
    assert list(result.token_ids) == written[: written.index(1) if 1 in written else None]


def test_private_context_comes_first_behind_one_bos(base_bundle):
    context = PrivateContext("Name: Ada", (HistoryItem("Bees", "They do well."),))
    assistant = load(base_bundle, threads=1)
    prompt = assistant.prompt(TASK, context)
    assert prompt.text.index("Name: Ada") < prompt.text.index("They do well.") < prompt.text.index(TASK.text)
    assert prompt.text.endswith("\n\n")
    assert prompt.token_ids.count(0) == 1 == prompt.token_ids.index(0) + 1


@pytest.mark.parametrize("open_engine", [load_engine, load_onnx_engine])
def test_both_sides_ask_a_base_model_the_same(base, base_bundle, open_engine):
    engine = open_engine(str(base if open_engine is load_engine else base_bundle))
    assert engine.open(TASK.text).prompt == in_transformers(base)
    assistant = load(base_bundle, threads=1)
    with serving(engine, ServerOptions()) as running, connect(running.address, call_timeout=20) as cloud:
        for mode in Mode:
            result = assistant.generate(TASK, PrivateContext("I swim."), mode=mode, cloud=cloud, options=Options(8))
            assert result.finish().cloud_error == ""


def test_lamp_answers_of_a_base_model_are_written(base, base_bundle):
    prompts = ["The sea is", "Bread"]
    by_torch = open_writer(WriterSpec(base, "x", False, most_tokens=8, beams=1, threads=1)).write(prompts, None)
    by_bundle = open_writer(WriterSpec(base_bundle, "x", True, most_tokens=8, beams=1, threads=1)).write(prompts, None)
    assert by_torch == by_bundle


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("adds_eos", [True, False])
def test_the_tokenizers_own_settings_decide_on_bos(tmp_path, adds_bos, adds_eos):
    source = make_tokenizer()
    tokenizer = LlamaTokenizerFast(
        tokenizer_object=source.backend_tokenizer,
        bos_token=source.bos_token,
        eos_token=source.eos_token,
        unk_token=None,
        add_bos_token=adds_bos,
        add_eos_token=adds_eos,
    )
    model = model_with(tmp_path / "model", tokenizer)
    export_onnx(model, tmp_path / "bundle", "fp32")
    expected = in_transformers(model)
    assert (expected[0] == 0, expected[-1] == 1) == (adds_bos, adds_eos)
    # An end behind the prompt would end the text that the model is to continue.
    assert list(load(tmp_path / "bundle").prompt(TASK).token_ids) == expected[: -1 if adds_eos else None]


def test_a_template_that_writes_bos_gets_no_second_one(thinks, tmp_path):
    export_onnx(thinks, tmp_path / "bundle", "fp32")
    expected = in_transformers(thinks)
    assert expected[:2] == [0, 0], "BOS, and the turn's own marker"
    assert expected[2] != 0
    assert list(load(tmp_path / "bundle").prompt(TASK).token_ids) == expected
    assert load_engine(str(thinks)).open(TASK.text).prompt == expected


def test_template_variables_are_recorded_and_overridden(thinks, tmp_path):
    bundle = tmp_path / "bundle"
    export_onnx(thinks, bundle, "fp32", template_variables={"enable_thinking": False})
    assert open_bundle(bundle).manifest.template_variables == {"enable_thinking": False}
    off, on = in_transformers(thinks, enable_thinking=False), in_transformers(thinks, enable_thinking=True)
    assert off != on
    assert list(load(bundle).prompt(TASK).token_ids) == off
    assert list(load(bundle, template_variables={"enable_thinking": True}).prompt(TASK).token_ids) == on
    for variables, expected in ((None, off), ({"enable_thinking": True}, on)):
        assert load_onnx_engine(str(bundle), template_variables=variables).open(TASK.text).prompt == expected
    for variables, expected in ((None, on), ({"enable_thinking": False}, off)):
        assert load_engine(str(thinks), variables).open(TASK.text).prompt == expected


def test_unknown_template_variables_are_refused_everywhere(thinks, base, base_bundle, tmp_path):
    wrong = {"enable_thinkin": False}
    with pytest.raises(RequestError, match=r"'enable_thinkin'.*enable_thinking"):
        export_onnx(thinks, tmp_path / "bundle", "fp32", template_variables=wrong)
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(RequestError, match="'enable_thinkin'"):
        load_engine(str(thinks), wrong)
    for refused in (load, load_onnx_engine):
        with pytest.raises(RequestError, match=r"no chat template.*'enable_thinkin'"):
            refused(base_bundle, template_variables=wrong)
    with pytest.raises(RequestError, match="no chat template"):
        load_engine(str(base), wrong)


def test_a_template_that_gives_nothing_is_an_error(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if false %}{{ messages }}{% endif %}"
    model = model_with(tmp_path / "model", tokenizer)
    export_onnx(model, tmp_path / "bundle", "fp32")
    with pytest.raises(BundleError, match="empty prompt"):
        load(tmp_path / "bundle").generate(TASK).finish()


def test_the_commands_pass_variables_and_say_the_form(thinks, base, tmp_path):
    bundle, request = tmp_path / "bundle", tmp_path / "request.json"
    request.write_text(json.dumps({"instruction": TASK.text}))
    export = ("export", "onnx", "--quantize", "fp32", "--json")
    said = json.loads(cogenesis(*export, "-m", thinks, "-o", bundle, "--template-variable", "enable_thinking=false"))
    assert (said["prompt_form"], said["template_variables"]) == ("chat", {"enable_thinking": False})
    assert json.loads(cogenesis(*export, "-m", base, "-o", tmp_path / "base"))["prompt_form"] == "plain"

    write = ("generate", "--request", request, "--max-new-tokens", 4, "--json", "-b")
    off, on = (len(in_transformers(thinks, enable_thinking=value)) for value in (False, True))
    assert json.loads(cogenesis(*write, bundle))["prompt_tokens"] == off
    assert json.loads(cogenesis(*write, bundle, "--template-variable", "enable_thinking=true"))["prompt_tokens"] == on
    for value, words in (
        ("enable_thinking=True", "not JSON"),
        ("enable_thinkin=true", "'enable_thinkin'"),
        ("enable_thinking", "NAME=VALUE"),
    ):
        refused = run_cogenesis(*write, bundle, "--template-variable", value)
        assert refused.returncode == RequestError.exit_code
        assert words in refused.stderr
