"""MaskCut (Wang et al. 2023, CutLER, arXiv 2301.11320): objects by repeated normalised cuts.

Patches that are alike hold together; the cut that severs least (Shi & Malik 2000) splits them in
two, and the part that stands out is an object. It is painted out, and the rest is cut again.

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
UNLIKE = 1e-5  # affinity of two patches that are not alike; of those that are: 1
SAME_OBJECT = 0.5  # a mask that overlaps the one before by more (IoU) is that object again
SMALLEST = 0.01  # share of the patches a mask must exceed, from the second on
CHANGED_BY_CRF = 0.5  # a mask that refining leaves with less IoU than this is dropped
# Entries of the eigenvector closer than this, in parts of its largest, count as equal: symmetric
# patches differ by rounding only, and that must decide nothing.
TIE = 1e-7
ERROR = 1e-8  # the most, in the same parts, that the iterative solver may be wrong by
FEW = 64  # patches up to which the dense solver is used anyway
LANCZOS, RESTARTS = 16, 60  # vectors that Lanczos keeps; beyond so many restarts it gives up
THIRD = (1e-3, 1e-7)  # relative accuracy of the third eigenvalue, the finer where it has to be


def squared(image: Image.Image, image_size: int) -> Image.Image:
    """The picture as the network sees it: scaled to a square of `image_size` pixels a side."""
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
    """Masks of a picture's objects at its own size, in the order found, none of them empty.

    With `crf` each mask is refined on the square picture (`crate.tasks.objects.crf`), its holes are
    filled, and it is dropped where that changed it much. Enlarged masks are those pixels that are
    above half of their maximum after bicubic interpolation, as published.

    Args:
        image: RGB.
        features: (N, d) of the patches of `squared(image, image_size)`, row by row.
        grid: rows and columns of patches; the rest as for `cut_masks`.

    Returns:
        bool (H, W) each.

    Raises:
        UsageError: features that do not fill the grid, an unknown solver, or no package for `crf`.
    """
    pixels = np.asarray(squared(image, image_size)) if crf else None
    found = []
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
            found.append(mask)
    return found


def cut_masks(
    features: np.ndarray,
    grid: tuple[int, int],
    *,
    tau: float,
    masks: int,
    solver: Solver = "iterative",
) -> list[np.ndarray]:
    """At most `masks` objects on the grid of patches, in the order found, none of them empty.

    Each round cuts the patches in two (`_second_eigenvector`, `_object`) and paints the mask out:
    its patches are unlike all others and themselves from then on. From the second round on, a mask
    that is too small or overlaps the round before's too much counts as nothing found. What earlier
    masks cover is taken off a mask, so they are disjoint.

    Where any two patches are as alike as any other two, a cut is not defined and the search ends:
    patches that are all alike (a blank picture), all unlike, or all painted out. There is none
    either for fewer than two patches, and for features that are not finite.

    Args:
        features: (N, d), N = h w, row by row; a patch of zeros is like no other.
        grid: (h, w).
        tau: patches are alike where their cosine is above it.
        solver: "dense" solves the eigenproblem as published; "iterative" finds the same masks
            sooner (benchmarks/maskcut.py).

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
    before, found = None, []
    for _ in range(masks):
        if before is None or before.any():  # else nothing was painted: the same cut again
            vector = _second_eigenvector(affinity, solver)
            if vector is None:
                break
            cut = _object(vector, grid)
        mask = cut
        if before is not None and (
            mask.mean() <= SMALLEST or _iou(mask, before) > SAME_OBJECT  # of nothing found: 0
        ):
            mask = np.zeros(grid, bool)
        if (mask & ~painted).any():
            found.append(mask & ~painted)
        painted |= mask
        gone = painted.ravel()
        # painting sets features to 0, and so the cosines
        affinity[gone] = affinity[:, gone] = 1.0 if tau < 0 else UNLIKE
        before = mask
    return found


def _affinity(features: np.ndarray, tau: float) -> np.ndarray:
    """A (N, N) float64, symmetric: 1 where the cosine of two patches is above tau, else UNLIKE."""
    # the largest entry first: the square of a tiny or a huge feature is no float32
    scale = np.abs(features).max(axis=1, keepdims=True)
    features = features / np.where(scale > 0, scale, 1)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    features = features / np.where(norm > 0, norm, 1)
    return np.where(features @ features.T > tau, 1.0, UNLIKE)


def _second_eigenvector(affinity: np.ndarray, solver: Solver) -> np.ndarray | None:
    """Eigenvector v (N,) of (D − A) v = λ D v for the second smallest λ; None: not defined.

    LAPACK's sign is arbitrary and, by the corner rule, what is published depends on it; here the
    entry of largest magnitude is positive (the first of equals).
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
    # transposed, the symmetric matrices are in LAPACK's order, and nothing is copied
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

    The largest is known, μ = 1 with D^1/2 1, and is shifted away. Two runs: one for the second
    eigenvector, one beside it for the third eigenvalue, which a single run would miss where both
    are equal. The residual over the distance of the two bounds the vector's error.

    Returns:
        None where that bound is above `ERROR` or Lanczos does not converge: λ2 and λ3 then are so
        close that it is rounding that chooses the vector, and the dense solver has to.
    """
    scale = 1 / np.sqrt(degree)
    known = [np.sqrt(degree / degree.sum())]

    def product(x: np.ndarray) -> np.ndarray:
        x = x.ravel()
        # symv reads one triangle: half the memory, which is what takes the time
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
        # One step more in the terms of v evens out what D^-1/2 enlarged; A v = μ D v.
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
    """Index of the largest value, the first of those that differ by rounding only."""
    return int(np.argmax(values >= values.max() - TIE * scale))


def _object(vector: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The part of the cut that is the object: bool (h, w), connected.

    The foreground is what is above the mean; with three corners of the grid or all four in it, it
    is the background, and the other side is taken. (The published rule also turns it where the
    entry of largest magnitude is outside; with that entry positive it never is.) The object is the
    connected component, over sides of patches, of the foreground's most extreme entry.
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
