"""Who may import whom: the dependency direction, read from the sources.

cli → run, dump, restore, clean … → {image, kernel, plan, check, revalidate} → model → errors, records. ``image`` and
``kernel`` never import each other, what is pure imports no layer that acts, and only the command line knows of
printing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckpt

PACKAGE = Path(ckpt.__file__).parent

# A module's layer is the first part of its name below ckpt. `engine` stands for every top-level module that is not
# named here: it reads like prose and may use everything but the command line.
LAYERS = {"cli", "image", "kernel", "model", "errors", "records", "plan", "diff", "check", "revalidate"}
PURE = {"errors", "records", "model"}
ALLOWED = {
    "errors": set(),
    "records": set(),
    "model": {"errors", "records"},
    "image": PURE,
    "kernel": PURE | {"plan"},  # kernel.apply carries out the plan's steps
    "plan": PURE,
    "diff": PURE,
    "check": PURE,
    "revalidate": PURE | {"check"},
    "engine": LAYERS - {"cli"},
    "cli": LAYERS | {"engine"},
}
# What only the command line may use, and the packages with one door each.
DOORS = {"click": {"cli"}, "rich": {"cli"}, "msgpack": {"image"}, "pyroute2": {"kernel"}, "pycriu": {"kernel"}}
DOORS |= {"zstandard": {"image"}, "lz4": {"image"}}


def layer_of(module: str) -> str:
    """``ckpt.kernel.run`` → ``kernel``; ``ckpt.dump`` and ``ckpt`` itself → ``engine``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "engine"


def module_name(path: Path) -> str:
    parts = ("ckpt", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Each import of ``source``, also those inside functions: line, full name of what is imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            # `from ckpt import kernel` imports ckpt.kernel
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def breaches(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What ``source``, as the module of that name, imports against the rules."""
    layer = layer_of(module)
    found = []
    for line, name in imports(source, module, is_package=is_package):
        root = name.split(".")[0]
        if root == "ckpt" and layer_of(name) != layer and layer_of(name) not in ALLOWED[layer]:
            # `from ckpt import __version__` asks the package itself, which is above nobody.
            if name.removeprefix("ckpt.").startswith("__"):
                continue
            found.append(f"{module}:{line} ({layer}) imports {name} ({layer_of(name)})")
        if layer not in DOORS.get(root, {layer}):
            found.append(f"{module}:{line} ({layer}) imports {name}, which belongs to {', '.join(DOORS[root])}")
    return found


def test_ckpt_imports_follow_the_layers() -> None:
    found = []
    paths = sorted(PACKAGE.rglob("*.py"))
    for path in paths:
        found += breaches(path.read_text(), module_name(path), is_package=path.name == "__init__.py")
    assert len(paths) > 5
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ckpt.image.reader", "import ckpt.kernel.run"),
        ("ckpt.image.reader", "from ckpt import kernel"),
        ("ckpt.kernel.run", "def f() -> None:\n    from ..image import Reader"),
        ("ckpt.model.network", "from ckpt.plan import plan_network"),
        ("ckpt.plan", "from ckpt.kernel import run"),
        ("ckpt.check", "import ckpt.dump"),
        ("ckpt.dump", "from ckpt.cli.main import main"),
        ("ckpt.dump", "import click"),
        ("ckpt.cli.main", "import pyroute2"),
    ],
)
def test_breaches_names_a_forbidden_import(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ckpt.cli.main", "import click\nfrom ckpt.kernel.run import run\nfrom ckpt import __version__"),
        ("ckpt.dump", "from ckpt.kernel import run\nfrom .image import Writer\nfrom ckpt import registry"),
        ("ckpt.kernel.run", "from ckpt.errors import CkptError\nfrom . import syscalls"),
        ("ckpt.kernel.apply", "from ckpt.plan import Step"),
        ("ckpt.model.finding", "import enum"),
    ],
)
def test_breaches_allows_what_lies_below(module: str, source: str) -> None:
    assert breaches(source, module) == []
