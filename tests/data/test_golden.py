"""Real pictures of CIFAR-10, CIFAR-100 and ImageNet, of the package foolbox, through our loader.

foolbox is not imported: of it only the pictures in `foolbox/data` are used, `<set>_<n>_<label>`.
"""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2
from writers import cifar_batch

from crate.data.augment import normalise
from crate.data.catalogue import DATASETS
from crate.data.images import open_split
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
FOOLBOX = importlib.util.find_spec("foolbox")
PICTURES = Path(FOOLBOX.submodule_search_locations[0]) / "data" if FOOLBOX else Path()

pytestmark = [
    pytest.mark.skipif(FOOLBOX is None, reason="needs the pictures in the package foolbox"),
    pytest.mark.usefixtures("one_thread"),
]


def pictures(name: str) -> list[tuple[Path, int]]:
    found = sorted(PICTURES.glob(f"{name}_*"))
    assert len(found) == 20
    return [(path, int(path.stem.split("_")[2])) for path in found]


def evaluated(dataset, split: str, root: Path, size: int, resize: int | None = None):
    recipe = Classification(
        dataset=dataset.name, follows=[], batch_size=4, epochs=0, lr=1e-3, eval_resize=resize
    )
    images = open_split(dataset, split, size=size, runtime=CPU, data_root=root)
    pixels, labels = zip(*images.evaluation(recipe, 7), strict=True)
    return torch.cat(pixels), torch.cat(labels)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name, tmp_path):
    images = [np.array(Image.open(path)) for path, _ in pictures(name)]
    labels = [label for _, label in pictures(name)]
    rows = np.stack(images).transpose(0, 3, 1, 2).reshape(20, 3072)  # red, green, blue planes
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    for file in DATASETS[name].parts_need["test"]:
        cifar_batch(tmp_path / name / file, key, labels, rows)
    pixels, found = evaluated(DATASETS[name], "test", tmp_path, 32)
    assert found.tolist() == labels
    assert np.array_equal(pixels.permute(0, 2, 3, 1).numpy(), np.stack(images))
    # at 224 pixels, as the transfer experiments see them
    large, _ = evaluated(DATASETS[name], "test", tmp_path, 224)
    resize = transforms.Compose([transforms.Resize((224, 224)), transforms.PILToTensor()])
    for mine, image in zip(large, images, strict=True):
        assert torch.equal(mine, resize(Image.fromarray(image)))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> tuple[Path, list[tuple[Image.Image, int]]]:
    """The pictures in a tree of all thousand classes; cut, they have sides of many lengths."""
    root = tmp_path_factory.mktemp("golden")
    cut = np.random.RandomState(0).randint(240, 512, (20, 2))
    found = []
    for label in range(1000):
        for part in ("train", "val"):
            (root / f"imagenet1k/{part}/n{label:08d}").mkdir(parents=True)
    for k, (path, label) in enumerate(pictures("imagenet")):
        folder = root / f"imagenet1k/val/n{label:08d}"
        (folder / f"{2 * k:02d}.JPEG").write_bytes(path.read_bytes())
        image = Image.open(path).convert("RGB")
        found.append((2 * k, image, label))
        part = image.crop((0, 0, *cut[k].tolist()))
        part.save(folder / f"{2 * k + 1:02d}.JPEG", "PNG")
        found.append((2 * k + 1, part, label))
    found.sort(key=lambda picture: (picture[2], picture[0]))
    return root, [(image, label) for _, image, label in found]


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (None, 224), (248, 224), (182, 160)])
def test_imagenet(imagenet, resize, size):
    """Exactly torchvision's Resize, CenterCrop, ToTensor and Normalize, rounding included."""
    root, images = imagenet
    dataset = dataclasses.replace(DATASETS["imagenet1k"], holdout=0)
    pixels, labels = evaluated(dataset, "test", root, size, resize)
    assert labels.tolist() == [label for _, label in images]
    for library in (transforms, v2):
        if resize:
            shape = [library.Resize(resize), library.CenterCrop(size)]
        else:
            shape = [library.Resize((size, size))]
        whole = library.Compose([*shape, library.PILToTensor()])
        for mine, (image, _) in zip(pixels, images, strict=True):
            assert torch.equal(mine, whole(image))
    normal = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
    )
    mine = normalise(pixels[:5], dataset)
    theirs = torch.stack([normal(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pixels[:5]])
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
