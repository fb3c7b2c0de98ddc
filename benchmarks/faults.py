"""Checks generations over connections that fail in many ways: each must end with the right answer or a typed error.

The right answer is computed without network, drafts or window. Both models read the answer so far, token by token, and
the cloud takes part in exactly the tokens that the result reports as fused.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from benchmarks.links.chaos import Chaos, Fault, Kind
from benchmarks.report import emit
from cloud_bridge.client import connect
from cloud_bridge.server.engines.onnx_engine import load_onnx_engine
from cloud_bridge.wire import decode_verified, encode_verified
from edge_runtime.assistant import load
from edge_runtime.cloud import Verified
from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import CloudError
from edge_runtime.fusion.fuse import Fusion, fuse
from edge_runtime.fusion.known_tokens import KnownTokens
from edge_runtime.fusion.sparse import THIN, RowFormat
from edge_runtime.generation.drafter import PromptedDecoder
from edge_runtime.generation.options import Mode, Options
from edge_runtime.generation.sampling import Sampling, choose
from edge_runtime.generation.schedule import Schedule
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.prompt import build_prompt
from edge_runtime.text.prompt_form import prompt_form_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cloud_bridge.client import CloudClient
    from edge_runtime.answer import AnswerResult
    from edge_runtime.assistant import Assistant
    from edge_runtime.fusion.sparse import SparseLogProbs

CONNECT_SECONDS = 1.0
CALL_SECONDS = 1.0
PATIENCE = 0.15
RESUME_SECONDS = 1
DEADLINE = 20.0
"""Seconds; a token waits at most `PATIENCE`, and a killed server is back within a few seconds."""
INSTRUCTIONS = tuple(map(PublicInstruction, ("Write.", "Write a letter to the town.", "What is a mill? Say it twice.")))
CONTEXT = PrivateContext("Name: Abe Ro\nTown: Ste\nBorn: 1984", (HistoryItem("Note", "Uli saw the old Zed mill."),))
RESTARTS = 0.03
"""Share of generations in which the server is killed, until `CALM`; the last server's metrics cover the rest."""
CALM = 0.6
OPENING = 500
BYTES = {"up": 1200, "down": 2000}
"""A fault strikes within this number of bytes, about as many as a generation sends and receives."""


class WrongAnswerError(Exception):
    """An answer differs from the right one."""


class Server:
    """`cogenesis cloud serve` in its own process, which can be killed and restarted at the same address."""

    def __init__(self, bundle: Path, log: Path) -> None:
        self._bundle = bundle
        self._log = log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._port = "0"
        self.running = threading.Event()
        self.metrics = ""
        self.kills = 0
        self.address = self.start()

    def kill(self) -> None:
        """Kill the server if it runs."""
        with self._lock:
            if self._process is not None:
                self.running.clear()
                self.kills += 1
                self._end(self._process)

    def start(self) -> str:
        """Start the server unless it runs; returns its address."""
        with self._lock:
            if self._process is None:
                options = f"--threads 1 --max-sessions 64 --resume-seconds {RESUME_SECONDS} --metrics-port 0 -v"
                command = [sys.executable, "-m", "cogenesis", "cloud", "serve", "--engine", "onnx"]
                command += ["--bundle", str(self._bundle), "--port", self._port, *options.split()]
                with self._log.open("a") as log:
                    self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
                assert self._process.stdout is not None
                ready = json.loads(self._process.stdout.readline())
                self.address, self.metrics = ready["address"], ready["metrics"]
                self._port = self.address.rpartition(":")[2]
                self.running.set()
            return self.address

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's values, as Prometheus would see it."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        found = [line for line in lines if re.match(rf"cogenesis_{name}(_total)?(\{{|\s)", line)]
        wanted = [line for line in found if all(f'{key}="{value}"' in line for key, value in labels.items())]
        return sum(float(line.rpartition(" ")[2]) for line in wanted)

    def close(self) -> None:
        """Stop the server."""
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                self._end(self._process, kill=False)

    def _end(self, process: subprocess.Popen[str], *, kill: bool = True) -> None:
        if kill:
            process.kill()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()
        self._process = None


