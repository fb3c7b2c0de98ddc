"""The models that benchmarks measure, made once and kept: float32 directories and exported bundles."""

from __future__ import annotations

import functools
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.off_grid import write_shuffled
from benchmarks.report import CACHE, progress

if TYPE_CHECKING:
    from export.model.lora_sites import AdapterSites
    from export.quantization.stored_matrices import Quantize


def hf_directory(gguf: Path) -> Path:
    """The GGUF file's model as a float32 directory, made once by transformers."""
    target = CACHE / f"hf-{_digest(gguf.name.encode(), str(gguf.stat().st_size).encode())}"
    if target.exists():
        return target
    progress(f"Reading {gguf.name} with transformers")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    staging = _staging(target)
    AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging)
    # A copy of the GGUF file, under a name that means something else.
    (staging / "tokenizer.model").unlink(missing_ok=True)
    return staging.rename(target)


def shuffled_directory(plain: Path) -> Path:
    """The same function with its channels shuffled: weights off the grid of any quantization; made once."""
    target = CACHE / f"{plain.name}-shuffled"
    if not target.exists():
        progress("Shuffling the model's channels")
        staging = _staging(target)
        write_shuffled(plain, staging)
        staging.rename(target)
    return target


def base_directory(gguf: Path) -> Path:
    """The GGUF file's model as `cogenesis export hf` writes it for training: with that file's identity."""
    from export.hf_directory import write_hf_directory

    target = CACHE / f"base-{_digest(gguf.name.encode(), str(gguf.stat().st_size).encode())}"
    if not target.exists():
        progress(f"Writing {gguf.name} as a float32 directory")
        write_hf_directory(gguf, target)
    return target


def exported_bundle(
    model: Path,
    scheme: Quantize,
    calibration: Path | None = None,
    backend: str = "onnx",
    adapter_sites: AdapterSites = "qkv",
) -> Path:
    """The exported bundle, made again whenever the exporter or the calibration text changes.

    Args:
        model: see `export.onnx.export`.
        scheme: see there, `quantize`.
        calibration: see there.
        backend: "onnx", or "executorch": that alone asks where adapters go.
        adapter_sites: see `export.executorch.export`.
    """
    suffix = "" if backend == "onnx" else f"-{backend}-{adapter_sites}"
    target = CACHE / f"{model.stem}-{scheme}{suffix}-{_exporter_digest(calibration)}"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        progress(f"Exporting {model.name} as {scheme} for {backend}")
        if backend == "onnx":
            from export.onnx.export import export_onnx

            export_onnx(model, target, scheme, calibration=calibration)
        else:
            from export.executorch.export import export_executorch

            export_executorch(model, target, scheme, calibration=calibration, adapter_sites=adapter_sites)
    return target


@functools.cache
def _exporter_digest(calibration: Path | None) -> str:
    exporter = Path(__file__).resolve().parent.parent / "export"
    sources = [file.read_bytes() for file in sorted(exporter.rglob("*.py"))]
    return _digest(*sources, (calibration or exporter / "quantization" / "calibration_text.txt").read_bytes())


def _staging(target: Path) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(target.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    return staging


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:12]
