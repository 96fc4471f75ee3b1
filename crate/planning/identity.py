"""Fingerprints of code: which source a run's result depends on, as a hash.

Snakemake does not see edits inside an imported package. Every run therefore carries the hash of

- the operators its model names (the classes in `attention.py` and `sparse_coding.py`, with the
  definitions of those files that they use), so that an edit of ISTA reruns CRATE and not ViT;
- the modules its task imports, directly or through others.

Hashed is the syntax tree without docstrings, printed back as text: comments, blank lines and
layout change nothing. Files are read, never imported.
"""

import ast
import functools
from pathlib import Path

from crate.records import short_hash

PACKAGE = Path(__file__).parents[1]

# Their classes are hashed one by one, by the name a model's specification gives.
OPERATOR_MODULES = ("crate.layers.attention", "crate.layers.sparse_coding")

# What they decide reaches a run as its configuration, or never touches a result.
EXCLUDED = (
    "crate",
    "crate.planning.loader",
    "crate.data.catalogue",
    "crate.errors",
    "crate.planning.identity",
    "crate.models",
    "crate.models.zoo",
    "crate.data.examples",
    "crate.planning.plan",
    "crate.training.progress",
    "crate.records",
)


def _path(module: str) -> Path | None:
    relative = module.split(".")[1:]
    for path in (PACKAGE.joinpath(*relative, "__init__.py"), PACKAGE.joinpath(*relative)):
        path = path if path.name == "__init__.py" else path.with_suffix(".py")
        if relative and path.is_file():
            return path
    return None


@functools.cache
def _tree(module: str) -> ast.Module:
    """Syntax tree of a module of this package, without docstrings."""
    tree = ast.parse(_path(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = body[1:] or [ast.Pass()]
    return tree


def _imports(module: str) -> set[str]:
    """Modules of this package that `module` imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("crate.") and _path(name)}


def modules_of(module: str) -> list[str]:
    """`module` and all modules of the package it imports, less the excluded ones, sorted."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in EXCLUDED:
            seen.add(name)
            if name not in OPERATOR_MODULES:
                waiting.extend(_imports(name))
    return sorted(seen)


def _names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _definitions(module: str) -> dict[str, ast.stmt]:
    """Top-level functions, classes and constants of a module by name."""
    found: dict[str, ast.stmt] = {}
    for node in _tree(module).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                found |= dict.fromkeys(_names(target), node)
    return found


@functools.cache
def operator_source(operator: str) -> str:
    """Source of one operator class and of what it uses in its file."""
    for module in OPERATOR_MODULES:
        definitions = _definitions(module)
        if operator in definitions:
            used, waiting = set(), [operator]
            while waiting:
                name = waiting.pop()
                if name in definitions and name not in used:
                    used.add(name)
                    waiting.extend(_names(definitions[name]))
            return "\n".join(ast.unparse(definitions[name]) for name in sorted(used))
    raise KeyError(operator)


@functools.cache
def module_source(module: str) -> str:
    return ast.unparse(_tree(module))


@functools.cache
def fingerprint(module: str, operators: tuple[str, ...] = ()) -> str:
    """Hash of a module with all it imports, and of the named operators."""
    parts = [
        f"{name}\n{module_source(name)}"
        for name in modules_of(module)
        if name not in OPERATOR_MODULES
    ]
    parts += [f"{name}\n{operator_source(name)}" for name in sorted(operators)]
    return short_hash("\n\n".join(parts))
