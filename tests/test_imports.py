"""The dependency rule: the device side stays light, and packages know only those below them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
    on_disk = {path.stem for path in (ROOT / "edge_runtime").glob("*.py")} - {"__init__"}
    assert on_disk <= {name.removeprefix("edge_runtime.") for name in answer["imported"]}
    assert not set(HEAVY) & set(answer["loaded"])


def test_the_import_contracts_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
