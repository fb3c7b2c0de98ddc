"""Training on a real cluster gives the same adapters as training here, byte for byte, even if a worker is killed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from personalization.adapters.settings import AdapterSettings
from personalization.adapters.train_users import train_users
from personalization.adapters.trained_adapter import BaseIdentity
from personalization.adapters.worker import WorkerSpec
from personalization.jobs.run_jobs import run_jobs
from personalization.jobs.runners import LocalRunner, RayRunner
from personalization.users.data import UserFile
from tests.support.doomed_trainer import DoomedTrainer
from tests.support.personal_data import user

USERS = tuple(user(name, items=5) for name in ("ann", "bea", "cid", "dan"))
SETTINGS = AdapterSettings(epochs=2, dropout=0.1, threads=1, seed=7)


def spec(model: Path, out: Path) -> WorkerSpec:
    return WorkerSpec(model, BaseIdentity("0" * 64, "tiny"), out, SETTINGS)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_worker_killed_in_the_middle_of_a_training_costs_only_its_user_and_no_byte(llama, tmp_path, ray_cluster):
    """One run for both, since each worker loads torch."""
    here, there, notes = (tmp_path / name for name in ("here", "there", "notes"))
    there.mkdir(), notes.mkdir()
    outcomes = train_users(UserFile(USERS), spec(llama, here), LocalRunner(), report=lambda *_: None)
    trainer = partial(DoomedTrainer, spec(llama, there), notes, doomed="bea", steps=4)
    with run_jobs(trainer, USERS, RayRunner(workers=2, threads=SETTINGS.threads)) as results:
        trained = {USERS[index].user: result for index, result in results}
    assert {name: result.report for name, result in trained.items()} == {one.user: one.report for one in outcomes}
    tries = {name: (notes / name).read_text().split() for name in trained}
    assert {name: len(processes) for name, processes in tries.items()} == {"ann": 1, "bea": 2, "cid": 1, "dan": 1}
    assert len(set(tries["bea"])) == 2
    assert files(there) == files(here)
    assert len([name for name in files(there) if name.endswith("adapter_model.safetensors")]) == len(USERS)
