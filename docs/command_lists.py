"""Generate the list of commands in docs/reference/commands.md, from the help of the command line.

`python docs/generate.py` rewrites the page. What the page says before the first command is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from typer.main import get_command

from hpo.cli import app

PAGE = Path(__file__).parent / "reference/commands.md"


def rewritten(page: str) -> str:
    """Return the page with the commands as the command line has them."""
    before, _, _ = page.partition("\n## `")
    return (
        before.rstrip()
        + "\n\n"
        + "\n".join(section(path, command) for path, command in commands(get_command(app), "hpo"))
    )


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command (not groups) with its full name, in the order of `hpo --help`."""
    inner = getattr(command, "commands", {})
    for name, each in inner.items():
        yield from commands(each, f"{path} {name}")
    if not inner:
        yield path, command


def section(path: str, command: Any) -> str:
    """Return a command's heading, description, and table of arguments and options."""
    text = f"## `{path}`\n\n{escaped(command.help)}\n"
    if command.params:
        text += "\n| argument or option | meaning | default |\n|---|---|---|\n"
    return text + "".join(f"| {names(each)} | {meaning(each)} | {default(each)} |\n" for each in command.params)


def names(parameter: Any) -> str:
    """Return an argument's name, or an option's names with the name of its value."""
    value = parameter.metavar or ("|".join(choices(parameter)) if choices(parameter) else "")
    if parameter.param_type_name == "argument":
        several = "" if parameter.nargs == 1 or value.endswith("...") else "..."
        return f"`{value}{several}`"
    value = value.replace("|", "\\|")
    return ", ".join(f"`{name} {value}`".replace(" `", "`") for name in parameter.opts)


def choices(parameter: Any) -> list[str]:
    """Return the allowed words of an option, where it has such a list."""
    return [str(each.value) for each in type(parameter.default)] if isinstance(parameter.default, Enum) else []


def meaning(parameter: Any) -> str:
    """Return an option's help without its default."""
    text, _, _ = (parameter.help or "").partition(" [default: ")
    return escaped(text).replace("|", "\\|")


def default(parameter: Any) -> str:
    """Return an option's default, or "required"."""
    _, found, told = (parameter.help or "").partition(" [default: ")
    if found:
        return told.removesuffix("]")
    if parameter.required:
        return "required"
    value = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    return "" if value is None or value is False else f"`{value}`"


def escaped(text: str) -> str:
    """Return a help text as Markdown: file names and patterns as they are."""
    return text.replace("<", "\\<").replace("*", "\\*")
