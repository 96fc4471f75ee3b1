"""MaskCut (Wang et al. 2023, CutLER, arXiv 2301.11320): objects by repeated normalised cuts.

A normalised cut (Shi & Malik 2000) of the affinities between patches splits them in two; one part
is an object. Its patches are painted out, and the rest is cut again.

N patches on a grid (h, w), row by row; A (N, N) affinities, D the diagonal of their row sums.
"""

from typing import Literal

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.sparse.linalg
from PIL import Image

from crate.errors import UsageError, unknown
from crate.tasks.objects import crf as dense_crf

Solver = Literal["iterative", "dense"]
UNLIKE = 1e-5  # affinity of two patches that are not similar; that of similar ones is 1
SAME_OBJECT = 0.5  # a mask whose IoU with the one before exceeds this is the same object
SMALLEST = 0.01  # share of the patches that a mask must exceed, from the second mask on
CHANGED_BY_CRF = 0.5  # a mask whose IoU with its refined form is below this is dropped
# Entries of the eigenvector that differ by less than this, relative to the largest, count as equal:
# those of symmetric patches differ by rounding only.
TIE = 1e-7
ERROR = 1e-8  # largest relative error of the iterative solver
FEW = 64  # with at most so many patches, the dense solver is used
LANCZOS, RESTARTS = 16, 60  # Lanczos vectors; most restarts
THIRD = (1e-3, 1e-7)  # relative accuracy of the third eigenvalue: the first, else the second


def squared(image: Image.Image, image_size: int) -> Image.Image:
    """The network's input: the image scaled to a square of `image_size` pixels a side."""
    return image.resize((image_size, image_size), Image.Resampling.LANCZOS)


