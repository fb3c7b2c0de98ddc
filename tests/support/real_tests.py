"""Marks the tests that `make test-fast` leaves out as `real`."""

from __future__ import annotations

from pathlib import Path

import pytest

# Tests with whole programs, full disks, clusters, lowered programs, or networks trained until they learned something.
PLACES = (
    "tests/cloud_bridge/client/test_failures.py",
    "tests/edge_runtime/files",
    "tests/end_to_end",
    "tests/cogenesis",
    "tests/export/adapters/test_export.py",
    "tests/export/executorch",
    "tests/personalization/adapters",
    "tests/personalization/retrievers",
)
FIXTURES = {
    "smollm2_gguf",
    "smollm2_hf",
    "bundle_keep",
    "bundle_fp32",
    "bundle_both",
    "cloud_address",
    "minilm",
    "minilm_device",
    "ray_cluster",
}
ROOT = Path(__file__).resolve().parents[2]


def mark(items: list[pytest.Item]) -> None:
    """Mark the tests that use a real model, a cluster or a whole program."""
    for item in items:
        path = item.path.relative_to(ROOT)
        placed = any(path.is_relative_to(place) for place in PLACES)
        if placed or path.name.endswith("_on_ray.py") or FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("real")
