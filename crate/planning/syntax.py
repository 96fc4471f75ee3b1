"""Definitions of this package, read off its files: what each says and what it leads to.

A definition becomes a text without docstrings, annotations, comments, the texts of errors and of
what is printed, and without the names of files; see `identity.py` for what that is used for.
"""

import ast
import builtins
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from crate import plugins

PACKAGE = Path(__file__).parents[1]

# Modules that never change a number: errors, records, schemas, progress, trackers.
SILENT = frozenset(
    {
        "crate.errors",
        "crate.records",
        "crate.registry",
        "crate.schema",
        "crate.environment",
        "crate.data.catalogue",  # what its entries say is in a run's configuration
        "crate.models.zoo",  # as above
        "crate.data.examples",
        "crate.training.progress",
        "crate.training.trackers",
    }
)
REFERENCE = re.compile(r"crate(?:\.\w+)+:\w+")
FOLLOWED = "# identity:"  # a comment that says how a name is followed where code cannot show it

Key = tuple[str, str]  # module and name, or module and "Class.member", "REGISTRY[entry]"


@dataclasses.dataclass(frozen=True)
class Definition:
    """The normalised syntax of one definition, and the names that it uses."""

    text: str = ""
    names: frozenset[Key] = frozenset()  # definitions of this package that it names
    attributes: frozenset[str] = frozenset()  # members that it reads of any object
    prefixes: frozenset[str] = frozenset()  # packages whose modules it imports by name
    problems: tuple[str, ...] = ()  # places that cannot be followed, for the lint


# --- modules ------------------------------------------------------------------------------------


class Module:
    """One file of the package: its top-level definitions and imports."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        source = path.read_text(encoding="utf-8")
        self.lines = source.splitlines()
        self.imports: dict[str, str] = {}  # bound name → dotted path
        self.definitions: dict[str, list[ast.stmt]] = {}
        self._bind(list(without_docstring(ast.parse(source).body)))

    def _bind(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= imported(node)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self.definitions[node.name] = [node]
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                self.imports |= {
                    name: path
                    for inner in node.body
                    if isinstance(inner, ast.Import | ast.ImportFrom)
                    for name, path in imported(inner).items()
                }
            else:
                for name in bound_names(node) or {""}:  # "": what only does something
                    self.definitions.setdefault(name, []).append(node)

    def class_node(self, name: str) -> ast.ClassDef | None:
        node = self.definitions.get(name, [None])[0]
        return node if isinstance(node, ast.ClassDef) else None

    def entries(self, name: str) -> dict[str, ast.expr] | None:
        """The entries of a `Registry("…", {…})`; None where the name is bound to something else."""
        node = self.definitions[name][0]
        value = getattr(node, "value", None)
        if (
            isinstance(value, ast.Call)
            and isinstance(value.func, ast.Name)
            and value.func.id == "Registry"
            and isinstance(value.args[-1], ast.Dict)
        ):
            keys = value.args[-1].keys
            if all(isinstance(key, ast.Constant) for key in keys):
                return {k.value: v for k, v in zip(keys, value.args[-1].values, strict=True)}
        return None


def bound_names(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds or changes."""
    targets = {
        ast.Assign: lambda n: n.targets,
        ast.AnnAssign: lambda n: [n.target],
        ast.AugAssign: lambda n: [n.target],
        ast.For: lambda n: [n.target],
    }.get(type(node))
    names = set()
    for target in targets(node) if targets else ():
        while isinstance(target, ast.Subscript | ast.Attribute):
            target = target.value
        names |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    for inner in getattr(node, "body", []) if isinstance(node, ast.If | ast.For | ast.Try) else ():
        names |= bound_names(inner)
    return names


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Bound name → dotted path of what an import statement brings."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.split(".")[0]: alias.name
            if alias.asname
            else alias.name.split(".")[0]
            for alias in node.names
        }
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}


@functools.cache
def module(name: str) -> Module | None:
    """The module of this package called `name`; None if there is no such module."""
    if name.split(".")[0] != "crate":
        return None
    parts = name.split(".")[1:]
    places = [PACKAGE.joinpath(*parts)]
    if parts[:1] == ["plugins"]:  # files of one's own
        places += [Path(folder, *parts[1:]) for folder in plugins.__path__]
    for base in places:
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                return Module(name, path)
    return None


