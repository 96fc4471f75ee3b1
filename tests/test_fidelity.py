"""The table of departures in docs/design/fidelity.md: each effect that can be measured here is.

A row's number is the first in its column "effect"; the function of the same title measures it.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from crate.data.embedded import handwritten_digits, photos
from crate.models.build import create_model
from crate.models.vision import resize_positions
from crate.planning.loader import Experiments
from crate.runtime import Runtime
from crate.training.loop import update
from crate.training.optim import learning_rate, make_optimizer

PAGE = Path(__file__).parents[1] / "docs/design/fidelity.md"
EXPERIMENTS = Experiments()

pytestmark = pytest.mark.usefixtures("one_thread")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference, in % of that of b."""
    return 100 * float((a - b).norm() / b.norm())


def random_positions(side: int) -> torch.Tensor:
    """Positions (1, 1 + side², 64) as smooth over the grid as trained ones: low frequencies."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1, 64, 4, 4, generator=generator)
    grid = F.interpolate(low, (side, side), mode="bicubic", align_corners=True)
    return torch.cat([torch.zeros(1, 1, 64), grid.flatten(2).mT], 1)


def grid_of(positions: torch.Tensor) -> torch.Tensor:
    side = round((positions.shape[1] - 1) ** 0.5)
    return positions[:, 1:].mT.unflatten(2, (side, side))


def first_moment_in_bfloat16() -> float:
    """% of the way that 50 updates of CRATE-alpha-B/16's recipe go: a tiny model of digits."""
    recipe = EXPERIMENTS.recipe("imagenet21k", "paper").model_copy(
        update={"epochs": 10, "warmup_epochs": 2}
    )
    pictures, labels = map(torch.from_numpy, handwritten_digits())
    images = ((pictures / 240 - 0.3) / 0.35).view(-1, 1, 8, 8).expand(-1, 3, -1, -1).double()
    runtime = Runtime(torch.device("cpu"), torch.float32, "test")
    ways = []
    for rounded in (True, False):
        torch.manual_seed(0)
        size = {"image_size": 8, "dim": 12, "depth": 2, "heads": 2, "patch_size": 2}
        model = create_model("crate_alpha_base_patch16", num_classes=10, **size).double()
        start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        optimizer = make_optimizer(model, recipe)
        for index in range(50):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(recipe, index, 5)
            chosen = torch.randint(
                len(labels), (64,), generator=torch.Generator().manual_seed(index)
            )
            batch = images[chosen], labels[chosen].long()
            update(model, optimizer, _cross_entropy, batch, None, recipe, runtime)
            for group in optimizer.state if rounded else []:
                for mean, _, _ in group:
                    mean.copy_(mean.bfloat16())
        ways.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach() - start)
    return relative(*ways)


def _cross_entropy(model: torch.nn.Module, batch: tuple) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def positions_between_grids() -> float:
    """% of the positions, 7 × 7 to 14 × 14."""
    positions = random_positions(7)
    theirs = F.interpolate(grid_of(positions), (14, 14), mode="bilinear", align_corners=True)
    return relative(grid_of(resize_positions(positions, 14)), theirs)


def positions_in_clipas_second_stage() -> float:
    """% of the positions, 6 × 6 to 16 × 16: along the line of tokens, or over the grid."""
    positions = random_positions(6)
    line = F.interpolate(positions.mT, 257, mode="linear", align_corners=False).mT
    return relative(resize_positions(positions, 16), line)


def positions_of_dinos_code() -> float:
    """% of the positions, 28 × 28 to 60 × 60: a factor of 60.1 / 28 instead of 60 / 28."""
    grid = grid_of(random_positions(28))
    factors = {"scale_factor": 60.1 / 28, "mode": "bicubic"}
    theirs = F.interpolate(grid, **factors, recompute_scale_factor=False)
    ours = F.interpolate(grid, (60, 60), mode="bicubic")
    return relative(ours, theirs)


