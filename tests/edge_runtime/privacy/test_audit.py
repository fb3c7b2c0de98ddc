"""The audit: finds what left in the ledger of any policy, joins messages, and says what is damaged."""

from __future__ import annotations

import json

import pytest

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import LedgerError
from edge_runtime.privacy.audit import Match, audit, read_ledger
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.text.token_bytes import TokenBytes
from tests.support.commands import run_cogenesis

CONTEXT = PrivateContext(
    "Name: Ada Lindqvist\nAge: 37\nPrivacy_info: Earns 14,500 a month; lost her job at the old factory last year; "
    "ill since 31 October; rings +49 (171) 555-0123; plays the accordion",
    (HistoryItem("A letter", "We met the neighbours at Skerrow."),),
)
INSTRUCTION = PublicInstruction("Write a letter about keeping apiaries in Norrland.")


@pytest.fixture
def ledger(byte_level_tokenizer):
    return _Written(byte_level_tokenizer)


class _Written(Ledger):
    """A ledger with the messages of a generation; `view` is what its `keep` counts."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.open()

    def open(self):
        content = {"instruction": INSTRUCTION.text, "tokenizer_fingerprint": "37" * 32, "resume": ""}
        self.record("up", "open", 1, content)
        self.view = []

    def verify(self, text, keep=None, split=None):
        keep = len(self.view) if keep is None else keep
        tokens = self.tokenizer.encode(text)[:split]
        self.view = [*self.view[:keep], *tokens]
        content = {"keep": keep, "tokens": tuple(tokens), "rows": (keep,), "text": self.tokenizer.decode(tokens)}
        self.record("up", "verify", 1, content)
        self.record("down", "verify", 1)

    def leaks(self, exact=False):
        token_bytes = TokenBytes(self.tokenizer).__getitem__ if exact else None
        return audit(self.entries, INSTRUCTION, CONTEXT, token_bytes)


@pytest.mark.parametrize(
    ("text", "kind", "surface", "left", "match"),
    [
        ("It is Lindqvist.", "name", "Lindqvist", "Lindqvist", Match.EXACT),
        ("It is LINDQVIST.", "name", "Lindqvist", "LINDQVIST", Match.CASE),
        ("The Lindqvists came.", "name", "Lindqvist", "Lindqvists", Match.INFLECTION),
        ("It is Líndqvist.", "name", "Lindqvist", "Líndqvist", Match.UNICODE),
        ("It is L i n d q v i s t.", "name", "Lindqvist", "L i n d q v i s t", Match.SPELLED_OUT),
        ("mrlindqvistson", "name", "Lindqvist", "lindqvist", Match.JOINED),
        ("adalindqvist", "name", "Lindqvist", "adalindqvist", Match.JOINED),
        ("earns 14500 now", "number", "14,500", "14500", Match.NUMBER_FORM),
        ("aged thirty-seven now", "number", "37", "thirty-seven", Match.NUMBER_FORM),
        ("on October 31st", "date", "31 October", "October 31st", Match.NUMBER_FORM),
        ("call 0171 5550123 now", "phone", "+49 (171) 555-0123", "5550123", Match.NUMBER_FORM),
        ("two accordions", "word", "accordion", "accordions", Match.INFLECTION),
        ("at the OLD factory last year", "sequence", "old factory last year", "OLD factory last year", Match.SEQUENCE),
    ],
)
def test_it_says_what_left_and_how_it_was_recognised(ledger, text, kind, surface, left, match):
    ledger.verify(text)
    assert any(leak.surface == surface and leak.match is match and leak.lines == (2,) for leak in ledger.leaks())


def test_clean_text_and_the_instruction_are_no_leaks(ledger):
    ledger.verify("Dear neighbours of Norrland, thank you for the 12 apiaries; adapt them in January.")
    assert ledger.leaks() == ()


@pytest.mark.parametrize("exact", [False, True])
def test_a_unit_spread_over_messages_is_found(ledger, exact):
    for piece in ("It is Li", "nd", "qv", "ist", ", they say"):
        ledger.verify(piece)
    (leak,) = ledger.leaks(exact)
    assert (leak.left, leak.match) == ("Lindqvist", Match.EXACT)
    assert leak.lines == (8,)


@pytest.mark.parametrize("exact", [False, True])
def test_a_unit_that_was_sent_and_taken_back_has_left(ledger, exact):
    ledger.verify("It is ")
    keep = len(ledger.view)
    ledger.verify("Lindqvist")
    ledger.verify("the house", keep)
    (leak,) = ledger.leaks(exact)
    assert (leak.left, leak.lines) == ("Lindqvist", (4,))


@pytest.mark.parametrize("exact", [False, True])
def test_a_unit_put_together_by_taking_part_of_a_message_back_is_found(ledger, exact):
    ledger.verify("It is ")
    keep = len(ledger.view)
    ledger.verify("Lind for")
    kept = keep + len(ledger.tokenizer.encode("Lind"))
    assert ledger.tokenizer.encode("Lind for")[: kept - keep] == ledger.tokenizer.encode("Lind")
    ledger.verify("qvist and so on", kept)
    assert "Lindqvist" in {leak.surface for leak in ledger.leaks(exact)}


@pytest.mark.parametrize("exact", [False, True])
def test_a_word_that_goes_on_in_the_next_message_is_no_leak(ledger, exact):
    ledger.verify("We must ada")
    ledger.verify("pt now")
    assert ledger.leaks(exact) == ()


def test_views_of_different_generations_are_not_joined(ledger):
    ledger.verify("It is Lind")
    ledger.open()
    ledger.verify("qvist")
    assert ledger.leaks() == ()


def test_it_reads_every_kind_of_message(ledger):
    ledger.record("up", "sketch", 1, {"instruction": "About Lindqvist"})
    assert [(leak.left, leak.lines) for leak in ledger.leaks()] == [("Lindqvist", (2,))]


@pytest.fixture
def files(tmp_path):
    request = {
        "instruction": INSTRUCTION.text,
        "context": {"profile": CONTEXT.profile, "history": [{"title": "A letter", "text": CONTEXT.history[0].text}]},
    }
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    return tmp_path / "ledger.jsonl", tmp_path / "request.json"


def _send(path, tokenizer, text):
    with Ledger(path) as ledger:
        ledger.record("up", "open", 1, {"instruction": INSTRUCTION.text})
        tokens = tokenizer.encode(text)
        ledger.record("up", "verify", 1, {"keep": 0, "tokens": tokens, "rows": [0], "text": text})


def test_the_command_ends_with_8_where_something_left(files, byte_level_tokenizer):
    _send(files[0], byte_level_tokenizer, "Yours, Ada Lindqvist")
    done = run_cogenesis("privacy", "audit", "--ledger", files[0], "--request", files[1])
    assert done.returncode == 8, done.stderr
    assert "Lindqvist" in done.stdout
    done = run_cogenesis("privacy", "audit", "--ledger", files[0], "--request", files[1], "--json")
    assert done.returncode == 8
    body = json.loads(done.stdout)
    assert body["messages_up"] == 2
    assert {"kind": "name", "surface": "Ada", "left": "Ada", "match": "exact", "lines": [2]} in body["leaks"]


def test_the_command_ends_with_0_where_nothing_left(files, byte_level_tokenizer):
    _send(files[0], byte_level_tokenizer, "Yours, the neighbours")
    done = run_cogenesis("privacy", "audit", "--ledger", files[0], "--request", files[1], "--json")
    assert (done.returncode, json.loads(done.stdout)["leaks"]) == (0, [])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "7",
        '{"time": "x"}',
        '{"time": "x", "direction": "up", "kind": "verify", "bytes": 1, "content": {}}',
        '{"time": "x", "direction": "up", "kind": "verify", "bytes": 1, '
        '"content": {"keep": 0, "tokens": ["a"], "text": ""}}',
        '{"time": "x", "direction": "sideways", "kind": "open", "bytes": 1, "content": {}}',
        "\ufeff",
    ],
)
def test_a_damaged_ledger_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "ledger.jsonl"
    good = '{"time": "x", "direction": "up", "kind": "info", "bytes": 1, "content": {}}'
    path.write_text(f"{good}\n{line}\n{good}\n", encoding="utf-8")
    with pytest.raises(LedgerError, match="line 2"):
        read_ledger(path)


def test_a_missing_or_binary_ledger_is_an_error_without_traceback(files, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        done = run_cogenesis("privacy", "audit", "--ledger", path, "--request", files[1])
        assert (done.returncode, done.stderr.count("\n")) == (5, 1)
        assert str(path) in done.stderr
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LedgerError, match="UTF-8"):
        read_ledger(tmp_path / "binary")
    done = run_cogenesis("privacy", "audit", "--ledger", tmp_path / "binary", "--request", tmp_path / "none")
    assert done.returncode == 4
