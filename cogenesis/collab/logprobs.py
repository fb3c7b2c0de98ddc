"""`cogenesis collab logprobs`: what edge and cloud say at every token of reference answers, in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from cogenesis.options.answering import ForceOption, ShardOption, say_incomplete
from cogenesis.options.records import RecordsArgument, report_skipped, usable_records
from cogenesis.options.users import AddressOption, JsonOption, RunnerOption, ThreadsOption, WorkersOption, base_of
from cogenesis.terminal.tables import ProgressLines
from edge_runtime.fusion.sparse import THIN, RowFormat, ValueType
from export.bundle.writer import is_bundle
from personalization.collab.logprobs.model_spec import BridgeSpec, ModelSpec
from personalization.collab.logprobs.score import LogProbPlan, score_records
from personalization.errors import SettingsError
from personalization.jobs.runners import RunnerName, runner_of
from personalization.jobs.shard import Shard
from personalization.models.device import Device
from personalization.models.libraries import prepare_command

WHO, ROWS = "Who scores", "What is kept of a row"


def logprobs(
    records: RecordsArgument,
    edge: Annotated[
        Path,
        typer.Option(help="Sees the context: a bundle, or a directory in Hugging Face format.", rich_help_panel=WHO),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the file, and of what is done so far.")],
    cloud: Annotated[
        Path | None,
        typer.Option(help="Sees the instruction: a bundle or a directory.", rich_help_panel=WHO, show_default=False),
    ] = None,
    bridge: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A served cloud, instead of --cloud; it gets instructions and references.",
            rich_help_panel=WHO,
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="COGENESIS_API_KEY", help="Key that the bridge asks for.", rich_help_panel=WHO)
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt what the bridge gets.", rich_help_panel=WHO)] = False,
    adapter: Annotated[
        Path | None,
        typer.Option(help="File of the edge's adapter, for a bundle.", rich_help_panel=WHO, show_default=False),
    ] = None,
    without: Annotated[
        bool, typer.Option("--without", help="The edge without context, too: for delta steering.", rich_help_panel=WHO)
    ] = False,
    device: Annotated[Device, typer.Option(help="Where directories' models run.", rich_help_panel=WHO)] = Device.CPU,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a reference; the rest is left out.")] = 512,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many records.", show_default=False)
    ] = None,
    edge_top: Annotated[
        int, typer.Option(min=16, help="The edge's likeliest tokens, at least so many.", rich_help_panel=ROWS)
    ] = 32,
    top_k: Annotated[int, typer.Option(min=1, help="The cloud's, at most so many.", rich_help_panel=ROWS)] = THIN.top_k,
    mass: Annotated[float, typer.Option(help="Of the cloud's, until they reach it.", rich_help_panel=ROWS)] = THIN.mass,
    floor: Annotated[float, typer.Option(help="Of the cloud's, none less likely.", rich_help_panel=ROWS)] = THIN.floor,
    wire: Annotated[
        str, typer.Option(help="Values of the cloud: float32, float16 or bits12.", rich_help_panel=ROWS)
    ] = THIN.value_type,
    shard: ShardOption = "1/1",
    threads: ThreadsOption = 2,
    runner: RunnerOption = RunnerName.LOCAL,
    address: AddressOption = None,
    workers: WorkersOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score reference answers with both models; from the file every fusion's likelihood is known exactly.

    Rows are cut and coded as `cogenesis generate` gets them by default. A combiner trained on others asks for such rows
    by itself; for other fusions give `generate` the same --top-k, --mass, --floor and --wire. A run that was
    interrupted goes on where it was.

    Example:
      cogenesis collab logprobs train.jsonl --edge my-bundle --cloud cloud-model --out scored
    """
    if (cloud is None) == (bridge is None):
        raise SettingsError("Give either --cloud DIR or --bridge HOST:PORT.")
    form = RowFormat(top_k, mass, cast("ValueType", wire), floor)
    far: ModelSpec | BridgeSpec
    if cloud is not None:
        far = model_of(cloud, threads, device)
    else:
        assert bridge is not None
        far = _bridge(bridge, api_key, tls)
    plan = LogProbPlan(model_of(edge, threads, device, adapter), far, form, edge_top, without, max_tokens)
    lines = ProgressLines()

    def report(done: int, total: int) -> None:
        lines(out.name, "scored", done, total, worked=True)

    where = runner_of(runner, address, workers, threads)
    chosen = usable_records(records)[:limit]
    scored = score_records(chosen, plan, where, out.absolute(), shard=Shard.parse(shard), force=force, report=report)
    if scored is None:
        say_incomplete(out, as_json)
        return
    report_skipped(scored.skipped, records)
    rows = scored.rows
    body = {
        "out": str(scored.path),
        "records": len(rows.records),
        "skipped": len(scored.skipped),
        "rows": rows.size,
        "bytes": scored.path.stat().st_size,
        "edge_nll": float(rows.edge_nll.mean()),
        "without_nll": None if rows.without_nll is None else float(rows.without_nll.mean()),
        "cloud_nll": float(rows.cloud_nll.mean()) if cloud is not None else None,
    }
    if as_json:
        typer.echo(json.dumps(body))
        return
    nats = [f"{name} {body[key]:.3f}" for name, key in _NLLS if body[key] is not None]
    typer.echo(f"{scored.path}: {rows.size:,} rows of {len(rows.records)} records; nats a token: {', '.join(nats)}.")


_NLLS = (("edge", "edge_nll"), ("edge without context", "without_nll"), ("cloud", "cloud_nll"))


def model_of(path: Path, threads: int, device: Device, adapter: Path | None = None) -> ModelSpec:
    """A model's specification; hashes the weights of a directory.

    Raises:
        CogenesisError: there is no such model, or no such adapter.
        SettingsError: an adapter file is given for a directory.
    """
    if is_bundle(path):
        from edge_runtime.adapters.adapter import load_adapter
        from edge_runtime.bundle.reader import open_bundle

        bundle = open_bundle(path, verify=False)
        identity = bundle.fingerprint(bundle.decoder())
        if adapter is not None:
            identity += f"+{load_adapter(adapter).fingerprint}"
            adapter = adapter.absolute()
        return ModelSpec(path.absolute(), identity, bundle.base, True, adapter, threads)
    if adapter is not None:
        raise SettingsError(f"--adapter belongs to a bundle, and this is none: {path}.")
    prepare_command()
    directory, base = base_of(path)
    return ModelSpec(directory, base.sha256, base.sha256, False, None, threads, str(device))


def _bridge(address: str, api_key: str | None, tls: bool) -> BridgeSpec:
    """A bridge's specification, with the name of the model that it serves.

    Raises:
        CloudError: it can't be reached.
    """
    from cloud_bridge.client import connect
    from edge_runtime.privacy.gate import Gate, Policy
    from edge_runtime.privacy.ledger import Ledger

    with connect(address, api_key=api_key, tls=tls) as cloud:
        info = cloud.info(Gate(Policy.OPEN, Ledger()).info())
    return BridgeSpec(address, info.model, api_key, tls)
