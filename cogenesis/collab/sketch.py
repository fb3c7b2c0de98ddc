"""`cogenesis collab sketch`: records get outlines of their public instructions."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.records import RecordsArgument, usable_records
from cogenesis.options.source import (
    WHO,
    BundleOption,
    DeviceOption,
    EndpointOption,
    MaxNewTokensOption,
    ModelOption,
    NameOption,
    ParallelOption,
    RunForceOption,
    SourceOptions,
    TemperatureOption,
    ThreadsOption,
    TimeoutOption,
    TriesOption,
)
from cogenesis.options.users import JsonOption
from personalization.errors import SettingsError
from personalization.models.device import Device


def sketch(
    records: RecordsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="File of the records with their sketches.")],
    cloud: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ask this cloud, as a device would.", rich_help_panel=WHO),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="COGENESIS_API_KEY", help="Key that the cloud asks for.", rich_help_panel=WHO),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt what goes to the cloud.", rich_help_panel=WHO)] = False,
    endpoint: EndpointOption = None,
    name: NameOption = None,
    model: ModelOption = None,
    bundle: BundleOption = None,
    device: DeviceOption = Device.CPU,
    threads: ThreadsOption = 2,
    parallel: ParallelOption = 4,
    timeout: TimeoutOption = 120.0,
    max_new_tokens: MaxNewTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    tries: TriesOption = 3,
    ledger: Annotated[
        Path | None, typer.Option(help="Append everything that leaves to this JSON Lines file.", show_default=False)
    ] = None,
    force: RunForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have the public instructions of records outlined: 8 to 15 numbered points of a few words.

    Only public instructions are sent. Records whose outlines fail are named and stay without; run the command again,
    and only those are asked for again. What is known so far is kept in OUT.progress.

    Example:
      cogenesis collab sketch ctx.jsonl --cloud 127.0.0.1:50051 --out ctx-sketched.jsonl
    """
    from cloud_bridge.client import connect
    from cogenesis.terminal.tables import ProgressLines
    from edge_runtime.privacy.gate import Gate, Policy
    from edge_runtime.privacy.ledger import Ledger
    from personalization.answering.chat_endpoint import Usage
    from personalization.collab.outlines import BridgeOutliner, ModelOutliner, Outliner, outline_records
    from personalization.collab.records.records import write_collab_file

    others = (endpoint, name, model, bundle)
    if cloud is not None and any(other is not None for other in others):
        raise SettingsError("Name one who is asked: --cloud HOST:PORT, or another.")
    found = usable_records(records)
    lines = ProgressLines()

    def report(done: int, total: int) -> None:
        lines(out.name, "outlined", done, total, worked=done > 0)

    with ExitStack() as stack:
        gate = Gate(Policy.SKETCH, stack.enter_context(Ledger(ledger)))
        outliner: Outliner
        if cloud is not None:
            client = connect(cloud, api_key=api_key, tls=tls, call_timeout=timeout)
            stack.callback(client.close)
            outliner = BridgeOutliner(client, gate, parallel)
        else:
            source = SourceOptions(*others, device, threads, parallel, timeout, max_new_tokens, temperature).open()
            outliner = ModelOutliner(source, gate)
        journal = out.with_name(f"{out.name}.progress")
        sketched, asked = outline_records(found, outliner, journal, tries=tries, report=report, force=force)
    write_collab_file(out, sketched)
    failed = [{"id": found[index].id, "reason": why} for index, why in asked.failed.items()]
    usage = sum((Usage(**result["usage"]) for result in asked.results.values()), asked.usage)
    have = sum(record.sketch is not None for record in sketched)
    if as_json:
        print(
            json.dumps(
                {"out": str(out), "records": len(sketched), "sketches": have, "failed": failed, "usage": asdict(usage)}
            )
        )
        return
    for failure in failed:
        print(f"no outline for record '{failure['id']}': {failure['reason']}", file=sys.stderr)
    print(f"{have} of {len(sketched)} records have a sketch, {len(failed)} failed, {usage.calls} calls: {out}")
