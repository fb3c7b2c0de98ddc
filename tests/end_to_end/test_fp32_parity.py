"""The fp32 bundle gives the same results as torch on long real prompts."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder

# Every family's rows are compared on tiny models: tests/export/onnx/test_graph.py.
PROMPTS = [0, 1, *(pytest.param(index, marks=pytest.mark.slow) for index in (2, 3, 4))]
GREEDY_TOKENS = 64


@pytest.fixture(scope="module")
def torch_model(smollm2_hf):
    model = AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(smollm2_hf)


@pytest.fixture(scope="module")
def decoder(bundle_fp32):
    return open_decoder(open_bundle(bundle_fp32))


@pytest.mark.slow_on_shared_data
@pytest.mark.parametrize("index", PROMPTS)
def test_logits_agree_to_a_thousandth_and_greedy_tokens_exactly(index, torch_model, decoder, ctx_records):
    model, tokenizer = torch_model
    conversation = [{"role": "user", "content": ctx_records[index].prompt}]
    prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert len(prompt) > 1000
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=GREEDY_TOKENS,
            min_new_tokens=GREEDY_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
    expected = whole.sequences[0, len(prompt) :].tolist()

    decoder.rewind(0)
    row = decoder.extend(prompt)[0]
    assert np.abs(row - whole.logits[0][0].numpy()).max() <= 1e-3
    tokens = []
    for _ in range(GREEDY_TOKENS):
        tokens.append(int(row.argmax()))
        row = decoder.extend([tokens[-1]])[0]
    assert tokens == expected