class Reference:
    """Writes the right answers: one token after the other, with both models in this process."""

    def __init__(self, assistant: Assistant, cloud_bundle: Path) -> None:
        self._assistant = assistant
        self._edge = assistant.decoder.fork()
        self._engine = load_onnx_engine(str(cloud_bundle), 1)
        self._states: dict[str, Any] = {}
        manifest = assistant.bundle.manifest
        self._template = prompt_form_of(manifest)

    def check(self, instruction: PublicInstruction, options: Options, result: AnswerResult) -> None:
        """Compare an answer with the right one.

        Raises:
            WrongAnswerError: the answer differs.
        """
        expected = list(self._write(instruction, options, result.fused))
        if [token for token, _ in expected[: len(result.token_ids)]] != list(result.token_ids):
            raise WrongAnswerError(f"{result.token_ids} with {result.fused} should be {expected}: {options}.")
        if result.text != self._assistant.tokenizer.decode(result.token_ids):
            raise WrongAnswerError(f"The text is not that of its tokens: {result.text!r}, {result.token_ids}.")
        late = any(fused and not options.schedule.asks(position) for position, fused in enumerate(result.fused))
        stopped = result.finish_reason == "stop" and not set(expected[-1]) & set(self._stops)
        short = result.finish_reason == "length" and len(result.token_ids) != options.max_new_tokens
        if late or stopped or short or result.finish_reason not in ("stop", "length"):
            raise WrongAnswerError(f"It ends with '{result.finish_reason}', or was fused out of turn: {result}.")

    @property
    def _stops(self) -> Sequence[int]:
        return self._assistant.bundle.manifest.tokenizer.stop_token_ids

    def _write(
        self, instruction: PublicInstruction, options: Options, fused: Sequence[bool]
    ) -> Iterator[tuple[int, int]]:
        """Yield the token at each position, and at last the next token: fused, and from the edge alone."""
        room = self._edge.context_length - options.max_new_tokens
        tokenizer = self._assistant.tokenizer
        prompt = build_prompt(tokenizer, self._template, instruction, CONTEXT, None, max_tokens=room)
        edge = PromptedDecoder(self._edge, prompt.token_ids, KnownTokens.of(tokenizer.ids_below(self._edge.vocab_size)))
        conversation = Gate(options.policy, Ledger()).conversation(instruction, CONTEXT, tokenizer)
        answer: list[int] = []
        row = edge.prefill()
        for part in (*fused, None):
            alone = choose(row, len(answer), options.sampling, answer)
            token = alone
            if part or (part is None and conversation.asks):
                cloud = self._row(instruction, conversation.released()[: conversation.row], options.row_format)
                token = choose(fuse(row, cloud, options.fusion, None), len(answer), options.sampling, answer)
            yield token, alone if part is None else token
            if part is not None:
                answer.append(token)
                conversation.push(token)
                row = edge.step(token, len(answer) - 1)

    def _row(self, instruction: PublicInstruction, view: tuple[int, ...], form: RowFormat) -> SparseLogProbs:
        if instruction.text not in self._states:
            self._states[instruction.text] = self._engine.open(instruction.text)
        state = self._states[instruction.text]
        rows = self._engine.score(state, keep=0, tokens=view, rows=(len(view),), form=form)
        sent = encode_verified(0, Verified(tuple(rows)), form)
        return decode_verified(sent, number=0, count=1, vocab_size=self._engine.vocab_size, form=form).rows[0]


@dataclass(slots=True)
class Tally:
    """Counts the outcomes of the generations.

    Attributes:
        answers: right answers.
        errors: typed errors instead of an answer, by kind.
        failures: any other outcomes.
        tokens, fused: tokens and fused tokens of all answers.
        interrupted: answers during which the connection to the cloud failed.
        recovered: interrupted answers that reconnected to the cloud.
        longest: duration of the longest generation in seconds.
        faults: number of faults that struck, by kind.
    """

    answers: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    tokens: int = 0
    fused: int = 0
    interrupted: int = 0
    recovered: int = 0
    longest: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def generations(self) -> int:
        """Number of generations."""
        return self.answers + self.errors.total() + len(self.failures)


