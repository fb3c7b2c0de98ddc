"""The wheel in an empty environment: what a device gets, what the command line adds, and that both write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.commands import ROOT

# What README.md says a device needs, and what the wire, prompt caches and the search in a long history need.
NEEDED = {"grpcio", "jinja2", "numpy", "onnxruntime", "protobuf", "safetensors", "tokenizers"}
TOO_MUCH = {"typer", "rich", "torch", "transformers", "optimum", "peft", "onnx", "gguf", "ray", "scipy", "pandas"}

PACKAGES = """
import json
from importlib.metadata import distributions, requires
print(json.dumps([sorted(found.name for found in distributions()), requires("cogenesis-edge")]))
"""
PROGRAM = """
import json, sys
import edge_runtime
from cloud_bridge.client import connect
from edge_runtime import HistoryItem, Options, PrivateContext, PublicInstruction
context = PrivateContext("Name: Ada", (HistoryItem("A note", "The sea was calm."),))
assistant = edge_runtime.load(sys.argv[1], threads=1)
answer = assistant.generate(PublicInstruction("Write a toast."), context, options=Options(8))
print(json.dumps({"text": "".join(answer), "from": edge_runtime.__file__}))
"""


class Environment:
    """An environment of its own, without pip: the tests' pip installs into it."""

    def __init__(self, root: Path) -> None:
        venv.create(root, symlinks=True)
        self.root, self.python = root, root / "bin" / "python"

    def install(self, what: str) -> None:
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", self.python, "install", "--no-compile"]
        run([*pip, "--constraint", ROOT / "constraints.txt", what], ROOT)

    def packages(self) -> tuple[set[str], list[str]]:
        """What is installed, and what our package requires."""
        names, requirements = json.loads(run([self.python, "-I", "-c", PACKAGES], self.root))
        return {name.lower().replace("_", "-") for name in names}, requirements

    def program(self, *arguments: object) -> dict[str, str]:
        return json.loads(run([self.python, "-I", "-c", PROGRAM, *arguments], self.root))

    def cogenesis(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.root / "bin" / "cogenesis"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.root, check=False)


def run(command: list[object], folder: Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", folder, ROOT], ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_a_device_gets_what_it_needs_and_the_command_line_comes_with_its_extra(wheel, bundle_keep, tmp_path):
    environment = Environment(tmp_path / "environment")
    environment.install(str(wheel))
    installed, requirements = environment.packages()
    own = {re.match(r"[\w-]+", one).group() for one in requirements if "extra ==" not in one}
    assert own == NEEDED
    assert installed >= NEEDED
    assert not installed & TOO_MUCH

    written = environment.program(bundle_keep)
    assert written["text"]
    assert Path(written["from"]).is_relative_to(environment.root)

    refused = environment.cogenesis("--help")
    assert (refused.returncode, refused.stdout) == (10, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: ") and "pip install 'cogenesis-edge[cli]'" in line

    environment.install(f"cogenesis-edge[cli] @ {wheel.as_uri()}")
    request = tmp_path / "request.json"
    context = {"profile": "Name: Ada", "history": [{"title": "A note", "text": "The sea was calm."}]}
    request.write_text(json.dumps({"instruction": "Write a toast.", "context": context}))
    options = ("--threads", 1, "--max-new-tokens", 8, "--json")
    said = environment.cogenesis("generate", "--bundle", bundle_keep, "--request", request, *options)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["text"] == written["text"]
    assert not environment.packages()[0] & (TOO_MUCH - {"typer", "rich"})
