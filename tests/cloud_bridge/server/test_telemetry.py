"""What the operator sees: metrics that add up, a health that flips, and logs without a word of what users write."""

import io
import json
import logging
import re
import urllib.request
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud_bridge.server.errors import ServeError
from cloud_bridge.server.log_format import JsonFormatter, TextFormatter
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.fusion.sparse import RowFormat
from tests.support.raw_stream import RawStream, wait_until

MARKER = "Marzipan-Submarine"
KEY = "key-that-must-not-show"


def scrape(server) -> dict[str, float]:
    """Every sample of the metrics page, as `name{label="value"}`."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=20) as page:
        text = page.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


@pytest.fixture(scope="module")
def watched(engine):
    with serving(engine, ServerOptions(metrics_port=0, max_sessions=2, idle_seconds=600)) as server:
        yield server


def test_metrics_add_up(watched, engine):
    before = scrape(watched)
    with RawStream(watched.address).open(engine) as stream, RawStream(watched.address).open(engine) as other:
        other.await_opened()
        for n in range(3):
            stream.verify(n, [5, 6], [n, n + 1, n + 2])
        during = scrape(watched)
        with RawStream(watched.address).open(engine) as third:
            assert third.refusal()[0] == "overloaded"
        other.vanish()
        wait_until(lambda: watched.sessions.parked == 1)
        parked = scrape(watched)
        id_ = stream.opened.session_id

    def rise(name: str, after: dict[str, float]) -> float:
        return after[name] - before.get(name, 0.0)

    assert during['cogenesis_sessions{state="active"}'] == 2
    assert (parked['cogenesis_sessions{state="active"}'], parked['cogenesis_sessions{state="parked"}']) == (1, 1)
    assert during["cogenesis_cache_bytes"] > 0
    assert rise('cogenesis_sessions_opened_total{method="Score"}', during) == 2
    assert rise("cogenesis_rows_total", during) == 9
    assert rise("cogenesis_tokens_total", during) == 6
    assert rise('cogenesis_verify_seconds_count{part="compute"}', during) == 3
    assert rise('cogenesis_verify_seconds_count{part="queue"}', during) == 3
    assert rise('cogenesis_bytes_total{direction="in"}', during) > 3 * 4
    assert rise('cogenesis_bytes_total{direction="out"}', during) > 9 * 8 * 4
    assert rise('cogenesis_refusals_total{reason="overloaded"}', parked) == 1
    after = scrape(watched)
    opened = sum(value for name, value in after.items() if name.startswith("cogenesis_sessions_opened_total"))
    closed = sum(value for name, value in after.items() if name.startswith("cogenesis_sessions_closed_total"))
    assert opened - closed == after['cogenesis_sessions{state="active"}'] + after['cogenesis_sessions{state="parked"}']
    assert id_ not in str(after) and id_[:8] not in str(after)


def test_a_metrics_port_in_use_is_refused(watched, engine):
    port = int(watched.metrics_address.rpartition(":")[2])
    with pytest.raises(ServeError, match="--metrics-port"), serving(engine, ServerOptions(metrics_port=port)):
        pass


@contextmanager
def logged(formatter: logging.Formatter):
    """Everything that loggers write meanwhile, ours at every level."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    # Not gRPC's at DEBUG: it logs a server in the server's own destructor, which no handler may keep.
    root, ours = logging.getLogger(), logging.getLogger("cloud_bridge")
    levels = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=["text", "json"])
def test_logs_tell_what_happens_and_nothing_of_what_users_write(formatter, engine, tmp_path, monkeypatch):
    keys = tmp_path / "keys"
    keys.write_text(f"phone:{KEY}\n")
    options = ServerOptions(api_keys=keys, max_sessions=1, idle_seconds=600, drain_seconds=0)
    with logged(formatter) as log, serving(engine, options) as server:
        tokens = engine._tokenizer.encode(MARKER).ids
        with RawStream(server.address, key=KEY).open(engine, f"Write about the {MARKER}.") as stream:
            id_ = stream.await_opened().session_id
            stream.verify(0, tokens, [len(tokens)])
            with RawStream(server.address, key=KEY).open(engine, MARKER) as second:
                assert second.refusal()[0] == "overloaded"
            with RawStream(server.address, key=f"{KEY}-wrong").open(engine, MARKER) as thief:
                assert thief.refusal()[0] == "api_key"
            stream.vanish()
        wait_until(lambda: server.sessions.parked == 1)
        with RawStream(server.address, key=KEY).open(
            engine, f"Write about the {MARKER}.", resume=id_, form=RowFormat(4)
        ) as again:
            assert again.await_opened().resumed
            monkeypatch.setattr(engine, "score", lambda *_, **__: 1 / len("") if tokens else MARKER)
            again.ask(0, tokens, [0])
            assert again.refusal()[0] == "internal"
    text = log.getvalue()
    for secret in (MARKER, "Marzipan", "Submarine", KEY, id_, id_[:8], ", ".join(map(str, tokens))):
        assert secret not in text
    events = (
        [json.loads(line)["event"] for line in text.splitlines()]
        if "{" in text
        else re.findall(r"^\S+ [A-Z]+ (\w+)", text, re.MULTILINE)
    )
    expected = "serving opened verified refused refused parked resumed closed fault refused stopped"
    assert " ".join(event for event in events if event in expected.split()) == expected
    assert "phone" in text and "ZeroDivisionError" in text and "Traceback" not in text


def test_words_of_libraries_and_of_exceptions_are_withheld():
    with logged(JsonFormatter()) as log:
        try:
            raise ValueError(MARKER)
        except ValueError:
            logging.getLogger("asyncio").exception("Task failed: %r", MARKER)
    (line,) = log.getvalue().splitlines()
    assert MARKER not in line and json.loads(line)["error"] == "ValueError"