class Client:
    """One device, which writes answers over its own faulty connection."""

    def __init__(self, bundle: Path, cloud_bundle: Path, server: Server, seed: int, tally: Tally) -> None:
        self._assistant = load(bundle, threads=1, verify=False)
        self._reference = Reference(self._assistant, cloud_bundle)
        self._server = server
        self._random = random.Random(seed)
        self._tally = tally
        self._chaos = Chaos(server.address, seed=seed, kill=server.kill, restart=server.start)
        self.since: float | None = None

    def run(self, numbers: Iterator[int], generations: int) -> None:
        """Write one answer for each number; `generations` is the total of all clients."""
        with (
            self._chaos,
            connect(self._chaos.address, connect_timeout=CONNECT_SECONDS, call_timeout=CALL_SECONDS) as cloud,
        ):
            for number in numbers:
                # Otherwise all generations that begin while the server is down would end immediately.
                self._server.running.wait(DEADLINE)
                self._chaos.plan(*self._faults(restarts=number < generations * CALM))
                self._generate(number, cloud)
                self._chaos.heal()
        self._tally.faults.update({kind.value: count for kind, count in self._chaos.injected.items()})

    def _faults(self, *, restarts: bool) -> list[Fault]:
        others = [kind for kind in Kind if kind is not Kind.RESTART]
        chosen: list[Kind] = [self._random.choice(others) for _ in range(self._random.choice((0, 1, 1, 1, 2, 3)))]
        chosen += [Kind.RESTART] if restarts and self._random.random() < RESTARTS else []
        drawn = [self._chaos.random_fault(**BYTES, seconds=(0.02, 0.4), kinds=[kind]) for kind in chosen]
        # Half of the faults spare the opening, where a failure ends the generation.
        return [replace(fault, at=fault.at + self._random.choice((0, OPENING))) for fault in drawn]

    def _options(self) -> Options:
        pick = self._random.choice
        return Options(
            max_new_tokens=self._random.randint(16, 32),
            sampling=Sampling(pick((0.0, 0.7, 1.0)), top_p=pick((0.9, 1.0)), seed=self._random.getrandbits(32)),
            fusion=Fusion(weight=pick((0.3, 0.5, 0.8))),
            schedule=pick((Schedule(), Schedule(), Schedule(4, 2, 2))),
            rows=pick((THIN, RowFormat(16, 0.9, "float16"), RowFormat(64))),
            window=pick((None, None, 1, 2, 4, 8)),
            patience=PATIENCE,
            policy=pick((Policy.OPEN, Policy.OPEN, Policy.GUARDED)),
        )

    def _generate(self, number: int, cloud: CloudClient) -> None:
        tally, instruction, options = self._tally, self._random.choice(INSTRUCTIONS), self._options()
        pause = self._random.choice((0.0, 0.02, 0.04))  # time of a real model's next token
        started = self.since = time.monotonic()
        try:
            answer = self._assistant.generate(instruction, CONTEXT, mode=Mode.FUSED, cloud=cloud, options=options)
            for _ in answer:
                time.sleep(pause)
            took = time.monotonic() - started
            result = answer.result
            self._reference.check(instruction, options, result)
        except CloudError as error:
            took = time.monotonic() - started
            tally.errors[type(error).__name__] += 1
        except Exception as error:
            took = time.monotonic() - started
            tally.failures.append(f"generation {number}: {type(error).__name__}: {error}")
        else:
            tally.answers += 1
            tally.tokens += len(result.token_ids)
            tally.fused += sum(result.fused)
            if result.stats.interruptions:
                tally.interrupted += 1
                tally.recovered += not result.cloud_error
        tally.longest = max(tally.longest, took)
        self.since = None
        if took > DEADLINE:
            tally.failures.append(f"generation {number} took {took:.1f} seconds")


