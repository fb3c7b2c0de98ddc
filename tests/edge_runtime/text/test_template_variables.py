"""Template variables and special tokens reach a chat template as they do in transformers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from edge_runtime.errors import BundleError, RequestError
from edge_runtime.text.chat_template import ChatTemplate
from edge_runtime.text.prompt_form import PlainForm, prompt_form
from tests.support.tiny_models import make_tokenizer

# Our own templates, with what the published templates of these families do.
THINKS = """
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') if loop.index0 < ns.last else content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content.strip('\\n') + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

DATED = """{{- bos_token }}
{%- if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{% endif %}
{{- 'Today Date: ' + date_string + '\\n\\n<|eot_id|>' }}
{%- if not tools_in_user_message %}{{- 'no tools here' }}{% endif %}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

MODES = """{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- if messages[0].role == 'system' %}
    {%- set text = messages[0].content %}
    {%- if '/no_think' in text %}{% set mode = '/no_think' %}{% endif %}
    {%- set custom = text.replace('/no_think', '').replace('/think', '').rstrip() %}
{%- endif %}
{{- '<|im_start|>system\\nMode: ' + mode + '\\nToday: ' + strftime_now('%Y') + '\\n' ~ (custom | default('')) }}
{%- if xml_tools or (python_tools is defined and python_tools) %}{{- xml_tools | tojson(indent=2) }}{% endif %}
{{- '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- '<|im_start|>assistant\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endif %}
    {%- if loop.index > 4 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' ~ ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
{%- endif %}"""

SEPARATED = """{% for message in messages %}
{% if message['role'] == 'system' and 'tools' in message and message['tools'] %}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|end|>' }}{% else %}
{{ '<|' + message['role'] + '|>' + message['content'] + '<|im_sep|>' }}{% endif %}{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
{{- pad_token }}{{ unk_token }}{% for token in additional_special_tokens %}[{{ token }}]{% endfor %}"""

USES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "qwen3": (
        THINKS,
        [
            {},
            {"enable_thinking": False},
            {"enable_thinking": True},
            {"add_generation_prompt": False},
            {"tools": [{"type": "function", "function": {"name": "now", "description": "The time, in <b>é</b>"}}]},
            {"tools": None},
        ],
    ),
    "llama": (DATED, [{}, {"date_string": "1 May 2031"}, {"tools_in_user_message": False}]),
    "gemma": (TURNS, [{}, {"bos_token": "<other>"}]),
    "smollm3": (MODES, [{}, {"enable_thinking": False}, {"xml_tools": [{"a": "ü"}], "python_tools": None}]),
    "phi4": (SEPARATED, [{}, {"pad_token": "<p>"}]),
}
CASES = [(source, variables) for source, many in USES.values() for variables in many]
NAMES = [f"{name}-{'-'.join(variables) or 'none'}" for name, (_, many) in USES.items() for variables in many]
CONVERSATIONS = [
    [{"role": "user", "content": "Say <hi> & 'bye'.\n"}],
    [
        {"role": "system", "content": "Be brief. /no_think"},
        {"role": "user", "content": " One\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo"},
        {"role": "user", "content": "Three 🙂"},
    ],
]


def tokenizer(template: str = TURNS) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer().backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<x>", "<y>"],
    )
    made.chat_template = template
    return made


@pytest.mark.parametrize(("source", "variables"), CASES, ids=NAMES)
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["short", "long"])
def test_templates_render_as_in_transformers(source: str, variables: dict[str, Any], messages: list[dict[str, str]]):
    oracle = tokenizer(source)
    rendered = ChatTemplate(source, oracle.special_tokens_map, variables).render(messages)
    asked = {"add_generation_prompt": True, **variables}
    assert rendered == oracle.apply_chat_template(messages, tokenize=False, **asked)


def test_a_variable_changes_the_prompt():
    plain = ChatTemplate(THINKS).render(CONVERSATIONS[0])
    assert ChatTemplate(THINKS, {}, {"enable_thinking": False}).render(CONVERSATIONS[0]) == (
        plain + "<think>\n\n</think>\n\n"
    )
    assert "Today Date: 1 May 2031\n" in ChatTemplate(
        DATED, {"bos_token": "<s>"}, {"date_string": "1 May 2031"}
    ).render(CONVERSATIONS[0])


@pytest.mark.parametrize(
    ("source", "name", "listed"),
    [
        (THINKS, "enable_thinkin", "enable_thinking"),
        (DATED, "enable_thinking", "date_string"),
        (DATED, "first_user_prefix", "date_string"),
        (TURNS, "messages", "bos_token"),
        (MODES, "strftime_now", "xml_tools"),
        (MODES, "loop", "python_tools"),
    ],
)
def test_a_variable_that_the_template_does_not_use_is_refused_by_name(source: str, name: str, listed: str):
    with pytest.raises(RequestError, match=rf"no variable '{re.escape(name)}'.*It uses: .*{listed}"):
        ChatTemplate(source, {}, {name: True})


def test_a_missing_special_token_is_undefined_as_in_transformers():
    source = "{{ 'has' if pad_token is defined else 'lacks' }}{{ pad_token }}"
    assert ChatTemplate(source, {"bos_token": "<s>"}).render([]) == "lacks"
    with pytest.raises(BundleError, match="chat_template"):
        ChatTemplate("{{ pad_token + 'x' }}").render([])


def test_a_model_without_a_template_has_no_variables():
    assert isinstance(prompt_form("", {}), PlainForm)
    with pytest.raises(RequestError, match=r"no chat template.*'enable_thinking'"):
        prompt_form("", {}, {"enable_thinking": False})
