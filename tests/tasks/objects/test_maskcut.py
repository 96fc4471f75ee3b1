"""MaskCut against a literal reference, worked examples, and its two solvers against each other."""

import numpy as np
import pytest
import scipy.linalg
from PIL import Image

from crate.data.embedded import photos
from crate.errors import UsageError
from crate.tasks.objects import crf, maskcut
from crate.tasks.objects.maskcut import cut_masks, find_objects, squared

SOLVERS = ("iterative", "dense")


@pytest.fixture
def solvers_of_any_size(monkeypatch):
    """Lanczos on small grids too, and a count of the cuts it left to the dense solver."""
    monkeypatch.setattr(maskcut, "FEW", 30)
    solve, left = maskcut._iterative, []

    def counted(affinity, degree):
        vector = solve(affinity, degree)
        left.append(vector is None)
        return vector

    monkeypatch.setattr(maskcut, "_iterative", counted)
    return left


def literal(features, grid, tau, rounds):
    """The published algorithm entry by entry; what differs by rounding only is equal."""
    h, w = grid
    n = h * w
    features = np.array(features, np.float64)
    masks, shown, before = [], [], None
    covered = [False] * n
    for turn in range(rounds):
        unit = np.zeros_like(features)
        for i in range(n):
            if not covered[i] and features[i].any():
                unit[i] = features[i] / np.sqrt((features[i] ** 2).sum())
        a = np.empty((n, n))
        for i in range(n):
            for j in range(n):
                a[i, j] = 1.0 if unit[i] @ unit[j] > tau else 1e-5
        d = np.diag(a.sum(1))
        v = scipy.linalg.eigh(d - a, d, subset_by_index=[1, 1])[1][:, 0]
        tie = 1e-9 * np.abs(v).max()
        seed = next(i for i in range(n) if abs(v[i]) > np.abs(v).max() - tie)
        v = v * np.sign(v[seed])
        side = v > v.mean() + tie
        if sum(side[[0, w - 1, n - w, n - 1]]) >= 3 or not side[seed]:
            side, v = ~side, -v
        seed = next(i for i in range(n) if v[i] > v.max() - tie)
        component, todo = {seed}, [seed]
        while todo:
            row, column = divmod(todo.pop(), w)
            for r, c in (
                (row - 1, column),
                (row + 1, column),
                (row, column - 1),
                (row, column + 1),
            ):
                if 0 <= r < h and 0 <= c < w and side[r * w + c] and r * w + c not in component:
                    component.add(r * w + c)
                    todo.append(r * w + c)
        if turn > 0 and (
            len(component & before) > 0.5 * len(component | before) or len(component) <= 0.01 * n
        ):
            component = set()
        shown = [i in component and not covered[i] for i in range(n)]
        if any(shown):
            masks.append(np.array(shown).reshape(grid))
        covered = [c or i in component for i, c in enumerate(covered)]
        before = component
    return masks


def test_affinities_by_hand():
    features = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])  # cosines 0, 0.707, 1
    alike = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    affinity = maskcut._affinity(features.astype(np.float32), 0.7)
    np.testing.assert_array_equal(affinity, np.where(alike, 1, 1e-5))


def clusters(random, grid, noise, width=16):
    """Features of patches in up to six regions, each about its own direction."""
    rows, columns = np.mgrid[: grid[0], : grid[1]]
    centres = random.uniform(0, 1, (random.integers(2, 7), 2)) * grid
    spread = random.uniform(0.5, 2, len(centres))
    away = ((np.stack([rows, columns], -1)[:, :, None] - centres) ** 2).sum(-1) / spread
    region = away.argmin(-1).ravel()
    directions = random.standard_normal((len(centres), width)) + random.uniform(0, 1)
    return directions[region] + noise * random.standard_normal((len(region), width))


