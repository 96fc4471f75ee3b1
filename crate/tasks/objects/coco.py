"""Class-agnostic COCO scores of object discovery (pycocotools; Lin et al. 2014).

A mask is stored as COCO's run-length encoding, `{"size": [H, W], "counts": str}`; a box is
[left, top, width, height] in pixels. A result is `{"image_id", "segmentation", "bbox", "score"}`.
"""

import contextlib
import io

import numpy as np

from crate.errors import RunError

METRICS = ("ap", "ap50", "ap75")  # after "box_" and "mask_"


def encode(mask: np.ndarray) -> dict:
    """bool (H, W) → its run-length encoding, for JSON."""
    from pycocotools import mask as coder

    coded = coder.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": coded["counts"].decode("ascii")}


def decode(rle: dict) -> np.ndarray:
    """A run-length encoding → bool (H, W)."""
    from pycocotools import mask as coder

    return coder.decode(rle).astype(bool)


def box(rle: dict) -> list[float]:
    """The smallest box around a mask; four zeros for an empty mask."""
    from pycocotools import mask as coder

    return coder.toBbox(rle).tolist()


def area(rle: dict) -> int:
    """Pixels of a mask."""
    from pycocotools import mask as coder

    return int(coder.area(rle))


def outline_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """An annotation's segmentation (polygons, or runs as numbers or text) → run-length encoding."""
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
    """COCO's result of a predicted mask; bbox: None for the smallest box around it.

    MaskCut gives no scores: all are 1, so that results rank by their order.
    """
    bbox = box(rle) if bbox is None else list(bbox)
    return {"image_id": image_id, "segmentation": rle, "bbox": bbox, "score": 1.0}


def evaluate(truth: dict, results: list[dict]) -> dict[str, float]:
    """Average precision of boxes and masks in %, by the names in `Objects.METRICS`.

    AP is the mean over IoU 0.50, 0.55, …, 0.95 of the precision interpolated at 101 recalls, with
    at most 100 results an image; crowds are ignored regions.

    Args:
        truth: annotations of the scored images, in COCO's format.
        results: of equal scores, the best first.

    Raises:
        RunError: no image has an object, or a result is of another image or another size.
    """
    if all(annotation.get("iscrowd") for annotation in truth["annotations"]):
        raise RunError("no picture has an annotated object to score against")
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    for entry in results:
        size = sizes.get(entry["image_id"])
        if size is None:
            raise RunError(f"a result is of picture {entry['image_id']}, which has no annotations")
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

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        expected = _indexed(truth["images"], truth["annotations"])
        predicted = _indexed(
            truth["images"], [{**r, "area": area(r["segmentation"])} for r in results]
        )
        evaluation = COCOeval(expected, predicted, kind)
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [100]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    by_threshold = evaluation.eval["precision"][..., 0, 0, 0].mean(1)  # (10,), over the recalls
    return tuple(100 * float(v) for v in (by_threshold.mean(), by_threshold[0], by_threshold[5]))


def _indexed(images: list[dict], annotations: list[dict]):
    """A `COCO` with one class. Ids start at 1: pycocotools takes 0 for "no match"."""
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
