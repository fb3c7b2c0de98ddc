"""The privacy boundary: private text has no way to the wire, and nothing leaves without a ledger entry."""

import json
import stat

import pytest

from edge_runtime.context import HistoryItem, PrivateContext, PublicInstruction
from edge_runtime.errors import LedgerError, PolicyError, RequestError
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.generation.options import Options
from edge_runtime.privacy.cloud_view import OpenView
from edge_runtime.privacy.gate import Conversation, Gate, Policy, Released
from edge_runtime.privacy.ledger import Ledger
from edge_runtime.privacy.messages import InfoRequest, OpenRequest

SECRET = "Ada Lindqvist, allergic to penicillin"
CONTEXT = PrivateContext(SECRET, (HistoryItem("A diary", "I met Oskar in Gothenburg."),))


def encode(message) -> bytes:
    return repr(message).encode()


def test_private_context_is_no_instruction():
    gate = Gate(Policy.OPEN, Ledger())
    for private in (CONTEXT, SECRET, CONTEXT.history[0]):
        with pytest.raises(TypeError, match="PublicInstruction"):
            gate.sketch(private)
        with pytest.raises(TypeError, match="PublicInstruction"):
            gate.answer(private, max_new_tokens=1, temperature=0.0, top_p=1.0, seed=0)
        with pytest.raises(TypeError, match="PublicInstruction"):
            gate.open(private, tokenizer_fingerprint="", rows=RowFormat())


def test_a_subclass_of_the_public_type_does_not_pass():
    class Smuggler(PublicInstruction):
        pass

    with pytest.raises(TypeError):
        Gate(Policy.OPEN, Ledger()).sketch(Smuggler("hello"))


def test_only_the_gate_releases_messages():
    with pytest.raises(TypeError, match="Gate"):
        Released(OpenRequest(SECRET, "", RowFormat()), Ledger(), object())


def test_only_the_gate_starts_a_conversation(byte_level_tokenizer):
    with pytest.raises(TypeError, match="Gate"):
        Conversation(OpenView(), byte_level_tokenizer, Ledger(), object())


def test_a_released_message_shows_its_content_only_as_it_leaves():
    ledger = Ledger()
    released = Gate(Policy.OPEN, ledger).sketch(PublicInstruction("Write a toast."))
    assert "toast" not in repr(released)
    assert not hasattr(released, "__dict__")
    assert ledger.entries == ()
    payload = released.leave(encode)
    (entry,) = ledger.entries
    assert (entry.direction, entry.kind, entry.bytes) == ("up", "sketch", len(payload))
    assert entry.content == {"instruction": "Write a toast."}


def test_every_sending_is_an_entry_of_its_own_and_so_is_every_reply():
    ledger = Ledger()
    released = Gate(Policy.OPEN, ledger).info()
    released.leave(encode)
    released.leave(encode)
    released.arrived(17)
    assert [(entry.direction, entry.bytes) for entry in ledger.entries][-1] == ("down", 17)
    assert [entry.direction for entry in ledger.entries] == ["up", "up", "down"]
    assert ledger.bytes_moved("up") == 2 * len(encode(InfoRequest()))


def converse(policy, text, tokenizer, instruction="Write a letter.") -> list[str]:
    """Write `text` token by token, asking for a row wherever the policy allows it; what left, as text."""
    ledger = Ledger()
    conversation = Gate(policy, ledger).conversation(PublicInstruction(instruction), CONTEXT, tokenizer)
    for token in tokenizer.encode(text):
        conversation.push(token)
        if conversation.asks:
            conversation.verify(keep=0, end=conversation.row, rows=(conversation.row,)).leave(encode)
    return [entry.content["text"] for entry in ledger.entries]


