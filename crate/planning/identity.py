"""The identity of code: a hash of the definitions that a result depends on.

Snakemake does not see edits inside an imported package. Each run therefore carries the hash of
every function, class and constant of this package that decides its numbers. They are found by
following names, from the `run` of the task and from its recipe, model and data set:

- a name leads to the definition it is bound to, through imports, wherever that lies;
- of a class that is used, those members count whose names are read somewhere in the used code
  (`x.member`), and what Python or torch calls by itself (`__init__`, `forward`);
- of a `Registry`, the entries count whose names the run's configuration holds;
- `import_module(f"crate.…{name}")` leads to the modules whose names the configuration holds;
- a text "crate.module:Name" leads to that definition.

Hashed is the syntax without docstrings, annotations, comments, the texts of errors and of what is
printed, and without the names of files: rewording, moving or adding code reruns nothing, editing a
definition reruns what uses it. Files are read, never imported; each is parsed once a process.

`python -m crate.planning.identity` lists what cannot be followed, such as `getattr` with a name
that is data; it is part of `make lint`.
"""

import ast
import builtins
import dataclasses
import functools
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from crate.data.datasets import Dataset
from crate.models.spec import ModelSpec
from crate.recipes import Recipe
from crate.records import short_hash

PACKAGE = Path(__file__).parents[1]

# Modules that never touch a number: what is said, shown, written and locked.
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
# Where a process gets its device, threads and ranks: what tasks are given as `runtime`.
RUNTIME = ("crate.runtime", "start")
# Members that Python or torch calls by itself.
IMPLICIT = frozenset({"forward", "backward", "setup_context"})
# Bases whose other methods are not called by a library: their classes are followed by member.
PLAIN_BASES = frozenset(
    {
        "object", "dict", "torch.nn.Module", "typing.NamedTuple", "typing.Protocol",
        "pydantic.BaseModel", "enum.Enum",
    }
)  # fmt: skip
# Members of a configuration that only refuse or normalise: what they decide is in its values.
CHECKS = ("field_validator", "model_validator")
REFERENCE = re.compile(r"crate(?:\.\w+)+:\w+")
FOLLOWED = "# identity:"  # a comment that says how a name is followed where code cannot show it

Key = tuple[str, str]  # module and name, or module and "Class.member", "REGISTRY[entry]"


@dataclasses.dataclass(frozen=True)
class Definition:
    """What one definition says and what it leads to."""

    text: str = ""
    names: frozenset[Key] = frozenset()  # definitions of this package that it names
    attributes: frozenset[str] = frozenset()  # members that it reads of any object
    prefixes: frozenset[str] = frozenset()  # packages whose modules it imports by name
    problems: tuple[str, ...] = ()  # what cannot be followed


# --- modules ------------------------------------------------------------------------------------


class Module:
    """One file of the package: its top-level definitions and imports."""

    def __init__(self, name: str, path: Path):
        self.name, self.path = name, path
        source = path.read_text(encoding="utf-8")
        self.lines = source.splitlines()
        self.imports: dict[str, str] = {}  # bound name → dotted path
        self.definitions: dict[str, list[ast.stmt]] = {}
        self._bind(ast.parse(source).body)

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
                for name in _bound(node):
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


def _bound(node: ast.stmt) -> set[str]:
    """Names that a top-level statement binds or changes."""
    targets = {
        ast.Assign: lambda n: n.targets,
        ast.AnnAssign: lambda n: [n.target],
        ast.AugAssign: lambda n: [n.target],
        ast.For: lambda n: [n.target],
    }.get(type(node))
    found = set()
    for target in targets(node) if targets else ():
        while isinstance(target, ast.Subscript | ast.Attribute):
            target = target.value
        found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
    for inner in getattr(node, "body", []) if isinstance(node, ast.If | ast.For | ast.Try) else ():
        found |= _bound(inner)
    return found


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
    """The module of this package called `name`; None where there is none."""
    if name.split(".")[0] != "crate":
        return None
    base = PACKAGE.joinpath(*name.split(".")[1:])
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return Module(name, path)
    return None


@functools.cache
def resolve(path: str) -> Key | str:
    """What a dotted path names: a definition of this package, a module of it, or itself."""
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


