"""The command line as a whole: one flag has one meaning, each command has a file of its name, all of it has help."""

from __future__ import annotations

import inspect
import keyword
import types
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

import pytest
import typer

from cogenesis.cli import app
from tests.support.commands import ROOT

# Flags whose meaning the command completes. Their type is the same everywhere, as that of every flag.
GENERIC = {
    "--out": "what the command writes",
    "--model": "the model that the command works on",
    "--bundle": "the bundle that the command reads or changes",
    "--user": "the ID of the user whose adapter or texts the command takes",
    "--store": "the profile store; only the store's own commands have a default and read COGENESIS_STORE",
}


@dataclass(frozen=True, slots=True)
class Use:
    """A flag as one command takes it."""

    command: str
    name: str
    value: Any
    option: Any


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from commands(below, (*path, name))
        else:
            yield (*path, name), below


COMMANDS = dict(commands(typer.main.get_command(app)))


def uses() -> dict[str, list[Use]]:
    """Every flag with the commands that take it."""
    found = defaultdict(list)
    for path, command in COMMANDS.items():
        parameters = inspect.signature(command.callback, eval_str=True).parameters
        for shown in command.params:
            if shown.param_type_name == "option":
                value, option = get_args(parameters[shown.name].annotation)
                use = Use(" ".join(path), max(shown.opts, key=len), without_none(value), option)
                for flag in (*shown.opts, *shown.secondary_opts):
                    found[flag].append(use)
    return found


def without_none(value: Any) -> Any:
    if get_origin(value) in (Union, types.UnionType):
        (value,) = (part for part in get_args(value) if part is not type(None))
    return value


FLAGS = uses()


def test_all_commands_are_looked_at():
    assert len(COMMANDS) > 50 and len(FLAGS) > 150
    assert {use.command for use in FLAGS["--json"]} >= {"generate", "lamp rank", "collab data stats", "store show"}


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_a_flag_has_one_type_and_one_meaning(flag):
    found = FLAGS[flag]
    types_of = {use.value: use.command for use in found}
    assert len(types_of) == 1, types_of
    # A meaning is an option object: whoever wants the same flag takes the same object from `cogenesis.options`.
    meanings = {id(use.option): f"{use.command}: {use.option.help}" for use in found}
    if len(meanings) > 1:
        names = {use.name for use in found}
        assert len(names) == 1 and names <= GENERIC.keys(), sorted(meanings.values())


def test_no_generic_flag_could_have_one_meaning():
    for flag in GENERIC:
        assert len({use.option.help for use in FLAGS[flag]}) > 1, flag


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_a_command_is_in_the_file_of_its_name(path):
    *groups, name = (part.replace("-", "_") for part in path)
    name += "_" * keyword.iskeyword(name)
    code = inspect.unwrap(COMMANDS[path].callback).__code__
    assert code.co_filename == str(ROOT.joinpath("cogenesis", *groups, f"{name}.py"))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_is_whole_sentences(path):
    command = COMMANDS[path]
    first = command.help.split("\n\n")[0]
    assert first[0].isupper() and first.endswith(".")
    for shown in command.params:
        if shown.name != "help":
            assert shown.help, shown.name
            assert shown.help.endswith("."), shown.help
            first = shown.help.split()[0]
            assert first[0].isupper() or first.endswith(":"), shown.help
