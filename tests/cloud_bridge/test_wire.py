"""The wire format: what is encoded decodes to the same, and nothing malformed gets through."""

import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_bridge import bridge_pb2 as pb
from cloud_bridge import wire
from cloud_bridge.row_coding import encode_rows
from edge_runtime.cloud import AnswerPiece, CloudInfo, Verified
from edge_runtime.errors import ProtocolError, RequestError
from edge_runtime.fusion.sparse import RowFormat, SparseLogProbs
from edge_runtime.privacy.messages import AnswerRequest, InfoRequest, OpenRequest, SketchRequest, VerifyRequest
from tests.support.commands import ROOT
from tests.support.random_rows import FORMATS, random_rows

VOCABULARY = 300
FORM = RowFormat(4, 1.0, "float32")
HALVES = SparseLogProbs(np.array([5, 6], np.int32), np.log(np.array([0.5, 0.25], np.float32)), 0.25)
UINT32 = st.integers(0, 2**32 - 1)
INSTRUCTIONS = st.text(min_size=1, max_size=80).filter(str.strip)
FINGERPRINTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.text(max_size=40).filter(str.isprintable)
SECONDS = st.integers(0, 2**32 - 1).map(lambda microseconds: microseconds / 1e6)


@st.composite
def verifies(draw: st.DrawFn) -> VerifyRequest:
    tokens = tuple(draw(st.lists(st.integers(0, 2**31 - 1), max_size=40)))
    keep = draw(st.integers(0, 100_000))
    rows = draw(st.sets(st.integers(0, keep + len(tokens)), min_size=1, max_size=wire.MAX_ROWS))
    return VerifyRequest(keep, tokens, tuple(sorted(rows)), "")


@given(st.builds(OpenRequest, INSTRUCTIONS, FINGERPRINTS, FORMATS, NAMES))
def test_an_open_request_arrives_as_it_was(request_: OpenRequest) -> None:
    assert wire.decode_client_frame(wire.encode_open(request_)) == request_


@given(verifies())
def test_a_verify_request_arrives_as_it_was(request_: VerifyRequest) -> None:
    assert wire.decode_client_frame(wire.encode_verify(request_)) == request_


def test_the_text_of_a_verify_request_does_not_travel() -> None:
    with_text = VerifyRequest(0, (5, 6), (0,), "a private reading")
    assert wire.encode_verify(with_text) == wire.encode_verify(VerifyRequest(0, (5, 6), (0,), ""))


@given(INSTRUCTIONS)
def test_a_sketch_request_arrives_as_it_was(instruction: str) -> None:
    assert wire.decode_sketch_request(wire.encode_sketch_request(SketchRequest(instruction))) == SketchRequest(
        instruction
    )


@given(
    st.builds(
        AnswerRequest,
        INSTRUCTIONS,
        st.integers(1, 2**32 - 1),
        st.floats(0, 100, width=32),
        st.floats(0, 1, exclude_min=True, width=32),
        st.integers(0, 2**64 - 1),
    )
)
def test_an_answer_request_arrives_as_it_was(request_: AnswerRequest) -> None:
    assert wire.decode_answer_request(wire.encode_answer_request(request_)) == request_


@given(st.builds(CloudInfo, NAMES, *[st.integers(1, 2**31 - 1)] * 2, FINGERPRINTS, st.integers(1, 2**32 - 1)))
def test_an_info_reply_arrives_as_it_was(info: CloudInfo) -> None:
    assert wire.decode_info(wire.encode_info(info)) == info


@given(
    st.builds(
        AnswerPiece, st.text(), st.tuples(st.integers(0, 2**31 - 1)), st.sampled_from(["", "stop", "length"]), UINT32
    )
)
def test_an_answer_piece_arrives_as_it_was(piece: AnswerPiece) -> None:
    assert wire.decode_answer_piece(wire.encode_answer_piece(piece)) == piece


@given(st.builds(wire.Opened, NAMES, NAMES, st.integers(1, 2**31 - 1), st.just(5), st.integers(5, 64), st.booleans()))
def test_an_opened_reply_arrives_as_it_was(opened: wire.Opened) -> None:
    assert wire.decode_opened(wire.encode_opened(opened)) == opened


