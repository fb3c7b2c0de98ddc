"""Groups of options: a command takes dataclasses, and Typer shows, reads and checks each field by itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from cogenesis.options.expand import expand


class Color(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Place:
    host: Annotated[str, typer.Option("--host", "-h", metavar="NAME", help="Where it is.", rich_help_panel="Place")]
    port: Annotated[int, typer.Option(min=1, help="Its port.", rich_help_panel="Place")] = 80
    key: Annotated[str | None, typer.Option(envvar="PLACE_KEY", help="Its key.", rich_help_panel="Place")] = None


@dataclass(frozen=True, kw_only=True)
class Look:
    color: Annotated[Color, typer.Option(help="Its color.")] = Color.RED
    tag: Annotated[list[str] | None, typer.Option(help="Its tags.")] = None
    sizes: Annotated[list[int], typer.Option("--size", help="Its sizes.")] = field(default_factory=lambda: [1, 2])
    bold: Annotated[bool, typer.Option("--bold/--thin", help="Its weight.")] = False


@dataclass(frozen=True, kw_only=True)
class WideLook(Look):
    wide: Annotated[bool, typer.Option("--wide", help="Its width.")] = False


_BLUE = Look(color=Color.BLUE, sizes=[3])


def runner_of(command):
    """Calls a command by its words; what it got, or the usage error."""
    app = typer.Typer()
    app.command()(command)

    def call(*words: str, **environment: str):
        return CliRunner().invoke(app, [*words], env=environment)

    return call


@pytest.fixture
def got():
    return []


@pytest.fixture
def show(got):
    @expand
    def show(
        name: Annotated[Path, typer.Argument(help="What is shown.")],
        place: Place,
        loud: Annotated[bool, typer.Option("--loud", help="Whether aloud.")] = False,
        *,
        look: Look,
    ) -> None:
        """Show a thing."""
        got.append((name, place, loud, look))

    return runner_of(show)


def test_the_command_gets_an_instance_of_each_group(show, got):
    said = show("a", "--host", "b")
    assert said.exit_code == 0, said.output
    assert got == [(Path("a"), Place(host="b"), False, Look())]
    words = ["a", "-h", "b", "--port", "9", "--color", "blue", "--tag", "x", "--tag", "y", "--size", "5", "--bold"]
    assert show(*words, "--loud", PLACE_KEY="secret").exit_code == 0
    place = Place(host="b", port=9, key="secret")
    assert got[1] == (Path("a"), place, True, Look(color=Color.BLUE, tag=["x", "y"], sizes=[5], bold=True))


@pytest.mark.parametrize(
    "words",
    [
        ("a",),  # a required option is missing
        ("--host", "b"),  # the argument is missing
        ("a", "--host", "b", "--port", "0"),
        ("a", "--host", "b", "--color", "green"),
        ("a", "--host", "b", "--place", "c"),  # the group itself is no option
    ],
)
def test_what_typer_checks_of_an_option_it_checks_of_a_field(show, got, words):
    assert show(*words).exit_code == 2
    assert got == []


def test_help_shows_options_in_order_with_their_panels_metavars_and_defaults(show):
    shown = show("--help").output
    assert "Show a thing." in shown
    order = ["What is shown.", "Whether aloud.", "Its color.", "Its tags.", "Its sizes.", "Its weight."]
    assert [shown.index(words) for words in order] == sorted(shown.index(words) for words in order)
    panel = shown[shown.index("─ Place ─") :]
    assert [words for words in ("Where it is.", "Its port.", "Its key.") if words in panel] == [
        "Where it is.", "Its port.", "Its key.",
    ]  # fmt: skip
    assert "NAME" in panel and "[required]" in panel and "[default: 80]" in panel and "PLACE_KEY" in panel
    assert "--thin" in shown and "red|blue" in shown


def test_an_instance_as_the_default_gives_its_values(got):
    @expand
    def paint(look: Look = _BLUE) -> None:
        got.append(look)

    call = runner_of(paint)
    assert call().exit_code == 0
    assert call("--color", "red").exit_code == 0
    assert got == [_BLUE, Look(color=Color.RED, sizes=[3])]


def test_a_group_that_extends_another_has_the_options_of_both(got):
    @expand
    def paint(look: WideLook) -> None:
        got.append(look)

    assert runner_of(paint)("--wide", "--bold").exit_code == 0
    assert got == [WideLook(wide=True, bold=True)]


def test_an_expanded_command_is_called_by_keywords_and_fills_in_defaults(got):
    @expand
    def show(place: Place, look: Look) -> None:
        got.append((place, look))

    show(host="b", bold=True)
    assert got == [(Place(host="b"), Look(bold=True))]


def test_two_options_of_one_name_are_refused():
    def show(port: int, place: Place) -> None: ...

    with pytest.raises(TypeError, match="two parameters named port"):
        expand(show)
