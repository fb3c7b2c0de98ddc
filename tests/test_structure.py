"""The structure: the device side stays light, imports run one way, no file imports itself in a circle."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.commands import ROOT

PACKAGES = ("cogenesis", "edge_runtime", "cloud_bridge", "export", "personalization")
LIBRARIES = PACKAGES[1:]
MOST_FILES = 20
HEAVY = ("torch", "transformers", "optimum", "peft", "onnx", "gguf", "accelerate", "scipy", "pandas")
DEVICE_SIDE = ("edge_runtime", "cloud_bridge.client", "cloud_bridge.wire", "cogenesis.cli")

IMPORT_ALL = """
import importlib, json, pkgutil, sys
imported = []
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    imported.append(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
        imported.append(found.name)
print(json.dumps({"imported": imported, "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def test_the_device_side_loads_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *DEVICE_SIDE], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {name for name in modules() if name.startswith("edge_runtime")} <= set(answer["imported"])
    assert not set(HEAVY) & set(answer["loaded"])


def test_the_import_contracts_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def modules() -> dict[str, Path]:
    """The packages' files by dotted name."""
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file names in an import, wherever it stands in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            submodules = {f"{module}.{name.name}" for name in node.names}
            found |= submodules & known.keys() or {module}
    return found & known.keys()


def test_no_files_import_each_other_in_a_circle():
    known = modules()
    assert len(known) > 300
    try:
        TopologicalSorter({name: imported(path, known) - {name} for name, path in known.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"A circle of imports: {' -> '.join(error.args[1])}")


def test_no_folder_of_a_package_holds_more_files_than_one_can_survey():
    crowded = {str(folder): n for folder, n in Counter(path.parent for path in modules().values()).items()}
    assert {folder: n for folder, n in crowded.items() if n > MOST_FILES} == {}


def test_only_the_command_line_prints_and_reads_flags():
    at_fault = [
        name
        for name, path in modules().items()
        if name.partition(".")[0] in LIBRARIES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for top in _tops(node)
        if top in ("typer", "rich", "click", "cogenesis")
    ]
    assert at_fault == []


def _tops(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {name.name.partition(".")[0] for name in node.names}
    return {(node.module or "").partition(".")[0]} if isinstance(node, ast.ImportFrom) else set()
