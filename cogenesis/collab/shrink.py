"""`cogenesis collab shrink`: makes a smaller sibling of a model with the same vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cogenesis.options.expand import expand
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.records import usable_records
from cogenesis.options.training import HOW, PrecisionOption, TrainingOptions, team_on
from cogenesis.options.users import BaseModelOption
from cogenesis.terminal.progress_bar import progress_bar
from personalization.errors import SettingsError
from personalization.models.libraries import prepare_command
from personalization.models.precision import Precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personalization.training.trained_model import Trained

_TRAINING = TrainingOptions(epochs=1, batch=2, rate=2e-4, warmup=0.1, save_every=50)
_SHARE = 0.65
CURVES_NAME = "curves.svg"


@expand
def shrink(
    model: BaseModelOption,
    texts: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Text for the distillation that heals the sibling: records, plain text, or JSON lines with a "
            "field 'text'.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the sibling to write.", show_default=False)],
    layers: Annotated[int | None, typer.Option(min=1, help="Number of layers to keep.", show_default=False)] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help=f"Maximum fraction of all parameters to keep, instead of --layers. Default: {_SHARE}.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of the text. The rest is ignored.")
    ] = 1_000_000,
    window_tokens: Annotated[int, typer.Option(min=2, help="Tokens per window of text.")] = 512,
    states: Annotated[
        float,
        typer.Option(min=0, help="Weight in the loss of the hidden states between the layers.", rich_help_panel=HOW),
    ] = 1.0,
    training: TrainingOptions = _TRAINING,
    precision: PrecisionOption = Precision.FLOAT32,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a smaller sibling of a model with the same vocabulary, to pair with it if no small model exists.

    The command removes the layers that change their input least (ShortGPT's block influence). It fits the other layers
    in closed form to replace them, and heals the sibling by distillation from the whole model. Every 20th window of the
    text is held out. The result is a model directory for `collab tune` and `export onnx`, with the loss curves. An
    interrupted run resumes. Several processes can train together: `accelerate launch -m cogenesis ...`.

    Example:
      cogenesis collab shrink -m models/smollm2 --texts train.jsonl --layers 16 --precision bfloat16 -o edge
    """
    if layers is not None and share is not None:
        raise SettingsError("--layers and --share both say how large the sibling is. Give one of them.")
    settings = training.tuning()
    prepare_command()
    from personalization.collab.shrink.distillation import Healing, Size, shrink_model
    from personalization.collab.shrink.healing_text import holds_records, read_windows
    from personalization.training.curve_plot import draw_curves

    team = team_on(training.device)
    if team.leads and holds_records(texts):
        usable_records(texts)  # names skipped records on stderr
    with progress_bar(visible=team.leads) as progress:
        shrunk = shrink_model(
            Path(model),
            out,
            lambda base: read_windows(texts, base.writer, window_tokens, max_tokens),
            Size(layers, None if layers else share or _SHARE),
            Healing(states, precision, settings),
            team,
            force=force,
            progress=progress,
        )
    if team.leads:
        losses = [-gain for gain in shrunk.report.gains]
        draw_curves(out / CURVES_NAME, shrunk.report, "divergence, with the states' distance", losses)
        _say(shrunk, losses, as_json)


def _say(shrunk: Trained, losses: Sequence[float], as_json: bool) -> None:
    from personalization.collab.shrink.distillation import read_note

    note, report = read_note(shrunk.path), shrunk.report
    fitted, healed = losses[0], losses[report.kept_epoch]
    if as_json:
        body = {
            "out": str(shrunk.path),
            "kept": shrunk.kept,
            "layers": note.kept,
            "share": note.share,
            "steps": report.steps,
            "losses": report.losses,
            "held_out": {"whole": note.whole_loss, "fitted": fitted, "healed": healed},
            "kept_epoch": report.kept_epoch,
        }
        typer.echo(json.dumps(body))
        return
    typer.echo(f"{'Was made already' if shrunk.kept else 'Made'}: {shrunk.path}")
    typer.echo(f"layers: {', '.join(map(str, note.kept))}; {note.share:.1%} of the parameters")
    typer.echo(
        f"loss on held-out text, nats per token: {note.whole_loss:.4f} whole model, {fitted:.4f} layers removed and "
        f"fitted, {healed:.4f} healed"
    )
