"""PyTorch's files, read without running what is in them.

torch reads tensors and containers only (`weights_only`). What else stands beside the weights (an
`argparse.Namespace` of options, a path, a configuration of the author's own class) becomes `Inert`:
its class is neither imported nor called.
"""

import collections
import pickletools
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from crate.errors import RunError

MAGIC = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of torch's older, unzipped files
)
PICKLES = 5  # of such a file, before the bytes of its tensors
AGAIN = "download it again, or have it saved anew as a state_dict"


class Inert:
    """Stands in for an object of any class; takes what it is given and does nothing."""

    def __new__(cls, *_):
        return super().__new__(cls)

    def __init__(self, *_):
        pass

    def __setstate__(self, state: object) -> None:
        pass


class InertMapping:
    """As `Inert`, for classes that extend dict: torch's reader fills plain containers only."""

    def __new__(cls, *_):
        return collections.OrderedDict()


class InertList:
    """As `Inert`, for classes that extend list."""

    def __new__(cls, *_):
        return []


# Of the standard library, only values may stand beside weights; a file that asks for other names
# of it wants something done.
VALUES = ("argparse", "collections", "datetime", "decimal", "enum", "fractions", "pathlib", "types")
BUILTINS = (
    "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object",
    "range", "set", "slice", "str", "tuple",
)  # fmt: skip
CONTAINERS = {"_codecs.encode", "copyreg._reconstructor", *(f"builtins.{n}" for n in BUILTINS)}
CONTAINERS_OF = {"collections.defaultdict": InertMapping, "collections.deque": InertList}
# Of torch, these keep a training's state; without others, tensors would be missing.
STATES = ("torch.optim.", "torch.amp.", "torch.cuda.amp.")
MODULES = ("torch.nn.modules.", "torch.nn.parallel.", "torch.fx.")


def read_pickled(path: Path) -> Any:
    """The content of a file of torch.save, zipped or older.

    Raises:
        RunError: it holds a whole module, asks for code, or is damaged.
    """
    import torch

    names = _names(path)
    _refuse_code(path, names)
    for stand_in in (Inert, InertMapping):  # whether a class of others extends dict is not known
        known = torch.serialization.safe_globals(
            [(_stand_in(name, stand_in), name) for name in names if _replaced(name)]
        )
        try:
            with warnings.catch_warnings(), known:
                warnings.simplefilter("ignore")  # about unusual pickles: they are read or refused
                return torch.load(path, map_location="cpu", weights_only=True)
        except MemoryError:
            raise RunError(f"{path}: is larger than this machine's memory") from None
        except Exception:  # which one, a damaged file decides; torch's words advise to run its code
            continue
    raise RunError(f"{path}: is damaged, or a PyTorch file of a kind not read here; {AGAIN}")


def _replaced(name: str) -> bool:
    return not name.startswith("torch.") or name.startswith(STATES)


def _stand_in(name: str, of_others: type) -> type:
    own = name.partition(".")[0] in {"numpy", *sys.stdlib_module_names}
    return CONTAINERS_OF.get(name, Inert if own else of_others)


def _refuse_code(path: Path, names: list[str]) -> None:
    """Raise `RunError` about the first name that is not a value's."""
    for name in names:
        if name.startswith(MODULES):
            raise RunError(
                f"{path}: is a whole module ({name}), which only its own code can read; have its "
                "state_dict() saved instead"
            )
        room = name.partition(".")[0]
        if room in sys.stdlib_module_names and room not in VALUES and name not in CONTAINERS:
            raise RunError(
                f"{path}: asks for {name}, and code of a file is not run here; have the weights "
                "saved alone, as a state_dict"
            )


def _names(path: Path) -> list[str]:
    """What a file asks Python for, as module.name."""
    found: dict[str, None] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (name,) = (n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"])
                with archive.open(name) as file:
                    found |= _globals(file)
        else:
            with path.open("rb") as file:
                for _ in range(PICKLES):
                    found |= _globals(file)
    except Exception:  # which one, a damaged file decides
        raise RunError(f"{path}: is damaged; {AGAIN}") from None
    return list(found)


def _globals(file: BinaryIO) -> dict[str, None]:
    """The names in the pickle at which a file stands."""
    names: dict[str, None] = {}
    texts: collections.deque[str] = collections.deque(maxlen=2)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            name = argument.replace(" ", ".")
            names[name.replace("__builtin__.", "builtins.").replace("copy_reg.", "copyreg.")] = None
        elif opcode.name == "STACK_GLOBAL":
            names[".".join(texts)] = None
        elif isinstance(argument, str):
            texts.append(argument)
    return names
