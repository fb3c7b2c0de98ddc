"""Writes the text of an answer in each mode: on the device alone, by the cloud alone, from a sketch, or fused."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from edge_runtime.answer import Progress
from edge_runtime.cloud import Cloud
from edge_runtime.context import PrivateContext, PublicInstruction
from edge_runtime.errors import CloudError
from edge_runtime.generation.cloud_link import CloudLink
from edge_runtime.generation.drafter import PromptedDecoder
from edge_runtime.generation.loop import Ending, Token, generate_alone, generate_fused
from edge_runtime.generation.options import Mode, Options
from edge_runtime.loaded_model import LoadedModel
from edge_runtime.privacy.gate import Gate, Released
from edge_runtime.privacy.messages import OpenRequest
from edge_runtime.text.prompt import Prompt
from edge_runtime.text.stream import StopFilter, TextStream


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to write, and its progress."""

    instruction: PublicInstruction
    context: PrivateContext | None
    options: Options
    progress: Progress


def write_answer(model: LoadedModel, task: Task, cloud: Cloud | None) -> Generator[str, None, None]:
    """Write an answer piece by piece and record its progress in the task.

    Args:
        model: the device's model.
        task: the answer to write.
        cloud: the connection; None if the device writes alone.

    Raises:
        ContextOverflowError: profile and instruction don't fit.
        CloudError: the cloud failed before its first row, outline or piece.
        PolicyError: the policy forbids the mode, or the adapter does not record its training texts.
    """
    gate = Gate(task.options.policy, task.progress.ledger)
    task.progress.begin()
    if cloud is None:
        return _write_alone(model, task)
    if task.progress.mode is Mode.CLOUD:
        return _write_in_cloud(model, task, cloud, gate)
    if task.progress.mode is Mode.SKETCH:
        return _write_from_sketch(model, task, cloud, gate)
    return _write_fused(model, task, cloud, gate)


def _write_alone(model: LoadedModel, task: Task, outline: str | None = None) -> Generator[str, None, None]:
    prompt = _prompt(model, task, outline)
    task.progress.prompt_is_ready(len(prompt.token_ids), len(prompt.dropped))
    edge = model.prompted(prompt.token_ids)
    yield from _edge_text(model, task, edge, task.options.max_new_tokens)


def _write_from_sketch(model: LoadedModel, task: Task, cloud: Cloud, gate: Gate) -> Generator[str, None, None]:
    lines = cloud.sketch(gate.sketch(task.instruction))
    task.progress.cancelled.add_done_callback(lambda _: lines.close())
    task.progress.outline = "".join(lines).strip()
    task.progress.link.round_trips = 1
    yield from _write_alone(model, task, task.progress.outline)


def _write_fused(model: LoadedModel, task: Task, cloud: Cloud, gate: Gate) -> Generator[str, None, None]:
    options, progress = task.options, task.progress
    prompt = _prompt(model, task)
    edge = model.prompted(prompt.token_ids)
    without = None
    if options.fusion.needs_without:
        unaware = model.prompt(task.instruction, None, None, options.max_new_tokens)
        without = model.prompted_without(unaware.token_ids)
    link = _link(model, task, cloud, gate)
    try:
        progress.prompt_is_ready(len(prompt.token_ids), len(prompt.dropped))
        ending = model.ending(options.max_new_tokens)
        cancelled = progress.cancelled.done
        tokens = generate_fused(edge, without, link, options, progress.measured, ending, cancelled)
        yield from _text(model, task, tokens, ending)
    finally:
        link.close()
        progress.cloud_error = str(link.error or "")


def _link(model: LoadedModel, task: Task, cloud: Cloud, gate: Gate) -> CloudLink:
    """Build the link to the cloud for one fused answer."""
    fingerprint, rows = model.manifest.tokenizer.fingerprint, task.options.row_format

    def open_request(resume: str) -> Released[OpenRequest]:
        return gate.open(task.instruction, tokenizer_fingerprint=fingerprint, rows=rows, resume=resume)

    return CloudLink(
        cloud,
        open_request,
        gate.conversation(task.instruction, model.unsaid(task.context, task.options.policy), model.tokenizer),
        task.options.schedule,
        model.known,
        task.options.patience,
        task.progress.measured,
        cancelled=task.progress.cancelled,
        counts=task.progress.link,
    )


def _write_in_cloud(model: LoadedModel, task: Task, cloud: Cloud, gate: Gate) -> Generator[str, None, None]:
    """Pass on the cloud's text; if the cloud is lost, the device writes the rest."""
    options, progress = task.options, task.progress
    request = gate.answer(
        task.instruction,
        max_new_tokens=options.max_new_tokens,
        temperature=options.sampling.temperature,
        top_p=options.sampling.top_p,
        seed=options.sampling.seed,
    )
    progress.prompt_is_ready()
    progress.link.round_trips = 1
    stop = StopFilter(options.stop)
    pieces = cloud.answer(request)
    progress.cancelled.add_done_callback(lambda _: pieces.close())
    try:
        for piece in pieces:
            progress.prompt_tokens = piece.prompt_tokens or progress.prompt_tokens
            for token_id in piece.token_ids:
                progress.token(token_id, fused=False)
            text = stop.push(piece.text) + (stop.flush() if piece.finish_reason else "")
            progress.finish_reason = "stop" if stop.stop_string else piece.finish_reason
            if text:
                yield progress.piece(text)
            if progress.finish_reason:
                break
    except CloudError as error:
        if not progress.pieces:
            raise
        if progress.cancelled.done():
            return
        progress.cloud_error = str(error)
    if held := stop.flush():
        yield progress.piece(held)
    if not progress.finish_reason:
        yield from _finish_for_cloud(model, task)


def _finish_for_cloud(model: LoadedModel, task: Task) -> Generator[str, None, None]:
    written = model.tokenizer.encode("".join(task.progress.pieces))
    edge = model.prompted((*_prompt(model, task).token_ids, *written))
    # The cloud may use another tokenizer, so the text can be longer in our tokens.
    left = task.options.max_new_tokens - len(task.progress.token_ids)
    left = min(left, model.decoder.context_length - len(edge.prompt))
    if left < 1:
        task.progress.finish_reason = "length"
        return
    yield from _edge_text(model, task, edge, left)


def _edge_text(model: LoadedModel, task: Task, edge: PromptedDecoder, limit: int) -> Generator[str, None, None]:
    ending = model.ending(limit)
    tokens = generate_alone(edge, task.options.sampling, ending, task.progress.cancelled.done)
    yield from _text(model, task, tokens, ending)


def _text(
    model: LoadedModel, task: Task, tokens: Generator[Token, None, None], ending: Ending
) -> Generator[str, None, None]:
    """Yield the text of tokens as they are chosen, in whole characters, up to a stop text."""
    progress = task.progress
    text = TextStream(model.tokenizer, stop_strings=task.options.stop)
    with closing(tokens):
        for count, token in enumerate(tokens, start=1):
            if token.id in ending.tokens:
                progress.mark_token()
                progress.finish_reason = "stop"
                break
            progress.token(token.id, fused=token.fused)
            if piece := text.push(token.id):
                yield progress.piece(piece)
            if text.stopped or count == ending.limit:
                progress.finish_reason = "stop" if text.stopped else "length"
                break
    if rest := text.flush():
        yield progress.piece(rest)


def _prompt(model: LoadedModel, task: Task, outline: str | None = None) -> Prompt:
    return model.prompt(task.instruction, task.context, outline, task.options.max_new_tokens)