def resizing_in_evaluation() -> float:
    """Mean absolute difference in grey levels, 375 × 500 to 256 × 341."""
    differences = []
    for photo in photos().values():
        image = Image.fromarray(photo).convert("RGB").resize((500, 375), Image.Resampling.LANCZOS)
        ours = np.asarray(image.resize((341, 256), Image.Resampling.BILINEAR), np.float32)
        # averages over areas are box filters of Pillow's, in float to cut off instead of rounding
        channels = [
            np.asarray(
                Image.fromarray(np.asarray(channel, np.float32)).resize(
                    (341, 256), Image.Resampling.BOX
                )
            )
            for channel in image.split()
        ]
        theirs = np.floor(np.stack(channels, -1))
        differences.append(np.abs(ours - theirs).mean())
    return float(np.mean(differences))


def truncated_crops() -> float:
    """Grey levels by which cutting off lies below rounding, on average."""
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 255
    return float((values.round() - values.floor()).mean())


def smoothed_targets() -> float:
    """What the targets of a picture lack to 1, in %: 0.9 + 999 × 0.1 / 1000."""
    return 100 * (1 - (0.9 + 999 * 0.1 / 1000))


def boxes_of_cutmix() -> float:
    """Mean difference of the pasted area, in % of the picture: sides are made even there."""
    generator = np.random.RandomState(0)
    shares = []
    for keep in generator.beta(1, 1, 2000):
        side = int(224 * math.sqrt(1 - keep))
        shares.append((side**2 - (side // 2 * 2) ** 2) / 224**2)
    return 100 * float(np.mean(shares))


def schedule_of_transfers() -> float:
    """The sum of rates there over ours, in % more: by epoch, two epochs late; 200 epochs."""
    recipe = EXPERIMENTS.recipe("cifar10_crate", "paper")
    ours = sum(learning_rate(recipe, index, 196) for index in range(200 * 196))
    epochs = [0, -1, *range(198)]  # the script calls step(epoch - 1) after each epoch
    theirs = sum(0.5 * (1 + math.cos(math.pi * epoch / 200)) for epoch in epochs) * recipe.lr * 196
    return 100 * (theirs / ours - 1)


def text_towers_initial_weights() -> float:
    """Times that the two output projections of each block are larger: depth 12, where it has 24."""
    return math.sqrt(24 / 12)


def padded_vocabulary() -> float:
    """Nats a token by which a uniform prediction is worse: log(50,304 / 50,257)."""
    return math.log(50_304 / 50_257)


MEASURED = {
    "first moment of Adam": first_moment_in_bfloat16,
    "positions between grids": positions_between_grids,
    "positions in CLIPA's second stage": positions_in_clipas_second_stage,
    "positions in DINO's code": positions_of_dinos_code,
    "resizing in evaluation": resizing_in_evaluation,
    "values of crops": truncated_crops,
    "smoothed targets": smoothed_targets,
    "boxes of CutMix": boxes_of_cutmix,
    "schedule of CRATE's transfers": schedule_of_transfers,
    "text tower's initial weights": text_towers_initial_weights,
    "padded vocabulary": padded_vocabulary,
}


def rows() -> dict[str, list[str]]:
    """Title → cells of the page's tables."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells if len(rest) == 3}


def test_each_measured_row_stands_in_the_table():
    assert MEASURED.keys() <= rows().keys()


@pytest.mark.parametrize("title", MEASURED)
def test_an_effect_is_what_the_table_says(title):
    written = re.search(r"\d+(\.\d+)?", rows()[title][2].replace(",", ""))
    assert written, rows()[title]
    assert MEASURED[title]() == pytest.approx(float(written[0]), rel=0.06)


def test_other_rows_say_that_they_are_not_measured_or_where():
    for title, (_, _, effect) in rows().items():
        if title not in MEASURED and title not in ("what", "---"):
            assert re.search(r"not measured|none|\[|\d", effect), title
