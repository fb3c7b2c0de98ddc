"""`cogenesis cloud serve` and `cogenesis cloud info` as a user runs them: one line of JSON, or one line per error."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_bridge import wire
from edge_runtime.privacy.messages import AnswerRequest
from tests.support.commands import ROOT, cogenesis, run_cogenesis
from tests.support.decoder_models import tiny_model as tiny_bundle
from tests.support.raw_stream import RawStream, wait_until
from tests.support.warm_process import WarmProcess

SECRET = "Marzipan-Submarine"


@contextmanager
def serving(*arguments: object, log: Path):
    """A server in a process of its own: (process, what it said when it was ready)."""
    with running(WarmProcess("cloud", "serve", *arguments, log=log)) as started:
        yield started


@contextmanager
def running(process: WarmProcess | subprocess.Popen):
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def cold(*arguments: object, **environment: object) -> subprocess.Popen:
    """`cogenesis cloud` in a new process, which imports its libraries where the environment says."""
    command = [sys.executable, "-m", "cogenesis", "cloud", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


def as_engine(ready: dict) -> SimpleNamespace:
    """What `RawStream.open` needs to know of the engine."""
    return SimpleNamespace(**json.loads(cogenesis("cloud", "info", ready["address"])))


def health(channel: grpc.Channel) -> int:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20).status


def test_a_server_announces_itself_serves_logs_no_text_and_stops_on_sigterm(tiny_model, tmp_path):
    log = tmp_path / "log"
    arguments = ("--model", tiny_model, "--max-top-k", "32", "--threads", "1", "-vv", "--metrics-port", "0")
    with serving(*arguments, log=log) as (process, ready):
        assert set(ready) == {"event", "address", "model", "vocab_size", "context_length", "tls", "metrics"}
        assert (ready["event"], ready["model"], ready["tls"]) == ("ready", "tiny-cloud", False)
        engine = as_engine(ready)
        assert (engine.model, engine.max_top_k) == ("tiny-cloud", 32)
        instruction = f"Write about the {SECRET}."
        with RawStream(ready["address"]).open(engine, instruction) as stream:
            stream.verify(0, [504], [1])
            stream.ask(0, [987654], [0])
            assert stream.refusal()[0] == "bad_request"
        with urllib.request.urlopen(f"http://{ready['metrics']}/metrics", timeout=20) as page:
            assert 'cogenesis_sessions_opened_total{method="Score"} 1.0' in page.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read() == ""  # that line was the only output
    text = log.read_text()
    for event in ("serving", "opened", "verified", "refused", "closed", "draining", "stopped"):
        assert re.search(rf"^\S+Z [A-Z]+ {event}\b", text, re.MULTILINE), event
    assert SECRET not in text and "504" not in text and "987654" not in text
    assert "Traceback" not in text


def test_a_stopping_server_lets_streams_go_on_and_a_second_signal_ends_them(tiny_model, tmp_path):
    log = tmp_path / "log"
    arguments = ("--model", tiny_model, "--threads", "1", "--drain-seconds", "600", "--log-format", "json", "-v")
    with serving(*arguments, log=log) as (process, ready), grpc.insecure_channel(ready["address"]) as channel:
        engine = as_engine(ready)
        with RawStream(ready["address"]).open(engine) as stream:
            stream.verify(0, [5], [1])
            assert health(channel) == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING)
            assert stream.verify(1, [6], [2]).rows
            with RawStream(ready["address"]).open(engine) as late:
                assert late.refusal() == ("stopping", 600.0)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError):
                for n in itertools.count(2):
                    stream.verify(n, [7], [n + 1])
            assert stream.refusal()[0] == "stopping"
        assert process.wait(timeout=30) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert [event for event in events if event in ("draining", "closed", "stopped")] == [
        "draining",
        "closed",
        "stopped",
    ]


def test_the_engine_onnx_serves_a_bundle_without_torch_and_transformers(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundle", quantize="int8", model_type="llama").bundle.root
    poison = tmp_path / "poison"
    poison.mkdir()
    for module in ("torch", "transformers", "optimum", "onnx"):
        (poison / f"{module}.py").write_text("import os\nos._exit(99)")
    arguments = ("--engine", "onnx", "--bundle", bundle, "--threads", "1")
    with running(cold("serve", *arguments, PYTHONPATH=poison)) as (process, ready):
        engine = as_engine(ready)
        with RawStream(ready["address"]).open(engine) as stream:
            assert len(stream.verify(0, [5, 6], [0, 1, 2]).rows) == 3
        with grpc.insecure_channel(ready["address"]) as channel:
            answer = wire.encode_answer_request(AnswerRequest("Write a letter.", 3, 0.0, 1.0, 0))
            assert list(channel.unary_stream(wire.method_path("Answer"))(answer, timeout=60))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--model", "/no/such/model"], "There is no model here: /no/such/model"),
        (["serve", "--model", "tests"], "no config.json"),
        (["serve"], "Give --model"),
        (["serve", "--model", "MODEL", "--bundle", "tests"], "no --bundle"),
        (["serve", "--engine", "onnx", "--model", "MODEL"], "Give --bundle"),
        (["serve", "--engine", "onnx", "--bundle", "tests"], "no manifest.json"),
        (["serve", "--model", "MODEL", "--metrics-port", "IN USE"], "--metrics-port"),
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
    done = run_cogenesis("cloud", *(stand_ins.get(one, one) for one in arguments), timeout=60)
    assert done.returncode not in (0, 70)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line


def test_without_the_cloud_extra_the_server_says_what_to_install(tiny_model, tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    process = cold("serve", "--model", tiny_model, PYTHONPATH=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 70)
    (line,) = errors.splitlines()
    assert "torch is missing" in line and "cogenesis-edge[cloud]" in line


def test_a_damaged_model_is_one_line_and_a_code(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    done = run_cogenesis("cloud", "serve", "--model", tmp_path, timeout=120)
    assert done.returncode not in (0, 70)
    (line,) = done.stderr.splitlines()
    assert "can't be loaded" in line


def test_the_client_and_the_wire_load_nothing_heavy():
    code = "import cloud_bridge.client, cloud_bridge.wire, cogenesis.cloud, sys; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.split())
    assert "cloud_bridge.client" in loaded
    assert not {"torch", "transformers", "tokenizers", "onnxruntime", "onnx", "peft", "optimum", "gguf"} & loaded
