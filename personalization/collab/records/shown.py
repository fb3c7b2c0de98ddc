"""Names the parts of a record that a model is shown."""

from __future__ import annotations

from enum import StrEnum


class Shown(StrEnum):
    """What a prompt adds to the public instruction: nothing, the private context, or also an outline."""

    WITHOUT = "without"
    WITH = "with"
    SKETCH = "sketch"
