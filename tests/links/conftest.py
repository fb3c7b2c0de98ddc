"""A server behind the links under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sockets import send_back, serving


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets."""
    with serving(send_back) as server:
        yield server.address
