"""Optimizers, learning-rate schedule and weight-decay groups."""

import math
import re
from collections.abc import Iterator

import torch
from torch import nn

from crate.recipes import Training


class Optimizer:
    """State of the parameters in groups; a parameter without a gradient is left alone.

    `torch.optim.Optimizer` imports the compiler when it is first used, which takes longer than
    importing torch (docs/measurements.md).
    """

    def __init__(self, groups: list[dict], state: list[list[tuple[torch.Tensor, ...]]]):
        self.param_groups = groups
        self.state = state  # of each group, of each parameter

    def live(self) -> Iterator[tuple[int, dict, list[int], list[list[torch.Tensor]]]]:
        """Of each group: its number, options, places with gradients, and their tensors in lists."""
        for number, (group, states) in enumerate(zip(self.param_groups, self.state, strict=True)):
            places = [k for k, p in enumerate(group["params"]) if p.grad is not None]
            if places:
                rows = [(group["params"][k], group["params"][k].grad, *states[k]) for k in places]
                yield number, group, places, [list(each) for each in zip(*rows, strict=True)]

    def state_dict(self) -> dict:
        return {"state": self.state}

    def load_state_dict(self, saved: dict) -> None:
        for group, old in zip(self.state, saved["state"], strict=True):
            for mine, theirs in zip(group, old, strict=True):
                for tensor, value in zip(mine, theirs, strict=True):
                    tensor.copy_(value)


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) by torch's fused kernel.

    Bit-equal to `torch.optim.AdamW(…, fused=True)`, which counts the updates of each parameter in
    a tensor of its own; at small sizes that takes longer than the kernel.
    """

    def __init__(self, groups: list[dict], *, betas: list[float], eps: float):
        self.betas, self.eps = betas, eps
        self.updates = [torch.zeros(len(g["params"]), device=g["params"][0].device) for g in groups]
        state = [  # both means of each parameter, and its number of updates
            [
                (torch.zeros_like(p), torch.zeros_like(p), count)
                for p, count in zip(group["params"], counts, strict=True)
            ]
            for group, counts in zip(groups, self.updates, strict=True)
        ]
        super().__init__(groups, state)

    @torch.no_grad()
    def step(self) -> None:
        for number, group, places, (params, gradients, means, squares, counts) in self.live():
            whole = len(places) == len(group["params"])
            self.updates[number][slice(None) if whole else places] += 1  # `counts` are views
            torch._fused_adamw_(
                params,
                gradients,
                means,
                squares,
                [],
                counts,
                lr=group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )


class Lion(Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675, algorithm 2), bit-equal to lion-pytorch's.

    p ← (1 − lr wd) p − lr sign(β₁ m + (1 − β₁) g), then m ← β₂ m + (1 − β₂) g
    """

    def __init__(self, groups: list[dict], *, betas: list[float]):
        self.betas = betas
        super().__init__(groups, [[(torch.zeros_like(p),) for p in g["params"]] for g in groups])

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        for _, group, _, (params, gradients, means) in self.live():
            signs = torch._foreach_mul(means, beta1)
            torch._foreach_add_(signs, gradients, alpha=1 - beta1)
            torch._foreach_sign_(signs)
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, signs, alpha=-group["lr"])
            torch._foreach_mul_(means, beta2)
            torch._foreach_add_(means, gradients, alpha=1 - beta2)


TOKENS = ("positions", "class_token", "mask_token")


def parameter_groups(model: nn.Module, recipe: Training) -> list[dict]:
    """Group parameters by weight decay and by `scale`, the factor of their learning rate.

    decay "all"       all parameters decay
    decay "kernels"   weights of linear and convolution layers decay, as CRATE-alpha's mask
                      `.*/kernel$`: not dictionaries, positions, class token, norms or biases
    decay "matrices"  parameters with two or more dimensions decay, dictionaries too, but not
                      positions, class and mask token, as in BEiT's fine-tuning (arXiv 2106.08254)
    layer_decay       BEiT's: the learning rate falls by this factor with each block, counted from
                      the head (factor 1) to stem, positions and tokens; an autoencoder's decoder
                      blocks are numbered as its encoder's
    """
    kernels = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    depth = max((_block(name) or 0 for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = {
            "all": True,
            "kernels": id(parameter) in kernels,
            "matrices": parameter.dim() > 1 and name.split(".")[-1] not in TOKENS,
        }[recipe.decay]
        block = _block(name)
        above = depth + 1 - (depth + 1 if block is None else block)
        groups.setdefault((decays, recipe.layer_decay**above), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr": recipe.lr,
            "scale": scale,
        }
        for (decays, scale), parameters in sorted(groups.items(), reverse=True, key=lambda g: g[0])
    ]


def _block(name: str) -> int | None:
    """The block of a parameter, from 1; 0 below the first block, None above the last."""
    match = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if match:
        return int(match[1]) + 1
    below = {"patch_embedding", *TOKENS} & set(name.split("."))
    return 0 if below else None


def make_optimizer(model: nn.Module, recipe: Training) -> Optimizer:
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "lion":
        return Lion(groups, betas=recipe.betas)
    return AdamW(groups, betas=recipe.betas, eps=recipe.eps)


def learning_rate(recipe: Training, index: int, per_epoch: float) -> float:
    """Learning rate of update `index` (from 0), with `per_epoch` updates an epoch.

    schedule "cosine", "linear"   linear warm-up to `lr`, then a cosine or a line to `min_lr`
    schedule "cosine_by_epoch"    that of CRATE's code (2023, main.py), constant within an epoch:
                                  the smaller of the warm-up and a cosine that begins with it
    """
    if recipe.schedule == "cosine_by_epoch":
        epoch = int(index / per_epoch)
        warm = (epoch + 1) / recipe.warmup_epochs if recipe.warmup_epochs else 1.0
        return recipe.lr * min(warm, 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs)))
    total, warmup = recipe.total_updates(per_epoch), recipe.warmup(per_epoch)
    if index < warmup:
        return recipe.lr * (index + (not recipe.warmup_from_zero)) / warmup
    share = (index - warmup) / max(1, total - warmup)
    if recipe.schedule == "linear":
        return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 - share)
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * share))
