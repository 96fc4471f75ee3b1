"""Classifiers on frozen features: logistic regression and weighted nearest neighbours.

Training features (n, d) have labels (n,) int64 of C classes. All computation is in float64, on the
features' device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from crate.errors import RunError, UsageError

VARIANCE_EPS = 1e-6  # as in the BatchNorm before He et al.'s probe (arXiv 2111.06377)
TOLERANCE = 1e-7  # largest entry of the gradient at which the fit has converged
ITERATIONS = 10_000  # of L-BFGS, at most
ROUND = 10  # iterations between two checks of the gradient
CHUNK = 256  # queries compared with all training features at once


class LinearProbe:
    """Multinomial logistic regression on standardised features, fitted to its optimum.

    Minimises the mean cross-entropy in nats + penalty / 2 × the sum of squared weights; biases are
    not penalised. Features are standardised by mean and variance of the training features:
    (x − mean) / √(variance + 1e-6).

    Full-batch L-BFGS with strong Wolfe conditions, started at 0, in coordinates along the principal
    axes scaled by about the inverse root of the curvature. Without this preconditioning it takes
    thousands of iterations, as a network's features are strongly correlated.

    features: (n, d). labels: (n,) int64.

    Attributes:
        weight (C, d), bias (C,): for standardised features.
        gradient: the largest entry of the objective's gradient at the end.
        iterations: of L-BFGS.

    Raises:
        UsageError: the penalty is not positive.
        RunError: features are not finite, or the gradient is above `TOLERANCE` after `ITERATIONS`.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, classes: int, penalty: float):
        if not penalty > 0:
            raise UsageError(f"a penalty must be above 0, got {penalty}")
        features = features.double()
        if not features.isfinite().all():
            raise RunError("the features to fit are not finite")
        variance, self.mean = torch.var_mean(features, dim=0, correction=0)
        self.scale = (variance + VARIANCE_EPS).rsqrt()
        x = self.standardised(features)
        spread, axes = torch.linalg.eigh(x.T @ x / len(x))  # (d,), (d, d) axes in columns
        # the Hessian along an axis is about spread / C + penalty
        to_axes = axes * (spread.clamp(min=0) + classes * penalty).rsqrt()  # (d, d)
        along = x @ to_axes
        coefficients = x.new_zeros(classes, x.shape[1], requires_grad=True)
        self.bias = x.new_zeros(classes, requires_grad=True)

        def objective() -> Tensor:
            coefficients.grad = self.bias.grad = None
            loss = F.cross_entropy(F.linear(along, coefficients, self.bias), labels)
            loss = loss + penalty / 2 * (coefficients @ to_axes.T).square().sum()
            loss.backward()
            return loss

        self.iterations, self.gradient, solver = 0, float("inf"), None
        while self.gradient > TOLERANCE and self.iterations < ITERATIONS:
            if solver is None:
                solver = torch.optim.LBFGS(
                    [coefficients, self.bias],
                    max_iter=ROUND,
                    max_eval=10 * ROUND,
                    tolerance_grad=0,  # checked below, in the features' own coordinates
                    tolerance_change=0,
                    history_size=50,
                    line_search_fn="strong_wolfe",
                )
            before = solver.state[coefficients].get("n_iter", 0)
            solver.step(objective)
            done = solver.state[coefficients]["n_iter"] - before
            self.iterations += max(1, done)
            if done < ROUND:  # the line search failed: restart without the old history
                solver = None
            self.weight = coefficients.detach() @ to_axes.T
            self.gradient = self._gradient(x, labels, penalty)
        self.bias = self.bias.detach()
        if not self.gradient <= TOLERANCE:
            raise RunError(
                f"logistic regression with penalty {penalty:g} did not converge: a gradient of "
                f"{self.gradient:.1e} after {self.iterations:,} iterations, above {TOLERANCE:g}; "
                "leave this penalty out"
            )

    def _gradient(self, x: Tensor, labels: Tensor, penalty: float) -> float:
        """The largest entry of the objective's gradient by weight and bias."""
        with torch.no_grad():
            errors = F.linear(x, self.weight, self.bias).softmax(dim=1)  # (n, C)
            errors[torch.arange(len(x), device=x.device), labels] -= 1
            errors /= len(x)
            by_weight = errors.T @ x + penalty * self.weight
            return max(by_weight.abs().max().item(), errors.sum(dim=0).abs().max().item())

    def standardised(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) * self.scale

    def logits(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, C) float64."""
        return F.linear(self.standardised(features), self.weight, self.bias)


def neighbour_votes(
    queries: Tensor,
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Votes of the nearest training features for each class: queries (Q, d) -> (Q, C) float64.

    Wu et al. 2018 (arXiv 1805.01978), section 3.4: the `neighbours` training features with the
    largest cosine s to a query vote for their class with weight exp(s / temperature).
    features: (n, d); labels: (n,) int64.
    Raises `UsageError` if there are fewer training features than neighbours.
    """
    if neighbours > len(features):
        raise UsageError(
            f"neighbours: {neighbours:,} is more than the {len(features):,} training images; "
            "lower it"
        )
    features = F.normalize(features.double(), dim=1)
    votes = features.new_zeros(len(queries), classes)
    for chunk, own in zip(queries.split(CHUNK), votes.split(CHUNK), strict=True):
        cosines = F.normalize(chunk.double(), dim=1) @ features.T  # (≤ CHUNK, n)
        nearest, index = cosines.topk(neighbours, dim=1)
        own.scatter_add_(1, labels[index], (nearest / temperature).exp())
    return votes
