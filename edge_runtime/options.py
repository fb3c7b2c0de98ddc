"""What a caller can choose about one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edge_runtime.errors import RequestError
from edge_runtime.fusion import Fusion
from edge_runtime.privacy import Policy, ValueType
from edge_runtime.sampling import Sampling
from edge_runtime.schedule import Schedule


class Mode(StrEnum):
    """Who writes the answer.

    EDGE: the device alone, with the private context. CLOUD: the cloud alone, from the public instruction.
    SKETCH: the cloud outlines the public instruction, the device writes with the private context.
    FUSED: both models' distributions are fused at every step that the schedule says.
    """

    EDGE = "edge"
    CLOUD = "cloud"
    SKETCH = "sketch"
    FUSED = "fused"

    @property
    def needs_cloud(self) -> bool:
        """Whether a connection is needed."""
        return self is not Mode.EDGE


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one answer.

    Attributes:
        max_new_tokens: limit of the answer; as many positions of the context are kept free for it.
        sampling: how a token is chosen.
        stop: texts that end the answer; they are not part of it.
        fusion: how the distributions are fused.
        schedule: at which steps the cloud is asked.
        top_k: how many log-probabilities a row the cloud sends.
        value_type: how they are coded on the wire: "float32" is exact, "float16" halves the bytes.
        policy: what may leave the device besides the instruction.
    """

    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    fusion: Fusion = field(default_factory=Fusion)
    schedule: Schedule = field(default_factory=Schedule)
    top_k: int = 256
    value_type: ValueType = "float32"
    policy: Policy = Policy.OPEN

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if self.top_k < 1:
            raise RequestError(f"top_k must be at least 1, not {self.top_k}.")
        if any(not text for text in self.stop):
            raise RequestError("A stop text must not be empty.")
