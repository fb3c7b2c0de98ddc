"""Settings that a caller can choose for one answer."""

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
    SKETCH: the cloud outlines the public instruction, and the device writes with the private context.
    FUSED: both models' distributions are fused at every step that the schedule selects.
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
        max_new_tokens: maximum tokens of the answer; the prompt leaves that many positions of the context free.
        sampling: how a token is chosen.
        stop: texts that end the answer; the answer does not include them.
        fusion: how the distributions are fused.
        schedule: the steps at which the cloud is asked.
        rows: how the cloud truncates and encodes its rows; None uses the format that a learned fusion's combiner was
            trained on, or `THIN` for any other fusion.
        window: rows per round trip; None adapts it to link, device and acceptance. It changes only the speed, never the
            answer.
        patience: maximum seconds that a token waits for the cloud before the edge goes on alone.
        policy: what the device may send besides the instruction.
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
            raise RequestError(f"`max_new_tokens` must be at least 1, not {self.max_new_tokens}.")
        if self.window is not None and not 1 <= self.window <= LARGEST_WINDOW:
            raise RequestError(f"`window` must be in 1 .. {LARGEST_WINDOW}, not {self.window}.")
        if not 0.0 < self.patience <= LONGEST_PATIENCE:
            raise RequestError(
                f"`patience` must be above 0 and at most {LONGEST_PATIENCE:g} seconds, not {self.patience}."
            )
        object.__setattr__(self, "policy", Policy.of(self.policy))
        if isinstance(self.stop, str):  # type: ignore[unreachable]  # for callers without mypy
            raise RequestError("`stop` must be a tuple of texts, not one text: write stop=('END',).")
        if any(not text for text in self.stop):
            raise RequestError("`stop` must not have an empty text. Leave it out.")

    @property
    def row_format(self) -> RowFormat:
        """How the cloud truncates and encodes its rows; resolves a `rows` of None."""
        combiner = self.fusion.combiner
        return self.rows or (THIN if combiner is None else combiner.rows)