def test_tokens_that_leave_are_in_the_ledger_with_their_text(byte_level_tokenizer):
    ledger = Ledger()
    conversation = Gate(Policy.OPEN, ledger).conversation(PublicInstruction("x"), CONTEXT, byte_level_tokenizer)
    tokens = tuple(byte_level_tokenizer.encode("Dear Oskar"))
    for token in tokens:
        conversation.push(token)
    last = len(tokens)
    conversation.verify(keep=1, end=last, rows=(last,)).leave(encode)
    text = byte_level_tokenizer.decode(tokens[1:])
    assert ledger.entries[0].content == {"keep": 1, "tokens": tokens[1:], "rows": (last,), "text": text}


def test_under_open_the_answer_leaves_as_it_is(byte_level_tokenizer):
    assert converse(Policy.OPEN, "Dear Oskar Lindqvist", byte_level_tokenizer)[-1] == "Dear Oskar Lindqvist"


def test_under_guarded_private_words_stay_at_home(byte_level_tokenizer):
    left = converse(
        Policy.GUARDED, "Dear friends, Oskar Lindqvist of Gothenburg sends you greetings.", byte_level_tokenizer
    )
    assert left[-1].startswith("Dear friends, ")
    assert "sends you" in left[-1]
    for name in ("Oskar", "Lindqvist", "Gothenburg"):
        assert all(name not in text for text in left)


def test_under_guarded_an_instruction_that_is_no_public_type_is_refused(byte_level_tokenizer):
    with pytest.raises(TypeError, match="PublicInstruction"):
        Gate(Policy.GUARDED, Ledger()).conversation(CONTEXT, CONTEXT, byte_level_tokenizer)


def test_the_policy_sketch_lets_no_token_leave(byte_level_tokenizer):
    ledger = Ledger()
    gate = Gate(Policy.SKETCH, ledger)
    with pytest.raises(PolicyError, match="--mode sketch"):
        gate.open(PublicInstruction("x"), tokenizer_fingerprint="", rows=RowFormat())
    with pytest.raises(PolicyError):
        gate.conversation(PublicInstruction("x"), CONTEXT, byte_level_tokenizer)
    gate.sketch(PublicInstruction("x")).leave(encode)
    assert len(ledger.entries) == 1


@pytest.mark.parametrize("name", list(Policy))
def test_a_policy_may_be_given_by_name(name, byte_level_tokenizer):
    gate = Gate(str(name), Ledger())
    assert gate.policy is name
    assert Options(policy=str(name)).policy is name


@pytest.mark.parametrize("name", ["nonsense", "", "OPEN"])
def test_a_policy_that_does_not_exist_opens_nothing(name):
    with pytest.raises(RequestError, match="guarded"):
        Gate(name, Ledger())
    with pytest.raises(RequestError, match="guarded"):
        Options(policy=name)


def test_guarded_given_by_name_guards(byte_level_tokenizer):
    left = converse("guarded", "Dear Oskar Lindqvist, thank you.", byte_level_tokenizer)
    assert all("Oskar" not in text for text in left)


def test_private_context_does_not_show_in_logs():
    assert SECRET not in repr(CONTEXT)
    assert SECRET not in str(CONTEXT)
    assert SECRET not in f"{CONTEXT}"


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_instruction_is_refused(text):
    with pytest.raises(RequestError, match="instruction"):
        PublicInstruction(text)


def test_what_cannot_be_written_to_the_ledger_does_not_leave():
    sent = []
    ledger = Ledger("/dev/full")
    released = Gate(Policy.OPEN, ledger).sketch(PublicInstruction("Write a toast."))
    with pytest.raises(LedgerError, match="Nothing was sent"):
        sent.append(released.leave(encode))
    assert sent == []


def test_the_ledger_file_is_the_owners_alone_and_is_complete_after_every_entry(tmp_path):
    path = tmp_path / "deep" / "ledger.jsonl"
    ledger = Ledger(path)
    Gate(Policy.OPEN, ledger).sketch(PublicInstruction("Grüße, 世界")).leave(encode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["content"] == {"instruction": "Grüße, 世界"}
    ledger.close()
    Ledger(path).record("down", "sketch", 3)
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_ledger_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="--ledger"):
        Ledger(tmp_path)
