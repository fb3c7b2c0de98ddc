"""`cogenesis cloud serve` and `cogenesis cloud info` as a user runs them: one JSON line, one line an error."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_bridge.client import connect
from edge_runtime.ledger import Ledger
from edge_runtime.privacy import Gate, Policy, PublicInstruction

ROOT = Path(__file__).resolve().parents[2]
SECRET = "Marzipan-Submarine"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cogenesis", "cloud", *map(str, arguments)]


def test_a_server_announces_itself_serves_logs_no_text_and_stops_on_sigterm(tiny_model, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as errors:
        arguments = command("serve", "--model", tiny_model, "--max-top-k", "32", "--threads", "1", "--verbose")
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert set(ready) == {"event", "address", "model", "vocab_size", "context_length", "tls"}
        assert (ready["event"], ready["model"], ready["tls"]) == ("ready", "tiny-cloud", False)
        info = json.loads(subprocess.run(command("info", ready["address"]), capture_output=True, check=True).stdout)
        assert (info["model"], info["max_top_k"]) == ("tiny-cloud", 32)
        gate = Gate(Policy.OPEN, Ledger())
        instruction = PublicInstruction(f"Write about the {SECRET}.")
        with connect(ready["address"]) as client:
            with client.open(gate.open(instruction, **opening_options(info))) as session:
                session.verify(gate.verify(keep=0, tokens=[504], first_row=0, text="")).result(timeout=60)
                with pytest.raises(Exception, match="vocabulary"):
                    session.verify(gate.verify(keep=0, tokens=[987654], first_row=0, text="")).result(timeout=60)
            list(client.answer(gate.answer(instruction, max_new_tokens=3, temperature=0.0, top_p=1.0, seed=0)))
            # An open session does not keep the server from stopping.
            left_open = client.open(gate.open(instruction, **opening_options(info)))
            left_open.verify(gate.verify(keep=0, tokens=[], first_row=0, text="")).result(timeout=60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
            left_open.close()
        assert process.stdout.read() == ""  # the one line was all
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    text = log.read_text()
    assert "serving tiny-cloud" in text and "refused: bad_request" in text and "stopped" in text
    assert SECRET not in text and "504" not in text and "987654" not in text
    assert "Traceback" not in text


def opening_options(info: dict) -> dict:
    return {"tokenizer_fingerprint": info["tokenizer_fingerprint"], "top_k": 4, "value_type": "float32"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--model", "/no/such/model"], "No such model: /no/such/model"),
        (["serve", "--model", "tests"], "no config.json"),
        (["serve", "--model", "MODEL", "--api-keys", "/no/such/keys"], "/no/such/keys"),
        (["serve", "--model", "MODEL", "--tls-cert", "README.md", "--tls-key", "README.md"], "README.md"),
        (["serve", "--model", "MODEL", "--tls-cert", "README.md"], "--tls-key"),
        (["serve", "--model", "MODEL", "--port", "IN USE"], "in use"),
        (["serve", "--model", "MODEL", "--host", "203.0.113.1"], "203.0.113.1"),
        (["info", "127.0.0.1:9"], "127.0.0.1:9"),
        (["info", "nowhere"], "HOST:PORT"),
        (["info", "127.0.0.1:9", "--tls-ca", "/no/such/ca"], "/no/such/ca"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(arguments, says, tiny_model, server):
    stand_ins = {"MODEL": str(tiny_model), "IN USE": server.address.rpartition(":")[2]}
    done = subprocess.run(
        command(*(stand_ins.get(one, one) for one in arguments)), capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode not in (0, 70)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line


def test_without_the_cloud_extra_the_server_says_what_to_install(tiny_model, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    done = subprocess.run(
        command("serve", "--model", tiny_model),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode not in (0, 70)
    (line,) = done.stderr.splitlines()
    assert "torch is missing" in line and "cogenesis-edge[cloud]" in line


def test_a_damaged_model_is_one_line_and_a_code(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    done = subprocess.run(command("serve", "--model", tmp_path), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode not in (0, 70)
    (line,) = done.stderr.splitlines()
    assert "can't be loaded" in line


def test_the_client_and_the_wire_load_nothing_heavy():
    code = "import cloud_bridge.client, cloud_bridge.wire, cloud_bridge.server.commands, sys; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.split())
    assert "cloud_bridge.client" in loaded
    assert not {"torch", "transformers", "tokenizers", "onnxruntime", "onnx", "peft", "optimum", "gguf"} & loaded
