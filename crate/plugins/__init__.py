"""Operators and data sets from files of one's own: the setting `plugins`.

Such a file is the module `crate.plugins.<name of the file>`, wherever it lies. So the identity of
code reads it like a module of the suite (`planning/identity.py`), and another process, such as a
loader's, can unpickle what it defines: it finds the files in the environment.

May import the ground.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from crate import registry
from crate.errors import UsageError, reason_of, told

VARIABLE = "CRATE_PLUGINS"  # the files, for the processes that this one starts

_HERE = list(__path__)
_loaded: list[Path] = []


def _look_in(files: Iterable[Path]) -> None:
    """Have the files' folders searched for modules of this package."""
    __path__[:] = dict.fromkeys([*_HERE, *(str(file.parent) for file in files)])
    importlib.invalidate_caches()


_look_in(map(Path, filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))))


def load(files: Iterable[str]) -> None:
    """Import the files, so that what they register can be named, and nothing else of their kind.

    Raises:
        UsageError: a file is not there, cannot be imported, or registers something incomplete.
    """
    paths = [Path(os.path.abspath(file)) for file in files]
    os.environ[VARIABLE] = os.pathsep.join(map(str, paths))
    if paths == _loaded:
        return
    for path in _loaded:
        sys.modules.pop(_name(path), None)
    _loaded.clear()
    registry.forget()
    _look_in(paths)
    for path in paths:
        _check(path, [each for each in paths if each is not path])
        try:
            module = importlib.import_module(_name(path))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        except SyntaxError as error:
            where = f"line {error.lineno}: " if error.lineno else ""
            raise UsageError(f"{path}: {where}{reason_of(error)}") from None
        except Exception as error:
            raise UsageError(f"{path}: cannot be imported ({told(error)})") from None
        if Path(module.__file__) != path:
            raise UsageError(f"{path}: {module.__file__} has the same name; rename one")
    _loaded[:] = paths


def _name(path: Path) -> str:
    return f"{__name__}.{path.stem}"


def _check(path: Path, others: list[Path]) -> None:
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UsageError(f"{path.name} should be a Python file, such as my_operator.py")
    if not path.is_file():
        raise UsageError(f"{path} is not there")
    if path.stem in [other.stem for other in others]:
        raise UsageError(f"two files are called {path.name}; rename one")
