"""The official checkpoint files of experiments/released.yaml, and which of them are here."""

import sys
from pathlib import Path
from typing import Literal

import pydantic

from crate.checkpoints.layouts import LAYOUTS
from crate.errors import RunError, UsageError, unknown
from crate.models.zoo import MODELS, list_models
from crate.records import file_sha256
from crate.schema import Strict, parse
from crate.sources import read_yaml


class OfficialFile(Strict):
    """One official file, as it stands in `experiments/released.yaml` under its name."""

    model: str | None  # of `crate models` or models.yaml; null: no model here reads it
    classes: pydantic.PositiveInt | None = None  # of its head; null: any, or it has none
    format: str  # a name of `LAYOUTS`
    source: str
    bytes: pydantic.PositiveInt | None = None
    sha256: str | None = pydantic.Field(None, pattern=r"^[0-9a-f]{64}$")
    status: Literal["available", "withdrawn", "not released"] = "available"
    note: str = ""

    @pydantic.field_validator("format")
    @classmethod
    def _known_format(cls, name: str) -> str:
        if name not in LAYOUTS:
            raise ValueError(f"{name!r} should be one of {', '.join(map(repr, LAYOUTS))}")
        return name


def manifest(folder: str | Path) -> dict[str, OfficialFile]:
    """File name → entry, from `released.yaml` in the experiments folder. Raises `UsageError`."""
    path = Path(folder) / "released.yaml"
    own = read_yaml(Path(folder) / "models.yaml")
    entries = {}
    for name, content in read_yaml(path).items():
        where = f"{path}: {name}"
        if Path(name).name != name:
            raise UsageError(f"{where}: should be the name of a file, without its folders")
        if not isinstance(content, dict):
            raise UsageError(f"{where}: {content!r} should be a mapping of keys to values")
        entry = parse(OfficialFile, content, where)
        if entry.model is not None and entry.model not in MODELS and entry.model not in own:
            raise unknown("model", entry.model, [*list_models(), *own], where)
        entries[name] = entry
    return entries


def checkpoint_path(name: str, data_root: str | Path) -> Path:
    """The path at which an official file is expected."""
    return Path(data_root) / "released" / name


def find(
    model: str, classes: int | None, experiments_folder: str | Path, data_root: str | Path
) -> Path | None:
    """The official checkpoint of `model` that is here, or None.

    Args:
        model: the name that the manifest gives.
        classes: of its head; None for any.

    Raises:
        RunError: the file is here, and its size is not the manifest's.
    """
    for name, entry in manifest_entries(model, classes, experiments_folder):
        path = checkpoint_path(name, data_root)
        if path.is_file():
            verify(path, entry, hashed=False)
            return path
    return None


def locate(
    model: str,
    classes: int | None,
    experiments_folder: str | Path,
    data_root: str | Path,
    *,
    hashed: bool = True,
) -> Path:
    """As `find`, but a missing file is an error. hashed: compare the sha256 too.

    Raises:
        RunError: the file is damaged or missing; the message says what to download to where.
    """
    known = manifest_entries(model, classes, experiments_folder)
    path = find(model, classes, experiments_folder, data_root)
    if path is not None:
        verify(path, dict(known)[path.name], hashed=hashed)
        return path
    any_head = manifest_entries(model, None, experiments_folder)
    has_head = any(entry.classes is not None for _, entry in any_head)
    head = f" with {classes:,} classes" if classes and has_head else ""
    if not known:
        raise RunError(
            f"no official weights of {model}{head} are known; if you have some, add them to "
            f"{Path(experiments_folder) / 'released.yaml'}"
        )
    name, entry = known[0]
    get = "download it from" if entry.status == "available" else f"it is {entry.status}; listed at"
    missing = checkpoint_path(name, data_root)
    raise RunError(
        f"the official weights of {model}{head} are not here: no {missing}; {get} {entry.source}"
    )


def manifest_entries(
    model: str, classes: int | None, folder: str | Path
) -> list[tuple[str, OfficialFile]]:
    """The manifest's files for a model and a number of classes, in its order.

    classes: None for any; an entry without classes (a contrastive model's) suits any number.
    """
    return [
        (name, entry)
        for name, entry in manifest(folder).items()
        if entry.model == model and (classes is None or entry.classes in (None, classes))
    ]


def presence(path: Path, entry: OfficialFile) -> str:
    """Whether a file is here, for people: "yes", "no", or how its size differs."""
    if not path.is_file():
        return "no"
    size = path.stat().st_size
    if entry.bytes is None or size == entry.bytes:
        return "yes"
    if size < entry.bytes:
        return f"half-downloaded? {size:,} of {entry.bytes:,} bytes"
    return f"another file? {size:,} bytes, not {entry.bytes:,}"


def verify(path: Path, entry: OfficialFile, *, hashed: bool = True) -> None:
    """Compare a file with its entry: size, and sha256 if `hashed`. Raises `RunError`."""
    state = presence(path, entry)
    if state != "yes":
        raise RunError(f"{path}: {'is missing' if state == 'no' else state}; download it again")
    if hashed and entry.sha256 and file_sha256(path) != entry.sha256:
        raise RunError(f"{path}: its sha256 is not that of the official file; download it again")


def verify_if_listed(path: Path, model: str, experiments: Path) -> None:
    """Compare a file given by its path with the manifest's entry of that name, if there is one.

    A file of another size is another file of that name: it passes, and a line on stderr says so.

    Raises:
        UsageError: it is listed as another model. RunError: it is not the official file.
    """
    entry = manifest(experiments).get(path.name)
    if entry is None or not path.is_file():
        return
    if presence(path, entry) != "yes":
        sizes = f"{path.stat().st_size:,} bytes, the official file {entry.bytes:,}"
        print(f"note: {path}: has {sizes}; read as another file", file=sys.stderr, flush=True)
        return
    if entry.model not in (None, model):
        raise UsageError(
            f"{experiments / 'released.yaml'} lists {path.name} as {entry.model}, not {model}; "
            "rename the file if you mean it"
        )
    verify(path, entry)
