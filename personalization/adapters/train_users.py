"""Trains many users: skips finished users, continues after a failure, and reports each user's outcome."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edge_runtime.adapters.store import directory_name
from edge_runtime.files.whole_file import whole_file
from personalization.adapters.settings import AdapterSettings
from personalization.adapters.trained_adapter import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    BaseIdentity,
    TrainingReport,
    read_card,
    report_of,
)
from personalization.adapters.worker import AdapterTrainer, TrainedUser, WorkerSpec
from personalization.errors import SettingsError, TrainingError
from personalization.jobs.backlog import JobError
from personalization.jobs.run_jobs import run_jobs
from personalization.jobs.runners import Runner
from personalization.jobs.shard import Shard
from personalization.users.data import UserData, UserFile

FORMAT = "cogenesis-users/1"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome for one user.

    Attributes:
        user: the user's id.
        status: "trained" now, "kept" from an earlier run, or "failed".
        report: report of the training, unless it failed.
        directory: name of the user's directory.
        seconds: duration of the training if it ran now.
        error: why it failed.
    """

    user: str
    status: Literal["trained", "kept", "failed"]
    report: TrainingReport | None = None
    directory: str = ""
    seconds: float | None = None
    error: str = ""

    def document(self) -> dict[str, Any]:
        """Return the outcome as JSON."""
        body: dict[str, Any] = {"user": self.user, "status": self.status}
        if self.report is None:
            return {**body, "error": self.error}
        report = asdict(self.report)
        loss = {name: report.pop(name) for name in ("before", "after", "judged_by")}
        timed = {} if self.seconds is None else {"seconds": round(self.seconds, 2)}
        return {**body, "directory": self.directory, "loss": loss, **report, **timed}


def train_users(
    users: UserFile,
    spec: WorkerSpec,
    runner: Runner,
    *,
    force: bool = False,
    report: Callable[[Outcome, int, int], None],
) -> tuple[Outcome, ...]:
    """Train every user who has no adapter yet for the same base, settings and data.

    Args:
        users: the users' data; unusable entries fail.
        spec: base, settings and output directory.
        runner: where to train.
        force: retrain users whose adapter was made with other settings or on another base.
        report: called with each user's outcome as soon as it is known, the number of finished users, and the number of
            all users.

    Returns:
        Each user's outcome in the order of the file; unusable users come last.

    Raises:
        SettingsError: adapters of another base or with other settings exist, and `force` is not set.
        PersonalizationError: the base or the runner can't be used.
    """
    kept = {data.user: outcome for data in users.users if (outcome := _finished(data, spec, force)) is not None}
    todo = [data for data in users.users if data.user not in kept]
    failed = [Outcome(user.user, "failed", error=user.reason) for user in users.unusable]
    total = len(users.users) + len(failed)
    known: dict[str, Outcome] = {}
    for outcome in (*kept.values(), *failed):
        known[outcome.user] = outcome
        report(outcome, len(known), total)
    for outcome in _trained(todo, spec, runner):
        known[outcome.user] = outcome
        report(outcome, len(known), total)
    return tuple(known[name] for name in users.names)


def users_of(shard: Shard, users: UserFile) -> UserFile:
    """Return a shard's users, both trainable and unusable."""
    return UserFile(tuple(shard.part(users.users)), tuple(shard.part(users.unusable)), users.questions)


def write_summary(path: Path, outcomes: Sequence[Outcome], base: BaseIdentity, settings: AdapterSettings) -> None:
    """Write all outcomes as JSON, atomically.

    Raises:
        WriteError: the file can't be written.
    """
    body = {
        "format": FORMAT,
        "base": asdict(base),
        "settings": settings.document(),
        "users": [outcome.document() for outcome in outcomes],
    }
    with whole_file(path) as file:
        file.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")


def _trained(todo: Sequence[UserData], spec: WorkerSpec, runner: Runner) -> Iterator[Outcome]:
    if not todo:
        return
    with run_jobs(partial(AdapterTrainer, spec), todo, runner) as results:
        for index, result in results:
            user = todo[index].user
            if isinstance(result, JobError):
                yield Outcome(user, "failed", error=_explained(result))
            else:
                yield _outcome(user, result)


def _outcome(user: str, trained: TrainedUser) -> Outcome:
    return Outcome(user, "trained", trained.report, trained.directory.name, trained.seconds)


def _explained(error: JobError) -> str:
    if error.final:  # our own message, complete by itself
        return error.message
    return f"{error.kind}: {error.message} ({error.attempts} attempts)"


def _finished(data: UserData, spec: WorkerSpec, force: bool) -> Outcome | None:
    """Return the outcome of an earlier run if nothing that it depends on has changed.

    Raises:
        SettingsError: base or settings have changed, and `force` is not set.
    """
    directory = spec.out / directory_name(data.user)
    try:
        card = read_card(directory)
        if card is None or card["data_sha256"] != data.digest:
            return None  # the user has written more since
        changed = _changes(card, spec)
        if changed and not force:
            raise SettingsError(
                f"There is an adapter that was trained otherwise: {directory} ({changed}). Set `force` to train it "
                "and others like it again, or choose another `out`."
            )
        complete = all((directory / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME))
        if changed or not complete:
            return None
        return Outcome(data.user, "kept", report_of(card), directory.name)
    except (KeyError, TypeError, TrainingError):  # damaged: train again
        return None


def _changes(card: Mapping[str, Any], spec: WorkerSpec) -> str:
    """Describe how base and settings differ from the recorded ones."""
    if card["base"]["sha256"] != spec.base.sha256:
        return f"base model {card['base']['name']}, now {spec.base.name}"
    # A round trip through JSON, as the recorded settings made.
    now, then = json.loads(json.dumps(spec.settings.document())), card["settings"]
    names = [name for name in (now | then) if now.get(name) != then.get(name)]
    return ", ".join(f"{name} {then.get(name)}, now {now.get(name)}" for name in names)
