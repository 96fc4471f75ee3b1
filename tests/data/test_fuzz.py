"""Mutated checkpoints and annotations: each ends in one line, or is read; never in a traceback.

Mutations are seeded: bytes of whole files, and values inside them. `make test-all` runs it.
"""

import io
import json
import random
import struct
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from writers import SCENE_WRITERS, WRITERS

from crate.checkpoints.convert import to_official
from crate.cli import main
from crate.data.listing import list_part
from crate.models.build import build
from crate.models.zoo import resolve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
MODEL = "crate_tiny_patch32"
TIMES = 250  # of checkpoints, and of annotations
NUMBERS = (
    0,
    -1,
    2**31,
    2**63,
    2**64,
    10**20,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
)
ODD = (*NUMBERS, None, True, "", "x", "\x00", "1", [], {}, [[]], {"a": {}}, "9" * 5_000)


# --- mutations -----------------------------------------------------------


def mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file that was damaged: cut, a few bytes changed, a piece lost, doubled or zeroed."""
    at, size = draw.randrange(len(content)), draw.randrange(1, 200)
    kind = draw.randrange(6)
    if kind == 0:
        return content[:at]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(draw.randrange(1, 8)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if kind == 2:
        return content[:at] + content[at + size :]
    if kind == 3:
        return content[:at] + content[at : at + size] + content[at:]
    if kind == 4:
        return content[:at] + bytes(size) + content[at + size :]
    head = bytearray(content)  # what says what the file is
    head[draw.randrange(min(600, len(head)))] ^= 1 << draw.randrange(8)
    return bytes(head)


def mutated_value(value: object, draw: random.Random) -> object:
    """A value of JSON in which one inner value is another, lost or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        changed = dict(value)
        if draw.random() < 0.1:
            del changed[key]
        else:
            changed[key] = mutated_value(value[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        if draw.random() < 0.1:
            return [*value[:at], *value[at:][:1], *value[at:]]
        return [*value[:at], mutated_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(ODD)


def mutated_tensors(state: dict, draw: random.Random) -> dict:
    """Weights of which one is of another kind, shape or name, and stands somewhere else."""
    key = draw.choice(list(state))
    tensor = state[key]
    other = draw.choice(
        [
            lambda t: t.long(), lambda t: t.double(), lambda t: t.bool(), lambda t: t[..., :0],
            lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: t.flatten(),
            lambda t: t[None], lambda t: t * float("nan"), lambda t: t.to(torch.complex64),
            lambda t: t.tolist(), lambda t: None, lambda t: np.zeros(3), lambda t: {"a": t},
            lambda t: torch.tensor(1.0), lambda t: torch.nn.Parameter(t), lambda t: t.half(),
            lambda t: t.expand(2, *t.shape), lambda t: t.to(torch.float8_e5m2),
        ]
    )  # fmt: skip
    changed = state | {key: other(tensor)}
    if draw.random() < 0.3:
        changed[draw.choice(["", "x", "module", "head.weight", "a.b.c", "model."])] = tensor
    if draw.random() < 0.2:
        del changed[draw.choice(list(changed))]
    place = draw.choice(["model", "state_dict", "ema", "", "module."])
    if place == "module.":
        return {f"module.{name}": value for name, value in changed.items()}
    return {place: changed, "epoch": draw.choice(ODD)} if place else changed


# --- what is asserted -----------------------------------------------------------


def ended_well(capsys, words: tuple, allowed: tuple[int, ...], what: object) -> None:
    """A command ends with a status, and at most two lines on stderr that are no traceback."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in words])
    except BaseException:
        pytest.fail(f"{what}: {traceback.format_exc()}")
    errors = capsys.readouterr().err
    assert status in allowed, (what, status, errors)
    assert "Traceback" not in errors, what
    assert "weights_only" not in errors, what
    if status:
        lines = [line for line in errors.splitlines() if not line.startswith("note: ")]
        assert 1 <= len(lines) <= 2, (what, errors)
        assert len(lines[-1]) < 2_000, what


def saved(write: Callable) -> bytes:
    content = io.BytesIO()
    write(content)
    return content.getvalue()


def stored(content: bytes, member: str, new: bytes) -> bytes:
    """A zip with another content of one member, whose checksum is right."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, new if name.endswith(member) else part)
    return found.getvalue()


def test_mutated_checkpoints(capsys, tmp_path):
    torch.manual_seed(0)
    spec = resolve(MODEL)
    state = to_official(build(spec, num_classes=3, image_size=32).state_dict(), spec)
    small = {key: state[key] for key in list(state)[:8]}
    files = {
        "zipped": saved(lambda f: torch.save(small, f)),
        "old": saved(lambda f: torch.save(small, f, _use_new_zipfile_serialization=False)),
        "safetensors": safetensors.torch.save(small),
        "npz": saved(lambda f: np.savez(f, **{f"params/{k}": v for k, v in small.items()})),
    }
    with zipfile.ZipFile(io.BytesIO(files["zipped"])) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    path = tmp_path / "odd.pth"
    words = ("weights", "import", path, "--model", MODEL, "--out", tmp_path / "a.safetensors")
    for number in range(TIMES):
        draw = random.Random(number)
        kind = draw.choice([*files, "pickle", "header", "tensors", "tensors"])
        if kind == "pickle":
            path.write_bytes(stored(files["zipped"], "data.pkl", mutated_bytes(pickled, draw)))
        elif kind == "header":
            content = files["safetensors"]
            size = struct.unpack("<Q", content[:8])[0]
            header = mutated_value(json.loads(content[8 : 8 + size]), draw)
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
        elif kind == "tensors":
            torch.save(mutated_tensors(state, draw), path)
        else:
            path.write_bytes(mutated_bytes(files[kind], draw))
        ended_well(capsys, words, (0, 1, 2) if kind == "tensors" else (1, 2), (number, kind))


def test_mutated_annotations(capsys, tmp_path):
    sets: dict[str, list[Path]] = {}
    for name, write in {**WRITERS, **SCENE_WRITERS}.items():
        write(tmp_path)
        suffixes = (".json", ".txt", ".mat", "")
        sets[name] = [
            path
            for path in sorted((tmp_path / name).rglob("*"))
            if path.is_file() and path.suffix in suffixes
        ]
    whole = {path: path.read_bytes() for paths in sets.values() for path in paths}
    names = [name for name, paths in sets.items() if paths]
    for number in range(TIMES):
        draw = random.Random(number)
        name = draw.choice(names)
        path = draw.choice(sets[name])
        content = whole[path]
        if path.suffix == ".json" and draw.random() < 0.7:
            path.write_text(json.dumps(mutated_value(json.loads(content), draw)))
        elif path.suffix == ".txt" and draw.random() < 0.7:
            words = content.decode().split(" ")
            words[draw.randrange(len(words))] = str(draw.choice(ODD))
            path.write_bytes(" ".join(words).encode())
        else:
            path.write_bytes(mutated_bytes(content, draw))
        list_part.cache_clear()
        check_reads_or_tells(capsys, name, tmp_path, (number, name, path.name))
        path.write_bytes(content)


def check_reads_or_tells(capsys, name: str, root: Path, what: object) -> None:
    """Each part is read, or refused in one line; so does `crate data check`, in more."""
    from crate.data.catalogue import DATASETS
    from crate.data.sources import read_part
    from crate.errors import RunError

    for part in DATASETS[name].folders.values():
        told = ""
        try:
            found = read_part(DATASETS[name], part, root)
            if getattr(found, "has_objects", False):
                found.objects()
        except RunError as error:
            told = str(error)
        except Exception:
            pytest.fail(f"{what}: {traceback.format_exc()}")
        assert "\n" not in told, what
        assert len(told) < 2_000, what
    capsys.readouterr()
    status = main(["data", "check", name, "--data-root", str(root)])
    errors = capsys.readouterr().err
    assert status in (0, 1), what
    assert "Traceback" not in errors, what
    assert all(len(line) < 2_000 for line in errors.splitlines()), what
