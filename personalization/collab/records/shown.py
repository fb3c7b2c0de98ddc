"""What of a record a model is shown."""

from __future__ import annotations

from enum import StrEnum


class Shown(StrEnum):
    """What a prompt holds besides the public instruction: nothing, the private context, or an outline as well."""

    WITHOUT = "without"
    WITH = "with"
    SKETCH = "sketch"