@functools.cache
def resolve(path: str) -> Key | str:
    """The definition that a dotted path names, through re-exports; else the path itself."""
    for _ in range(10):  # re-exports
        owner, _, name = path.rpartition(".")
        if module(path) is not None or not owner:
            return path
        home = module(owner)
        if home is None:
            return path
        if name in home.definitions:
            return home.name, name
        if name not in home.imports:
            return path
        path = home.imports[name]
    return path


# --- one definition -----------------------------------------------------------------------------


@functools.cache
def _written(kind: type[ast.AST]) -> tuple[str, list[str]]:
    """The name of a kind of node, and its fields that count."""
    skipped = ("ctx", "type_comment", "kind", "annotation", "returns")
    return kind.__name__, [field for field in kind._fields if field not in skipped]


class Reader:
    """Writes a syntax tree as text, and collects the names that it uses."""

    def __init__(self, home: Module):
        self.home = home
        self.scopes: list[dict[str, str | None]] = []  # local name → what it is imported from
        self.names: set[Key] = set()
        self.attributes: set[str] = set()
        self.prefixes: set[str] = set()
        self.problems: list[str] = []

    def definition(self, nodes: Iterable[ast.AST]) -> Definition:
        text = " ".join(self.write(node) for node in nodes)
        return Definition(
            text,
            frozenset(self.names),
            frozenset(self.attributes),
            frozenset(self.prefixes),
            tuple(self.problems),
        )

    def write(self, node: object) -> str:
        kind = type(node)
        if kind is list:
            return f"[{' '.join(filter(None, map(self.write, node)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        method = getattr(self, f"_{kind.__name__}", None)
        return self._any(node) if method is None else method(node)

    def _any(self, node: ast.AST) -> str:
        name, fields = _written(type(node))
        parts = []
        for field in fields:
            value = getattr(node, field, None)
            if value is not None and value != []:
                parts.append(f"{field}={self.write(value)}")
        return f"{name}({' '.join(parts)})"

    # names

    def _look_up(self, name: str) -> str | None:
        """Dotted path of a name that is imported or defined in the package; None: a local one."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in self.home.definitions:
            return f"{self.home.name}.{name}"
        return self.home.imports.get(name, "" if hasattr(builtins, name) else None)

    def path(self, node: ast.expr) -> str | None:
        """Dotted path of a chain of attributes that begins at an import."""
        if isinstance(node, ast.Name):
            return self._look_up(node.id) or None
        if isinstance(node, ast.Attribute):
            path = self.path(node.value)
            target = path and resolve(path)
            if isinstance(target, str) and (
                module(target) is not None or not target.startswith("crate.")
            ):
                return f"{target}.{node.attr}"
        return None

    def _refer(self, path: str) -> str | None:
        target = resolve(path)
        if isinstance(target, tuple):
            if target[0] not in SILENT:
                self.names.add(target)
            return target[1]
        return None if module(target) is not None else target

    def _Name(self, node: ast.Name) -> str:
        path = self._look_up(node.id)
        return (path and self._refer(path)) or node.id

    def _Attribute(self, node: ast.Attribute) -> str:
        path = self.path(node)
        if path is not None:
            name = self._refer(path)
            if name is not None:
                return name
        self.attributes.add(node.attr)
        return f"{self.write(node.value)}.{node.attr}"

    def _Constant(self, node: ast.Constant) -> str:
        if isinstance(node.value, str) and REFERENCE.fullmatch(node.value):
            return self._refer(node.value.replace(":", ".")) or repr(node.value)
        return repr(node.value)

    def _Call(self, node: ast.Call) -> str:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        dynamic = None
        if called in ("getattr", "hasattr", "setattr") and len(node.args) > 1:
            if isinstance(node.args[1], ast.Constant):
                self.attributes.add(node.args[1].value)
            else:
                dynamic = f"{called} with a name that is data"
        elif called == "import_module":
            dynamic = self._import_by_name(node.args[0])
        elif called in ("eval", "exec", "globals", "locals", "vars", "__import__", "attrgetter"):
            dynamic = called if isinstance(node.func, ast.Name) or called == "attrgetter" else None
        line = self.home.lines[node.lineno - 1 : node.end_lineno]
        before = self.home.lines[node.lineno - 2] if node.lineno > 1 else ""
        if dynamic and not any(FOLLOWED in text for text in (before, *line)):
            self.problems.append(f"{self.home.path}:{node.lineno}: {dynamic}")
        return self._any(node)

    def _import_by_name(self, argument: ast.expr) -> str | None:
        if isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant):
            prefix = str(argument.values[0].value)
            if prefix.startswith("crate.") and prefix.endswith("."):
                self.prefixes.add(prefix.rstrip("."))
                return None
        return "import_module with a name that is data"

    # scopes

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        head = [self.write(getattr(node, "decorator_list", []))]
        head += [self.write(node.args.defaults), self.write(node.args.kw_defaults)]
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [a for a in (arguments.vararg, arguments.kwarg) if a]
        shape = [len(arguments.posonlyargs), len(arguments.args), [a.arg for a in every]]
        body = node.body if isinstance(node.body, list) else [node.body]
        self.scopes.append(dict.fromkeys(a.arg for a in every) | _locals(body))
        inner = self._body(body)
        self.scopes.pop()
        name = getattr(node, "name", "lambda")
        return f"def {name} {' '.join(head)} {shape} {inner}"

    _FunctionDef = _AsyncFunctionDef = _Lambda = _function

    def _own_scope(self, node: ast.AST) -> str:
        bound = {
            name.id: None
            for part in node.generators
            for name in ast.walk(part.target)
            if isinstance(name, ast.Name)
        }
        self.scopes.append(bound)
        text = self._any(node)
        self.scopes.pop()
        return text

    _ListComp = _SetComp = _DictComp = _GeneratorExp = _own_scope

    def _ClassDef(self, node: ast.ClassDef) -> str:
        """A class inside a function; those of a module are read member by member."""
        self.scopes.append(_locals(node.body))
        text = f"class {node.name} {self.write(node.bases)} {self._body(node.body)}"
        self.scopes.pop()
        return text

    # parts that do not count

    def _body(self, body: list[ast.stmt]) -> str:
        return self.write(list(without_docstring(body)))

    def _Raise(self, node: ast.Raise) -> str:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return f"raise {ast.unparse(error).split('.')[-1] if error else ''}"

    def _Assert(self, node: ast.Assert) -> str:
        return f"assert {self.write(node.test)}"

    def _Expr(self, node: ast.Expr) -> str:
        call = node.value
        if isinstance(call, ast.Call):
            called = getattr(call.func, "id", getattr(call.func, "attr", ""))
            if called == "print" or called.startswith("warn"):
                return ""
        return self.write(call)

    def _AnnAssign(self, node: ast.AnnAssign) -> str:
        if node.value is None:
            return ""
        return f"Assign(targets=[{self.write(node.target)}] value={self.write(node.value)})"

    def _Import(self, node: ast.Import | ast.ImportFrom) -> str:
        return ""

    _ImportFrom = _Import


def without_docstring(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for place, node in enumerate(body):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (place == 0 and text and isinstance(node.value.value, str)):
            yield node


def _locals(body: list[ast.AST]) -> dict[str, str | None]:
    """Names that a function binds: None, or the path of what it imports under that name."""
    paths: dict[str, str | None] = {}
    free: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        kind = type(node)
        if kind is list:
            waiting += node
        elif kind is ast.Name:
            if type(node.ctx) is not ast.Load:
                paths.setdefault(node.id, None)
        elif kind in (ast.Import, ast.ImportFrom):
            paths |= imported(node)
        elif kind in (ast.Global, ast.Nonlocal):
            free |= set(node.names)
        elif kind in (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            paths.setdefault(node.name, None)
            waiting += node.decorator_list
        elif kind in (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp):
            walrus = (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            paths |= dict.fromkeys(n.target.id for n in walrus)
        elif kind is not ast.Lambda and isinstance(node, ast.AST):
            if kind in (ast.ExceptHandler, ast.MatchAs, ast.MatchStar) and node.name:
                paths.setdefault(node.name, None)
            waiting += [getattr(node, field, None) for field in kind._fields]
    return {name: path for name, path in paths.items() if name not in free}
