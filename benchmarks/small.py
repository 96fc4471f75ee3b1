"""The speed of training at mini's sizes, as ratios to another checkout.

`git worktree add /tmp/base <commit>` and `python benchmarks/small.py /tmp/base` print a Markdown
table. Both packages train in turns in one process, on one thread, with the recipes and batches of
this checkout: one optimizer update with its schedule, of the same models from the same weights.
Augmentation is left out. Absolute times do not compare between machines and are not shown.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from checkouts import Checkout, ratio_of_times

HERE = Path(__file__).resolve().parents[1]
BATCHES = 8  # different ones, in turn

# model and step: the rows that people train at scale mini
RUNS = {
    "CRATE-alpha-B/32": "crate_alpha_base_patch32/imagenet21k",
    "CRATE-alpha-B/16": "crate_alpha_base_patch16/imagenet21k",
    "CRATE-alpha-L/16": "crate_alpha_large_patch16/imagenet21k",
    "CRATE-B/32, as in CRATE-alpha's table": "crate_base_patch32_plain/imagenet21k",
    "CRATE-B/16": "crate_base_patch16/imagenet21k_cpal",
    "CRATE-B/16, Lion": "crate_base_patch16/imagenet1k_lion",
    "ViT-B/16": "vit_base_patch16/imagenet21k",
    "CRATE-MAE-B": "crate_mae_base/imagenet1k_mae",
    "CRATE-alpha-GPT-B": "crate_alpha_gpt_base/openwebtext",
    "GPT-2-B": "gpt2_base/openwebtext_gpt2",
}


def updates(path: str, autocast: str, checkouts: list[Checkout]) -> list[Callable[[], None]]:
    """For each checkout, a function that does the next optimizer update of a run at scale mini."""
    here, (model, step) = checkouts[0], path.split("/")
    runtime = here.module("crate.runtime")
    on = runtime.Runtime(
        torch.device("cpu"), *runtime.autocast_dtype(torch.device("cpu"), autocast)
    )
    plan = here.module("crate.planning.plan")
    experiments = here.module("crate.planning.loader").Experiments(HERE / "experiments")
    run, _ = here.module("crate.runs").parse_path(f"results/mini/runs/{model}/seed0/{step}")
    with here():
        resolved = plan.Plan(experiments).resolve(run)
        task = here.module(f"crate.tasks.{resolved.recipe.task}.task")
        stage = task.STAGE(resolved, on, HERE / "data")
        stage.open()
        torch.manual_seed(0)
        stage.model = network = stage.build()
        batches = list(itertools.islice(stage.batches(stage.open_training(), 0, BATCHES), BATCHES))
        standard = vars(here.module("crate.models.zoo").resolve(model))
    settings = {key: value for key, value in vars(resolved.spec).items() if standard[key] != value}
    keys = ("image_size", "vocab_size", "block_size", "normalise_patches")
    settings |= {key: getattr(network, key) for key in keys if hasattr(network, key)}
    if "vocab_size" not in settings and hasattr(network, "head"):
        settings["num_classes"] = network.head.out_features

    def updates_of(checkout: Checkout) -> Callable[[], None]:
        with checkout():
            mine = checkout.module("crate.models").create_model(model, **settings)
            mine.load_state_dict(network.state_dict())
        loop = checkout.module("crate.training.loop")
        optim = checkout.module("crate.training.optim")
        optimizer = optim.make_optimizer(mine, resolved.recipe)
        # what the loop did before every update
        reseed = getattr(loop, "reseed", lambda seed, runtime: torch.manual_seed(seed))
        feed = itertools.cycle(batches)

        def update() -> None:
            reseed(0, on)
            for group in optimizer.param_groups:
                group["lr"] = resolved.recipe.lr * group["scale"]
            loop.update(mine, optimizer, stage.loss, next(feed), None, resolved.recipe, on)

        return update

    return [updates_of(checkout) for checkout in checkouts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("base", type=Path, help="another checkout of this repository")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=20.0, help="time spent on each ratio")
    parser.add_argument("--autocast", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--output", type=Path, help="a JSON file for the ratios")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkouts = [Checkout(HERE), Checkout(options.base)]
    rows = []
    print("| training at mini's sizes | updates a second, ratio | quartiles |\n|---|---|---|")
    for name, path in RUNS.items():
        if options.only not in name:
            continue
        ours, theirs = updates(path, options.autocast, checkouts)
        ratio, low, high = ratio_of_times(theirs, ours, options.seconds)
        rows.append({"name": name, "run": path, "ratio": ratio, "quartiles": [low, high]})
        print(f"| {name} | {ratio:.2f} | {low:.2f} to {high:.2f} |", flush=True)
    if options.output:
        options.output.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