def same(first, second):
    return len(first) == len(second) and all(
        maskcut._iou(a, b) >= 0.99 for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("tau", [-0.1, 0.15, 0.3])
def test_both_solvers_are_the_published_algorithm(tau, solvers_of_any_size):
    random = np.random.default_rng(0)
    found = 0
    for case in range(12):
        grid = (9, 12) if case % 2 else (8, 8)
        features = clusters(random, grid, noise=0.8 + 0.4 * (case % 3))
        wanted = literal(features, grid, tau, 3)
        for solver in SOLVERS:
            masks = cut_masks(features, grid, tau=tau, masks=3, solver=solver)
            assert len(masks) == len(wanted)
            for mask, expected in zip(masks, wanted, strict=True):
                np.testing.assert_array_equal(mask, expected)
        found += len(wanted)
    assert found > 12  # second objects too


def test_the_iterative_solver_finds_the_masks_of_the_dense_one(solvers_of_any_size):
    """Regions with little, some and much noise; equal regions and lone patches are among them."""
    random = np.random.default_rng(1)
    for case in range(36):
        side = int(random.integers(14, 24))
        features = clusters(random, (side, side), noise=(0.0, 0.1, 0.5, 1.0, 1.5, 3.0)[case % 6])
        if case % 4 == 0:  # patches like no other: many eigenvalues are one
            lone = random.choice(len(features), 9, replace=False)
            features[lone] = 9 * random.standard_normal((9, features.shape[1]))
        for tau in (0.15, 0.3):
            pair = [
                cut_masks(features, (side, side), tau=tau, masks=3, solver=solver)
                for solver in SOLVERS
            ]
            assert same(*pair), (case, tau)
    assert np.mean(solvers_of_any_size) < 0.2  # it is Lanczos that was compared


def test_the_solvers_agree_on_photographs(solvers_of_any_size):
    import torch

    from crate.models.build import create_model
    from crate.models.features import patch_features

    torch.manual_seed(0)
    size = {"dim": 48, "depth": 2, "heads": 4, "image_size": 224, "num_classes": 1}
    model = create_model("crate_alpha_base_patch8", **size).eval()
    for name, pixels in photos().items():
        picture = squared(Image.fromarray(pixels), 224)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            features = patch_features(model, image, 1, "key")[0].numpy()
        for tau in (0.15, 0.3):
            pair = [
                cut_masks(features, (28, 28), tau=tau, masks=3, solver=solver) for solver in SOLVERS
            ]
            assert pair[0], (name, tau)
            assert same(*pair), (name, tau)
    assert not any(solvers_of_any_size)


def painting(*rows):
    """A grid of letters as features: patches of one letter are alike, "." is the background."""
    letters = np.array([list(row) for row in rows])
    directions = np.eye(6)[[".ABCDE".index(letter) for letter in letters.ravel()]]
    return letters, directions


@pytest.mark.parametrize("solver", SOLVERS)
def test_worked_example_the_larger_object_is_found_first(solver, solvers_of_any_size):
    # Groups of s alike patches get v = r / (r − λ) with r = 1e-5 N / s: on A it is the largest.
    letters, features = painting(
        "........",
        ".AAA....",
        ".AAA.BB.",
        ".AAA.BB.",
        "........",
        "........",
    )
    # round 3 cuts off what is painted, A first: it is A again, of which nothing is left
    masks = cut_masks(features, letters.shape, tau=0.3, masks=3, solver=solver)
    assert len(masks) == 2
    np.testing.assert_array_equal(masks[0], letters == "A")
    np.testing.assert_array_equal(masks[1], letters == "B")
    (only,) = cut_masks(features, letters.shape, tau=0.3, masks=1, solver=solver)
    np.testing.assert_array_equal(only, letters == "A")


@pytest.mark.parametrize("solver", SOLVERS)
def test_worked_example_of_the_corner_rule(solver, solvers_of_any_size):
    # v is largest on the smaller side: 28 patches of the frame, which holds four corners
    letters, features = painting(
        "........", *[".AAAAAA."] * 6, "........"
    )  # fmt: skip
    (mask,) = cut_masks(features, letters.shape, tau=0.3, masks=1, solver=solver)
    np.testing.assert_array_equal(mask, letters == "A")
    # with two corners it is kept
    letters, features = painting(*["AAAAAAAA"] * 3, *["........"] * 5)
    (mask,) = cut_masks(features, letters.shape, tau=0.3, masks=1, solver=solver)
    np.testing.assert_array_equal(mask, letters == "A")


def test_equal_eigenvalues_are_left_to_the_dense_solver(solvers_of_any_size):
    _, features = painting(*["AAAABBBB"] * 4, *["CCCCDDDD"] * 4)
    pair = [cut_masks(features, (8, 8), tau=0.3, masks=3, solver=solver) for solver in SOLVERS]
    assert pair[0]
    assert same(*pair)
    assert solvers_of_any_size[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "features",
    [
        np.zeros((100, 8)),
        np.ones((100, 8)),
        np.eye(100),
        np.full((100, 8), np.nan),
        np.where(np.arange(800).reshape(100, 8) == 5, np.inf, 1.0),
    ],
    ids=["zeros", "alike", "unlike", "nan", "infinite"],
)
def test_without_a_defined_cut_there_are_no_masks(features, solver):
    assert cut_masks(features, (10, 10), tau=0.3, masks=3, solver=solver) == []


def test_sizes_that_make_no_cut():
    assert cut_masks(np.ones((1, 4)), (1, 1), tau=0.3, masks=3) == []
    assert cut_masks(np.zeros((0, 4)), (0, 0), tau=0.3, masks=3) == []
    assert len(cut_masks(np.eye(3)[[0, 0, 1]], (1, 3), tau=0.3, masks=1)) == 1
    with pytest.raises(UsageError, match=r"features \(9, 4\) do not fill a grid of 3 x 4"):
        cut_masks(np.ones((9, 4)), (3, 4), tau=0.3, masks=3)
    with pytest.raises(UsageError, match="unknown solver 'lanczos'"):
        cut_masks(np.ones((9, 4)), (3, 3), tau=0.3, masks=3, solver="lanczos")


def test_the_scale_of_features_does_not_matter():
    random = np.random.default_rng(0)
    features = clusters(random, (12, 12), noise=1.0).astype(np.float32)
    size = (2.0 ** random.integers(-100, 100, 144)).astype(np.float32)[:, None]
    options = {"tau": 0.15, "masks": 3}
    pair = cut_masks(features, (12, 12), **options), cut_masks(features * size, (12, 12), **options)
    assert pair[0]
    assert same(*pair)


def test_masks_come_at_the_size_of_the_picture():
    letters, features = painting(
        "........",
        ".AAA....",
        ".AAA.BB.",
        ".AAA.BB.",
        "........",
        "........",
        "........",
        "........",
    )
    image = Image.new("RGB", (100, 60), "navy")
    options = {"image_size": 32, "tau": 0.3, "masks": 3, "crf": False, "solver": "dense"}
    masks = find_objects(image, features, (8, 8), **options)
    assert len(masks) == 2
    for letter, mask in zip("AB", masks, strict=True):
        enlarged = np.repeat(np.repeat(letters == letter, 4, 0), 4, 1)  # nearest neighbour
        grey = Image.fromarray(np.uint8(enlarged * 255))
        grey = grey.resize((100, 60), Image.Resampling.BICUBIC)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, np.array(grey) > 127.5)
    # to a picture of one pixel nothing but the mean arrives: no exception
    assert len(find_objects(image.resize((1, 1)), features, (8, 8), **options)) <= 2


