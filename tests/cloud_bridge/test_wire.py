"""The wire format: what is encoded decodes to the same, and nothing malformed gets through."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_bridge import bridge_pb2 as pb
from cloud_bridge import wire
from edge_runtime.cloud import AnswerPiece, CloudInfo
from edge_runtime.errors import ProtocolError, RequestError
from edge_runtime.privacy import AnswerRequest, InfoRequest, OpenRequest, SketchRequest, VerifyRequest
from edge_runtime.sparse import SparseLogProbs, sparsify

ROOT = Path(__file__).resolve().parents[2]
UINT32 = st.integers(0, 2**32 - 1)
INSTRUCTIONS = st.text(min_size=1, max_size=80).filter(str.strip)
FINGERPRINTS = st.text("0123456789abcdef", min_size=64, max_size=64)
NAMES = st.text(max_size=40).filter(str.isprintable)
VALUE_TYPES = st.sampled_from(["float32", "float16"])


@st.composite
def rows(draw: st.DrawFn, vocab_size: int = 300) -> SparseLogProbs:
    seed, k, sharpness = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, vocab_size)), draw(st.floats(0, 60))
    logits = np.random.default_rng(seed).normal(size=vocab_size) * sharpness
    logits -= logits.max()
    return sparsify((logits - np.log(np.exp(logits).sum())).astype(np.float32), k)


@st.composite
def verifies(draw: st.DrawFn) -> VerifyRequest:
    tokens = tuple(draw(st.lists(st.integers(0, 2**31 - 1), max_size=40)))
    keep = draw(st.integers(0, 100_000))
    last = keep + len(tokens)
    return VerifyRequest(keep, tokens, draw(st.integers(max(0, last - wire.MAX_ROWS + 1), last)), "")


@given(st.builds(OpenRequest, INSTRUCTIONS, FINGERPRINTS, st.integers(1, 2**32 - 1), VALUE_TYPES))
def test_an_open_request_arrives_as_it_was(request_: OpenRequest) -> None:
    assert wire.decode_client_frame(wire.encode_open(request_)) == request_


@given(verifies())
def test_a_verify_request_arrives_as_it_was(request_: VerifyRequest) -> None:
    assert wire.decode_client_frame(wire.encode_verify(request_)) == request_


def test_the_text_of_a_verify_request_does_not_travel() -> None:
    with_text = VerifyRequest(0, (5, 6), 0, "a private reading")
    assert wire.encode_verify(with_text) == wire.encode_verify(VerifyRequest(0, (5, 6), 0, ""))


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


@given(st.lists(rows(), min_size=1, max_size=4), st.integers(0, 1000), VALUE_TYPES)
def test_rows_arrive_as_they_were(sent: list[SparseLogProbs], first_row: int, value_type) -> None:
    got = wire.decode_verified(
        wire.encode_verified(first_row, sent, value_type),
        first_row=first_row,
        rows=len(sent),
        vocab_size=300,
        top_k=300,
        value_type=value_type,
    )
    for before, after in zip(sent, got, strict=True):
        np.testing.assert_array_equal(after.ids, before.ids)
        assert after.tail_mass == np.float32(before.tail_mass)
        if value_type == "float32":
            np.testing.assert_array_equal(after.log_probs, before.log_probs)
        else:
            np.testing.assert_array_equal(after.log_probs, before.log_probs.astype(np.float16).astype(np.float32))


def test_a_log_probability_below_float16_is_raised_to_its_lowest() -> None:
    row = SparseLogProbs(np.array([1, 2], np.int32), np.array([0.0, -1e6], np.float32), 0.0)
    data = wire.encode_verified(0, [row], "float16")
    (got,) = wire.decode_verified(data, first_row=0, rows=1, vocab_size=3, top_k=2, value_type="float16")
    assert got.log_probs.tolist() == [0.0, -65504.0]


DECODERS = [
    wire.decode_client_frame,
    wire.decode_sketch_request,
    wire.decode_answer_request,
    wire.decode_info,
    wire.decode_opened,
    wire.decode_sketch_piece,
    wire.decode_answer_piece,
    lambda data: wire.decode_verified(data, first_row=0, rows=1, vocab_size=300, top_k=8, value_type="float16"),
]


@settings(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(DECODERS))
def test_random_bytes_raise_a_protocol_error_or_decode(data: bytes, decode) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert "\n" not in str(error)


VALID = [
    wire.encode_open(OpenRequest("Write a poem.", "0" * 64, 16, "float16")),
    wire.encode_verify(VerifyRequest(3, (1, 2, 3), 4, "")),
    wire.encode_sketch_request(SketchRequest("Write a poem.")),
    wire.encode_answer_request(AnswerRequest("Write a poem.", 16, 0.7, 0.9, 1)),
    wire.encode_info(CloudInfo("m", 300, 64, "0" * 64, 8)),
    wire.encode_opened(wire.Opened("s", "m", 300, 5, 64)),
    wire.encode_verified(0, [sparsify(np.log(np.full(300, 1 / 300, np.float32)), 8)], "float16"),
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


def verified(**changes: object) -> bytes:
    row = pb.Row(id_deltas=[5, 1], values=np.log(np.array([0.5, 0.25], "<f4")).tobytes(), tail_mass=0.25)
    for name, value in changes.items():
        row.ClearField(name)
        if isinstance(value, list):
            row.id_deltas.extend(value)
        else:
            setattr(row, name, value)
    return pb.ServerFrame(verified=pb.Verified(first_row=2, rows=[row])).SerializeToString()


def read(data: bytes, *, first_row: int = 2, count: int = 1, vocab_size: int = 10, top_k: int = 4) -> SparseLogProbs:
    return wire.decode_verified(
        data, first_row=first_row, rows=count, vocab_size=vocab_size, top_k=top_k, value_type="float32"
    )[0]


def test_a_well_formed_row_is_read() -> None:
    assert read(verified()).ids.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("data", "limits", "cause"),
    [
        (verified(id_deltas=[5]), {}, "1 ids and 8 bytes"),
        (verified(id_deltas=[5, 1, 1]), {}, "3 ids and 8 bytes"),
        (verified(id_deltas=[]), {}, "0 tokens"),
        (verified(id_deltas=[5, 0]), {}, "do not ascend"),
        (verified(), {"vocab_size": 6}, "vocabulary of 6"),
        (verified(id_deltas=[2**32 - 1, 2**32 - 1]), {}, "vocabulary of 10"),
        (verified(), {"top_k": 1}, "2 tokens"),
        (verified(values=np.array([np.nan, -1.0], "<f4").tobytes()), {}, "not finite"),
        (verified(values=np.array([-np.inf, -1.0], "<f4").tobytes()), {}, "not finite"),
        (verified(values=np.array([0.5, -1.0], "<f4").tobytes()), {}, "above 0"),
        (verified(values=b"\x00" * 7), {}, "7 bytes"),
        (verified(tail_mass=float("nan")), {}, "tail mass"),
        (verified(tail_mass=-0.1), {}, "tail mass"),
        (verified(tail_mass=1.1), {}, "tail mass"),
        (verified(tail_mass=0.9), {}, "sum to 1.650"),
        (verified(), {"first_row": 1}, "were asked for"),
        (verified(), {"count": 2}, "were asked for"),
        (wire.encode_opened(wire.Opened("s", "m", 10, 1, 9)), {}, "not verified"),
    ],
)
def test_a_malformed_row_is_refused_with_its_cause(data: bytes, limits: dict[str, int], cause: str) -> None:
    with pytest.raises(ProtocolError, match=cause):
        read(data, **limits)


@pytest.mark.parametrize(
    ("frame", "cause"),
    [
        (pb.ClientFrame(), "neither"),
        (pb.ClientFrame(open=pb.Open(instruction="x", top_k=1)), "version 0"),
        (pb.ClientFrame(open=pb.Open(instruction=" ", top_k=1, protocol_version=1)), "empty"),
        (pb.ClientFrame(open=pb.Open(instruction="x", protocol_version=1)), "top_k"),
        (pb.ClientFrame(open=pb.Open(instruction="x", top_k=1, value_type=7, protocol_version=1)), "value_type 7"),
        (pb.ClientFrame(open=pb.Open(instruction="x" * 262145, top_k=1, protocol_version=1)), "262145 bytes"),
        (pb.ClientFrame(verify=pb.Verify(keep=1, tokens=[1], first_row=3)), "first_row 3"),
        (pb.ClientFrame(verify=pb.Verify(keep=400)), "401 rows"),
        (pb.ClientFrame(verify=pb.Verify(tokens=[2**31])), "out of range"),
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
        lambda: wire.encode_open(OpenRequest("\ud800", "0" * 64, 1, "float32")),
        lambda: wire.encode_verify(VerifyRequest(-1, (), 0, "")),
        lambda: wire.encode_verify(VerifyRequest(0, (2**32,), 0, "")),
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