def find_objects(
    image: Image.Image,
    features: np.ndarray,
    grid: tuple[int, int],
    *,
    image_size: int,
    tau: float,
    masks: int,
    crf: bool,
    solver: Solver = "iterative",
) -> list[np.ndarray]:
    """Masks of an image's objects at its own size, in the order of the cuts, without empty ones.

    With `crf`, each mask is refined on the square image (`crate.tasks.objects.crf`), its holes are
    filled, and it is dropped if that changed it much (`CHANGED_BY_CRF`). As published, masks are
    enlarged by bicubic interpolation and thresholded at half of their maximum.

    Args:
        image: RGB.
        features: (N, d) of the patches of `squared(image, image_size)`, row by row.
        grid: rows and columns of patches. For the others see `cut_masks`.

    Returns:
        bool (H, W) each.

    Raises:
        UsageError: features that do not fill the grid, an unknown solver, or `crf` without its
            package.
    """
    pixels = np.asarray(squared(image, image_size)) if crf else None
    enlarged = []
    for patches in cut_masks(features, grid, tau=tau, masks=masks, solver=solver):
        rows, columns = (np.arange(image_size) * n // image_size for n in grid)
        mask = patches[np.ix_(rows, columns)]  # (image_size, image_size), nearest neighbour
        if crf:
            refined = scipy.ndimage.binary_fill_holes(dense_crf.refine(pixels, mask))
            if _iou(mask, refined) < CHANGED_BY_CRF:
                continue
            mask = refined
        grey = np.asarray(Image.fromarray(np.uint8(255) * mask).resize(image.size))  # bicubic
        mask = grey > grey.max() / 2
        if mask.any():
            enlarged.append(mask)
    return enlarged


def cut_masks(
    features: np.ndarray,
    grid: tuple[int, int],
    *,
    tau: float,
    masks: int,
    solver: Solver = "iterative",
) -> list[np.ndarray]:
    """Disjoint masks of at most `masks` objects on the grid of patches, without empty ones.

    Each round cuts the patches in two (`_second_eigenvector`, `_object`) and paints the mask out:
    from then on its patches are similar to no patch, not even themselves. From the second round on,
    a mask that is too small (`SMALLEST`) or overlaps that of the round before too much
    (`SAME_OBJECT`) is dropped. Patches of earlier masks are removed from a mask.

    The search ends when all pairs of patches have the same affinity, for which no cut is defined:
    a blank image, no similar patches, or all painted out. There are no masks for fewer than two
    patches or for features that are not finite.

    Args:
        features: (N, d), N = h w, row by row; a patch of zeros is similar to none.
        grid: (h, w).
        tau: patches are similar if their cosine is above it.
        solver: "dense" solves the eigenproblem as published; "iterative" gives the same masks
            faster (benchmarks/maskcut.py).

    Returns:
        bool (h, w) each.

    Raises:
        UsageError: features that do not fill the grid, or an unknown solver.
    """
    if solver not in ("iterative", "dense"):
        raise unknown("solver", solver, ("iterative", "dense"))
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or len(features) != grid[0] * grid[1]:
        raise UsageError(f"features {features.shape} do not fill a grid of {grid[0]} x {grid[1]}")
    if len(features) < 2 or not np.isfinite(features).all():
        return []
    affinity = _affinity(features, tau)
    painted = np.zeros(grid, bool)
    before, disjoint = None, []
    for _ in range(masks):
        if before is None or before.any():  # else nothing was painted, and the cut stays
            vector = _second_eigenvector(affinity, solver)
            if vector is None:
                break
            cut = _object(vector, grid)
        mask = cut
        if before is not None and (
            mask.mean() <= SMALLEST or _iou(mask, before) > SAME_OBJECT  # IoU with no mask: 0
        ):
            mask = np.zeros(grid, bool)
        if (mask & ~painted).any():
            disjoint.append(mask & ~painted)
        painted |= mask
        gone = painted.ravel()
        # painting sets features to 0, and so the cosines
        affinity[gone] = affinity[:, gone] = 1.0 if tau < 0 else UNLIKE
        before = mask
    return disjoint


def _affinity(features: np.ndarray, tau: float) -> np.ndarray:
    """A (N, N) float64, symmetric: 1 where the cosine of two patches is above tau, else UNLIKE."""
    # divide by the largest entry first: squares of tiny or huge features leave float32's range
    scale = np.abs(features).max(axis=1, keepdims=True)
    features = features / np.where(scale > 0, scale, 1)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.where(norm > 0, norm, 1)
    return np.where(features @ features.T > tau, 1.0, UNLIKE)


def _second_eigenvector(affinity: np.ndarray, solver: Solver) -> np.ndarray | None:
    """Eigenvector v (N,) of (D − A) v = λ D v for the second smallest λ; None if not defined.

    LAPACK's sign is arbitrary, and the published corner rule depends on it; here the entry of
    largest magnitude (the first of equals) is positive.
    """
    degree = affinity.sum(axis=1)
    pairs = len(degree) * (len(degree) - 1)
    off_diagonal = degree.sum() - np.trace(affinity)
    if min(off_diagonal - UNLIKE * pairs, pairs - off_diagonal) < 0.5:
        return None
    vector = None
    if solver == "iterative" and len(degree) > FEW:
        vector = _iterative(affinity, degree)
    if vector is None:
        vector = _dense(affinity, degree)
    magnitude = np.abs(vector)
    return vector * np.sign(vector[_first_largest(magnitude, magnitude.max())])


def _dense(affinity: np.ndarray, degree: np.ndarray) -> np.ndarray:
    """As published: LAPACK on the generalised problem, in float64."""
    laplacian = np.negative(affinity)
    laplacian[np.diag_indices_from(laplacian)] += degree
    # the transposes are in LAPACK's memory order, which saves copies
    _, vectors = scipy.linalg.eigh(
        laplacian.T,
        np.diag(degree).T,
        subset_by_index=[1, 1],
        overwrite_a=True,
        overwrite_b=True,
        check_finite=False,
    )
    return vectors[:, 0]


def _iterative(affinity: np.ndarray, degree: np.ndarray) -> np.ndarray | None:
    """Lanczos (ARPACK) on M = D^-1/2 A D^-1/2, whose eigenvalues are μ = 1 − λ.

    The largest is known, μ = 1 with eigenvector D^1/2 1, and is deflated. One run computes the
    second eigenvector; another, with that deflated too, the third eigenvalue, which a single run
    would miss if both were equal. The residual over the gap of the two bounds the vector's error.

    Returns:
        None if that bound is above `ERROR` or Lanczos does not converge: λ2 and λ3 are then so
        close that rounding would choose the vector, and the dense solver is used.
    """
    scale = 1 / np.sqrt(degree)
    known = [np.sqrt(degree / degree.sum())]

    def product(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        # symv reads one triangle: half the memory traffic, which dominates the time
        y = scale * scipy.linalg.blas.dsymv(1.0, affinity.T, scale * x)
        for vector in known:
            y -= 2 * (vector @ x) * vector  # μ ≤ 1 becomes μ − 2 ≤ −1, the smallest
        return y

    operator = scipy.sparse.linalg.LinearOperator(affinity.shape, matvec=product, dtype=np.float64)
    random = np.random.default_rng(0)

    def largest(tol: float) -> tuple[float, np.ndarray]:
        start = random.standard_normal(len(degree))
        options = {"which": "LA", "ncv": LANCZOS, "maxiter": RESTARTS, "v0": start, "tol": tol}
        values, vectors = scipy.sparse.linalg.eigsh(operator, k=1, **options)
        return values[0], vectors[:, 0]

    try:
        second, y = largest(1e-14)
        # One more power step in terms of v smooths errors that D^-1/2 enlarged; A v = μ D v.
        v = scale * y
        stepped = scipy.linalg.blas.dsymv(1.0, affinity.T, v) / degree
        residual = np.abs(stepped - second * v).max()
        accuracy = ERROR * np.abs(stepped).max()
        known.append(y)
        for tol in THIRD:
            third, _ = largest(tol)
            if residual < accuracy * (second - third - tol * abs(third)):
                return stepped
    except scipy.sparse.linalg.ArpackError:
        pass
    return None


def _first_largest(values: np.ndarray, scale: float) -> int:
    """Index of the largest value; the first of those within `TIE`."""
    return int(np.argmax(values >= values.max() - TIE * scale))


def _object(vector: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The part of the cut that is the object: bool (h, w), connected.

    The foreground is the entries above the mean; if it contains three or four corners of the grid,
    the other side is taken. (The published rule also swaps sides if the entry of largest magnitude
    is outside; as that entry is positive here, it never is.) The object is the 4-connected
    component of the foreground's most extreme entry.
    """
    scale = np.abs(vector).max()
    foreground = (vector > vector.mean() + TIE * scale).reshape(grid)
    if foreground[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3:
        foreground, vector = ~foreground, -vector
    components, _ = scipy.ndimage.label(foreground)
    return components == components.flat[_first_largest(vector, scale)]


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 0.0
