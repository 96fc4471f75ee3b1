"""The identity of code: a hash of the definitions that a result depends on.

Snakemake does not see edits inside an imported package. Each run therefore carries the hash of
every function, class and constant of this package that decides its numbers. They are found by
following names, from the `run` of the task and from its recipe, model and data set:

- a name leads to the definition it is bound to, through imports, wherever that lies;
- of a class that is used, those members count whose names are read somewhere in the used code
  (`x.member`), and what Python or torch calls by itself (`__init__`, `forward`);
- of a `Registry`, the entries count whose names the run's configuration holds;
- `import_module(f"crate.…{name}")` leads to the modules whose names the configuration holds;
- a text "crate.module:Name" leads to that definition;
- of a file of one's own (`crate/plugins`) all counts, for runs that name an entry of it.

The hash covers the syntax without docstrings, annotations, comments, error texts, printed texts and
file names: rewording, moving or adding code reruns nothing; editing a definition reruns the runs
that use it. Files are read, never imported. Hashes are kept between processes, as long as no file
of the package changes.

`python -m crate.planning.identity` lists what cannot be followed, such as `getattr` with a name
that is data; it is part of `make lint`.
"""

import ast
import atexit
import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from crate.data.datasets import Dataset
from crate.environment import cache_folder
from crate.errors import RunError
from crate.models.spec import ModelSpec
from crate.planning import syntax
from crate.planning.syntax import (
    Definition,
    Key,
    Reader,
    bound_names,
    module,
    resolve,
    without_docstring,
)
from crate.recipes import Recipe
from crate.records import read_json, short_hash, write_json
from crate.registry import homes

PLUGINS = "crate.plugins."
# Sets device, threads and ranks: tasks get its result as `runtime`.
RUNTIME = ("crate.runtime", "start")
# Members that Python or torch calls by itself.
IMPLICIT = frozenset({"forward", "backward", "setup_context"})
# Bases whose other methods are not called by a library: their classes are followed by member.
PLAIN_BASES = frozenset(
    {
        "object", "dict", "Exception", "torch.nn.Module", "typing.NamedTuple",
        "typing.Protocol", "pydantic.BaseModel", "enum.Enum",
    }
)  # fmt: skip
# Validators of a configuration: what they decide shows in its values, so they do not count.
CHECKS = ("field_validator", "model_validator")


# --- definitions by key -------------------------------------------------------------------------


@functools.cache
def _plain(home: str, name: str) -> Definition:
    """A function or a constant, whole."""
    owner = module(home)
    return Reader(owner).definition(owner.definitions[name])


@dataclasses.dataclass(frozen=True, eq=False)
class Class:
    """A class of a module: its head (decorators, bases), and its members by name."""

    head: Definition
    members: dict[str, list[ast.stmt]]
    implicit: frozenset[str]  # members that count as soon as the class is used
    bases: tuple[Key, ...]


