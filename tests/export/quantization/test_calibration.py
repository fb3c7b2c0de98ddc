"""Calibration: Hessians against transformers' hooks, sequential replacement, sensitivities against measured loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.errors import SourceError, UnsupportedQuantizationError
from export.model.hf_source import HFSource
from export.model.quantized_matrix import QuantizedMatrix
from export.progress import silent
from export.quantization.calibration import SITES, Site, calibrate, calibration_windows, read_calibration_text
from export.quantization.quantize import quantize
from export.quantization.schemes import EIGHT_BIT_SHARE, quantize_model
from export.quantization.sensitivity import most_sensitive, site_sensitivities
from export.quantization.stored_matrices import stored_matrices
from tests.support.tiny_models import VOCABULARY, make_tokenizer

WINDOWS = np.random.default_rng(0).integers(0, VOCABULARY, (6, 48))


@pytest.mark.parametrize("family", ["llama-untied-biases", "qwen2", "qwen3", "mistral", "gemma"])
def test_hessians_are_the_second_moments_that_transformers_sees(family_model, family):
    directory = family_model(family)
    seen: dict[str, torch.Tensor] = {}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_hook(lambda _m, args, _o, name=name: seen.update({name: args[0].flatten(0, 1)}))
    with torch.no_grad():
        model(torch.from_numpy(WINDOWS))

    sites: list[Site] = []

    def keep(site: Site) -> dict[str, np.ndarray]:
        sites.append(site)
        return {}

    calibrate(HFSource(directory), WINDOWS, keep)
    assert [(site.layer, site.index) for site in sites] == [(layer, i) for layer in range(2) for i in range(len(SITES))]
    for site in sites:
        for name in site.names:
            x = seen[name.removesuffix(".weight")].numpy()
            expected = x.T @ x / len(x)
            np.testing.assert_allclose(site.hessian, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_later_sites_see_what_replaced_weights_produce(family_model):
    directory = family_model("llama-tied")
    hessians = []
    for factor in (1.0, 0.5):
        found: list[np.ndarray] = []

        def shrink(site: Site, factor: float = factor, found: list[np.ndarray] = found) -> dict[str, np.ndarray]:
            found.append(site.hessian)
            return {n: w * np.float32(factor) for n, w in site.weights.items() if n.endswith("v_proj.weight")}

        calibrate(HFSource(directory), WINDOWS, shrink)
        hessians.append(found)
    np.testing.assert_allclose(hessians[0][0], hessians[1][0])  # nothing comes before the first site
    # With values halved, the input of o_proj is halved too, and its second moment is a quarter.
    np.testing.assert_allclose(hessians[1][1], hessians[0][1] / 4, rtol=1e-3, atol=1e-5)
    assert not np.allclose(hessians[1][2], hessians[0][2])


def test_sensitivities_predict_the_loss_that_rounding_a_site_causes(family_model):
    directory = family_model("llama-tied")
    costs = site_sensitivities(HFSource(directory), WINDOWS)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def predictions() -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(torch.from_numpy(WINDOWS)).logits, -1)

    before = predictions()
    predicted, measured = [], []
    for (layer, index), cost in costs.items():
        weights = [model.model.layers[layer].get_submodule(name).weight for name in SITES[index]]
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight in weights:
                weight.copy_(torch.from_numpy(quantize(weight.numpy(), 4, "affine").dequantize()))
            after = predictions()
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)
        measured.append(float((before.exp() * (before - after)).sum(-1).mean()))
        predicted.append(cost)
    assert len(costs) == 2 * len(SITES)
    # One sampled token per position makes each estimate noisy; their sum is not.
    assert 0.5 < sum(predicted) / sum(measured) < 2


def test_the_most_sensitive_sites_fill_the_share_and_no_more():
    costs = {(0, 0): 9.0, (0, 1): 1.0, (1, 0): 5.0, (1, 1): 0.5}
    sizes = dict.fromkeys(costs, 10)
    assert most_sensitive(costs, sizes, 0.5) == {(0, 0), (1, 0)}
    assert most_sensitive(costs, sizes, 0.0) == frozenset()
    assert most_sensitive(costs, sizes, 1.0) == set(costs)
    # The gain per weight counts: a site ten times as large must gain ten times as much.
    assert most_sensitive({(0, 0): 9.0, (0, 1): 5.0}, {(0, 0): 100, (0, 1): 10}, 0.1) == {(0, 1)}


def test_8_bits_are_the_nearest_of_each_block(family_model):
    source = HFSource(family_model("llama-untied-biases"))
    matrix, quantization = stored_matrices(source, "int8", None, silent)
    assert quantization.scheme == "int8"
    for name in (name for name in source.names() if source.read(name).ndim == 2):
        weights, stored = source.read(name), matrix(name)
        assert isinstance(stored, QuantizedMatrix)
        assert (stored.bits, stored.zeros, stored.residual) == (8, None, None)
        blocks = weights.reshape(-1, 32)
        off = stored.dequantize().reshape(-1, 32) - blocks
        # GGUF's Q8_0: a scale of the largest weight over 127, in float16.
        scales = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
        off_in_gguf = scales * np.rint(blocks / scales).clip(-127, 127) - blocks
        assert ((off**2).sum(1) <= (off_in_gguf**2).sum(1) * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("scheme", ["mixed", "int4"])
def test_every_matrix_is_quantized_and_packed_neighbours_share_their_bits(family_model, tmp_path, scheme):
    source = HFSource(family_model("llama-untied-biases"))
    text = tmp_path / "text.txt"
    text.write_text("A few words to calibrate on, again and again. " * 40, encoding="utf-8")
    steps: list[tuple[str, int, int]] = []
    matrices = quantize_model(source, scheme, text, lambda *step: steps.append(step))
    expected = {name for name in source.names() if source.read(name).ndim == 2}
    assert matrices.keys() == expected
    for name, matrix in matrices.items():
        weights = source.read(name)
        assert matrix.shape == weights.shape
        error = np.sqrt(((matrix.dequantize() - weights) ** 2).mean() / (weights**2).mean())
        assert error < (0.01 if matrix.bits == 8 else 0.2)
        assert (matrix.residual is None) == (matrix.bits == 8)
    for layer in range(2):
        for names in SITES:
            assert len({matrices[f"model.layers.{layer}.{name}.weight"].bits for name in names}) == 1
    body = [m for name, m in matrices.items() if ".layers." in name]
    eight = sum(m.codes.size for m in body if m.bits == 8) / sum(m.codes.size for m in body)
    assert eight <= EIGHT_BIT_SHARE[scheme]
    assert all(done <= total for _, done, total in steps)
    assert steps[-1][1] == steps[-1][2]


def test_widths_that_blocks_do_not_divide_are_refused(tmp_path):
    from tests.support.tiny_models import make_model

    source = HFSource(make_model(tmp_path / "odd", model_type="llama", intermediate_size=80))
    with pytest.raises(UnsupportedQuantizationError, match="intermediate size is 80"):
        quantize_model(source, "mixed")
    with pytest.raises(UnsupportedQuantizationError, match="intermediate size is 80"):
        stored_matrices(source, "int8", None, silent)


def test_windows_have_one_length_and_start_with_the_marker():
    encode: Callable[[str], list[int]] = lambda text: [ord(character) for character in text]  # noqa: E731
    windows = calibration_windows(encode, ["abcdef", "ghij"], start=1, window=4)
    assert windows.tolist() == [[1, 97, 98, 99], [1, 100, 101, 102], [1, 103, 104, 105]]
    assert calibration_windows(encode, ["abc"], window=8).tolist() == [[97, 98, 99]]
    assert calibration_windows(encode, ["abcdefgh"], window=2, max_tokens=5).shape == (2, 2)
    with pytest.raises(SourceError, match="no tokens"):
        calibration_windows(encode, [""])


def test_the_shipped_text_is_long_enough_and_diverse():
    documents = read_calibration_text(None)
    assert len(documents) >= 40
    assert sum(map(len, documents)) >= 40_000
    assert len(set(documents)) == len(documents)
    tokenizer = make_tokenizer()
    assert all(len(tokenizer(document)["input_ids"]) > 20 for document in documents)


def test_plain_text_and_json_lines_are_read(tmp_path: Path):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("Good morning.\n", encoding="utf-8")
    lines.write_text('{"text": "one"}\n\n{"text": "two", "id": 3}\n', encoding="utf-8")
    assert read_calibration_text(plain) == ["Good morning."]
    assert read_calibration_text(lines) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', "line 2"),
        ("a.jsonl", b"not json\n", "line 1"),
        ("a.jsonl", json.dumps({"text": 5}).encode(), "line 1"),
    ],
)
def test_calibration_text_that_cannot_be_used_is_refused_by_name(tmp_path: Path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=says) as error:
        read_calibration_text(path)
    assert str(path) in str(error.value)


def test_a_missing_calibration_file_is_refused_by_name(tmp_path: Path):
    with pytest.raises(SourceError, match="can't be read"):
        read_calibration_text(tmp_path / "none.txt")
