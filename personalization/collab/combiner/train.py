"""Trains combiners on log-prob files, and writes them with a report of how it went."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save

from edge_runtime.bundle.reader import sha256_of
from edge_runtime.files.whole_file import write_whole_file
from edge_runtime.fusion.combiner_file import encode_combiner
from edge_runtime.fusion.fuse import Fusion, Strategy
from personalization.collab.combiner.compact import train_compact
from personalization.collab.combiner.fused_nll import fused_nll
from personalization.collab.combiner.reference import ReferenceCombiner, train_reference
from personalization.collab.combiner.settings import CombinerSettings
from personalization.collab.logprobs.file import LogProbs, joined, read_logprobs
from personalization.errors import DataError, SettingsError
from personalization.files.json_file import read_json

FORMAT = "cogenesis-fuse-train/1"
COMBINER_NAME, REFERENCE_NAME, REPORT_NAME = "combiner.safetensors", "reference.safetensors", "training.json"
_WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))


def train_combiners(
    rows: Sequence[Path],
    dev: Sequence[Path],
    out: Path,
    settings: CombinerSettings,
    *,
    reference: bool = False,
    force: bool = False,
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Train the compact combiner and, if wanted, the reference; what is there already is kept.

    Args:
        rows: log-prob files to learn from.
        dev: of other users.
        out: directory of `combiner.safetensors`, `reference.safetensors` and `training.json`.
        settings: how.
        reference: whether to train the reference, too.
        force: begin anew where other settings or data were used.
        progress: see `export.progress`.

    Returns:
        The report, as `training.json` has it.

    Raises:
        DataError: a file can't be used, files are of different models, or both sides have the same users.
        SettingsError: there are combiners of other settings or data, and `force` is not set.
        WriteError: a file can't be written.
    """
    run = {
        "settings": settings.document(),
        "rows": [sha256_of(_present(path)) for path in rows],
        "dev": [sha256_of(_present(path)) for path in dev],
    }
    report = _earlier(out, run, force=force)
    if report is not None and (not reference or "reference" in report):
        return report
    training, judging = _together(rows), _together([*rows[:1], *dev], without_first=True)
    shared = {one.user for one in training.records} & {one.user for one in judging.records}
    if shared:
        raise DataError(
            f"{len(shared)} users are in the training rows and in the dev rows, such as '{min(shared)}'. Split the "
            "records by user: `cogenesis collab data split`."
        )
    if report is None:
        report = {"format": FORMAT, "run": run, "dev": _single_and_fixed(judging)}
        trained = train_compact(training, judging, settings, progress)
        content = encode_combiner(trained.combiner)
        write_whole_file(out / COMBINER_NAME, content)
        learned = fused_nll(judging, Fusion(Strategy.LEARNED, combiner=trained.combiner))
        report["compact"] = {
            "path": str(out / COMBINER_NAME),
            "size_bytes": len(content),
            "rows": training.size,
            "dev_rows": judging.size,
            "calibrated_nll": trained.calibrated,
            "dev_nll": float(learned.mean()),
            "asked": trained.asked,
            "curves": trained.curves,
            "best_epochs": trained.best,
        }
        _write_report(out, report)
    if reference:
        found = train_reference(training, judging, settings.seed, settings.threads, progress)
        write_whole_file(
            out / REFERENCE_NAME, save({name: value.contiguous() for name, value in found.model.state_dict().items()})
        )
        report["reference"] = {
            "path": str(out / REFERENCE_NAME),
            "size_bytes": found.model.size,
            "dev_nll": found.curve[found.best][1],
            "curve": found.curve,
            "best_epoch": found.best,
        }
        _write_report(out, report)
    return json.loads(json.dumps(report))  # type: ignore[no-any-return]


def read_reference(path: Path, vocab_size: int) -> ReferenceCombiner:
    """Read a trained reference combiner.

    Raises:
        DataError: it can't be read, or is of another vocabulary.
    """
    model = ReferenceCombiner(vocab_size)
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise what they like
        raise DataError(f"The reference combiner can't be read: {path} ({str(error).splitlines()[0]}).") from None
    model.eval()
    return model


def _together(paths: Sequence[Path], *, without_first: bool = False) -> LogProbs:
    """Rows of several files.

    Raises:
        DataError: one can't be used, or is of other models.
    """
    parts = [read_logprobs(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.about != parts[0].about:
            raise DataError(f"The log-probs are of other models, or cut otherwise, than {paths[0]}: {path}.")
    return joined(parts[1:] if without_first else parts)


def _single_and_fixed(rows: LogProbs) -> dict[str, Any]:
    """What is to be beaten: the models alone, and the best of the fixed mixes."""
    mixes = [Fusion(strategy, w) for strategy in (Strategy.GEOMETRIC, Strategy.ARITHMETIC) for w in _WEIGHTS]
    means = [float(fused_nll(rows, mix).mean()) for mix in mixes]
    best = int(np.argmin(means))
    cloud = fused_nll(rows, Fusion(Strategy.GEOMETRIC, 0.0))
    return {
        "edge": float(rows.edge_nll.mean()),
        "cloud": float(np.where(np.isnan(rows.cloud_nll), cloud, rows.cloud_nll).mean()),
        "fixed": means[best],
        "fixed_name": f"{mixes[best].strategy} {mixes[best].weight:g}",
    }


def _earlier(out: Path, run: dict[str, Any], *, force: bool) -> dict[str, Any] | None:
    """The report of an earlier run with the same data and settings, if its combiner is there.

    Raises:
        SettingsError: it was another run, and `force` is not set.
    """
    path = out / REPORT_NAME
    if not path.exists():
        return None
    report = read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise DataError(f"This is no report of `collab fuse-train`: {path}. Choose another --out.")
    if report.get("run") == json.loads(json.dumps(run)):
        return report if (out / COMBINER_NAME).exists() else None
    if not force:
        raise SettingsError(
            f"There is a combiner of other log-probs or settings: {out}. Choose another --out, or pass --force."
        )
    return None


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"There is no file of log-probs: {path}. Make one with `cogenesis collab logprobs`.")
    return path


def _write_report(out: Path, report: dict[str, Any]) -> None:
    write_whole_file(out / REPORT_NAME, (json.dumps(report, indent=2) + "\n").encode())
