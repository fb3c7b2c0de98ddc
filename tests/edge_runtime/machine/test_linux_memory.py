"""Letting go of a model's file never touches memory that is no longer that file's."""

import ctypes
import gc
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle.manifest import ROLE_WEIGHTS
from edge_runtime.decoders.open import open_decoder
from tests.support.decoder_models import tiny_model

PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE = 3, 0x2 | 0x20 | 0x100000
PROMPT = [5, 9] * 50  # long enough that its pages are let go of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is advised")


def mappings(file):
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return {
        tuple(int(address, 16) for address in line[0].split("-")) for line in lines if line[-1] == str(file.resolve())
    }


def fill(start, end):
    """Take the addresses for memory of ones; gives its words."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    taken = libc.mmap(start, end - start, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_FIXED_NOREPLACE, -1, 0)
    assert taken == start, os.strerror(ctypes.get_errno())
    words = np.frombuffer((ctypes.c_uint8 * (end - start)).from_address(start), np.uint8)
    words[:] = 1
    return words


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tied"), model_type="llama", tie_word_embeddings=True).bundle


@pytest.fixture(scope="module")
def weights(bundle):
    (entry,) = [entry for entry in bundle.decoder_files(bundle.decoder("onnx")) if entry.role == ROLE_WEIGHTS]
    return bundle.path(entry.path)


def resident(file):
    """KiB of the file's pages that count as this process's."""
    smaps = Path("/proc/self/smaps").read_text()
    parts = re.findall(r"^\S+-\S+ \S+ \S+ \S+ \S+ +(.+)\n(?:(?!\S+-).*\n)*?Rss: +(\d+)", smaps, re.MULTILINE)
    return sum(int(size) for name, size in parts if name == str(file.resolve()))


def test_memory_at_the_addresses_of_a_closed_model_of_the_same_file_stays_as_it_is(bundle, weights):
    first = open_decoder(bundle, threads=1)
    of_first = mappings(weights)
    second = open_decoder(bundle, threads=1)
    expected = second.extend(PROMPT)
    del first
    gc.collect()
    freed = of_first - mappings(weights)
    assert freed, "a model's mapping should end with it"
    filled = [fill(start, end) for start, end in freed]
    second.rewind(0)
    np.testing.assert_array_equal(second.extend(PROMPT), expected)
    assert all((words == 1).all() for words in filled)


def test_a_prompt_keeps_no_page_of_the_file(bundle, weights):
    decoder = open_decoder(bundle, threads=1)
    decoder.extend(PROMPT[:2])
    assert resident(weights) > 0
    decoder.extend(PROMPT)
    assert resident(weights) == 0
