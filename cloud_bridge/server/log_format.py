"""Formats log records as lines of text or JSON, without exception messages, which might contain user text."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any, Literal

LogFormat = Literal["text", "json"]


def write_logs(form: LogFormat, level: int) -> None:
    """Configure logging to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # The libraries' messages are long and irrelevant here.
    for library in ("asyncio", "grpc", "grpc._cython.cygrpc", "torchao", "torch.utils._pytree"):
        logging.getLogger(library).setLevel(logging.ERROR)


class TextFormatter(logging.Formatter):
    """Formats a record as `2026-01-31T12:00:00.123Z INFO opened session=1f2e3d4c key=phone method=Score`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        fields = "".join(f" {name}={_bare(value)}" for name, value in _fields(record).items())
        return f"{_time(record)} {record.levelname} {_message(record)}{fields}"


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object per line: `time`, `level`, `event`, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {"time": _time(record), "level": record.levelname.lower(), "event": _message(record), **_fields(record)}
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    # Our events have fixed names. A library's message can contain an exception's message, and thus a user's text.
    return record.getMessage() if record.name.startswith("cloud_bridge") else f"{record.name} reports a problem"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(getattr(record, "fields", {}))
    if record.exc_info and record.exc_info[0] is not None:
        fields["error"] = record.exc_info[0].__name__
    return fields


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _bare(value: object) -> str:
    text = str(value)
    return json.dumps(text) if any(character in text for character in ' "=') or not text else text
