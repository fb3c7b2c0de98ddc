"""A library's message names parameters; a command replaces them by its flags, in errors and in what it prints."""

import ast
import re
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cogenesis.cli import app as cogenesis
from cogenesis.terminal.flag_names import OTHER_NAMES, CommandApp, with_flags
from edge_runtime.errors import CloudOverloadedError, CogenesisError, RequestError
from tests.support.commands import ROOT

LIBRARIES = ("edge_runtime", "cloud_bridge", "export", "personalization")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
PARAMETER = re.compile(r"`([a-z][a-z0-9_.]*)`")
# Commands of other programs, to be run as they stand.
OTHER_PROGRAMS = re.compile(r"`(pip|hf|ray) [^`]*`")


def failing(error: Exception):
    """An app of two commands, which print and raise what an error says."""
    app = CommandApp()

    @app.command()
    def one(
        records: Annotated[str, typer.Argument()] = "",
        max_length: int = 1,
        name: Annotated[str, typer.Option("--label")] = "",
        tls: Annotated[bool, typer.Option("--tls/--no-tls", "-t")] = False,
        force: bool = False,
        most: Annotated[int, typer.Option("--max-new-tokens", "-n")] = 1,
    ) -> None:
        print(with_flags(str(error)))
        raise error

    @app.command("other")
    def without_options() -> None:
        raise error

    return app


def said(message: str, command: str = "one") -> str:
    result = CliRunner().invoke(failing(RequestError(message)), [command])
    assert type(result.exception) is RequestError
    if command == "one":
        assert result.stdout == f"{result.exception}\n"
    return str(result.exception)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`max_length` must be at least 1.", "--max-length must be at least 1."),
        ("Lower `max_length` or set `force`.", "Lower --max-length or set --force."),
        ("`name` is taken, or `label`.", "--label is taken, or --label."),
        ("Use `tls`.", "Use --tls."),
        ("`records` has no record.", "RECORDS has no record."),
        ("Lower `most_tokens` or `lengths.answer`.", "Lower --max-new-tokens or --max-new-tokens."),
        ("Set `replace`.", "Set --force."),
        ("Run `cogenesis export onnx` with 'max_length'.", "Run `cogenesis export onnx` with 'max_length'."),
        ("Lower `beams`.", "Lower `beams`."),
    ],
)
def test_a_parameter_of_the_running_command_becomes_its_flag(message, shown):
    assert said(message) == shown


def test_a_command_names_no_flag_of_another():
    assert said("Lower `max_length`.", "other") == "Lower `max_length`."
    assert with_flags("Lower `max_length`.") == "Lower `max_length`."


def test_the_error_keeps_its_type_its_attributes_and_its_code():
    error = CloudOverloadedError("Lower `max_length`.", 7)
    error.retry_after = 3.0
    result = CliRunner().invoke(failing(error), ["one"])
    assert result.exception is error
    assert error.args == ("Lower --max-length.", 7)
    assert (error.retry_after, error.exit_code) == (3.0, CloudOverloadedError.exit_code)


def test_what_is_no_error_of_ours_stays_as_it_is():
    result = CliRunner().invoke(failing(ValueError("`max_length`")), ["one"])
    assert result.exception.args == ("`max_length`",)


def leaves(command, name: str = ""):
    """Every command of the program with its full name."""
    for key, one in getattr(command, "commands", {"": None}).items():
        if one is None:
            yield name, command
        else:
            yield from leaves(one, f"{name} {key}".strip())


COMMANDS = dict(leaves(typer.main.get_command(cogenesis)))


def test_every_command_of_the_program_names_its_flags():
    assert len(COMMANDS) > 40
    assert {type(command).__name__ for command in COMMANDS.values()} == {"_FlagNamingCommand"}


def test_other_names_lead_to_parameters_that_commands_have():
    assert set(OTHER_NAMES.values()) <= set(flags_of_all_commands())


def flags_of_all_commands() -> dict[str, str]:
    """Every parameter of every command."""
    return {parameter.name: name for name, command in COMMANDS.items() for parameter in command.params}


def texts(path: Path):
    """Each text of a file with its line: constants, and f-strings with "name" for what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "name" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def files():
    return [path for name in LIBRARIES for path in sorted((ROOT / name).rglob("*.py"))]


def test_no_library_names_a_flag():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {flag[0]}"
        for path in files()
        for line, text in texts(path)
        for flag in FLAG.finditer(OTHER_PROGRAMS.sub("", text))
    ]
    assert found == []


def test_a_flag_in_a_plain_text_and_in_an_f_string_is_found(tmp_path):
    path = tmp_path / "library.py"
    path.write_text(
        '"""Names `--model`."""\nf"Give --{name}"\nf"{a} Lower --max-{b}" "-length."\n"a--b `pip install --x y`"\n'
    )
    found = [(line, FLAG.findall(OTHER_PROGRAMS.sub("", text))) for line, text in texts(path)]
    assert found == [(1, ["--model"]), (2, ["--name"]), (3, ["--max-name-length"]), (4, [])]


def test_every_parameter_that_an_error_names_is_one_of_a_command():
    known = set(flags_of_all_commands()) | set(OTHER_NAMES)
    unknown = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
        for name in PARAMETER.findall(part.value)
        if name not in known
    }
    assert unknown == set()


def test_errors_of_ours_show_what_they_are_given():
    """The command replaces an error's arguments, so no class may show something else."""

    def classes(kind):
        yield kind
        for one in kind.__subclasses__():
            yield from classes(one)

    assert [kind for kind in classes(CogenesisError) if "__str__" in vars(kind)] == []
