"""Segmentation: crops, colours, windows, scores and controls against what can be worked out."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from crate.data.catalogue import get_dataset
from crate.data.scenes import IGNORED
from crate.data.segmentation import (
    LabelledScenes,
    distort,
    place_crop,
    scaled_size,
    training_crop,
    windows,
)
from crate.errors import RunError, UsageError
from crate.launch.run import perform, prepare
from crate.models.zoo import resolve
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import Run
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.segmentation import task
from crate.tasks.segmentation.recipe import Segmentation
from crate.tasks.segmentation.task import (
    SegmentationStage,
    broadcast_statistics,
    confusion,
    evaluate,
    most_frequent,
    readable,
    scores,
    segment,
    segmentation_loss,
)
from crate.weights import read_weights

CPU = Runtime(torch.device("cpu"), torch.float32, "test")
RANKS = [dataclasses.replace(CPU, rank=rank, world=2) for rank in (0, 1)]
pytestmark = pytest.mark.usefixtures("one_thread")

FILL = np.array([124, 116, 104], np.uint8)
# two classes; normalisation leaves pixels / 255, so that a stub can read them
PLAIN = dataclasses.replace(
    get_dataset("composites"),
    classes=5,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    form="class_folders",
)


def make_recipe(**changes) -> Segmentation:
    values = {"dataset": "composites", "follows": ["start"], "updates": 1, "batch_size": 4}
    values |= {"lr": 1e-3, "image_size": 16, "stride": 10, "resize": [64, 16]}
    return Segmentation(**values | changes)


class Memory:
    """Scenes in memory; those in `broken` cannot be read."""

    has_maps = True

    def __init__(self, pictures, maps, broken=()):
        self.pictures, self.maps, self.broken = pictures, maps, broken

    def __len__(self):
        return len(self.pictures)

    def name(self, index):
        return f"picture {index}"

    def picture(self, index):
        if index in self.broken:
            raise RunError(f"picture {index} is damaged")
        return Image.fromarray(self.pictures[index])

    def labels(self, index):
        return self.maps[index]


def random_scenes(count: int = 8, broken=()) -> Memory:
    random = np.random.RandomState(0)
    sizes = random.randint(10, 40, (count, 2))
    pictures = [random.randint(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    maps = [random.choice([0, 1, 2, 3, 4, IGNORED], size).astype(np.uint8) for size in sizes]
    return Memory(pictures, maps, broken)


# --- pictures to train on -----------------------------------------------------------


def test_pictures_keep_their_ratio_within_two_limits():
    assert scaled_size(683, 512, 2048, 512) == (683, 512)
    assert scaled_size(300, 200, 2048, 512) == (768, 512)
    assert scaled_size(200, 300, 2048, 512) == (512, 768)
    assert scaled_size(2000, 100, 2048, 512) == (2048, 102)  # the longer side decides
    assert scaled_size(5, 3, 10, 10) == (10, 6)


def coordinates(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose red is the row and green the column, and a map with the same in it."""
    rows, columns = np.indices((height, width))
    picture = np.stack([rows * 2, columns * 2, np.zeros_like(rows)], -1).astype(np.uint8)
    return picture, ((rows // 8) * 12 + columns // 8).astype(np.uint8)


@pytest.mark.parametrize("ratio", [[1.0, 1.0], [0.5, 2.0]])
def test_picture_and_map_stay_together(ratio):
    picture, labels = coordinates(64, 96)
    recipe = make_recipe(image_size=48, resize=[96, 64], ratio=ratio, photometric=False)
    flipped, corners = set(), set()
    for seed in range(40):
        pixels, map_ = training_crop(Image.fromarray(picture), labels, recipe, seed, FILL)
        assert (pixels.shape, map_.shape) == ((3, 48, 48), (48, 48))
        red, green = pixels[0].float() / 2, pixels[1].float() / 2
        inside = map_ != IGNORED
        assert (pixels.permute(1, 2, 0)[~inside] == torch.from_numpy(FILL)).all()
        found = (red // 8) * 12 + green // 8
        agree = (found == map_)[inside].float().mean()
        # bilinear and nearest differ by less than a pixel, at the borders of the blocks of 8
        assert agree == 1 if ratio == [1.0, 1.0] else agree > 0.75
        flipped.add(bool(green[0, 0] > green[0, 1]))
        corners.add((float(red[0, 0]), float(green[0].min())))
    assert flipped == {False, True}
    assert len(corners) > 30


def test_a_small_picture_is_filled_up():
    picture, labels = coordinates(8, 12)
    recipe = make_recipe(ratio=[1.0, 1.0], resize=[12, 8], photometric=False, flip=False)
    pixels, map_ = training_crop(Image.fromarray(picture), labels, recipe, 0, FILL)
    assert np.array_equal(pixels[:, :8, :12].permute(1, 2, 0), picture)
    assert np.array_equal(map_[:8, :12], labels)
    assert (map_[8:] == IGNORED).all()
    assert (map_[:, 12:] == IGNORED).all()
    assert (pixels[:, 8:] == torch.from_numpy(FILL)[:, None, None]).all()


def test_no_class_fills_a_crop():
    labels = np.zeros((40, 40), np.uint8)
    labels[30:, 30:] = 1
    labels[:20, :20] = IGNORED  # counts for nobody

    def filled(seed: int, category_max: float) -> float:
        top, left = place_crop(labels, 10, category_max, np.random.RandomState(seed))
        counts = np.bincount(labels[top : top + 10, left : left + 10].ravel(), minlength=256)[:255]
        return counts.max() / max(counts.sum(), 1)

    free = np.array([filled(seed, 1.0) for seed in range(200)])
    held = np.array([filled(seed, 0.75) for seed in range(200)])
    good = (free > 0) & (free < 0.75)
    # ten tries find one with 1 - (1 - p)^10, and the eleventh is taken as it is
    expected = 1 - (1 - good.mean()) ** 11
    assert 0.03 < good.mean() < 0.2
    assert abs(((held > 0) & (held < 0.75)).mean() - expected) < 0.1
    assert place_crop(labels[20:30, 20:30], 10, 0.75, np.random.RandomState(0)) == (0, 0)


class Script:
    """Random numbers that were chosen: `rand` one by one, then `uniform` and `randint`."""

    def __init__(self, rand, uniform=(), randint=()):
        self.numbers = {"rand": list(rand), "uniform": list(uniform), "randint": list(randint)}
        self.limits = []

    def rand(self):
        return self.numbers["rand"].pop(0)

    def uniform(self, low, high):
        self.limits.append((low, high))
        return self.numbers["uniform"].pop(0)

    def randint(self, low, high):
        self.limits.append((low, high))
        return self.numbers["randint"].pop(0)


def test_colours_by_hand():
    def changed(colour, *script):
        random = Script(*script)
        image = Image.fromarray(np.full((2, 2, 3), colour, np.uint8))
        return np.asarray(distort(image, random))[0, 0].tolist(), random.limits

    # brightness, contrast first?, contrast, saturation, hue
    assert changed([10, 100, 250], [0.9] * 5) == ([10, 100, 250], [])
    assert changed([10, 100, 250], [0, 0.9, 0.9, 0.9, 0.9], [20]) == (
        [30, 120, 255], [(-32, 32)]
    )  # fmt: skip
    assert changed([10, 100, 250], [0.9, 0, 0, 0.9, 0.9], [1.5]) == ([15, 150, 255], [(0.5, 1.5)])
    # the last draw is for contrast that comes last: 100 - 20, then × 0.5
    assert changed([100, 100, 100], [0, 0.9, 0.9, 0.9, 0], [-20, 0.5])[0] == [40, 40, 40]
    assert changed([200, 100, 100], [0.9, 0.9, 0, 0.9, 0.9], [1.5])[0] == pytest.approx(
        [200, 50, 50], abs=2
    )
    # 15 units of two degrees turn red halfway to yellow
    (red, green, blue), limits = changed([200, 0, 0], [0.9, 0.9, 0.9, 0, 0.9], [], [15])
    assert (red, blue, limits) == (200, 0, [(-18, 18)])
    assert green == pytest.approx(100, abs=5)


def test_colours_follow_their_seed():
    image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (9, 9, 3)).astype(np.uint8))
    outcomes = [np.asarray(distort(image, np.random.RandomState(s))) for s in range(30)]
    for seed, outcome in enumerate(outcomes):
        assert (outcome.shape, outcome.dtype) == ((9, 9, 3), np.uint8)
        assert np.array_equal(outcome, distort(image, np.random.RandomState(seed)))
    assert len({outcome.tobytes() for outcome in outcomes}) > 20


def test_workers_and_ranks_change_no_batch():
    source = {"scenes": random_scenes(), "dataset": PLAIN}

    def batches(recipe, runtimes):
        parts = [
            list(LabelledScenes(**source, runtime=r).training(recipe, 3, 1, 5)) for r in runtimes
        ]
        return [
            [torch.cat(t) for t in zip(*batch, strict=True)] for batch in zip(*parts, strict=True)
        ]

    alone = batches(make_recipe(), [CPU])
    assert [(p.shape, m.shape) for p, m in alone] == [((4, 3, 16, 16), (4, 16, 16))] * 4
    helped = batches(make_recipe(compute={"workers": 2}), [CPU])
    shared = batches(make_recipe(), RANKS)
    for one, two, three in zip(alone, helped, shared, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
    # another epoch shows the same pictures otherwise
    assert len({pixels.numpy().tobytes() for pixels, _ in alone}) == 4


# --- windows -----------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "size", "stride"),
    [(512, 683, 512, 341), (100, 37, 16, 10), (16, 16, 16, 10), (17, 5, 16, 16), (9, 9, 16, 1)],
)
def test_windows_cover_every_pixel(height, width, size, stride):
    places = windows(height, width, size, stride)
    assert len(set(places)) == len(places)
    seen = np.zeros((height, width), int)
    for top, left in places:
        assert 0 <= top <= max(height - size, 0)
        assert 0 <= left <= max(width - size, 0)
        seen[top : top + size, left : left + size] += 1
    assert seen.min() >= 1
    # mmsegmentation's count of a grid
    rows, columns = (max(side - size + stride - 1, 0) // stride + 1 for side in (height, width))
    assert len(places) == rows * columns


class ByPlace(torch.nn.Module):
    """Logits that depend on where in its window a pixel is, and on its colour."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        self.weight = torch.randn(classes, 3, generator=torch.Generator().manual_seed(0))
        self.place = torch.randn(classes, size, size, generator=torch.Generator().manual_seed(1))

    def forward(self, images):
        return torch.einsum("kc,bchw->bkhw", self.weight, images) + self.place


@pytest.mark.parametrize("micro", [1, 3, None])
def test_overlapping_windows_are_averaged(micro):
    recipe = make_recipe(compute={"micro_batch": micro}, resize=[40, 24])
    scenes = random_scenes(4)
    source = LabelledScenes(scenes, PLAIN, runtime=CPU)
    model = ByPlace(16, 5)
    found = list(segment(model, readable(source.evaluation(recipe)), recipe, PLAIN, CPU))
    assert len(found) == 4
    for index, (truth, answer) in enumerate(found):
        assert np.array_equal(truth, scenes.labels(index))
        image = scenes.picture(index)
        width, height = scaled_size(*image.size, 40, 24)
        image = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
        tall, wide = max(height, 16), max(width, 16)
        pixels = torch.zeros(3, tall, wide)
        pixels[:, :height, :width] = torch.from_numpy(image.copy()).permute(2, 0, 1) / 255
        mean = torch.zeros(5, height, width)
        tops, lefts = (sorted({p[k] for p in windows(tall, wide, 16, 10)}) for k in (0, 1))
        for y in range(height):
            for x in range(width):
                places = [
                    (y - top, x - left)
                    for top in tops
                    for left in lefts
                    if 0 <= y - top < 16 and 0 <= x - left < 16
                ]
                logits = [model.weight @ pixels[:, y, x] + model.place[:, i, j] for i, j in places]
                mean[:, y, x] = torch.stack(logits).mean(0)
        own = F.interpolate(mean[None], truth.shape, mode="bilinear", align_corners=False)[0]
        assert (answer == own.argmax(0)).float().mean() > 0.999  # rounding decides a tie


def test_a_picture_smaller_than_the_window():
    picture = np.full((7, 11, 3), 51, np.uint8)
    source = LabelledScenes(Memory([picture], [np.ones((7, 11), np.uint8)]), PLAIN, runtime=CPU)
    seen = []

    def network(images):
        seen.append(images)
        return torch.stack([images[:, 0], 0.1 + 0 * images[:, 0]], 1)

    recipe = make_recipe(resize=[11, 7])
    ((truth, answer),) = segment(network, source.evaluation(recipe), recipe, PLAIN, CPU)
    assert truth.shape == answer.shape == (7, 11)
    assert (answer == 0).all()
    ((window,),) = seen
    torch.testing.assert_close(window[:, :7, :11], torch.full((3, 7, 11), 0.2))
    assert not window[:, 7:].any()
    assert not window[:, :, 11:].any()


# --- scores -----------------------------------------------------------


def test_scores_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 1, 255], [0, 255, 1]], dtype=torch.uint8)
    answer = torch.tensor([[0, 1, 1], [1, 0, 2], [0, 1, 2]])
    matrix = confusion(truth, answer, 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    found = scores(matrix.double().numpy())
    # IoU 2/4, 2/5, 0/1; class 3 is nowhere and left out; recall 2/3 and 2/4; 4 of 7 are right
    assert found["miou"] == pytest.approx(100 * (1 / 2 + 2 / 5 + 0) / 3)
    assert found["macc"] == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert found["aacc"] == pytest.approx(100 * 4 / 7)


def test_scores_are_those_of_torchmetrics():
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    pairs = []
    for size in ((9, 14), (30, 8), (1, 5)):
        truth = torch.randint(0, 6, size, generator=generator).to(torch.uint8)
        truth[torch.rand(size, generator=generator) < 0.2] = IGNORED
        pairs.append((truth, torch.randint(0, 7, size, generator=generator)))
    found = evaluate(pairs, dataclasses.replace(PLAIN, classes=9), CPU)
    options = {"num_classes": 9, "ignore_index": IGNORED}
    theirs = {
        "miou": MulticlassJaccardIndex(**options),
        "aacc": MulticlassAccuracy(**options, average="micro"),
    }
    for truth, answer in pairs:
        for metric in theirs.values():
            metric.update(answer.flatten(), truth.flatten().long())
    for name, metric in theirs.items():
        assert found[name] == pytest.approx(100 * float(metric.compute()), abs=1e-4), name
    # torchmetrics' mean recall counts a class that is only answered as 0; ours has no row for it
    recalls = MulticlassAccuracy(**options, average=None)
    for truth, answer in pairs:
        recalls.update(answer.flatten(), truth.flatten().long())
    assert found["macc"] == pytest.approx(100 * float(recalls.compute()[:6].mean()), abs=1e-4)
    assert found["images"] == 3


def test_the_loss_counts_labelled_pixels_only():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, 5, 4, 4, generator=generator) for _ in range(2))
    maps = torch.randint(0, 5, (2, 4, 4), generator=generator).to(torch.uint8)
    maps[0, :2] = IGNORED
    known = maps != IGNORED

    def mean(logits):
        chances = logits.softmax(1).permute(0, 2, 3, 1)[known]
        right = chances.gather(1, maps[known].long()[:, None])
        return -right.log().sum() / maps.numel()

    found = segmentation_loss((first, second), maps, 0.4)
    torch.testing.assert_close(found, mean(first) + 0.4 * mean(second))
    torch.testing.assert_close(segmentation_loss((first,), maps, 0.4), mean(first))
    halves = [segmentation_loss((first[k : k + 1],), maps[k : k + 1], 0.4) for k in (0, 1)]
    torch.testing.assert_close(sum(halves) / 2, mean(first))
    assert segmentation_loss((first,), torch.full_like(maps, IGNORED), 0.4) == 0


def test_a_damaged_picture_is_left_out_of_a_test_and_ends_a_training(capsys):
    source = LabelledScenes(random_scenes(broken=[2]), PLAIN, runtime=CPU)
    pairs = ((truth, truth) for _, truth in readable(source.evaluation(make_recipe())))
    assert evaluate(pairs, PLAIN, CPU) == {"miou": 100, "macc": 100, "aacc": 100, "images": 7}
    assert capsys.readouterr().err == "warning: left out: picture 2 is damaged\n"
    with pytest.raises(RunError, match=r"^picture 2 is damaged$"):
        list(source.training(make_recipe(compute={"workers": 1}), 0, 0, 2))
    with pytest.raises(RunError, match="none of 0 readable pictures"):
        evaluate([], PLAIN, CPU)


def test_the_most_frequent_class():
    maps = [np.array(m, np.uint8) for m in ([[0, 1, 255]], [[1, 255, 255]], [[2, 255, 255]])]
    scenes = Memory([np.zeros((1, 3, 3), np.uint8)] * 3, maps)
    assert most_frequent(LabelledScenes(scenes, PLAIN, runtime=CPU)) == 1
    scenes.maps[1] = scenes.maps[2]
    assert most_frequent(LabelledScenes(scenes, PLAIN, runtime=CPU)) == 2
    scenes.maps = [np.full((1, 3), IGNORED, np.uint8)] * 3
    with pytest.raises(RunError, match="no class in 3 maps"):
        most_frequent(LabelledScenes(scenes, PLAIN, runtime=CPU))


# --- ranks -----------------------------------------------------------


def test_all_ranks_are_measured_with_the_saved_statistics():
    class Two(Runtime):
        """Adds what the other rank has, as an all-reduce would."""

        def all_reduce_sum(self, values):
            return values.add_(others.pop(0))

    mine, other = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    mine(torch.randn(4, 3, 2, 2))
    other(torch.randn(4, 3, 2, 2))
    other(torch.randn(4, 3, 2, 2))
    saved = {name: value.clone() for name, value in other.named_buffers()}
    others = list(saved.values())
    broadcast_statistics(mine, Two(*dataclasses.astuple(CPU)[:3], rank=1, world=2))
    for name, value in mine.named_buffers():
        assert torch.equal(value, saved[name]), name


@pytest.mark.parametrize(
    ("batch_size", "micro", "world", "fits"),
    [(4, None, 1, True), (4, 2, 2, True), (4, 3, 1, False), (2, None, 2, False), (4, 1, 1, False)],
)
def test_no_picture_is_alone_under_batch_norm(batch_size, micro, world, fits):
    recipe = make_recipe(batch_size=batch_size, compute={"micro_batch": micro})
    run = Run("test", "vit_base_patch16", 0, ("ade20k",))
    resolved = Resolved(run, resolve(run.model), recipe, {}, "")
    stage = SegmentationStage(resolved, dataclasses.replace(CPU, world=world), "data")
    model = torch.nn.BatchNorm2d(1)
    if fits:
        assert stage.prepare(model) is model
    else:
        with pytest.raises(UsageError, match=f"{run}: BatchNorm needs two pictures"):
            stage.prepare(model)


# --- whole runs -----------------------------------------------------------

RECIPE = {
    "task": "segmentation",
    "dataset": "composites_tiny",
    "follows": ["start"],
    "image_size": 56,
    "stride": 28,
    "resize": [112, 56],
    "ratio": [0.75, 1.5],
    "layers": [0, 0, 1, 1],
    "decoder": "linear",
    "updates": 30,
    "batch_size": 8,
    "lr": 3e-3,
    "drop_path": 0.1,
    "layer_decay": 0.75,
    "compute": {"autocast": "float32"},
}


@pytest.fixture
def go(folder):
    """`go(name, **changes)`: run the recipe above with changes at a scale of its own."""
    settings = Experiments(folder).settings({"scale": "smoke"})
    scale = {"title": "a test", "models": {"*": {"dim": 16, "depth": 2, "heads": 2}}}
    scale["models"]["*"]["patch_size"] = 14
    (folder / "scales" / "tiny.yaml").write_text(yaml.safe_dump(scale))

    def run(name: str, **changes):
        (folder / "steps" / f"{name}.yaml").write_text(yaml.safe_dump(RECIPE | changes))
        planned = Run("tiny", "crate_alpha_base_patch16", 0, (name,))
        where = f"results/{planned.folder('').as_posix()}"
        prepared = prepare(where, Plan(Experiments(folder)))
        perform(prepared, settings)
        return prepared.folder, json.loads(prepared.folder.metrics.read_text())["metrics"]

    return run


def test_a_run_learns_and_a_killed_one_ends_alike(go, monkeypatch):
    _, before = go("untrained", updates=0)
    often = {"compute": {"autocast": "float32", "checkpoint_seconds": 0.0}, "evaluate_epochs": 2}
    loss, calls = task.segmentation_loss, []

    def count(*arguments):
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return loss(*arguments)

    monkeypatch.setattr(task, "segmentation_loss", count)
    with pytest.raises(KeyboardInterrupt):
        go("learning", **often)
    killed, after = go("learning", **often)
    assert len(calls) == 14 + 30 - 13  # 13 updates were done
    assert before["images"] == after["images"] == 16
    assert before["aacc"] < after["aacc"]
    lines = [json.loads(line) for line in killed.history.read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"] < np.log(17)
    assert [line["epoch"] for line in lines if "miou" in line] == [2.0]
    resumed = read_weights(killed.weights)

    shutil.rmtree(killed.weights.parent)
    whole, again = go("learning", **often)
    assert len(calls) == 14 + 30 - 13 + 30
    assert again == after
    weights = read_weights(whole.weights)
    assert set(weights) == set(resumed)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_chain_with_upernet_and_the_controls(go):
    folder, metrics = go(
        "upernet", decoder="upernet", auxiliary=0.4, updates=2, channels=8, batch_size=4
    )
    assert set(metrics) == set(Segmentation.METRICS)
    assert "decoder.auxiliary.classifier.1.weight" in read_weights(folder.weights)
    folder, metrics = go("truth", answer="ground_truth", updates=0)
    assert metrics == {"miou": 100, "macc": 100, "aacc": 100, "images": 16}
    assert not folder.weights.exists()
    folder, metrics = go("frequent", answer="whole_image", updates=0)
    assert json.loads(folder.record.read_text())["most_frequent_class"] == 0  # the photograph
    present = round(100 / metrics["macc"])  # one class is found, all of it
    assert metrics["miou"] == pytest.approx(metrics["aacc"] / present, abs=1e-4)
    assert not folder.weights.exists()


def test_recipes_that_make_no_sense_are_refused(go):
    with pytest.raises(UsageError, match="a stride of 57 leaves gaps between windows of 56 pixels"):
        go("gaps", stride=57)
    with pytest.raises(UsageError, match="65 is more than the 64 training images"):
        go("large", batch_size=65)


@pytest.mark.parametrize("few", [1, 2, 5, 100])
def test_classes_scaled_a_few_at_a_time_are_scaled_together(monkeypatch, few):
    """A picture of 100 megapixels has 60 GB of logits; ties go to the first class either way."""
    monkeypatch.setattr(task, "EVALUATION_LOGITS", few * 20 * 31)
    torch.manual_seed(0)
    logits = torch.randn(11, 7, 9).round(decimals=1)
    whole = torch.nn.functional.interpolate(logits[None], (20, 31), mode="bilinear")[0].max(0)
    answer = task._best_class(logits, (20, 31))
    assert torch.equal(answer, whole.indices)
    assert torch.equal(task._best_class(logits, (7, 9)), logits.max(0).indices)


def test_what_is_only_evaluated_does_not_know_how_one_would_train():
    def identity(**changes) -> dict:
        values = {"dataset": "composites", "follows": ["start"], "batch_size": 2, "lr": 1e-3}
        return Segmentation(**values | changes).identity

    assert identity(updates=0) == identity(updates=0, lr=1.0, drop_path=0.5, layer_decay=0.5)
    assert identity(updates=0) != identity(updates=0, stride=100)
    truth = {"updates": 0, "answer": "ground_truth"}
    assert identity(**truth) == identity(**truth, stride=100, decoder="linear")
    assert identity(updates=2) != identity(updates=2, lr=1.0)
    for wrong, told in (
        ({"resize": [512, 2048]}, "put the limit of the longer side first"),
        ({"ratio": [2.0, 0.5]}, "put the smaller first"),
        (
            {"decoder": "linear", "auxiliary": 0.4},
            "only the decoder 'upernet' has an auxiliary head",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            identity(updates=2, **wrong)
