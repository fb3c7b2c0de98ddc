"""Fused generation over gRPC against a reference of its own in torch, with tiny models and with the real one.

Greedy decoding gives one answer: each token is the argmax of the fused row after the previous tokens. The reference
computes these rows for the generated tokens, in one teacher-forced pass per strategy, with its own fusion. If the
argmax of every row is the token, the reference would have written the same answer, token for token.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

import edge_runtime
from cloud_bridge.client import connect
from cloud_bridge.server.engines.transformers_engine import load_engine
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime import (
    Fusion,
    HistoryItem,
    Options,
    Policy,
    PrivateContext,
    PublicInstruction,
    RowFormat,
    Schedule,
    Strategy,
)
from edge_runtime.assistant import Assistant
from edge_runtime.cloud import Cloud
from tests.support.commands import served
from tests.support.decoder_models import tiny_model
from tests.support.tiny_models import make_tokenizer

TOKENS = 64
ALWAYS = Schedule()
TOP_K = 256
FEW = {(0, "geometric"), (1, "delta")}
WEIGHTS = {"geometric": 0.5, "arithmetic": 0.8, "max": 0.5, "delta": 1.0}


@dataclass
class Models:
    """An edge model and a cloud model, as the product runs them and as torch does."""

    assistant: Assistant
    cloud: Cloud
    tokenizer: PreTrainedTokenizerBase
    torch_edge: torch.nn.Module
    torch_cloud: torch.nn.Module


def in_torch(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


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
def real(smollm2_hf, cloud_directory, bundle_fp32):
    with served(cloud_directory) as address, connect(address) as cloud:
        yield Models(
            edge_runtime.load(bundle_fp32),
            cloud,
            AutoTokenizer.from_pretrained(smollm2_hf),
            in_torch(smollm2_hf),
            in_torch(cloud_directory),
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two random models of one vocabulary, all of whose ids are tokens, as a server requires."""
    root = tmp_path_factory.mktemp("small")
    tokenizer = make_tokenizer()
    shape = {"model_type": "llama", "vocab_size": len(tokenizer)}
    edge = tiny_model(root / "edge", **shape, tie_word_embeddings=True)
    cloud = tiny_model(root / "cloud", **shape, tie_word_embeddings=False)
    with (
        serving(load_engine(str(cloud.directory)), ServerOptions()) as server,
        connect(server.address) as connection,
    ):
        yield Models(
            edge_runtime.load(edge.bundle.root),
            connection,
            tokenizer,
            in_torch(edge.directory),
            in_torch(cloud.directory),
        )


def complete(edge: torch.Tensor, cloud: torch.Tensor, top_k: int) -> torch.Tensor:
    """Cut one cloud row to its top K; the rest of the mass gets the edge's shape, capped at half the least kept."""
    kept = torch.topk(cloud, top_k)
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


def reference_row(
    strategy: str, weight: float, edge: torch.Tensor, cloud: torch.Tensor, bare: torch.Tensor, top_k: int
) -> torch.Tensor:
    if strategy == "geometric":
        return weight * edge + (1 - weight) * complete(edge, cloud, top_k)
    if strategy == "arithmetic":
        return torch.log(weight * edge.exp() + (1 - weight) * complete(edge, cloud, top_k).exp())
    if strategy == "max":
        return torch.maximum(edge, complete(edge, cloud, top_k))
    return complete(bare, cloud, top_k) + weight * (edge - bare)


class TorchSequence:
    """A prompt prefilled once; rows for any continuation."""

    def __init__(self, model, prompt):
        self.model = model
        self.out = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    def rows(self, answer):
        cache = copy.deepcopy(self.out.past_key_values)
        logits = self.model(torch.tensor([answer]), past_key_values=cache).logits[0]
        return torch.cat([self.out.logits[0], logits[:-1]]).double().log_softmax(-1)


def check(
    models: Models,
    strategy: str,
    instruction: PublicInstruction,
    context: PrivateContext,
    *,
    schedule: Schedule = ALWAYS,
    top_k: int = TOP_K,
    weight: float | None = None,
) -> None:
    """Every token of a greedy answer is the one that the reference finds likeliest behind those before it."""
    weight = WEIGHTS[strategy] if weight is None else weight
    options = Options(
        max_new_tokens=TOKENS,
        fusion=Fusion(Strategy(strategy), weight),
        rows=RowFormat(top_k, 1.0, "float32"),
        schedule=schedule,
        policy=Policy.OPEN,
        patience=60.0,
    )
    assistant = models.assistant
    answer = assistant.generate(instruction, context, mode="fused", cloud=models.cloud, options=options).finish()
    assert list(answer.fused) == [schedule.asks(position) for position in range(len(answer.token_ids))]
    tokens = list(answer.token_ids)
    if answer.finish_reason == "stop":
        tokens.append(assistant.bundle.manifest.tokenizer.stop_token_ids[0])
    else:
        assert len(tokens) == TOKENS
    prompt = assistant.prompt(instruction, context).token_ids
    bare_prompt = models.tokenizer.apply_chat_template(
        [{"role": "user", "content": instruction.text}], add_generation_prompt=True, return_dict=False
    )
    with torch.inference_mode():
        edge_rows, cloud_rows, bare_rows = (
            TorchSequence(model, ids).rows(tokens)
            for model, ids in (
                (models.torch_edge, prompt),
                (models.torch_cloud, bare_prompt),
                (models.torch_edge, bare_prompt),
            )
        )
        expected = [
            int((reference_row(strategy, weight, edge, cloud, bare, top_k) if schedule.asks(at) else edge).argmax())
            for at, (edge, cloud, bare) in enumerate(zip(edge_rows, cloud_rows, bare_rows, strict=True))
        ]
    assert tokens == expected, strategy


@pytest.mark.parametrize("strategy", WEIGHTS)
@pytest.mark.parametrize("schedule", [ALWAYS, Schedule(5, 2, 3)], ids=["always", "at times"])
def test_every_strategy_and_schedule_writes_what_the_reference_writes(strategy, schedule, small):
    for number, weight in enumerate((0.3, 0.5, 0.8, 1.0)):
        context = PrivateContext(f"Name: Ada {number}", (HistoryItem("A note", "The sea was calm."),))
        instruction = PublicInstruction(f"Write letter {number} to a friend.")
        for top_k in (16, 128):
            check(small, strategy, instruction, context, schedule=schedule, top_k=top_k, weight=weight)


CASES = [
    pytest.param(index, strategy, marks=() if (index, strategy) in FEW else pytest.mark.slow)
    for index in range(5)
    for strategy in WEIGHTS
]


@pytest.mark.slow_on_shared_data
@pytest.mark.parametrize(("index", "strategy"), CASES)
def test_the_real_model_writes_what_the_reference_writes(index, strategy, real, ctx_records):
    check(real, strategy, ctx_records[index].instruction, ctx_records[index].context)