class _Reader:
    """Writes a syntax tree as text, and notes what it leads to."""

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
        if isinstance(node, list):
            return f"[{' '.join(filter(None, map(self.write, node)))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        method = getattr(self, f"_{type(node).__name__}", self._any)
        return method(node)

    def _any(self, node: ast.AST) -> str:
        parts = []
        for field, value in ast.iter_fields(node):
            skipped = field in ("ctx", "type_comment", "kind", "annotation", "returns")
            if not skipped and value not in (None, []):
                parts.append(f"{field}={self.write(value)}")
        return f"{type(node).__name__}({' '.join(parts)})"

    # names

    def _look_up(self, name: str) -> str | None:
        """Dotted path of a name that is imported or defined in the package; None: a local one."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in self.home.definitions:
            return f"{self.home.name}.{name}"
        return self.home.imports.get(name, "" if hasattr(builtins, name) else None)

    def _path(self, node: ast.expr) -> str | None:
        """Dotted path of a chain of attributes that begins at an import."""
        if isinstance(node, ast.Name):
            return self._look_up(node.id) or None
        if isinstance(node, ast.Attribute):
            path = self._path(node.value)
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
        path = self._path(node)
        if path is not None:
            found = self._refer(path)
            if found is not None:
                return found
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

    # what does not count

    def _body(self, body: list[ast.stmt]) -> str:
        return self.write(list(_without_docstring(body)))

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


def _without_docstring(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for place, node in enumerate(body):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (place == 0 and text and isinstance(node.value.value, str)):
            yield node


def _locals(body: list[ast.AST]) -> dict[str, str | None]:
    """Names that a function binds: None, or the path of what it imports under that name."""
    found: dict[str, str | None] = {}
    free: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= imported(node)
            continue
        if isinstance(node, ast.Global | ast.Nonlocal):
            free |= set(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            found.setdefault(node.id, None)
        elif (isinstance(node, ast.ExceptHandler) and node.name) or (
            isinstance(node, ast.MatchAs | ast.MatchStar) and node.name
        ):
            found.setdefault(node.name, None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.setdefault(node.name, None)
            waiting += node.decorator_list
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            walrus = (n for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            found |= dict.fromkeys(n.target.id for n in walrus)
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return {name: path for name, path in found.items() if name not in free}


# --- definitions by key -------------------------------------------------------------------------


@functools.cache
def _plain(home: str, name: str) -> Definition:
    """A function or a constant, whole."""
    found = module(home)
    return _Reader(found).definition(found.definitions[name])


@dataclasses.dataclass(frozen=True, eq=False)
class Class:
    """A class of a module: what is always read of it, and its members by name."""

    head: Definition
    members: dict[str, list[ast.stmt]]
    implicit: frozenset[str]  # members that count as soon as the class is used
    bases: tuple[Key, ...]


@functools.cache
def _class(home: str, name: str) -> Class:
    found = module(home)
    node = found.class_node(name)
    reader = _Reader(found)
    head = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    members: dict[str, list[ast.stmt]] = {}
    for statement in _without_docstring(node.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            members.setdefault(statement.name, []).append(statement)
        else:
            for bound in _bound(statement):
                members.setdefault(bound, []).append(statement)
    external, bases = set(), []
    for base in node.bases:
        path = reader._path(base.value if isinstance(base, ast.Subscript) else base)
        target = resolve(path) if path else ast.unparse(base)
        if isinstance(target, tuple):
            bases.append(target)
        else:
            external.add(target)
    whole = external - PLAIN_BASES - {"Exception", "dict"}
    implicit = {
        member for member in members if whole or member in IMPLICIT or member.startswith("__")
    }
    return Class(
        reader.definition(head),
        members,
        frozenset(implicit),
        tuple(bases),
    )


@functools.cache
def _member(home: str, name: str, member: str) -> Definition:
    return _Reader(module(home)).definition(_class(home, name).members[member])


@functools.cache
def _entries(home: str, name: str) -> dict[str, Definition] | None:
    found = module(home)
    entries = found.entries(name)
    if entries is None:
        return None
    return {key: _Reader(found).definition([value]) for key, value in entries.items()}


# --- what a result depends on -------------------------------------------------------------------


class Closure:
    """All definitions that some roots lead to, under the names that a configuration holds."""

    def __init__(self, roots: Iterable[Key], configured: Iterable[Key], names: frozenset[str]):
        self.names, self.consulted = names, set()
        self.texts: dict[Key, str] = {}
        self.problems: list[str] = []
        self.attributes: set[str] = set()
        self.classes: dict[Key, Class] = {}
        self.modules: set[str] = set()  # imported by name
        self.configured = set(configured)
        self.waiting: list[Key] = [*roots, *self.configured]
        while self.waiting:
            self._visit(self.waiting.pop())

    def _visit(self, key: Key) -> None:
        if key in self.texts:
            return
        home, name = key
        if module(home).class_node(name) is not None:
            self._use_class(key)
            return
        entries = _entries(home, name)
        if entries is None:
            self._add(key, _plain(home, name))
            return
        self.texts[key] = ""
        self.consulted |= entries.keys()
        for entry in entries.keys() & self.names:
            self._add((home, f"{name}[{entry}]"), entries[entry])

    def _use_class(self, key: Key) -> None:
        found = self.classes[key] = _class(*key)
        self._add(key, found.head)
        for base in found.bases:
            if key in self.configured:
                self.configured.add(base)
            self.waiting.append(base)
        for member in found.members:
            if member in self.attributes or member in found.implicit:
                self._use_member(key, member)

    def _use_member(self, key: Key, member: str) -> None:
        home, name = key
        place = (home, f"{name}.{member}")
        found = _member(home, name, member)
        checks = key in self.configured and (
            member == "__post_init__" or any(check in found.text for check in CHECKS)
        )
        if place not in self.texts and not checks:
            self._add(place, found)

    def _add(self, key: Key, found: Definition) -> None:
        self.texts[key] = found.text
        self.problems += found.problems
        self.waiting += found.names - self.texts.keys()
        for prefix in found.prefixes:
            self._import(prefix)
        new = found.attributes - self.attributes
        self.attributes |= new
        for owner, used in list(self.classes.items()):
            for member in new & used.members.keys():
                self._use_member(owner, member)
        for name in self.modules:
            self.waiting += [(name, each) for each in new & module(name).definitions.keys()]

    def _import(self, prefix: str) -> None:
        folder = PACKAGE.joinpath(*prefix.split(".")[1:])
        there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        self.consulted |= there
        for name in {f"{prefix}.{stem}" for stem in there & self.names} - self.modules:
            self.modules.add(name)
            known = module(name).definitions.keys()
            self.waiting += [(name, each) for each in self.attributes & known]

    @property
    def hash(self) -> str:
        """Of all texts, whatever files they lie in."""
        texts = sorted(f"{name}\n{text}" for (_, name), text in self.texts.items() if text)
        return short_hash("\n\n".join(texts))


_known: dict[tuple, list[tuple[frozenset[str], frozenset[str], str]]] = {}


def code_identity(
    roots: tuple[Key, ...], configured: tuple[Key, ...] = (), names: frozenset[str] = frozenset()
) -> str:
    """Hash of the definitions that `roots` lead to.

    Args:
        roots: module and name of definitions.
        configured: classes whose instances come from outside, such as a run's recipe.
        names: texts of the configuration: entries and modules called so are used.
    """
    for consulted, held, found in _known.setdefault((roots, configured), []):
        if names & consulted == held:
            return found
    closure = Closure(roots, configured, names)
    consulted = frozenset(closure.consulted)
    _known[roots, configured].append((consulted, names & consulted, closure.hash))
    return closure.hash


def definition_identity(path: str) -> str:
    """`code_identity` of one definition, such as "crate.reporting.collect:collect"."""
    home, name = path.split(":")
    return code_identity(((home, name),))


def task_identity(recipe: Recipe, spec: ModelSpec, dataset: Dataset) -> str:
    """Hash of all code that decides the result of a recipe with a model on a data set."""
    towers = [spec, *([spec.text_spec] if spec.embed_dim else [])]
    values = [vars(each) for each in (*towers, recipe, dataset)]
    names = frozenset(texts_of([*values, getattr(dataset, "reader", "")]))
    configured = (type(recipe), ModelSpec, type(dataset))
    return code_identity(
        roots=((f"crate.tasks.{recipe.task}.task", "run"), RUNTIME),
        configured=tuple((each.__module__, each.__qualname__) for each in configured),
        names=names,
    )


def texts_of(value: object) -> Iterator[str]:
    """All texts inside nested lists, tuples and dictionaries, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from texts_of(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from texts_of(each)


def main() -> int:
    """Print what no run's identity can follow. Exit status 1 where there is any."""
    from crate.tasks import recipe_types

    problems: set[str] = set()
    names = frozenset(
        path.stem for path in PACKAGE.rglob("*.py")
    )  # every module that may be imported by name
    for task in recipe_types():
        closure = Closure([(f"crate.tasks.{task}.task", "run")], [], names)
        problems |= set(closure.problems)
    print("\n".join(sorted(problems)), end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
