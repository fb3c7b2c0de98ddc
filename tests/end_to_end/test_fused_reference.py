"""Fused generation over gRPC against a separate reference in torch, with both models in one process.

Greedy decoding gives one answer: each token is the argmax of the fused row after the previous tokens. The reference
computes these rows for the generated tokens, in one teacher-forced pass per strategy, with its own fusion. If the
argmax of every row is the token, the reference would have written the same answer, token for token.
"""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import Fusion, Options, Policy, RowFormat, Strategy
from tests.support.commands import served

RECORDS = 5
TOKENS = 64
TOP_K = 256


@pytest.fixture(scope="module")
def torch_model(smollm2_hf):
    return AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def cloud_directory(smollm2_hf, made_once):
    """Make a cloud model that differs from the edge's, so mixing them up shows: it has only the outer layers."""

    def make(directory):
        model = AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32)
        model.model.layers = model.model.layers[:8] + model.model.layers[-6:]
        model.config.num_hidden_layers = len(model.model.layers)
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(smollm2_hf).save_pretrained(directory)

    return made_once("outer-layers", make)


@pytest.fixture(scope="module")
def torch_cloud(cloud_directory):
    return AutoModelForCausalLM.from_pretrained(cloud_directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def other_cloud(cloud_directory):
    with served(cloud_directory) as address:
        yield address


@pytest.fixture(scope="module")
def assistant(bundle_fp32):
    return edge_runtime.load(bundle_fp32)


def complete(edge: torch.Tensor, cloud: torch.Tensor) -> torch.Tensor:
    """Cut one cloud row to its top K; distribute the remaining mass like the edge's, capped at half the least kept."""
    kept = torch.topk(cloud, TOP_K)
    outside = torch.ones_like(edge, dtype=torch.bool)
    outside[kept.indices] = False
    mass, ceiling = 1 - kept.values.exp().sum(), kept.values.min().exp() / 2
    if mass > outside.sum() * ceiling:
        ceiling = ceiling * 2
    shape, capped = edge.exp(), torch.zeros_like(outside)
    while True:
        free = outside & ~capped
        share = shape * (mass - capped.sum() * ceiling) / shape[free].sum()
        over = free & (share > ceiling)
        if not over.any():
            break
        capped |= over
    dense = torch.where(capped, ceiling, share).log()
    dense[kept.indices] = kept.values
    return dense


def reference_row(strategy: str, weight: float, edge: torch.Tensor, cloud: torch.Tensor, bare: torch.Tensor):
    if strategy == "geometric":
        return weight * edge + (1 - weight) * complete(edge, cloud)
    if strategy == "arithmetic":
        return torch.log(weight * edge.exp() + (1 - weight) * complete(edge, cloud).exp())
    if strategy == "max":
        return torch.maximum(edge, complete(edge, cloud))
    return complete(bare, cloud) + weight * (edge - bare)


class TorchSequence:
    """A prompt prefilled once; rows for any continuation."""

    def __init__(self, model, prompt):
        self.model = model
        self.out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    def rows(self, answer):
        cache = copy.deepcopy(self.out.past_key_values)
        logits = self.model(torch.tensor([answer]), past_key_values=cache).logits[0]
        return torch.cat([self.out.logits[0], logits[:-1]]).double().log_softmax(-1)


@pytest.mark.slow_on_shared_data
@pytest.mark.parametrize("index", range(RECORDS))
def test_every_strategy_writes_what_the_reference_writes(
    index, torch_model, torch_cloud, assistant, other_cloud, ctx_records, smollm2_hf
):
    record = ctx_records[index]
    tokenizer = AutoTokenizer.from_pretrained(smollm2_hf)
    bare_prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": record.instruction.text}], add_generation_prompt=True
    )
    prompt = assistant.prompt(record.instruction, record.context)
    cloud = connect(other_cloud)
    with torch.inference_mode():
        with_context = TorchSequence(torch_model, prompt.token_ids)
        bare = TorchSequence(torch_model, bare_prompt)
        public = TorchSequence(torch_cloud, bare_prompt)
        for strategy, weight in (("geometric", 0.5), ("arithmetic", 0.8), ("max", 0.5), ("delta", 1.0)):
            options = Options(
                max_new_tokens=TOKENS,
                fusion=Fusion(Strategy(strategy), weight),
                rows=RowFormat(TOP_K, 1.0, "float32"),
                policy=Policy.OPEN,
            )
            answer = assistant.generate(
                record.instruction, record.context, mode="fused", cloud=cloud, options=options
            ).finish()
            assert all(answer.fused)
            tokens = list(answer.token_ids)
            if answer.finish_reason == "stop":
                tokens.append(assistant.bundle.manifest.tokenizer.stop_token_ids[0])
            else:
                assert len(tokens) == TOKENS
            rows = zip(with_context.rows(tokens), public.rows(tokens), bare.rows(tokens), strict=True)
            expected = [int(reference_row(strategy, weight, *row).argmax()) for row in rows]
            assert tokens == expected, strategy
    cloud.close()
