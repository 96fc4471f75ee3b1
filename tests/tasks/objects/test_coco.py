"""Scoring without classes: worked by hand, against pycocotools run on files, and its edges."""

import json

import numpy as np
import pytest

from crate.errors import RunError
from crate.tasks.objects import coco

METRICS = [f"{kind}_{m}" for kind in ("box", "mask") for m in ("ap", "ap50", "ap75")]


def rectangle(x, y, w, h, side=40):
    mask = np.zeros((side, side), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def truth_of(objects, side=40):
    """Truth from (picture, bool mask) pairs, plus `extra` keys of each; numbered from 0."""
    annotations = []
    for number, (picture, mask, *extra) in enumerate(objects):
        rle = coco.encode(mask)
        annotation = {"id": number, "image_id": picture, "category_id": 1 + number % 3}
        annotation |= {"segmentation": rle, "bbox": coco.box(rle), "area": int(mask.sum())}
        annotations.append(annotation | {"iscrowd": 0} | (extra[0] if extra else {}))
    images = [{"id": n, "width": side, "height": side} for n in {o[0] for o in objects}]
    categories = [{"id": k, "name": str(k)} for k in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": categories}


def found(*masks):
    return [coco.result(picture, coco.encode(mask)) for picture, mask in masks]


def test_average_precision_by_hand(capsys):
    square = rectangle(0, 0, 10, 10)
    truth = truth_of([(1, square), (1, rectangle(20, 20, 10, 10)), (2, square)])
    miss, half = rectangle(30, 0, 5, 5), rectangle(0, 0, 10, 5)  # the half has IoU 0.5
    metrics = coco.evaluate(truth, found((1, square), (1, miss), (2, half)))
    # right, wrong, right of three at IoU 0.5: precision 1 at the recalls 0 … 0.33 (34 of 101), then
    # 2/3 at 0.34 … 0.66 (33); at every higher IoU only the first is right
    ap50, higher = 100 * (34 + 33 * 2 / 3) / 101, 100 * 34 / 101
    expected = [(ap50 + 9 * higher) / 10, ap50, higher]
    assert metrics == pytest.approx(dict(zip(METRICS, expected * 2, strict=True)))
    assert capsys.readouterr().out == ""


def test_the_whole_image_is_worth_what_its_overlap_is():
    whole = np.ones((40, 40), bool)
    truth = truth_of([(1, rectangle(0, 0, 40, 32)), (2, rectangle(0, 0, 4, 4))])  # IoU 0.8, 0.01
    metrics = coco.evaluate(truth, found((1, whole), (2, whole)))
    # half of the objects is found, first in rank, at the IoUs 0.50 to 0.80: 7 of 10
    half = 100 * 51 / 101
    assert metrics["mask_ap50"] == pytest.approx(half)
    assert metrics["mask_ap75"] == pytest.approx(half)
    assert metrics["box_ap"] == metrics["mask_ap"] == pytest.approx(0.7 * half)


def test_the_truth_scores_100_and_nothing_scores_0():
    random = np.random.RandomState(0)
    objects = [
        (picture, rectangle(*random.randint(0, 20, 2), *random.randint(1, 20, 2)))
        for picture in range(5)
        for _ in range(4)
    ]
    objects.append((0, rectangle(39, 39, 1, 1)))  # one pixel
    crowd = (0, np.ones((40, 40), bool), {"iscrowd": 1})
    truth = truth_of([*objects, crowd])
    assert coco.evaluate(truth, found(*objects)) == pytest.approx(dict.fromkeys(METRICS, 100.0))
    assert coco.evaluate(truth, []) == dict.fromkeys(METRICS, 0.0)
    one = truth_of(objects[-1:])  # the only annotation has the number 0
    assert coco.evaluate(one, found(objects[-1]))["mask_ap"] == pytest.approx(100)
    # what lies in a crowd is not wrong
    more = [(0, rectangle(0, 0, 3, 3))] * 5
    assert coco.evaluate(truth, found(*more, *objects))["mask_ap"] == pytest.approx(100)
    assert coco.evaluate(truth_of(objects), found(*more, *objects))["mask_ap"] < 99


def test_as_pycocotools_on_the_same_files(tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    random = np.random.RandomState(1)
    objects, results = [], []
    for picture in range(8):
        for number in range(random.randint(0, 6)):
            x, y, w, h = (*random.randint(0, 20, 2), *random.randint(1, 20, 2))
            objects.append((picture, rectangle(x, y, w, h), {"iscrowd": int(number == 3)}))
            if random.rand() < 0.8:
                dx, dy = random.randint(0, 4, 2)
                results.append((picture, rectangle(x + dx, y + dy, w, h)))
    truth, results = truth_of(objects), found(*results)
    truth["images"] = [{"id": n, "width": 40, "height": 40} for n in range(8)]
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    polygon = truth["annotations"][0]
    x, y, w, h = polygon["bbox"]
    polygon["segmentation"] = [[x, y, x + w, y, x + w / 2, y + h]]
    crowd = next(a for a in truth["annotations"] if a["iscrowd"])
    mask = coco.decode(crowd["segmentation"]).ravel(order="F")
    runs = np.diff(np.flatnonzero(np.diff(mask, prepend=False, append=~mask[-1:])), prepend=0)
    crowd["segmentation"] = {"size": [40, 40], "counts": runs.tolist()}  # as COCO writes crowds
    before = json.dumps(truth)

    metrics = coco.evaluate(truth, results)

    assert json.dumps(truth) == before
    (tmp_path / "truth.json").write_text(before)
    entries = [entry | {"category_id": 1} for entry in results]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    there = COCO(tmp_path / "truth.json")
    expected = []
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(there, there.loadRes(str(tmp_path / "results.json")), kind)
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        expected.extend(100 * evaluation.stats[:3])
    assert metrics == pytest.approx(dict(zip(METRICS, expected, strict=True)))
    assert 5 < metrics["mask_ap"] < 60
    # each way to write a segmentation becomes what pycocotools makes of it
    for annotation in json.loads(before)["annotations"]:
        rle = coco.outline_rle(annotation["segmentation"], 40, 40)
        assert (coco.decode(rle) == there.annToMask(annotation)).all()


def test_what_cannot_be_scored_is_said():
    whole = np.ones((40, 40), bool)
    crowds = truth_of([(1, whole, {"iscrowd": 1})])
    with pytest.raises(RunError, match="no picture has an annotated object"):
        coco.evaluate(crowds, found((1, whole)))
    truth = truth_of([(1, whole)])
    with pytest.raises(RunError, match="picture 2"):
        coco.evaluate(truth, found((2, whole)))
    with pytest.raises(RunError, match=r"picture 1: a mask is \[4, 4\]"):
        coco.evaluate(truth, found((1, whole[:4, :4])))
