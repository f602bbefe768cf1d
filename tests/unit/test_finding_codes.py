"""The codes of findings about a target: each in docs/revalidation.md, and each that is there in the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import ckpt

PACKAGE = Path(ckpt.__file__).parent
TABLE = PACKAGE.parent / "docs" / "revalidation.md"
SOURCES = [*(PACKAGE / "revalidate").glob("*.py"), *PACKAGE.glob("remap*.py"), PACKAGE / "context_findings.py"]
CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# What f-strings in place of a code come to.
EXPANDED = {"{}-missing": ("exe-missing", "mapped-missing"), "{}-differs": ("exe-differs", "mapped-differs")}
VERDICTS = {"ok", "warn", "block", "_block"}


def codes_of(tree: ast.AST) -> Iterator[str]:
    """What the calls for findings have as their code."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Module)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = call.func.id if isinstance(call.func, ast.Name) else ""
            given = [word.value for word in call.keywords if word.arg == "code"]
            if name in VERDICTS:
                given = call.args[:1]
            for code in given:
                if isinstance(function, ast.FunctionDef) or not isinstance(code, ast.Name):
                    yield from _values(code, function)


def _values(code: ast.expr, function: ast.AST) -> Iterator[str]:
    if isinstance(code, ast.Constant):
        yield str(code.value)
    elif isinstance(code, ast.JoinedStr):
        pattern = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in code.values)
        yield from EXPANDED[pattern]
    else:
        # A variable, which the function has given one of several codes.
        texts = (node.value for node in ast.walk(function) if isinstance(node, ast.Constant))
        yield from (text for text in texts if isinstance(text, str) and "-" in text and CODE.fullmatch(text))


def grouped() -> Iterator[str]:
    """The codes of findings that count what is good."""
    from ckpt.revalidate.files import _GROUPS

    yield from (code for _, code, _ in _GROUPS)


def in_sources() -> set[str]:
    return {code for path in SOURCES for code in codes_of(ast.parse(path.read_text()))} | set(grouped())


def in_table() -> set[str]:
    rows = re.findall(r"^\| ((?:`[a-z0-9-]+`(?:, )?)+) \|", TABLE.read_text(), re.MULTILINE)
    return {code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row)}


def test_every_code_is_in_the_table_and_every_row_in_the_sources() -> None:
    assert len(in_sources()) > 50
    assert in_sources() - in_table() == set()
    assert in_table() - in_sources() == set()


def test_code_that_a_variable_holds_is_found() -> None:
    source = "def f():\n    code = 'a-b' if x else 'c-d'\n    yield block(code, 'subject')\n"
    assert set(codes_of(ast.parse(source))) == {"a-b", "c-d"}
