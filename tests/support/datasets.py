"""Defines the data sets that tests read: our own, which every clone has, and the authors', stored beside the project.

A test that uses the fixture `dataset`, or a fixture built from it, runs on both. Its case on the authors' data has the
marker `shared_data`; it is skipped if the data are missing, and named at the end of the run. A test with the marker
`slow_on_shared_data` is slow, so its case on the authors' data runs only in `make test-slow`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.records import SHARED_DATA


@dataclass(frozen=True, slots=True)
class Dataset:
    """Files in the formats of both systems.

    Attributes:
        root: directory with `cogenesis/` and `lamp/LaMP_5/`.
        tasks: number of writing tasks.
        paper_users: number of authors of the papers in `paper_dev.json`.
        questions: number of LaMP questions.
    """

    root: Path
    tasks: int
    paper_users: int
    questions: int

    @property
    def cogenesis(self) -> Path:
        """The directory of CoGenesis' files."""
        return self.root / "cogenesis"

    @property
    def lamp_5(self) -> Path:
        """The directory of LaMP-5's files."""
        return self.root / "lamp" / "LaMP_5"

    def read(self, name: str) -> Any:
        """Return the content of one of its JSON files."""
        return json.loads((self.root / name).read_text(encoding="utf-8"))


OWN = Dataset(Path(__file__).resolve().parents[1] / "data", tasks=50, paper_users=12, questions=48)
SHARED = Dataset(SHARED_DATA, tasks=150, paper_users=158, questions=161)


def left_out(node_ids: Iterable[str], missing: Path) -> str:
    """Return one line that names the tests skipped because data are missing; "" if there are none."""
    cases = Counter(node_id.rpartition("::")[2].partition("[")[0] for node_id in node_ids)
    if not cases:
        return ""
    names = ", ".join(name if count == 1 else f"{name} ({count} cases)" for name, count in sorted(cases.items()))
    return f"Left out, because {missing} is missing: {names}"
