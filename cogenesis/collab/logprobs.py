"""`cogenesis collab logprobs`: writes both models' log-probs for every token of reference answers into one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.collab.scored_model import model_of
from cogenesis.options.answering import say_incomplete
from cogenesis.options.assistant import AdapterOption
from cogenesis.options.cloud import CloudOption, Credentials
from cogenesis.options.expand import expand
from cogenesis.options.fusion import WithoutOption
from cogenesis.options.lamp import LimitOption
from cogenesis.options.models import EDGE, LARGE
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.records import RecordsArgument, report_skipped, usable_records
from cogenesis.options.rows import ROWS, CloudRows
from cogenesis.options.runner import DeviceOption, ShardedRunnerOptions
from cogenesis.terminal.tables import ProgressLines
from edge_runtime.fusion.sparse import THIN
from personalization.collab.logprobs.model_spec import BridgeSpec, ModelSpec
from personalization.collab.logprobs.score import LogProbPlan, score_records
from personalization.errors import SettingsError
from personalization.models.device import Device


@expand
def logprobs(
    records: RecordsArgument,
    edge: Annotated[Path, EDGE],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for the file and the progress.", show_default=False)
    ],
    large: Annotated[Path | None, LARGE] = None,
    cloud: CloudOption = None,
    *,
    credentials: Credentials,
    adapter: AdapterOption = None,
    without: WithoutOption = False,
    device: DeviceOption = Device.CPU,
    max_reference_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens per reference. Longer references are truncated.")
    ] = 512,
    limit: LimitOption = None,
    edge_top: Annotated[
        int,
        typer.Option(min=16, help="Minimum number of the device's most likely tokens to keep.", rich_help_panel=ROWS),
    ] = 32,
    rows: CloudRows,
    where: ShardedRunnerOptions,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score reference answers with both models; the file determines the likelihood of every fusion exactly.

    The command sends instructions and references to a served cloud (--cloud). Rows have the default format of
    `cogenesis generate`. A combiner trained on another format requests that format itself; for other fusions give
    `generate` the same --top-k, --mass, --floor and --wire. An interrupted run resumes.

    Example:
      cogenesis collab logprobs train.jsonl --edge my-bundle --large cloud-model --out scored
    """
    if (large is None) == (cloud is None):
        raise SettingsError("Give either --large DIR or --cloud HOST:PORT.")
    far: ModelSpec | BridgeSpec
    if large is not None:
        far = model_of(large, where.threads, device)
    else:
        assert cloud is not None
        far = _served(cloud, credentials)
    near = model_of(edge, where.threads, device, adapter)
    plan = LogProbPlan(near, far, rows.form() or THIN, edge_top, without, max_reference_tokens)
    lines = ProgressLines()

    def report(done: int, total: int) -> None:
        lines(out.name, "scored", done, total, worked=True)

    runner = where.chosen()
    chosen = usable_records(records)[:limit]
    scored = score_records(chosen, plan, runner, out.absolute(), shard=where.part(), force=force, report=report)
    if scored is None:
        say_incomplete(out, as_json)
        return
    report_skipped(scored.skipped, records)
    found = scored.rows
    body = {
        "out": str(scored.path),
        "records": len(found.records),
        "skipped": len(scored.skipped),
        "rows": found.size,
        "bytes": scored.path.stat().st_size,
        "edge_nll": float(found.edge_nll.mean()),
        "without_nll": None if found.without_nll is None else float(found.without_nll.mean()),
        "cloud_nll": float(found.cloud_nll.mean()) if large is not None else None,
    }
    if as_json:
        typer.echo(json.dumps(body))
        return
    nats = [f"{name} {body[key]:.3f}" for name, key in _NLLS if body[key] is not None]
    typer.echo(
        f"{scored.path}: {found.size:,} rows of {len(found.records)} records; nats per token: {', '.join(nats)}."
    )


_NLLS = (("edge", "edge_nll"), ("edge without context", "without_nll"), ("cloud", "cloud_nll"))


def _served(address: str, credentials: Credentials) -> BridgeSpec:
    """Return a served cloud's specification, with the name of its model.

    Raises:
        CloudError: the cloud can't be reached.
    """
    from cloud_bridge.client import connect
    from edge_runtime.privacy.gate import Gate, Policy
    from edge_runtime.privacy.ledger import Ledger

    with connect(address, api_key=credentials.api_key, tls=credentials.tls) as cloud:
        info = cloud.info(Gate(Policy.OPEN, Ledger()).info())
    return BridgeSpec(address, info.model, credentials.api_key, credentials.tls)
