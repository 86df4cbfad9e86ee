"""Documentation pages generated from the code: `mkdocs.yml` lists this file as a hook.

The command line from the Typer app, recipe keys from the specs, errors from the sources, and CHANGELOG.md and
CONTRIBUTING.md from the repository. `pages()` returns all of them without mkdocs.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from piti.baselines.base import BASELINES
from piti.cli.app import app
from piti.conditions import CONDITIONS
from piti.training import Recipe

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"help", "install_completion", "show_completion"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages before mkdocs builds its navigation."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """All generated pages, by their path in the site."""
    return {
        "reference/command-line.md": command_line(),
        "reference/recipe.md": recipe_keys(),
        "reference/errors.md": errors(),
        "project/changelog.md": moved("CHANGELOG.md"),
        "project/contributing.md": moved("CONTRIBUTING.md"),
    }


def moved(name: str) -> str:
    """A file of the repository as a page in `project/`, with adjusted links."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")
    return re.sub(r"\]\(([A-Z]+)\.md\)", lambda link: f"]({link[1].lower()}.md)", text)


# The command line


def commands() -> Iterator[tuple[str, Any]]:
    """All visible commands with their words, groups before their commands."""
    yield from _commands_in("piti", typer.main.get_command(app))


def _commands_in(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _commands_in(f"{words} {name}", inner)


def command_line() -> str:
    """The page of all commands with their arguments and options."""
    parts = [
        "# Command line",
        "Generated from the program; `piti COMMAND --help` prints the same. Results go to standard output; notes, "
        "progress and errors to standard error. The exit status is 1 for errors and 2 for wrong options.",
        "```\npiti --install-completion   # completes commands and options in your shell\n```",
    ]
    for words, command in commands():
        level = "##" if words.count(" ") <= 1 else "###"
        parts += [f"{level} `{words}`", _cell(command.help or "").replace("<br>", "\n\n")]
        if hasattr(command, "commands"):
            continue
        shown = [parameter for parameter in command.params if parameter.name not in SKIPPED]
        arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
        options = [parameter for parameter in shown if parameter.param_type_name == "option"]
        usage = [_usage(argument) for argument in arguments] + (["[OPTIONS]"] if options else [])
        parts.append(f"```\n{' '.join([words, *usage])}\n```")
        if arguments:
            parts.append(_table(("argument", "is"), [(f"`{_name(a)}`", _cell(a.help)) for a in arguments]))
        if options:
            rows = [(spelling(option), _cell(option.help), _default(option)) for option in options]
            parts.append(_table(("option", "is", "default"), rows))
    return "\n\n".join(parts) + "\n"


def spelling(option: Any) -> str:
    """An option as typed, with its value."""
    taken = "" if option.is_flag else f" {_metavar(option)}"
    names = [*option.opts, *option.secondary_opts]
    return ", ".join(f"`{name}{taken}`" for name in names)


def _metavar(option: Any) -> str:
    taken = option.type_descriptor.annotation
    taken = get_args(taken)[0] if get_origin(taken) is list else taken
    if isinstance(taken, type) and issubclass(taken, Enum):
        return "/".join(str(one.value) for one in taken)
    several = get_args(taken) if get_origin(taken) is tuple else [taken]
    return " ".join({str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}[one] for one in several)


def _name(argument: Any) -> str:
    return (argument.metavar or argument.name.rstrip("_")).upper()


def _usage(argument: Any) -> str:
    many = "…" if argument.nargs == -1 else ""
    return f"{_name(argument)}{many}" if argument.required else f"[{_name(argument)}{many}]"


def _default(option: Any) -> str:
    value = option.default
    if callable(value) or value in (None, "", (), []) or value is False:
        return ""
    return "on" if value is True else f"`{getattr(value, 'value', value)}`"


# Recipe keys


def recipe_keys() -> str:
    """The page of all recipe keys, a table per spec."""
    parts = [
        "# Recipe keys",
        "Generated from the specifications that read recipes. Every key can be set on the command line: "
        "`--set stages.0.lr=1e-4`, `--set 'stages.1.trains=[encoder, lora]'`. Errors for unknown keys name the nearest "
        "known one. Recipes in the package are found by name: `street`, `baselines/spade`.",
    ]
    for path, spec in specs(Recipe):
        parts += [f"## `{path}`" if path else "## The recipe itself", _doc(spec)]
        parts.append(_table(("key", "is", "type", "default"), [_row(path, *one) for one in _fields_of(spec)]))
    parts += ["## `condition`, by kind", "`condition.kind` selects the kind of condition."]
    for kind, condition in sorted(CONDITIONS.items()):
        parts += [f"### `kind: {kind}`", _doc(condition)]
        rows = [
            (f"`condition.{field.name}`", _code(str(field.type)), _code(_plain_default(field)))
            for field in (dataclasses.fields(condition) if dataclasses.is_dataclass(condition) else ())
        ]
        parts += [_table(("key", "type", "default"), rows)] if rows else []
    parts += [
        "## `baseline`, by kind",
        "A baseline instead of a diffusion model; see [Baselines](../evidence/baselines.md).",
    ]
    for kind, baseline in sorted(BASELINES.items()):
        parts += [f"### `kind: {kind}`"]
        rows = [_row("baseline", *one) for one in _fields_of(baseline.spec_type)]
        parts.append(_table(("key", "is", "type", "default"), rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def specs(spec: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A spec and those in its fields, with their key paths; `N` is an index of a list."""
    yield path, spec
    for name, field in spec.model_fields.items():
        inner = _spec_in(field.annotation)
        if inner is not None:
            many = ".N" if get_origin(field.annotation) in (tuple, list) else ""
            yield from specs(inner, f"{path}.{name}{many}".lstrip("."))


def keys() -> set[str]:
    """All dotted keys of a recipe, without those of conditions and baselines."""
    return {f"{path}.{name}".lstrip(".") for path, spec in specs(Recipe) for name in spec.model_fields}


def _spec_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _spec_in(inner))), None)


def _fields_of(spec: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, str]]:
    docs = attribute_docs(spec)
    for name, field in spec.model_fields.items():
        yield name, field, docs.get(name, "")


def _row(path: str, name: str, field: FieldInfo, doc: str) -> tuple[str, ...]:
    inner = _spec_in(field.annotation)
    default = "" if inner is not None and field.default is not None else _written(field.get_default())
    if inner is not None:
        doc = f"{doc} Its keys are below." if doc else "Its keys are below."
    return f"`{f'{path}.{name}'.lstrip('.')}`", _cell(doc), _code(_typed(field)), _code(default)


def _written(value: Any) -> str:
    if type(value).__name__ == "PydanticUndefinedType":
        return ""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _plain_default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else _written(field.default)


def _typed(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{signs[k]} {getattr(m, k)}" for m in field.metadata for k in signs if hasattr(m, k)]
    return ", ".join([type_words(field.annotation), *bounds])


def type_words(annotation: Any) -> str:
    """A type in the terms of YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(inner[0])
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(one) for one in inner)
    if origin in (tuple, list):
        several = inner[:1] if Ellipsis in inner or origin is list else inner
        return f"list of {type_words(several[0])}" if len(several) == 1 else f"[{', '.join(map(type_words, several))}]"
    if annotation is type(None):
        return "null"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "keys"
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}
    name = getattr(annotation, "__name__", str(annotation))
    return words.get(name, name)


@cache
def attribute_docs(spec: type) -> dict[str, str]:
    """The docstring of each attribute of a class, including inherited ones."""
    found: dict[str, str] = {}
    for cls in reversed(spec.__mro__):
        if not cls.__module__.startswith("piti."):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for one, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and _is_text(after):
                found[one.target.id] = ast.literal_eval(after.value)  # pyright: ignore[reportAttributeAccessIssue]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# Errors


def errors() -> str:
    """The page of all messages of user errors, by the package that raises them."""
    parts = [
        "# Errors",
        "Generated from the sources: messages of user errors, with `…` for values, and options without the dashes of "
        "the command line. A few messages that are assembled from parts are missing. In Python all of them are "
        "`piti.core.errors.UserError` or, inside a recipe or another specification, part "
        "of a `SpecError`; the command line prints them after `error:`, and the studio returns them over HTTP. Search "
        "this page for the words of a message.",
    ]
    found: dict[str, set[tuple[str, str]]] = {}
    for path in sorted((ROOT / "piti").rglob("*.py")):
        package = path.relative_to(ROOT / "piti").parts[0].removesuffix(".py")
        found.setdefault(package, set()).update(messages_of(path))
    for package, messages in found.items():
        if messages:
            rows = [(f"`{kind}`", _cell(text)) for text, kind in sorted((text, kind) for kind, text in messages)]
            parts += [f"## `{f'piti.{package}'.removesuffix('.__init__')}`", _table(("error", "message"), rows)]
    return "\n\n".join(parts) + "\n"


def messages_of(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, message) of all errors that a file raises with a literal text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        kind = ast.unparse(node.exc.func)
        if not re.fullmatch(r"\w*(?:Error|Diverged|Interrupted|Bad\w*|TooLarge|QueueFull)", kind) or not node.exc.args:
            continue
        more = {word.arg: template(word.value) for word in node.exc.keywords}
        named = [f"{_option_of(more)}{template(node.exc.args[0])}", more.get("local_remedy"), more.get("remedy")]
        text = "; ".join(part for part in named if part)
        if re.search(r"\w{2}", text):
            yield kind, text


def _option_of(more: dict[str | None, str]) -> str:
    return f"{more['option']}: " if more.get("option") else ""


def template(node: ast.expr) -> str:
    """The text of an expression, with `…` for run-time values."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "option" and isinstance(node.args[0], ast.Constant):
        return str(node.args[0].value)
    return "…"


# Markdown


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str | None) -> str:
    """A text as a table cell: on one line, without markup except code."""
    words = re.sub(r"\n\n+", "<br>", inspect.cleandoc(text or ""))
    words = " ".join(words.split()).replace("|", "\\|").replace("*", "\\*")
    return re.sub(r"<(?!br>)", "&lt;", words)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def _doc(documented: Any) -> str:
    """The docstring of a class as paragraphs, without inherited ones."""
    return inspect.cleandoc(vars(documented).get("__doc__") or "").replace("<", "&lt;").replace("*", "\\*")
