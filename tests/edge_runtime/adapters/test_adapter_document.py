"""A second reader of adapter files, written from docs/adapters.md alone: what the page says is enough to use one."""

import hashlib
import json
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from edge_runtime.adapters.adapter import load_adapter
from edge_runtime.adapters.store import directory_name
from edge_runtime.context import HistoryItem, PrivateContext
from export.adapters.writer import encode_adapter
from tests.support.commands import ROOT
from tests.support.tiny_adapters import PLACES, make_adapter

TYPES = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32}


def port(content):
    """What a Kotlin, Swift or C++ runtime would do: metadata, what was learned, and (A, B) by layer and projection."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header["__metadata__"]
    stated = metadata.pop("sha256")
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    assert hashlib.sha256(canonical + data).hexdigest() == stated

    def tensor(name):
        start, end = header[name]["data_offsets"]
        return np.frombuffer(data[start:end], TYPES[header[name]["dtype"]]).reshape(header[name]["shape"])

    def rows(name):
        scaled = tensor(name).astype(np.float32)
        return scaled * tensor(f"{name}.scale")[:, None] if f"{name}.scale" in header else scaled

    matrices = {}
    for projection, ranks in json.loads(metadata["ranks"]).items():
        ends = np.cumsum(ranks)
        for layer, (rank, end) in enumerate(zip(ranks, ends, strict=True)):
            if rank:
                halves = (rows(f"{projection}.{half}")[end - rank : end] for half in ("lora_A", "lora_B"))
                matrices[layer, projection] = tuple(halves)
    learned = json.loads(zlib.decompress(tensor("learned").tobytes())) if "learned" in header else None
    return metadata, learned, matrices


@pytest.mark.parametrize("weights", ["fp16", "int8", "fp32"])
def test_a_port_reads_what_we_do(weights, tmp_path):
    ranks = {place: 1 + number % 5 for number, place in enumerate(PLACES) if number % 3}
    texts = PrivateContext("Name: Ada", (HistoryItem("A note", "The sea was calm."),))
    content = encode_adapter(replace(make_adapter("b" * 64, ranks, user="anna"), learned=texts), weights)
    (tmp_path / "adapter").write_bytes(content)
    ours = load_adapter(tmp_path / "adapter")
    metadata, learned, matrices = port(content)
    assert (metadata["format"], metadata["user"], metadata["base"]) == ("cogenesis-adapter/1", "anna", "b" * 64)
    assert learned == {"profile": "Name: Ada", "history": [{"title": "A note", "text": "The sea was calm."}]}
    assert matrices.keys() == ours.matrices.keys()
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    for place, (a, b) in matrices.items():
        inputs = x[:, : a.shape[1]]
        np.testing.assert_allclose(inputs @ a.T @ b, inputs @ ours.matrices[place][0] @ ours.matrices[place][1])


def test_the_directories_that_the_page_shows_are_those_of_these_users():
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    rows = [line.split() for line in shown.splitlines()]
    assert len(rows) == 3
    for user, directory in rows:
        assert directory_name(user) == directory
