"""The ONNX engine serves bundles of every kind; its rows are bit-identical however tokens were grouped."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_bridge.server.engines.onnx_engine import PART, OnnxEngine, load_onnx_engine
from cloud_bridge.server.errors import RefusalError, ServeError
from cloud_bridge.wire import Reason
from edge_runtime.decoders.open import open_decoder
from edge_runtime.fusion.sparse import RowFormat
from edge_runtime.privacy.messages import AnswerRequest
from edge_runtime.text.tokenizer import Tokenizer
from tests.support.commands import ROOT
from tests.support.decoder_models import TinyModel, tiny_model, torch_rows
from tests.support.examples import examples

ALL = RowFormat(100_000)
INSTRUCTION = "Write a few lines about the letters that a lighthouse keeper never sent."
# The graphs with different kernels: floats, blocks of 8 and 4 bits, and optimum's own graph.
GRAPHS = {
    "fp32": {"quantize": "fp32", "model_type": "llama"},
    "int8": {"quantize": "int8", "model_type": "llama"},
    "int4": {"quantize": "int4", "model_type": "llama"},
    "portable": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024},
}
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    made: dict[str, TinyModel] = {}

    def bundle(graph: str) -> TinyModel:
        if graph not in made:
            made[graph] = tiny_model(tmp_path_factory.mktemp(graph), **GRAPHS[graph])
        return made[graph]

    return bundle


@pytest.fixture(scope="module", params=[f"{graph}, {threads}" for graph in GRAPHS for threads in (1, 2)])
def tiny_engine(request, bundles) -> OnnxEngine:
    graph, threads = request.param.split(", ")
    return load_onnx_engine(str(bundles(graph).bundle.root), threads=int(threads))


@pytest.fixture(scope="module")
def fp32(bundles) -> OnnxEngine:
    return load_onnx_engine(str(bundles("fp32").bundle.root), threads=1)


@pytest.fixture(scope="module")
def real(bundle_keep) -> OnnxEngine:
    return load_onnx_engine(str(bundle_keep))


def rows_one_at_a_time(engine: OnnxEngine, instruction: str, answer: list[int]) -> list[bytes]:
    """Compute every row of the answer in a session that receives one token per call."""
    state = engine.open(instruction)
    rows = [engine.score(state, keep=0, tokens=[], rows=[0], form=ALL)[0]]
    for index, token in enumerate(answer):
        rows += engine.score(state, keep=index, tokens=[token], rows=[index + 1], form=ALL)
    engine.close(state)
    return [row.log_probs.tobytes() for row in rows]


def score_in_any_way(engine: OnnxEngine, instruction: str, answer: list[int], rows: list[bytes], seed: int) -> None:
    """Try windows, rejected drafts, repeated or skipped rows and dropped caches; each row must equal that of `rows`."""
    rng = np.random.default_rng(seed)
    state = engine.open(instruction)
    known = 0
    while known < len(answer):
        keep = int(rng.integers(0, known + 1)) if rng.random() < 0.5 else known
        end = min(known + int(rng.integers(1, 10)), len(answer))
        rejected = rng.integers(0, engine.vocab_size, rng.integers(0, 5)).tolist()
        wanted = np.flatnonzero(rng.random(end + 1) < rng.choice([0.05, 0.5, 1.0])).tolist()
        request = {"keep": keep, "tokens": answer[keep:end] + rejected, "rows": wanted}
        for _ in itertools.islice(engine.prepare(state, **request), int(rng.integers(0, 3))):
            pass
        found = engine.score(state, **request, form=ALL)
        assert [row.log_probs.tobytes() for row in found] == [rows[index] for index in wanted]
        if rng.random() < 0.1:
            engine.drop_cache(state)
        known = end
    engine.close(state)


@settings(SLOW, max_examples=examples(15))
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 40), words=st.integers(0, 150))
def test_rows_are_the_same_bits_for_any_grouping(seed, length, words, tiny_engine):
    instruction = "wait " * words
    answer = np.random.default_rng(seed).integers(0, tiny_engine.vocab_size, length).tolist()
    score_in_any_way(tiny_engine, instruction, answer, rows_one_at_a_time(tiny_engine, instruction, answer), seed)


def test_rows_of_the_real_model_are_the_same_bits_for_any_grouping(real):
    answer = np.random.default_rng(5).integers(20, 49_000, 24).tolist()
    rows = rows_one_at_a_time(real, INSTRUCTION, answer)
    for seed in range(4):
        score_in_any_way(real, INSTRUCTION, answer, rows, seed)


@pytest.mark.parametrize("instruction", ["", "wait " * 90, "wait " * 250])
def test_a_resumed_view_gives_the_bits_that_its_steps_gave(tiny_engine, instruction):
    answer = np.random.default_rng(1).integers(0, tiny_engine.vocab_size, 2 * PART + 1).tolist()
    rows = rows_one_at_a_time(tiny_engine, instruction, answer)
    state = tiny_engine.open(instruction)
    found = tiny_engine.score(state, keep=0, tokens=answer, rows=range(len(answer) + 1), form=ALL)
    assert [row.log_probs.tobytes() for row in found] == rows


@pytest.mark.parametrize("graph", ["fp32", "portable"])
def test_rows_equal_a_pass_of_transformers(graph, bundles):
    engine = load_onnx_engine(str(bundles(graph).bundle.root))
    answer = np.random.default_rng(3).integers(0, engine.vocab_size, 30).tolist()
    state = engine.open(INSTRUCTION)
    wanted = [0, 1, 2, 7, 8, 20, 30]
    rows = engine.score(state, keep=0, tokens=answer, rows=wanted, form=ALL)
    logits = torch_rows(bundles(graph).torch(), state.prompt + answer)[len(state.prompt) - 1 :, : engine.vocab_size]
    dense = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=-1, keepdims=True))
    for row, expected in zip(rows, dense[wanted], strict=True):
        np.testing.assert_allclose(row.log_probs, expected, atol=2e-3)


def test_ids_that_only_padding_has_are_never_offered(fp32, bundles):
    tokenizer = Tokenizer.load(bundles("fp32").directory / "tokenizer.json")
    assert fp32.tokenizer_fingerprint == tokenizer.fingerprint
    assert fp32.vocab_size == tokenizer.backend.get_vocab_size() < bundles("fp32").bundle.manifest.vocab_size
    (row,) = fp32.score(fp32.open(""), keep=0, tokens=[], rows=[0], form=ALL)
    assert row.ids.size == fp32.vocab_size
    np.testing.assert_allclose(np.exp(row.log_probs.astype(np.float64)).sum(), 1.0, atol=1e-5)


def test_the_prompt_is_the_one_that_transformers_makes(fp32, bundles):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundles("fp32").directory)
    chat = [{"role": "user", "content": INSTRUCTION}]
    assert fp32.open(INSTRUCTION).prompt == tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )


def test_the_last_position_of_the_context_is_used_and_one_more_is_refused(fp32):
    state = fp32.open("wait")
    room = fp32.context_length - len(state.prompt)
    tokens = [n % 300 for n in range(room)]
    fp32.score(state, keep=0, tokens=tokens[:-1], rows=[room - 1], form=ALL)
    fp32.score(state, keep=room - 1, tokens=tokens[-1:], rows=[room], form=ALL)
    with pytest.raises(RefusalError) as refused:
        fp32.score(state, keep=room, tokens=[1], rows=[room + 1], form=ALL)
    assert refused.value.reason is Reason.CONTEXT_FULL


def test_the_greedy_answer_is_the_likeliest_token_of_each_row(fp32):
    pieces = [piece for piece in fp32.answer(AnswerRequest(INSTRUCTION, 20, 0.0, 1.0, 0)) if piece is not None]
    tokens = [token for piece in pieces for token in piece.token_ids]
    state = fp32.open(INSTRUCTION)
    rows = fp32.score(state, keep=0, tokens=tokens, rows=range(len(tokens)), form=RowFormat(1))
    assert [int(row.ids[0]) for row in rows] == tokens
    assert (pieces[-1].finish_reason, pieces[-1].prompt_tokens) == ("length", len(state.prompt))
    assert len(tokens) == 20


def test_an_outline_has_its_form(fp32):
    lines = [line for line in fp32.sketch("Write.") if line is not None]
    assert 8 <= len(lines) <= 15
    assert all(line.startswith(f"{number}. ") and line.endswith("\n") for number, line in enumerate(lines, 1))


def test_long_prompts_yield_to_others(fp32):
    state = fp32.open("wait " * 300)
    parts = sum(1 for _ in fp32.prepare(state, keep=0, tokens=[], rows=[0]))
    assert parts == (len(state.prompt) - 2) // PART
    pieces = list(fp32.answer(AnswerRequest("wait " * 300, 1, 0.0, 1.0, 0)))
    assert pieces[:parts] == [None] * parts
    assert pieces[-1] is not None


def test_rows_of_the_real_model_equal_those_of_the_transformers_engine(bundle_fp32, smollm2_hf):
    from cloud_bridge.server.engines.transformers_engine import load_engine

    engines = [load_onnx_engine(str(bundle_fp32)), load_engine(str(smollm2_hf))]
    assert len({(e.vocab_size, e.context_length, e.tokenizer_fingerprint) for e in engines}) == 1
    states = [engine.open(INSTRUCTION) for engine in engines]
    assert states[0].prompt == states[1].prompt
    text = " In the spring of that year the keeper wrote a first letter, and put it into a drawer."
    tokens = Tokenizer.load(bundle_fp32 / "tokenizer.json").encode(text)
    asked = [
        (0, [], [0]),
        (0, tokens[:1], [1]),
        (1, tokens[1:9], [1, 2, 5, 9]),
        (4, [7, 8], [5, 6]),
        (4, tokens[4:], [4, 20]),
    ]
    for keep, new, rows in asked:
        one, other = (
            engine.score(state, keep=keep, tokens=new, rows=rows, form=ALL)
            for engine, state in zip(engines, states, strict=True)
        )
        for left, right in zip(one, other, strict=True):
            np.testing.assert_allclose(left.log_probs, right.log_probs, atol=1e-3)
            likeliest = left.log_probs.argmax()
            assert right.log_probs[likeliest] >= right.log_probs.max() - 1e-3


def test_a_client_gets_the_same_bits_for_any_window(fp32):
    from cloud_bridge.client import connect
    from cloud_bridge.server.serve import ServerOptions, serving
    from edge_runtime.context import PublicInstruction
    from edge_runtime.privacy.gate import Gate, Policy
    from edge_runtime.privacy.ledger import Ledger

    instruction, gate = PublicInstruction(INSTRUCTION), Gate(Policy.OPEN, Ledger())
    answer = np.random.default_rng(2).integers(0, fp32.vocab_size, 12).tolist()
    tokenizer = Tokenizer(fp32._tokenizer)
    found = {}
    with serving(fp32, ServerOptions()) as server, connect(server.address) as client:
        for window in (1, 2, 5, 12):
            opening = gate.open(
                instruction, tokenizer_fingerprint=fp32.tokenizer_fingerprint, rows=RowFormat(64, 0.9, "float16")
            )
            conversation = gate.conversation(instruction, None, tokenizer)
            rows = []
            with client.open(opening) as session:
                for start in range(0, len(answer), window):
                    for token in answer[start : start + window]:
                        conversation.push(token)
                    end = conversation.length
                    wanted = range(0 if start == 0 else start + 1, end + 1)
                    verified = session.verify(conversation.verify(keep=start, end=end, rows=wanted)).result(timeout=30)
                    rows += [(row.ids.tobytes(), row.log_probs.tobytes(), row.tail_mass) for row in verified.rows]
            found[window] = rows
    assert len(found[1]) == len(answer) + 1
    assert found[1] == found[2] == found[5] == found[12]


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def test_a_dropped_cache_gives_its_memory_back(real):
    sessions = [real.open(f"{INSTRUCTION} {number}") for number in range(4)]
    assert [real.cache_bytes(state) for state in sessions] == [0] * 4
    tokens = np.random.default_rng(0).integers(20, 49_000, 300).tolist()
    for state in sessions:
        real.score(state, keep=0, tokens=tokens, rows=[300], form=ALL)
    taken, full = sum(map(real.cache_bytes, sessions)), resident()
    # 30 layers of keys and values, 3 heads of 64 float32 each; whole pages.
    tokens_held = sum(len(state.prompt) + 300 for state in sessions)
    assert tokens_held * 30 * 2 * 3 * 64 * 4 <= taken <= 1.1 * tokens_held * 30 * 2 * 3 * 64 * 4
    for state in sessions:
        real.drop_cache(state)
    assert [real.cache_bytes(state) for state in sessions] == [0] * 4
    assert full - resident() > 0.9 * taken


def test_its_threads_sleep_while_they_wait_and_a_device_s_do_not(bundles):
    def spins(decoder) -> str:
        return decoder._model.session.get_session_options().get_session_config_entry("session.intra_op.allow_spinning")

    bundle = bundles("fp32").bundle
    assert spins(load_onnx_engine(str(bundle.root))._model) == "0"
    assert spins(open_decoder(bundle)) == "1"
    assert spins(open_decoder(bundle, spin=False)) == "0"


@pytest.mark.parametrize("damage", ["absent", "no manifest", "no tokenizer", "other weights", "no graph"])
def test_a_bundle_that_can_not_be_served_is_a_typed_error(damage, bundles, tmp_path):
    good = bundles("fp32").bundle
    root = tmp_path / "bundle"
    if damage != "absent":
        shutil.copytree(good.root, root)
    if damage == "no manifest":
        (root / "manifest.json").unlink()
    elif damage == "no tokenizer":
        (root / good.manifest.tokenizer.path).unlink()
    elif damage == "other weights":
        (weights,) = (entry.path for entry in good.manifest.files if entry.role == "weights")
        (root / weights).write_bytes(b"\0" * (root / weights).stat().st_size)
    elif damage == "no graph":
        (root / good.manifest.decoder.graph).write_bytes(b"")
    with pytest.raises(ServeError, match=r"The bundle can't be served\. .*" + str(root)):
        load_onnx_engine(str(root))


def test_less_than_a_thread_is_refused(bundles):
    with pytest.raises(ServeError, match="`threads` must be at least 1, not 0"):
        load_onnx_engine(str(bundles("fp32").bundle.root), threads=0)


def test_serving_a_bundle_imports_no_training_framework(bundles):
    program = (
        "import sys; from cloud_bridge.server.engines.onnx_engine import load_onnx_engine as load\n"
        f"engine = load({str(bundles('fp32').bundle.root)!r}); list(engine.sketch('Write.'))\n"
        "print(sorted({'torch', 'transformers', 'optimum', 'peft', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