@given(UINT32, st.lists(random_rows(), max_size=4), FORMATS, SECONDS, SECONDS)
def test_a_verified_reply_arrives_as_it_was(
    number: int, rows: list[SparseLogProbs], form: RowFormat, compute: float, queue: float
) -> None:
    form = replace(form, top_k=VOCABULARY)
    data = wire.encode_verified(number, Verified(tuple(rows), compute, queue), form)
    got = wire.decode_verified(data, number=number, count=len(rows), vocab_size=VOCABULARY, form=form)
    assert (got.compute_seconds, got.queue_seconds, got.superseded) == (compute, queue, False)
    # What a row becomes is the row coding's business: only that these are they.
    assert [row.ids.tolist() for row in got.rows] == [row.ids.tolist() for row in rows]


def test_a_superseded_reply_has_no_rows_whatever_was_asked_for() -> None:
    data = wire.encode_verified(7, Verified((), superseded=True), FORM)
    got = wire.decode_verified(data, number=7, count=3, vocab_size=10, form=FORM)
    assert got.superseded and got.rows == ()


def test_times_beyond_what_the_field_holds_are_cut() -> None:
    data = wire.encode_verified(0, Verified((), 1e9, -1.0), FORM)
    got = wire.decode_verified(data, number=0, count=0, vocab_size=10, form=FORM)
    assert (got.compute_seconds, got.queue_seconds) == ((2**32 - 1) / 1e6, 0.0)


DECODERS = [
    wire.decode_client_frame,
    wire.decode_sketch_request,
    wire.decode_answer_request,
    wire.decode_info,
    wire.decode_opened,
    wire.decode_sketch_piece,
    wire.decode_answer_piece,
    lambda data: wire.decode_verified(data, number=0, count=1, vocab_size=300, form=RowFormat(8, 0.9, "float16")),
]


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(DECODERS))
def test_random_bytes_raise_a_protocol_error_or_decode(data: bytes, decode) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert "\n" not in str(error)


VALID = [
    wire.encode_open(OpenRequest("Write a poem.", "0" * 64, RowFormat(16, 0.9, "float16"), "session")),
    wire.encode_verify(VerifyRequest(3, (1, 2, 3), (4, 6), "")),
    wire.encode_sketch_request(SketchRequest("Write a poem.")),
    wire.encode_answer_request(AnswerRequest("Write a poem.", 16, 0.7, 0.9, 1)),
    wire.encode_info(CloudInfo("m", 300, 64, "0" * 64, 8)),
    wire.encode_opened(wire.Opened("s", "m", 300, 5, 64)),
    wire.encode_verified(0, Verified((HALVES,), 0.1, 0.2), RowFormat(8, 0.9, "float16")),
    wire.encode_answer_piece(AnswerPiece("text", (1, 2), "stop", 9)),
]


