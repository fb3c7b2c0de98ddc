"""`cogenesis collab sketch`: adds outlines of the public instructions to records."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cogenesis.options.cloud import CloudOption, Credentials
from cogenesis.options.expand import expand
from cogenesis.options.fusion import LedgerOption
from cogenesis.options.output import ForceOption, JsonOption
from cogenesis.options.records import RecordsArgument, usable_records
from cogenesis.options.source import SourceOptions
from personalization.errors import SettingsError


@expand
def sketch(
    records: RecordsArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File of the records with their sketches to write.", show_default=False)
    ],
    cloud: CloudOption = None,
    *,
    credentials: Credentials,
    who: SourceOptions,
    ledger: LedgerOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a model for outlines of the records' public instructions: 8 to 15 numbered points of a few words.

    The command asks the cloud, as a device does, or another model or endpoint. It sends only public instructions. It
    names the records whose outlines fail; run it again to retry only those. The progress is in OUT.progress.

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

    if cloud is not None and who.is_given:
        raise SettingsError("Name one who is asked: --cloud HOST:PORT, or another.")
    found = usable_records(records)
    lines = ProgressLines()

    def report(done: int, total: int) -> None:
        lines(out.name, "outlined", done, total, worked=done > 0)

    with ExitStack() as stack:
        gate = Gate(Policy.SKETCH, stack.enter_context(Ledger(ledger)))
        outliner: Outliner
        if cloud is not None:
            client = connect(cloud, api_key=credentials.api_key, tls=credentials.tls, call_timeout=who.timeout)
            stack.callback(client.close)
            outliner = BridgeOutliner(client, gate, who.parallel)
        else:
            outliner = ModelOutliner(who.open(), gate)
        journal = out.with_name(f"{out.name}.progress")
        sketched, asked = outline_records(found, outliner, journal, tries=who.tries, report=report, force=force)
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
