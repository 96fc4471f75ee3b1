"""Sparse rate reduction, the objective that CRATE's layers optimise, and its terms by layer.

    R(Z)           = ½ logdet(I + d/(N ε²) Zᵀ Z)                                               (7)
    R^c(Z | U_[K]) = Σ_k R(U_kᵀ Z) = ½ Σ_k logdet(I + p/(N ε²) (U_kᵀ Z)ᵀ (U_kᵀ Z))             (8)
    objective      = R(Z) − R^c(Z | U_[K]) − λ ‖Z‖₀, to be maximised                           (1)

Numbers are those of the equations in CRATE (arXiv 2306.01129). Its layer ℓ (18) compresses,
Z^{ℓ+1/2} = Z^ℓ + MSSA(Z^ℓ | U_[K]) (12), a step that lowers R^c (10); then it sparsifies Z^{ℓ+1/2}
to Z^{ℓ+1} (17). Figures 3 to 5 show R^c(Z^{ℓ+1/2} | U_[K]) and ‖Z^{ℓ+1}‖₀/(d N), measured for each
of 1,000 pictures and averaged (section 3.1).

B pictures, N tokens (all: the class token too), d width, K heads, p = d/K. A token is a row here,
a column in the papers. Rates are in nats, of one picture, and computed in float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crate.errors import RunError, UsageError
from crate.layers.attention import MSSA
from crate.models.vision import VisionTransformer

# The paper does not state the ε of its figures. The code beside it (Ma-Lab-Berkeley/CRATE,
# vis_utils/coding_rate.py) divides by "eps = 0.01" in the place of ε².
EPSILON = 0.1


def coding_rate(z: Tensor, *, epsilon: float = EPSILON, normalised: bool = False) -> Tensor:
    """R(Z) of tokens (..., N, d), equation (7): (...) float64, at least 0.

    Computed from the eigenvalues of the smaller of Z Zᵀ and Zᵀ Z, which share all that are not
    zero. Zero eigenvalues come out as rounding errors of either sign, relative to the largest, and
    d/(N ε²) may enlarge them. Values within rounding of zero (the bound of numpy's `matrix_rank`)
    therefore count as zero: singular values of Z below about 1e-7 of the largest, which is
    float32's precision.

    z: finite and within float32's range, so that no square overflows. normalised: first scale each
    token to length 1 (zero stays zero), as the official helper does.
    Raises `UsageError` unless epsilon is positive.
    """
    if not epsilon > 0:
        raise UsageError(f"epsilon must be positive, got {epsilon}")
    z = z.double()
    if normalised:
        z = torch.nn.functional.normalize(z, dim=-1, eps=1e-300)
    n, d = z.shape[-2:]
    gram = z.mT @ z if d <= n else z @ z.mT
    eigenvalues = torch.linalg.eigvalsh(gram)  # ascending
    zero = eigenvalues <= max(n, d) * torch.finfo(z.dtype).eps * eigenvalues[..., -1:]
    eigenvalues = eigenvalues.masked_fill(zero, 0)
    return 0.5 * torch.log1p(eigenvalues * (d / (n * epsilon**2))).sum(-1)


def compression(
    z: Tensor, subspaces: Tensor, *, epsilon: float = EPSILON, normalised: bool = False
) -> Tensor:
    """R^c(Z | U_[K]) of tokens (..., N, d) and subspaces (K, d, p), equation (8): (...) float64.

    normalised: scale each projection U_kᵀ z to length 1, as the official helper does.
    Raises `UsageError` unless epsilon is positive.
    """
    projections = z.double().unsqueeze(-3) @ subspaces.double()  # (..., K, N, p)
    return coding_rate(projections, epsilon=epsilon, normalised=normalised).sum(-1)


def nonzeros(z: Tensor) -> Tensor:
    """‖Z‖₀ of tokens (..., N, d): the number of entries that are not zero, (...) float64."""
    return (z != 0).sum((-2, -1)).double()


def sparse_rate_reduction(
    z: Tensor, subspaces: Tensor, *, weight: float, epsilon: float = EPSILON
) -> Tensor:
    """R(Z) − R^c(Z | U_[K]) − λ ‖Z‖₀ of tokens (..., N, d), equation (1): (...) float64.

    `weight` is λ. The gradient is that of the first two terms: ‖Z‖₀ is piecewise constant.
    """
    rates = coding_rate(z, epsilon=epsilon) - compression(z, subspaces, epsilon=epsilon)
    return rates - weight * nonzeros(z)


def subspaces_of(attention: nn.Module) -> Tensor:
    """U_[K] of an attention layer, (K, d, p): head k projects a token z to U_kᵀ z.

    Learned columns of U_k need not be orthonormal. MHSA has three projections a head and no
    subspace in the paper's sense; its key projection is taken, without bias.
    """
    if isinstance(attention, MSSA):
        weight = attention.subspaces.weight  # (K p, d)
    else:
        weight = attention.qkv.weight.chunk(3)[1]  # query, key, value
    return weight.unflatten(0, (attention.heads, -1)).mT  # (K, d, p)


def layer_terms(
    model: VisionTransformer, images: Tensor, *, weight: float, epsilon: float = EPSILON
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The terms of the objective by layer, for images (B, 3, H, H).

    Yields (terms, record) of each layer ℓ; `record` is that of `Block`: attention, codes, Z^{ℓ+1/2}
    and Z^{ℓ+1}. Terms, with U_[K] of the layer's attention, are (B,) float64:

        compression  R^c(Z^{ℓ+1/2} | U_[K])
        official     compression as the official helper measures it: of attention's input
                     LayerNorm(Z^ℓ), each projection of length 1, ε² = 0.01 whatever `epsilon` is
        rate         R(Z^{ℓ+1})
        sparsity     ‖Z^{ℓ+1}‖₀ / (N d), the share of entries that are not zero
        codes        the same for the sparse codes, if the feed-forward has any: ISTA's are Z^{ℓ+1};
                     CRATE-alpha decodes them and adds a residual, so that Z^{ℓ+1} has no zeros
        objective    sparse rate reduction at Z^{ℓ+1}, with λ = `weight`

    and of each token, (B, N): norms, ‖z‖₂ of Z^{ℓ+1}; nonzero, the share of entries that are not
    zero, of the codes if there are any, else of Z^{ℓ+1}.

    Raises `RunError` if tokens are not finite.
    """
    x = model.embed(images)
    for block in model.blocks:
        record: dict[str, Tensor] = {}
        before, x = x, block(x, record)
        if not x.isfinite().all():  # LAPACK's error would not say so
            raise RunError("the network's tokens are not finite")
        subspaces = subspaces_of(block.attention)
        z = x.double()
        rate = coding_rate(z, epsilon=epsilon)
        after = compression(z, subspaces, epsilon=epsilon)
        terms = {
            "compression": compression(record["attention_output"], subspaces, epsilon=epsilon),
            "official": compression(
                block.norm1(before), subspaces, epsilon=EPSILON, normalised=True
            ),
            "rate": rate,
            "sparsity": nonzeros(x) / x[0].numel(),
            "objective": rate - after - weight * nonzeros(x),
        }
        codes = record.get("codes")
        if codes is not None:
            terms["codes"] = nonzeros(codes) / codes[0].numel()
        sparse = x if codes is None else codes
        terms["norms"] = z.norm(dim=-1)
        terms["nonzero"] = (sparse != 0).double().mean(-1)
        yield terms, record


def principal_colours(features: Tensor) -> Tensor:
    """Principal components 2 to 4 of patch features (B, N, d) as colours in [0, 1]: (B, N, 3).

    As the official code draws them (vis_utils/pca_visualization.py): components of the patches of
    all images together, so that similar parts have similar colours; each component is scaled by
    image. The sign of a component is chosen so that its entry of largest magnitude is positive.
    Components that do not vary are ½.
    """
    images, patches, _ = features.shape
    features = features.double().flatten(0, 1)
    u, s, _ = torch.linalg.svd(features - features.mean(0), full_matrices=False)
    components = (u * s)[:, 1:4]
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    components = components * torch.where(largest < 0, -1.0, 1.0)
    components = components.unflatten(0, (images, patches))
    lowest = components.amin(1, keepdim=True)
    spread = components.amax(1, keepdim=True) - lowest
    varies = spread > 1e-9 * s[0].clamp(min=1e-300)
    colours = torch.where(varies, (components - lowest) / spread.where(varies, spread + 1), 0.5)
    missing = 3 - colours.shape[-1]
    return torch.nn.functional.pad(colours, (0, missing), value=0.5)
