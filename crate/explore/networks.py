"""Networks for a person's own data: their weights from a run or any file, and their device."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from crate.checkpoints.finished import stated
from crate.checkpoints.manifest import manifest, verify_if_listed
from crate.data.catalogue import get_dataset
from crate.data.datasets import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from crate.environment import experiments_folder
from crate.errors import RunError, UsageError
from crate.models.spec import MODEL_KINDS, ModelSpec
from crate.planning.loader import Experiments
from crate.records import RunFolder
from crate.runs import parse_path

if TYPE_CHECKING:
    import torch

    from crate.models.vision import VisionTransformer


def read_any_weights(
    path: Path, spec: ModelSpec, *, listed_as: str | None = None
) -> "dict[str, torch.Tensor]":
    """The weights of a run's file or of an official checkpoint, under our names.

    Args:
        spec: the model that the weights belong to.
        listed_as: a model's name. If experiments/released.yaml lists the file, it must be listed
            for this model and, at the listed size, have the listed hash. None: not verified.

    Raises:
        UsageError, RunError: as `read_checkpoint`, `verify_if_listed` and `ours_or_converted`.
    """
    from crate.checkpoints.convert import ours_or_converted
    from crate.checkpoints.read import read_checkpoint

    if listed_as is not None:
        verify_if_listed(path, listed_as, experiments_folder())
    return ours_or_converted(read_checkpoint(path), spec, name=listed_as, where=path)


@dataclasses.dataclass(frozen=True)
class Opened:
    """Weights of a vision model, and what is known of them.

    where    the run or the file, as messages and pages name it
    state    under our names, as `read_any_weights` gives them
    trained  the title of the data set that they were trained on; "" if the file does not say
    mean, std  that its images are normalised with, of pixel values in [0, 1] by channel
    """

    where: str
    model: str
    spec: ModelSpec
    state: "dict[str, torch.Tensor]"
    trained: str = ""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def image_size(self) -> int:
        """Side of the images that its positions are of, in pixels.

        Raises:
            UsageError: it has no positions of a class token and patches.
        """
        from crate.models.transfer import vision_weights

        positions = vision_weights(self.state).get("positions")
        if positions is None or positions.dim() != 3:
            raise UsageError(f"{self.where}: not the weights of {self.model}: no 'positions'")
        return math.isqrt(positions.shape[1] - 1) * self.spec.patch_size

    def images(self, classes: int) -> ImageSet:
        """What normalises images as this network expects them, with so many classes."""
        return dataclasses.replace(
            get_dataset("imagenet1k"), mean=self.mean, std=self.std, classes=classes
        )

    def build(self, image_size: int | None = None) -> "VisionTransformer":
        """The network in evaluation mode on the best device; None: at its own image size.

        Raises:
            UsageError: the weights are not those of the model, or patches do not fill the image.
        """
        from crate.models.features import pretrained

        try:
            model = pretrained(self.spec, self.state, image_size=image_size or self.image_size)
        except RunError as error:
            message = str(error).replace("the parent's", "its").split("; ")[0]
            raise UsageError(f"{self.where}: not the weights of {self.model}: {message}") from None
        return model.to(best_device())


def open_weights(weights: str, *, model: str | None = None, scale: str | None = None) -> Opened:
    """Open a finished run, or a file of weights in any layout that is read here.

    Args:
        weights: a run's folder (or its metrics.json or weights.safetensors), or a file.
        model: of a file, a name of `crate models` or models.yaml. None: as the file says, or
            experiments/released.yaml of a file of that name.
        scale: of a file, the scale of its run; None: the published sizes.

    Raises:
        UsageError: there is no such run or file; its model is not known, is another, or sees no
            images.
        RunError: the weights cannot be read.
    """
    path = Path(weights)
    if scale is not None and model is None:
        raise UsageError("--scale goes with --model: a run has its scale")
    if not path.is_file() or path.name == "metrics.json":
        if not _is_run(path):
            raise UsageError(f"{weights}: no such file, and not the path of a run")
        if model is not None:
            raise UsageError("--model goes with a file of weights: a run has its model")
        return _open_run(path)
    if model is None and _of_run(path):
        return _open_run(path.parent)
    facts = stated(path)
    if facts and scale is None and model in (None, facts["model"]):
        spec, name = ModelSpec(**facts["spec"]), facts["model"]
    else:
        facts, name = {}, model or _listed(path)
        spec = Experiments().spec(name, scale)
    _require_vision(spec, weights)
    try:
        state = read_any_weights(path, spec, listed_as=name)
    except UsageError as error:
        small = "" if facts or scale else "; weights of a smaller scale's run need --scale"
        raise UsageError(f"{error}{small}") from None
    opened = Opened(weights, name, spec, state)
    if facts.get("mean"):
        moments = {key: tuple(facts[key]) for key in ("mean", "std")}
        opened = dataclasses.replace(opened, **moments)
    return opened


def _of_run(path: Path) -> bool:
    """Whether a file is the weights of a run that stands beside it."""
    folder = RunFolder(path.parent)
    return path == folder.weights and folder.record.is_file() and _is_run(path.parent)


def _is_run(path: Path) -> bool:
    try:
        parse_path(str(path))
    except UsageError:
        return False
    return True


def _open_run(path: Path) -> Opened:
    from crate.checkpoints.finished import read_finished

    run, _, record, spec, state = read_finished(str(path))
    _require_vision(spec, str(run))
    title, data = record["dataset"], record["config"].get("data", {})
    moments = {key: tuple(data[key]) for key in ("mean", "std") if key in data}
    with contextlib.suppress(UsageError):  # the set may be gone by now
        dataset = get_dataset(title)
        title = dataset.title
        moments = {key: getattr(dataset, key) for key in ("mean", "std") if hasattr(dataset, key)}
    return Opened(str(run), run.model, spec, state, title, **moments)


def _require_vision(spec: ModelSpec, where: str) -> None:
    if spec.causal:
        kind = MODEL_KINDS["language"]
        raise UsageError(f"{where}: {kind}, which sees no pictures; see 'crate sample'")


def _listed(path: Path) -> str:
    """The model of an official file, by its name. Raises `UsageError`."""
    entry = manifest(experiments_folder()).get(path.name)
    if entry is None or entry.model is None:
        raise UsageError(
            f"{path}: does not say whose weights it holds; name it: --model NAME, "
            "of a smaller scale's run with --scale"
        )
    return entry.model


def best_device() -> str:
    """ "cuda" if there is a GPU, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
