"""Plots size, quality and speed of all quantizations from the results of decode.py and quality.py.

Example: python benchmarks/decode.py --executorch keep,int8,mixed,int4 --json >decode.json
         python benchmarks/quality.py --records 32 --executorch keep,int8,mixed,int4 --json >quality.json
         python benchmarks/frontier.py decode.json quality.json --out docs/frontier.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

TITLES = {
    "kl": "what is lost: KL to float32 torch, nats a token",
    "prefill_ratio": "prefill, to llama.cpp",
    "decode_ratio": "decoding, to llama.cpp",
}
RUNTIMES = {"ExecuTorch ": ("ExecuTorch", "s", "C1"), "": ("onnxruntime", "o", "C0")}
PEER = "llama.cpp"


def main() -> None:
    """Draw the plot and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decode", type=Path, help="output of decode.py --json")
    parser.add_argument("quality", type=Path, help="output of quality.py --json")
    parser.add_argument("--out", type=Path, required=True, help="the picture; its suffix sets the format")
    arguments = parser.parse_args()
    rows = _joined(_rows(arguments.decode), _rows(arguments.quality))
    _draw(rows, arguments.out)
    print("| weights | MB | dNLL (± 1 s.e.) | KL | same first choice | prefill | decoding |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['weights']} | {row['size_mb']:.1f} | {row['dnll']:+.4f} ± {row['dnll_error']:.4f} "
            f"| {row['kl']:.4f} | {row['top1']:.1%} | {row['prefill_ratio']:.2f} | {row['decode_ratio']:.2f} |"
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return rows


def _joined(speeds: list[dict[str, Any]], qualities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join rows by the name of the weights; of several sources, use the last, which is the least favorable."""
    quality = {row["weights"]: row for row in qualities if row["source"] != "fp32, shuffled"}
    own = {"prefill_ratio": 1.0, "decode_ratio": 1.0}
    return [own | row | quality[row["weights"]] for row in speeds if row["weights"] in quality]


def _draw(rows: list[dict[str, Any]], out: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "frontier"  # the same numbers give the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(TITLES), figsize=(13, 4.2), layout="constrained")
    for axis, (field, title) in zip(axes, TITLES.items(), strict=True):
        for row in rows:
            runtime, marker, color = _look(row["weights"])
            axis.scatter(row["size_mb"], row[field], marker=marker, color=color, label=runtime)
            name = row["weights"].removeprefix("ExecuTorch ")
            axis.annotate(name, (row["size_mb"], row[field]), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axis.set_xlabel("MB")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[0].legend(handles.values(), handles.keys(), fontsize=8)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def _look(weights: str) -> tuple[str, str, str]:
    if weights == PEER:
        return PEER, "^", "C2"
    return next(look for prefix, look in RUNTIMES.items() if weights.startswith(prefix))


if __name__ == "__main__":
    main()