@functools.cache
def _class(home: str, name: str) -> Class:
    owner = module(home)
    node = owner.class_node(name)
    reader = Reader(owner)
    head = [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    members: dict[str, list[ast.stmt]] = {}
    for statement in without_docstring(node.body):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            members.setdefault(statement.name, []).append(statement)
        else:
            for bound in bound_names(statement):
                members.setdefault(bound, []).append(statement)
    external, bases = set(), []
    for base in node.bases:
        path = reader.path(base.value if isinstance(base, ast.Subscript) else base)
        target = resolve(path) if path else ast.unparse(base)
        if isinstance(target, tuple):
            bases.append(target)
        else:
            external.add(target)
    whole = external - PLAIN_BASES
    implicit = {
        member for member in members if whole or member in IMPLICIT or member.startswith("__")
    }
    return Class(reader.definition(head), members, frozenset(implicit), tuple(bases))


@functools.cache
def _member(home: str, name: str, member: str) -> Definition:
    return Reader(module(home)).definition(_class(home, name).members[member])


@functools.cache
def _entries(home: str, name: str) -> dict[str, Definition] | None:
    owner = module(home)
    entries = owner.entries(name)
    if entries is None:
        return None
    return {key: Reader(owner).definition([value]) for key, value in entries.items()}


# --- what a result depends on -------------------------------------------------------------------


class Closure:
    """All definitions that some roots lead to, under the names that a configuration holds.

    names: None holds every name.
    """

    def __init__(
        self, roots: Iterable[Key], configured: Iterable[Key], names: frozenset[str] | None
    ):
        self.names, self.consulted = names, set()
        self.texts: dict[Key, str] = {}
        self.problems: list[str] = []
        self.attributes: set[str] = set()
        self.owners: dict[str, list[Key]] = {}  # member → the used classes that have it
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
        for entry in self._held(entries):
            self._add((home, f"{name}[{entry}]"), entries[entry])

    def _use_class(self, key: Key) -> None:
        used = _class(*key)
        for member in used.members:
            self.owners.setdefault(member, []).append(key)
        self._add(key, used.head)
        for base in used.bases:
            if key in self.configured:
                self.configured.add(base)
            self.waiting.append(base)
        for member in used.members:
            if member in self.attributes or member in used.implicit:
                self._use_member(key, member)

    def _use_member(self, key: Key, member: str) -> None:
        home, name = key
        place = (home, f"{name}.{member}")
        definition = _member(home, name, member)
        checks = key in self.configured and (
            member == "__post_init__" or any(check in definition.text for check in CHECKS)
        )
        if place not in self.texts and not checks:
            self._add(place, definition)

    def _add(self, key: Key, definition: Definition) -> None:
        self.texts[key] = definition.text
        self.problems += definition.problems
        self.waiting += definition.names - self.texts.keys()
        for prefix in definition.prefixes:
            self._import(prefix)
        new = definition.attributes - self.attributes
        self.attributes |= new
        for member in new & self.owners.keys():
            for owner in list(self.owners[member]):
                self._use_member(owner, member)
        for name in self.modules:
            self.waiting += [(name, each) for each in new & module(name).definitions.keys()]

    def _import(self, prefix: str) -> None:
        folder = syntax.PACKAGE.joinpath(*prefix.split(".")[1:])
        there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        self.consulted |= there
        for name in {f"{prefix}.{stem}" for stem in self._held(there)} - self.modules:
            self.modules.add(name)
            known = module(name).definitions.keys()
            self.waiting += [(name, each) for each in self.attributes & known]

    def _held(self, names: Iterable[str]) -> set[str]:
        return set(names) if self.names is None else self.names.intersection(names)

    @property
    def hash(self) -> str:
        """Hash of all texts, sorted, without the names of their files."""
        texts = sorted(f"{name}\n{text}" for (_, name), text in self.texts.items() if text)
        return short_hash("\n\n".join(texts))


Known = list[tuple[frozenset[str], frozenset[str], str]]  # names consulted, those held, the hash
_known: dict[tuple, Known] = {}


@functools.cache
def _kept() -> Path | None:
    """The file of the hashes of exactly this code, then known; None without a home folder.

    It is named after the content of all files of the package.
    """
    content = hashlib.blake2b(sys.version.encode(), digest_size=16)
    for folder, _, files in sorted(os.walk(syntax.PACKAGE)):
        for file in sorted(file for file in files if file.endswith(".py")):
            path = Path(folder, file)
            content.update(f"{path.relative_to(syntax.PACKAGE)}\0".encode() + path.read_bytes())
    with contextlib.suppress(RuntimeError):  # no home folder
        path = cache_folder() / f"identities-{content.hexdigest()}.json"
        for roots, configured, lines in (read_json(path) or {}).get("hashes", ()):
            key = tuple(tuple(map(tuple, keys)) for keys in (roots, configured))
            _known[key] = [(frozenset(a), frozenset(b), code) for a, b, code in lines]
        return path
    return None


def keep() -> None:
    """Write the hashes that are known, for the next process."""
    path = _kept()
    if path is None or not _new:
        return
    hashes = [
        [*key, [[sorted(consulted), sorted(held), code] for consulted, held, code in lines]]
        for key, lines in _known.items()
        if not any(home.startswith(PLUGINS) for home, _ in key[0])  # their files change
    ]
    _new.clear()
    with contextlib.suppress(RunError):  # a closed folder
        write_json(path, {"hashes": hashes})


_new: list[str] = []  # hashes that were not kept
atexit.register(keep)


def code_identity(
    roots: tuple[Key, ...], configured: tuple[Key, ...] = (), names: frozenset[str] = frozenset()
) -> str:
    """Hash of the definitions that `roots` lead to.

    Args:
        roots: module and name of definitions.
        configured: classes whose instances come from outside, such as a run's recipe.
        names: texts of the configuration: entries and modules called so are used.
    """
    _kept()
    for consulted, held, code in _known.setdefault((roots, configured), []):
        if names & consulted == held:
            return code
    closure = Closure(roots, configured, names)
    consulted = frozenset(closure.consulted)
    _known[roots, configured].append((consulted, names & consulted, closure.hash))
    _new.append(closure.hash)
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
    own = [(home, name) for home in homes(names) for name in sorted(module(home).definitions)]
    return code_identity(
        roots=((f"crate.tasks.{recipe.task}.task", "run"), RUNTIME, *own),
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
    """Print the places that identities cannot follow. Exit status 1 if there are any."""
    from crate.tasks import recipe_types

    problems: set[str] = set()
    for task in recipe_types():
        closure = Closure([(f"crate.tasks.{task}.task", "run")], [], names=None)
        problems |= set(closure.problems)
    print("\n".join(sorted(problems)), end="\n" if problems else "")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
