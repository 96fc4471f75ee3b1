"""The speed and the masks of MaskCut's iterative solver against the dense one.

`python benchmarks/maskcut.py` prints a Markdown table: for each network and threshold, the time of
the dense solver over that of the iterative one, for all rounds of an image, and the smallest IoU of
their masks. The images are the package's photographs at the papers' size, 480 pixels and
patches of 8: N = 3600. Networks are randomly initialised. The solvers run in turns within one
process on one thread.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # before numpy starts

import argparse
import statistics
import time

import numpy as np
import torch
from PIL import Image

from crate.data.embedded import photos
from crate.models.features import patch_features, pretrained
from crate.models.zoo import resolve
from crate.tasks.objects.maskcut import cut_masks, squared

NETWORKS = ("crate_alpha_base_patch8", "crate_base_patch8", "vit_base_patch8")
SIZE, LAYER, MASKS = 480, 3, 3


def features(name: str, picture: np.ndarray) -> np.ndarray:
    torch.manual_seed(0)
    model = pretrained(resolve(name, depth=LAYER + 1), None, image_size=SIZE)
    pixels = torch.from_numpy(np.array(squared(Image.fromarray(picture), SIZE))).permute(2, 0, 1)
    with torch.inference_mode():
        return patch_features(model, pixels[None] / 127.5 - 1, LAYER, "key")[0].numpy()


def timed(solver: str, vectors: np.ndarray, tau: float) -> tuple[float, list[np.ndarray]]:
    side = round(len(vectors) ** 0.5)
    start = time.perf_counter()
    masks = cut_masks(vectors, (side, side), tau=tau, masks=MASKS, solver=solver)
    return time.perf_counter() - start, masks


def overlap(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The smallest IoU of two lists of masks; 0 where one is longer."""
    if len(first) != len(second):
        return 0.0
    pairs = zip(first, second, strict=True)
    return min(((a & b).sum() / (a | b).sum() for a, b in pairs), default=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--taus", type=float, nargs="+", default=[0.15, 0.3])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | tau | pictures | masks | dense s | iterative s | ratio, median | least | "
          "smallest IoU |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in options.networks:
        vectors = [features(name, picture) for picture in photos().values()]
        for tau in options.taus:
            rows = []
            for patches in vectors:
                quick, ours = timed("iterative", patches, tau)
                slow, published = timed("dense", patches, tau)
                rows.append((slow, quick, slow / quick, len(published), overlap(ours, published)))
            dense, iterative, ratios, masks, overlaps = zip(*rows, strict=True)
            print(f"| {name} | {tau} | {len(rows)} | {sum(masks)} | "
                  f"{statistics.median(dense):.1f} | {statistics.median(iterative):.2f} | "
                  f"{statistics.median(ratios):.0f} | {min(ratios):.0f} | {min(overlaps):.4f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