def run(
    bundle: Path, cloud_bundle: Path, scratch: Path, *, generations: int, clients: int, seed: int = 0
) -> tuple[Tally, dict[str, float]]:
    """Write answers; returns their outcomes and the server's final metrics."""
    log = scratch / "server.log"
    server = Server(cloud_bundle, log)
    try:
        tallies = [Tally() for _ in range(clients)]
        devices = [Client(bundle, cloud_bundle, server, seed * 1000 + i, tally) for i, tally in enumerate(tallies)]
        _run_all(devices, generations)
        server.start()
        left = _what_is_left(server)
    finally:
        server.close()
    total = _sum(tallies)
    total.failures += [
        line for line in log.read_text().splitlines() if re.search(r"^Traceback|ERROR fault|^\w*Error:", line)
    ]
    return total, left | {"server_kills": server.kills}


def _run_all(devices: list[Client], generations: int) -> None:
    ended: list[Future[None]] = [Future() for _ in devices]
    numbers = iter(range(generations))  # a free client takes the next

    def work(index: int, device: Client) -> None:
        try:
            device.run(numbers, generations)
            ended[index].set_result(None)
        except BaseException as error:
            ended[index].set_exception(error)

    for index, device in enumerate(devices):
        threading.Thread(target=work, args=(index, device), daemon=True).start()
    while not all(future.done() for future in ended):
        time.sleep(0.2)
        for device in devices:
            if device.since is not None and time.monotonic() - device.since > 3 * DEADLINE:
                raise TimeoutError("A generation hangs.")
    for future in ended:
        future.result()


def _what_is_left(server: Server) -> dict[str, float]:
    until = time.monotonic() + RESUME_SECONDS + 10
    while time.monotonic() < until and server.metric("sessions"):
        time.sleep(0.2)
    return {
        "sessions_active": server.metric("sessions", state="active"),
        "sessions_parked": server.metric("sessions", state="parked"),
        "sessions_opened": server.metric("sessions_opened"),
        "sessions_closed": server.metric("sessions_closed"),
        "sessions_resumed": server.metric("sessions_resumed"),
        "cache_bytes": server.metric("cache_bytes"),
    }


def _sum(tallies: list[Tally]) -> Tally:
    return Tally(
        answers=sum(one.answers for one in tallies),
        errors=sum((one.errors for one in tallies), Counter()),
        failures=[failure for one in tallies for failure in one.failures],
        tokens=sum(one.tokens for one in tallies),
        fused=sum(one.fused for one in tallies),
        interrupted=sum(one.interrupted for one in tallies),
        recovered=sum(one.recovered for one in tallies),
        longest=max(one.longest for one in tallies),
        faults=sum((one.faults for one in tallies), Counter()),
    )


def main() -> None:
    """Write the answers and print their outcomes; the exit code is 1 if one of them went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="the device's bundle, from `cogenesis export onnx`")
    parser.add_argument("--cloud-bundle", type=Path, help="the cloud's bundle (default: the device's)")
    parser.add_argument("--generations", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16, help="concurrent clients")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tally, left = run(
            arguments.bundle,
            arguments.cloud_bundle or arguments.bundle,
            Path(scratch),
            generations=arguments.generations,
            clients=arguments.clients,
            seed=arguments.seed,
        )
    headline = {
        "wrong": len(tally.failures),
        "answers": tally.answers,
        "typed_errors": tally.errors.total(),
        "interrupted": tally.interrupted,
        "recovered": tally.recovered,
        "fused_share": tally.fused / max(tally.tokens, 1),
        "longest_s": tally.longest,
        **left,
    }
    counts = [{"what": name, "count": count} for name, count in headline.items()]
    counts += [{"what": f"error {name}", "count": count} for name, count in sorted(tally.errors.items())]
    counts += [{"what": f"fault {name}", "count": count} for name, count in sorted(tally.faults.items())]
    emit(headline, counts, arguments.json, title="Generations over failing connections", notes=tally.failures)
    sys.exit(bool(tally.failures))


if __name__ == "__main__":
    main()