@settings(max_examples=500)
@given(st.data())
def test_damaged_messages_raise_a_protocol_error_or_decode(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(message[: data.draw(st.integers(1, len(message)))])
    for decode in DECODERS:
        try:
            decode(damaged)
        except ProtocolError as error:
            assert "\n" not in str(error)


def reply(**changes: object) -> bytes:
    """A frame with one row for the second `verify`, with a checksum that is right for it."""
    rows = changes.get("rows", encode_rows([HALVES], FORM.value_type))
    assert isinstance(rows, bytes)
    fields = {"number": 1, "rows": rows, "crc32": zlib.crc32(b"\x01\x00\x00\x00" + rows)} | changes
    return pb.ServerFrame(verified=pb.Verified(**fields)).SerializeToString()


def read(data: bytes, count: int = 1) -> tuple[SparseLogProbs, ...]:
    return wire.decode_verified(data, number=1, count=count, vocab_size=10, form=FORM).rows


def test_a_well_formed_reply_is_read() -> None:
    assert [row.ids.tolist() for row in read(reply())] == [[5, 6]]


@pytest.mark.parametrize(
    ("data", "count", "cause"),
    [
        (reply(number=2), 1, "reply 2 came where reply 1 was due"),
        (reply(number=0), 1, "reply 0 came where reply 1 was due"),
        (reply(crc32=0), 1, "checksum"),
        (reply(rows=b""), 1, "rows are missing"),
        (reply(), 2, "rows are missing"),
        (reply(), 0, "bytes follow"),
        (reply(superseded=True), 1, "bytes follow"),
        (wire.encode_opened(wire.Opened("s", "m", 10, 1, 9)), 1, "not verified"),
    ],
)
def test_a_reply_that_is_not_the_one_due_is_refused_with_its_cause(data: bytes, count: int, cause: str) -> None:
    with pytest.raises(ProtocolError, match=cause):
        read(data, count)


@given(st.data())
def test_a_damaged_bit_of_number_or_rows_is_always_found(data: st.DataObject) -> None:
    frame = pb.ServerFrame.FromString(reply())
    if data.draw(st.booleans()):
        frame.verified.number ^= 1 << data.draw(st.integers(0, 31))
    else:
        rows = bytearray(frame.verified.rows)
        rows[data.draw(st.integers(0, len(rows) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        frame.verified.rows = bytes(rows)
    with pytest.raises(ProtocolError, match=r"checksum|was due"):
        read(frame.SerializeToString())


def opening(**changes: object) -> pb.ClientFrame:
    fields = {"instruction": "x", "top_k": 1, "mass": 1.0, "protocol_version": 2} | changes
    return pb.ClientFrame(open=pb.Open(**fields))


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (pb.ClientFrame(), "neither"),
        (pb.ClientFrame(open=pb.Open(instruction="x", top_k=1)), "version 0"),
        (opening(protocol_version=1), "version 1"),
        (opening(instruction=" "), "empty"),
        (opening(instruction="x" * 262145), "262145 bytes"),
        (opening(top_k=0), "top_k"),
        (opening(mass=0.0), "mass"),
        (opening(mass=1.5), "mass"),
        (opening(mass=float("nan")), "mass"),
        (opening(floor=-0.5), "floor"),
        (opening(floor=1.0), "floor"),
        (opening(floor=float("nan")), "floor"),
        (opening(value_type=7), "value_type 7"),
        (opening(resume="\x1b[2J"), "printable"),
        (opening(resume="s" * 257), "too long"),
        (pb.ClientFrame(verify=pb.Verify(keep=1, tokens=[1], row_deltas=[1, 2])), "row 3 is asked for, and 2"),
        (pb.ClientFrame(verify=pb.Verify(keep=1, tokens=[1], row_deltas=[1, 0])), "ascend"),
        (pb.ClientFrame(verify=pb.Verify(keep=1, tokens=[1])), "0 rows"),
        (pb.ClientFrame(verify=pb.Verify(keep=400, row_deltas=[1] * 257)), "257 rows"),
        (pb.ClientFrame(verify=pb.Verify(tokens=[2**31], row_deltas=[1])), "out of range"),
    ],
)
def test_a_malformed_request_is_refused_with_its_cause(frame: pb.ClientFrame, cause: str) -> None:
    with pytest.raises(ProtocolError, match=cause):
        wire.decode_client_frame(frame.SerializeToString())


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5)],
)
def test_impossible_sampling_is_refused(name: str, value: float) -> None:
    request = pb.AnswerRequest(instruction="x", max_new_tokens=1, temperature=0.5, top_p=0.5)
    setattr(request, name, value)
    with pytest.raises(ProtocolError, match=name):
        wire.decode_answer_request(request.SerializeToString())


def test_names_that_could_command_a_terminal_are_refused() -> None:
    with pytest.raises(ProtocolError, match="printable"):
        wire.decode_info(wire.encode_info(CloudInfo("\x1b[2J", 300, 64, "0" * 64, 8)))


@pytest.mark.parametrize(
    "encode",
    [
        lambda: wire.encode_open(OpenRequest("\ud800", "0" * 64, FORM)),
        lambda: wire.encode_open(OpenRequest("x", "0" * 64, FORM, "\ud800")),
        lambda: wire.encode_verify(VerifyRequest(-1, (), (0,), "")),
        lambda: wire.encode_verify(VerifyRequest(0, (2**32,), (0,), "")),
        lambda: wire.encode_verify(VerifyRequest(0, (1,), (1, 0), "")),
        lambda: wire.encode_verify(VerifyRequest(0, (1,), (-1,), "")),
        lambda: wire.encode_answer_request(AnswerRequest("x", 1, 0.0, 1.0, -1)),
    ],
)
def test_what_has_no_encoding_is_a_request_error(encode) -> None:
    with pytest.raises(RequestError, match="can't be sent"):
        encode()


def test_an_info_request_is_empty() -> None:
    assert wire.encode_info_request(InfoRequest()) == b""


def test_the_generated_code_is_what_the_proto_gives(tmp_path: Path) -> None:
    arguments = ["-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", "cloud_bridge/bridge.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=ROOT, check=True)

    def descriptor(directory: Path) -> list[str]:  # other versions of protoc write other code around it
        lines = (directory / "cloud_bridge" / "bridge_pb2.py").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith("DESCRIPTOR = ")]

    assert descriptor(tmp_path) == descriptor(ROOT)
    generated = (tmp_path / "cloud_bridge" / "bridge_pb2.pyi").read_text(encoding="utf-8")
    assert generated == (ROOT / "cloud_bridge" / "bridge_pb2.pyi").read_text(encoding="utf-8")
