"""Expands groups of options: a command takes one dataclass, and Typer shows each of its fields as an option."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command that takes groups of options into one that takes single options, for `typer.command()`.

    A parameter whose type is a dataclass is a group. Each field of it is `Annotated[type, typer.Option(...)]`. The
    field's default is the option's default, unless the parameter has a default: then it is that instance's value.
    Options appear in the order of the parameters and of the fields. The other parameters stay as they are.

    Args:
        command: the command; it gets one instance of each group.

    Returns:
        The same command with the parameters that Typer should see; call it with keywords.

    Raises:
        TypeError: two parameters have the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    options: dict[str, inspect.Parameter] = {}
    groups: dict[str, list[str]] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        shown = [parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)]
        if isinstance(kind, type) and is_dataclass(kind):
            shown = list(_options(kind, parameter.default))
            groups[parameter.name] = [option.name for option in shown]
        for option in shown:
            if option.name in options:
                raise TypeError(f"{command.__qualname__} has two parameters named {option.name}.")
            options[option.name] = option
    signature = inspect.Signature(list(options.values()), return_annotation=None)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        bound = signature.bind(**given)
        bound.apply_defaults()
        values = bound.arguments
        made = {name: hints[name](**{field: values.pop(field) for field in own}) for name, own in groups.items()}
        command(**values, **made)

    run.__annotations__ = {name: option.annotation for name, option in options.items()} | {"return": None}
    run.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it; mypy does not know it
    return run


def _options(group: type, default: Any) -> Iterator[inspect.Parameter]:
    """Return a group's fields as parameters; `default` is an instance, or `Parameter.empty`."""
    hints: dict[str, Any] = {}
    for base in reversed(group.__mro__):
        hints |= _own_hints(base)
    for field in fields(group):
        value = _default(field) if default is inspect.Parameter.empty else getattr(default, field.name)
        yield inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=hints[field.name])


@functools.cache
def _own_hints(group: type) -> dict[str, Any]:
    """Return a class's own annotations, evaluated only once, so that each option is the same object everywhere."""
    return inspect.get_annotations(group, eval_str=True)


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return inspect.Parameter.empty if field.default_factory is MISSING else field.default_factory()