def test_a_refined_mask_is_filled_and_dropped_where_it_changed_much(monkeypatch):
    letters, features = painting(
        "........",
        ".AAAA...",
        ".AAAA...",
        ".AAAA...",
        ".AAAA.BB",
        "......BB",
        "........",
        "........",
    )
    image = squared(Image.fromarray(photos()["rocket"]), 32)
    seen = []

    def refine(pixels, mask):
        np.testing.assert_array_equal(pixels, np.array(image))
        seen.append(mask)
        if len(seen) == 2:  # B: all but a third is lost
            return mask & (np.cumsum(mask).reshape(mask.shape) <= mask.sum() / 3)
        holes = mask.copy()
        holes[10, 10] = False
        return holes

    monkeypatch.setattr(maskcut.dense_crf, "refine", refine)
    options = {"image_size": 32, "tau": 0.3, "masks": 2, "crf": True, "solver": "dense"}
    (mask,) = find_objects(image, features, (8, 8), **options)
    np.testing.assert_array_equal(mask, np.repeat(np.repeat(letters == "A", 4, 0), 4, 1))
    np.testing.assert_array_equal(seen[1], np.repeat(np.repeat(letters == "B", 4, 0), 4, 1))


def test_the_crf_draws_a_mask_to_the_edges_of_the_picture():
    pytest.importorskip("pydensecrf")
    from pydensecrf.densecrf import DenseCRF2D
    from pydensecrf.utils import unary_from_softmax

    pixels = np.full((40, 60, 3), 40, np.uint8)
    pixels[10:30, 20:45] = (220, 180, 30)
    edge = pixels[..., 0] > 100
    mask = np.zeros((40, 60), bool)
    mask[8:28, 18:43] = True  # two pixels off
    refined = crf.refine(pixels, mask)
    assert maskcut._iou(refined, edge) > max(0.95, maskcut._iou(mask, edge))
    # the package's own way to unary terms
    logits = np.stack([1.0 - mask, mask])
    field = DenseCRF2D(60, 40, 2)
    field.setUnaryEnergy(unary_from_softmax(np.exp(logits) / np.exp(logits).sum(0)))
    field.addPairwiseGaussian(sxy=3, compat=7)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=pixels, compat=10)
    published = np.argmax(np.array(field.inference(10)).reshape(2, 40, 60), axis=0)
    np.testing.assert_array_equal(refined, published == 1)


def test_without_the_package_the_crf_says_what_to_install(monkeypatch):
    monkeypatch.setattr(crf, "available", lambda: False)
    with pytest.raises(UsageError, match="pydensecrf; 'make crf' installs it"):
        crf.refine(np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool))
