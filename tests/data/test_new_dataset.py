"""A data set with a form of its own is added by one catalogue entry and one file, its reader."""

import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crate.data import readers
from crate.data.catalogue import DATASETS, get_dataset
from crate.data.check import check
from crate.data.datasets import ImageSet, check_available
from crate.data.images import open_split
from crate.data.prepare import prepare
from crate.data.segmentation import LabelledScenes
from crate.data.sources import open_scenes
from crate.errors import RunError, UsageError
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification
from crate.tasks.segmentation.recipe import Segmentation

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
pytestmark = pytest.mark.usefixtures("one_thread")

DOTS = ImageSet(
    name="dots",
    title="Dots",
    classes=3,
    splits={"train": 9, "validation": 2, "test": 2},
    form="archive",
    source="this test",
    folders={"train": "train"},
    holdout=2,
    labels="numbered",
    needs=("numbered",),
    instructions="draw numbered.zip, ",
)
NUMBERED = '''
    """Pictures whose names end in their label: numbered/<part>/<name>_<label>.png."""

    import numpy as np

    from crate.data.files import file_names, to_bytes
    from crate.data.pictures import FilePictures

    ARCHIVES = {"numbered.zip": "numbered"}


    def read(dataset, root, part):
        folder = root / "numbered" / part
        names = sorted(file_names(folder))
        labels = np.array([int(name.removesuffix(".png").split("_")[1]) for name in names])
        return FilePictures(folder, to_bytes(names), labels)
'''
SHAPES = ImageSet(
    name="shapes",
    title="Shapes",
    classes=2,
    splits={"test": 3},
    form="archive",
    source="this test",
    folders={"test": "all"},
    scenes="striped",
)
STRIPED = '''
    """Pictures that need no files: one colour, and a map of stripes."""

    import numpy as np
    from PIL import Image

    from crate.data.scenes import Scenes


    class Striped(Scenes):
        has_maps = True
        ids = [0, 1, 2]

        def name(self, index):
            return f"stripes {index}"

        def picture(self, index):
            return Image.new("RGB", (24, 16), (80 * index, 0, 0))

        def labels(self, index):
            return (np.indices((16, 24))[1] // 4 % 2).astype(np.uint8)


    def read(dataset, root, part):
        return Striped(dataset.title)
'''


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Adds an entry and its reader's file, for one test."""
    folder = tmp_path / "more_readers"
    folder.mkdir()
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(folder)])
    added = []

    def add(entry: ImageSet, source: str) -> ImageSet:
        (folder / f"{entry.reader}.py").write_text(textwrap.dedent(source))
        monkeypatch.setitem(DATASETS, entry.name, entry)
        added.append(f"{readers.__name__}.{entry.reader}")
        return get_dataset(entry.name)

    yield add
    for name in added:
        sys.modules.pop(name, None)


def archive(root: Path) -> None:
    """Nine grey pictures, each as bright as its number says."""
    (root / "dots").mkdir()
    with zipfile.ZipFile(root / "dots/numbered.zip", "w") as file:
        for k in range(9):
            Image.new("L", (5, 5), 20 * k).save(root / "picture.png")
            file.write(root / "picture.png", f"numbered/train/{k}_{k % 3}.png")


def test_pictures_with_labels(add, tmp_path):
    dataset = add(DOTS, NUMBERED)
    with pytest.raises(RunError, match=r"Dots is not at .*: draw numbered.zip, then run 'crate da"):
        check_available(dataset, tmp_path)
    archive(tmp_path)
    lines = [f"{tmp_path}/dots, train: 9 images"]
    assert prepare(dataset, tmp_path) == lines
    assert check(dataset, tmp_path) == (lines, [])

    recipe = Classification(
        dataset="dots", follows=[], batch_size=5, epochs=1.0, lr=1e-3, flip=False
    )
    opened = {"size": 4, "runtime": CPU, "data_root": tmp_path}
    source = open_split(dataset, "train", held_out_for="validation", **opened)
    ((pixels, labels),) = source.training(recipe, 0, 0, 1)
    assert (pixels.shape, labels.dtype) == ((5, 3, 4, 4), torch.int64)
    numbers = pixels[:, 0, 0, 0] // 20
    assert labels.tolist() == [int(number) % 3 for number in numbers]
    seen = {split: len(open_split(dataset, split, **opened)) for split in dataset.splits}
    assert seen == {"train": 7, "validation": 2, "test": 2}


def test_pictures_with_maps(add, tmp_path):
    dataset = add(SHAPES, STRIPED)
    source = LabelledScenes(open_scenes(dataset, "test", tmp_path), dataset, runtime=CPU)
    recipe = Segmentation(
        dataset="shapes", follows=[], batch_size=2, epochs=1.0, lr=1e-3, image_size=8,
        resize=[24, 16], ratio=[1.0, 1.0], category_max=1.0, photometric=False,
    )  # fmt: skip
    ((pixels, maps),) = source.training(recipe, 0, 0, 1)
    assert (pixels.shape, maps.shape) == ((2, 3, 8, 8), (2, 8, 8))
    assert set(maps.flatten().tolist()) == {0, 1}
    picture, labels = next(source.evaluation(recipe))
    assert picture.shape == (3, 16, 24)
    assert np.array_equal(labels[0, :5], [0, 0, 0, 0, 1])


def test_an_entry_whose_reader_is_missing(add, tmp_path):
    dataset = add(DOTS, NUMBERED)
    (tmp_path / "more_readers/numbered.py").rename(tmp_path / "more_readers/numberd.py")
    with pytest.raises(UsageError, match="unknown reader 'numbered'; did you mean 'numberd'"):
        open_split(dataset, "train", size=4, runtime=CPU, data_root=tmp_path)


def test_every_entry_has_its_reader():
    entries = [entry for entry in DATASETS.values() if isinstance(entry, ImageSet) and entry.reader]
    names = {entry.reader for entry in entries}
    assert {"class_folders", "cifar10", "coco", "composites"} <= names
    for name in names:
        assert callable(readers.reader(name).read)
    for entry in entries:  # by a field's text, a run's code identity finds the module
        assert entry.reader in (entry.scenes, entry.labels, entry.form)
