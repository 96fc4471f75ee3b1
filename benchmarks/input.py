"""The speed of image loading, by storage and number of loader processes.

`python benchmarks/input.py` prints Markdown tables of ratios. The images are generated JPEGs of
ImageNet's usual size (500 × 375, its usual bytes a pixel) in a temporary folder, which stays in the
page cache: decoding, loader processes and shards are measured, not the disk. Variants run in turns,
and each value is the median of its turns; absolute times do not compare between machines.
"""

import argparse
import dataclasses
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from crate.data.catalogue import DATASETS
from crate.data.images import open_split
from crate.data.listing import list_part, write_index
from crate.runtime import Runtime
from crate.tasks.classification.recipe import Classification

CPU = Runtime(torch.device("cpu"), torch.float32, "benchmark")
CLASSES, PER_CLASS, BATCH = 8, 16, 32
DATASET = dataclasses.replace(DATASETS["imagenet21k"], classes=CLASSES, holdout=BATCH)


def write_tree(train: Path) -> None:
    random = np.random.RandomState(0)
    for k in range(CLASSES):
        folder = train / f"n{k:08d}"
        folder.mkdir(parents=True)
        for i in range(PER_CLASS):
            # coarse shapes with some noise: about 110 KB, as ImageNet's pictures
            small = Image.fromarray(random.randint(0, 256, (24, 32, 3), np.uint8))
            pixels = np.array(small.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
            pixels += random.normal(0, 12, pixels.shape)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{folder.name}_{i}.JPEG", quality=90)


def write_shards(tree: Path, train: Path) -> None:
    train.mkdir(parents=True)
    for folder in tree.iterdir():
        with tarfile.open(train / f"{folder.name}.tar", "w") as tar:
            for file in folder.iterdir():
                tar.add(file, file.name)


def images_per_second(root: Path, workers: int, batches: int) -> float:
    """Speed over `batches` batches, after a first one that starts the loader processes."""
    compute = {"workers": workers}
    recipe = {"dataset": DATASET.name, "follows": [], "epochs": 1.0, "lr": 1e-3}
    recipe = Classification(**recipe, batch_size=BATCH, crop_area_min=0.08, compute=compute)
    images = open_split(DATASET, "train", size=224, runtime=CPU, data_root=root)
    loaded = images.training(recipe, 0, 0, batches + 1)
    next(loaded)
    start, count = time.perf_counter(), 0
    for pixels, _ in loaded:
        count += len(pixels)
    return count / (time.perf_counter() - start)


def loading(root: Path, turns: int, batches: int) -> list[tuple[str, dict[int, float]]]:
    """(kind, images/s by number of processes), relative to the folder without processes."""
    sides = [(kind, workers) for kind in ("folder", "class tars") for workers in (0, 1, 2)]
    speeds: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for kind, workers in sides:
            speeds[kind, workers].append(images_per_second(root / kind, workers, batches))
    speed = {side: statistics.median(values) for side, values in speeds.items()}
    base = speed["folder", 0]
    print(f"folder, no process: {base:.0f} images/s here", flush=True)
    return [
        (kind, {workers: speed[kind, workers] / base for workers in (0, 1, 2)})
        for kind in ("folder", "class tars")
    ]


def starting(root: Path, classes: int, per_class: int) -> dict[str, float]:
    """Time to list a part without its index over the time with it."""
    tree, shards = root / "many/tree/train", root / "many/tars/train"
    shards.mkdir(parents=True)
    for k in range(classes):
        folder = tree / f"n{k:08d}"
        folder.mkdir(parents=True)
        for i in range(per_class):
            (folder / f"{folder.name}_{i}.JPEG").touch()
        with tarfile.open(shards / f"{folder.name}.tar", "w") as tar:
            for i in range(per_class):
                tar.addfile(tarfile.TarInfo(f"{folder.name}_{i}.JPEG"))
    ratios = {}
    for kind, part in {"folder": tree, "class tars": shards}.items():
        times = []
        for indexed in (False, True):
            if indexed:
                write_index(part)
            list_part.cache_clear()
            start = time.perf_counter()
            list_part(part)
            times.append(time.perf_counter() - start)
        ratios[kind] = times[0] / times[1]
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=9, help="of 32 pictures, a turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tree = root / "folder" / DATASET.name / "train"
        write_tree(tree)
        write_shards(tree, root / "class tars" / DATASET.name / "train")
        rows = loading(root, options.turns, options.batches)
        print("\n| training, images/s | 0 processes | 1 | 2 |\n|---|---|---|---|")
        for kind, by_workers in rows:
            print(f"| {kind} | " + " | ".join(f"{x:.2f}" for x in by_workers.values()) + " |")
        print("\n| a start without the index takes | times as long |\n|---|---|")
        for kind, times in starting(root, 400, 100).items():
            print(f"| {kind}, 40,000 pictures | {times:.0f} |")


if __name__ == "__main__":
    main()
