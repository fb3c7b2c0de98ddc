"""Puts a command's flags into the libraries' messages, which name parameters in backticks, such as `max_length`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperCommand

from edge_runtime.errors import CogenesisError

# Parameters of the libraries with another name on the command line; a command's own names take precedence.
OTHER_NAMES = {
    "lengths.answer": "max_new_tokens",
    "lengths.prompt": "max_prompt_tokens",
    "max_length": "max_prompt_tokens",
    "max_tokens": "max_candidate_tokens",
    "most_tokens": "max_new_tokens",
    "patience": "stop_after",
    "replace": "force",
    "replace_existing": "force",
    "sampling.top_k": "sample_top_k",
    "schedule": "rate_schedule",
    "scheme": "quantize",
    "temperature": "softmax_temperature",
    "tls_root_certificates": "tls_ca",
    "value_type": "wire",
    "window": "window_tokens",
}

_PARAMETER = re.compile(r"`([a-z][a-z0-9_.]*)`")

_flags: ContextVar[Mapping[str, str]] = ContextVar("flags", default=MappingProxyType({}))  # of the running command


class CommandApp(typer.Typer):
    """A Typer app whose commands replace a library's parameter names in errors with their own flags."""

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any
    ) -> Callable[[Any], Any]:
        """See `typer.Typer.command`."""
        return super().command(name, cls=cls or _FlagNamingCommand, **settings)


def with_flags(text: str) -> str:
    """Replace each parameter in backticks with the flag of the running command that sets it.

    Names that are not parameters of that command stay unchanged.
    """
    flags = _flags.get()

    def flag(found: re.Match[str]) -> str:
        name = found[1]
        return flags.get(name) or flags.get(OTHER_NAMES.get(name, "")) or found[0]

    return _PARAMETER.sub(flag, text)


class _FlagNamingCommand(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        before = _flags.set(_flags_of(self))
        try:
            return super().invoke(ctx)
        except CogenesisError as error:
            error.args = tuple(with_flags(part) if isinstance(part, str) else part for part in error.args)
            raise
        finally:
            _flags.reset(before)


def _flags_of(command: TyperCommand) -> dict[str, str]:
    """Return a command's flags by parameter name and by their own spelling; arguments are in capitals."""
    flags: dict[str, str] = {}
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            flags[str(parameter.name)] = str(parameter.name).upper()
            continue
        flag = max(parameter.opts, key=len)
        flags[flag.lstrip("-").replace("-", "_")] = flag
        flags[str(parameter.name)] = flag
    return flags
