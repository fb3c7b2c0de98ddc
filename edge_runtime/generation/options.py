"""What a caller can choose about one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edge_runtime.errors import RequestError
from edge_runtime.fusion.fuse import Fusion
from edge_runtime.fusion.sparse import THIN, RowFormat
from edge_runtime.generation.sampling import Sampling
from edge_runtime.generation.schedule import LearnedSchedule, Schedule
from edge_runtime.privacy.gate import Policy

LARGEST_WINDOW = 64
LONGEST_PATIENCE = 3600.0


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
        rows: how the cloud cuts and codes its rows; None: as a learned fusion's combiner has learnt them, `THIN` for
            any other.
        window: rows of one round trip; None adapts it to link, device and acceptance. It changes the speed alone, never
            the answer.
        patience: seconds that a token waits for the cloud before the edge goes on alone.
        policy: what may leave the device besides the instruction.
    """

    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    fusion: Fusion = field(default_factory=Fusion)
    schedule: Schedule | LearnedSchedule = field(default_factory=Schedule)
    rows: RowFormat | None = None
    window: int | None = None
    patience: float = 5.0
    policy: Policy = Policy.GUARDED

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RequestError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}.")
        if self.window is not None and not 1 <= self.window <= LARGEST_WINDOW:
            raise RequestError(f"window must be in 1 .. {LARGEST_WINDOW}, not {self.window}.")
        if not 0.0 < self.patience <= LONGEST_PATIENCE:
            raise RequestError(
                f"patience must be above 0 and at most {LONGEST_PATIENCE:g} seconds, not {self.patience}."
            )
        object.__setattr__(self, "policy", Policy.of(self.policy))
        if isinstance(self.stop, str):  # type: ignore[unreachable]  # callers without mypy
            raise RequestError("The stop texts must be several, not one string: write stop=('END',).")
        if any(not text for text in self.stop):
            raise RequestError("A stop text must not be empty.")

    @property
    def row_format(self) -> RowFormat:
        """How the cloud cuts and codes its rows, where `rows` doesn't say, too."""
        combiner = self.fusion.combiner
        return self.rows or (THIN if combiner is None else combiner.rows)
