"""Which mapping in a checkpoint holds the weights: recognised by its keys, wherever it stands.

Training scripts put weights beside options and states ("model", "state_dict", "model_ema" …), and
wrappers of a network put their names before its keys ("module.", "_orig_mod." …), in any order.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from crate.checkpoints.layouts.base import Layout
from crate.errors import RunError, UsageError, unknown

DEPTH = 4  # of mappings in mappings that are looked into
PREFERRED = ("", "state_dict", "model")  # of several, in this order; then as the file has them
# Names of a network inside a larger one, whose other parts are left out.
NETWORKS = (
    "model", "module", "net", "network", "backbone", "encoder", "student", "teacher", "ema",
    "model_ema", "ema_model",
)  # fmt: skip
# Our keys that no official file has.
OUR_SIGNS = ("patch_embedding.projection.weight", "token_embedding.weight", "vision.positions")


class Found(NamedTuple):
    """Weights without wrappers' names, and where they stand ("" at the top).

    layout: theirs, or None. others: key → type of what stands among them and is no tensor.
    left_out: tensors of the same mapping that belong to other networks.
    """

    place: str
    weights: dict[str, Any]
    layout: Layout | None
    others: dict[str, str]
    left_out: int = 0

    @property
    def ours(self) -> bool:
        """Whether they have this suite's own names, as its models' state_dict() gives them."""
        return self.layout is None and any(key in self.weights for key in OUR_SIGNS)

    @property
    def known(self) -> bool:
        return self.layout is not None or self.ours


def find_weights(
    content: Mapping[str, Any],
    layouts: Iterable[Layout],
    *,
    take: str | None = None,
    where: object = "the checkpoint",
) -> Found:
    """The weights in a checkpoint, of the first of `layouts` whose sign they have.

    Where there are several, the plain ones come before moving averages ("ema"); stderr says which
    were taken.

    Args:
        take: the place of the weights to take, "model_ema" or "checkpoint/model"; None: as above.
        where: the file, for the line on stderr.

    Returns:
        `layout` is None of weights with our own names, and if none are known; then they are the
        largest mapping of tensors.

    Raises:
        UsageError: nothing stands at `take`. RunError: there are no tensors with names at all.
    """
    layouts = list(layouts)
    everything = [each for at, inside in _mappings(content) for each in _bare(at, inside, layouts)]
    if not everything:
        raise RunError("holds no mapping of names to tensors")
    places = [found.place for found in everything]
    if take is not None:
        if take not in places:
            raise unknown("weights", take, filter(None, places))
        return everything[places.index(take)]
    known = [found for found in everything if found.known]
    if not known:
        return max(everything, key=lambda found: len(found.weights))
    chosen = min(known, key=_rank)  # the first of equals
    others = [found.place for found in known if found is not chosen]
    if others:
        names = " and ".join(f"'{place}'" for place in others)
        _note(where, f"took '{chosen.place}', not {names}; 'crate weights import --take' chooses")
    if chosen.left_out:
        tensors = f"{chosen.left_out:,} tensor{'s' * (chosen.left_out > 1)}"
        _note(where, f"left out {tensors} beside '{chosen.place}'")
    return chosen


def unknown_layout(found: Found, layouts: Iterable[Layout]) -> UsageError:
    """The error about weights of no layout."""
    first = next(iter(found.weights))
    if found.ours:
        return UsageError("is in this suite's own layout already")
    if any(key.startswith(("visual.", "params/img/")) for key in found.weights):
        return UsageError(f"is a contrastive model of a layout not read here ('{first}')")
    signs = ", ".join(dict.fromkeys(layout.sign for layout in layouts))
    at = f" at '{found.place}'" if found.place else ""
    return UsageError(
        f"not an official CRATE checkpoint: it has none of {signs}; it holds "
        f"{len(found.weights):,} tensors{at}, the first is '{first}'; docs/design/checkpoints.md "
        "has what is read"
    )


def is_tensor(value: object) -> bool:
    return hasattr(type(value), "shape") and hasattr(type(value), "dtype")


def _note(where: object, text: str) -> None:
    print(f"note: {where}: {text}", file=sys.stderr, flush=True)


def _mappings(content: Mapping, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping]]:
    """Where a mapping with tensors stands, and the mapping; outer ones first."""
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if any(is_tensor(value) for value in named.values()):
        yield place, named
    for key, value in named.items() if depth < DEPTH else ():
        if isinstance(value, Mapping):
            yield from _mappings(value, f"{place}/{key}".lstrip("/"), depth + 1)


def _bare(
    place: str, content: Mapping[str, Any], layouts: list[Layout], left_out: int = 0
) -> Iterator[Found]:
    """The weights of a mapping, without the beginnings that all keys of a network share."""
    tensors = {key: value for key, value in content.items() if is_tensor(value)}
    others = {key: type(value).__name__ for key, value in content.items() if key not in tensors}
    layout = next((layout for layout in layouts if layout.recognises(tensors)), None)
    whole = Found(place, tensors, layout, others, left_out)
    begins = {key.partition(".")[0] for key in tensors}
    if whole.known or any(key in tensors for key in begins):
        yield whole
        return
    inner = []
    for name in begins if len(begins) == 1 else [name for name in NETWORKS if name in begins]:
        start = f"{name}."
        inside = {k.removeprefix(start): v for k, v in content.items() if k.startswith(start)}
        at = place if len(begins) == 1 else f"{place}.{name}".lstrip(".")
        rest = left_out + len(tensors) - sum(map(is_tensor, inside.values()))
        inner += [found for found in _bare(at, inside, layouts, rest) if found.known]
    yield from inner or [whole]


def _rank(found: Found) -> tuple[bool, int]:
    average = re.search(r"(?<![a-z])ema(?![a-z])", found.place.lower()) is not None
    known = found.place in PREFERRED
    return average, PREFERRED.index(found.place) if known else len(PREFERRED)
