"""Object discovery scored as COCO scores it, without classes (pycocotools; Lin et al. 2014).

A mask is kept as COCO's run-length encoding, `{"size": [H, W], "counts": str}`; a box is
[left, top, width, height] in pixels. A result is `{"image_id", "segmentation", "bbox", "score"}`.
"""

import contextlib
import io

import numpy as np

from crate.errors import RunError

METRICS = ("ap", "ap50", "ap75")  # after "box_" and "mask_"


def encode(mask: np.ndarray) -> dict:
    """bool (H, W) → its encoding, ready for JSON."""
    from pycocotools import mask as coder

    coded = coder.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": coded["counts"].decode("ascii")}


def decode(rle: dict) -> np.ndarray:
    """An encoding → bool (H, W)."""
    from pycocotools import mask as coder

    return coder.decode(rle).astype(bool)


def box(rle: dict) -> list[float]:
    """The smallest box around a mask; four zeros where it is empty."""
    from pycocotools import mask as coder

    return coder.toBbox(rle).tolist()


def area(rle: dict) -> int:
    """Pixels of a mask."""
    from pycocotools import mask as coder

    return int(coder.area(rle))


def outline_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """An annotation's segmentation (polygons, or runs as numbers or text) → its encoding."""
    from pycocotools import mask as coder

    if isinstance(segmentation, list):
        coded = coder.merge(coder.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        coded = coder.frPyObjects(segmentation, height, width)
    else:
        coded = segmentation
    counts = coded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [height, width], "counts": text}


def result(image_id: int, rle: dict, *, bbox: list[float] | None = None) -> dict:
    """A mask found in a picture; its box is the smallest around it, unless one is given.

    MaskCut gives no scores: all are 1, so that the order of the results is their order of merit.
    """
    bbox = box(rle) if bbox is None else list(bbox)
    return {"image_id": image_id, "segmentation": rle, "bbox": bbox, "score": 1.0}


def evaluate(truth: dict, results: list[dict]) -> dict[str, float]:
    """Average precision of boxes and of masks in %, as `config.Objects.METRICS` names it.

    AP is the mean over IoU 0.50, 0.55, …, 0.95, of the precision interpolated at 101 recalls, with
    at most 100 results a picture; crowds are ignored regions.

    Args:
        truth: COCO's format, of the pictures that are scored.
        results: in order of merit where scores are equal.

    Raises:
        RunError: the pictures have no object, or a result is of another picture or another size.
    """
    if all(annotation.get("iscrowd") for annotation in truth["annotations"]):
        raise RunError("none of the pictures has an annotated object to score against")
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    for entry in results:
        size = sizes.get(entry["image_id"])
        if size is None:
            raise RunError(f"a result is of picture {entry['image_id']}, which is not in the truth")
        if list(entry["segmentation"]["size"]) != size:
            raise RunError(
                f"picture {entry['image_id']}: a mask is {entry['segmentation']['size']}, the "
                f"annotations are for {size} (height, width)"
            )
    metrics = {}
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        scores = _average_precision(truth, results, kind) if results else (0.0, 0.0, 0.0)
        metrics |= {f"{prefix}_{m}": score for m, score in zip(METRICS, scores, strict=True)}
    return metrics


def _average_precision(truth: dict, results: list[dict], kind: str) -> tuple[float, ...]:
    """AP, AP50 and AP75 in %."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        there = _indexed(truth["images"], truth["annotations"])
        found = _indexed(truth["images"], [{**r, "area": area(r["segmentation"])} for r in results])
        evaluation = COCOeval(there, found, kind)
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [100]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    by_threshold = evaluation.eval["precision"][..., 0, 0, 0].mean(1)  # (10,), over the recalls
    return tuple(100 * float(v) for v in (by_threshold.mean(), by_threshold[0], by_threshold[5]))


def _indexed(images: list[dict], annotations: list[dict]):
    """A `COCO` of one class. pycocotools takes the number 0 for "none", so ids start at 1."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"iscrowd": 0, **annotation, "id": number, "category_id": 1}
            for number, annotation in enumerate(annotations, start=1)
        ],
    }
    coco.createIndex()
    return coco
