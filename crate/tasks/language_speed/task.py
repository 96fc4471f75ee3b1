"""Speed and memory of training a language model on this machine's device."""

import time
from pathlib import Path

import psutil
import torch

from crate.data.catalogue import get_dataset
from crate.data.tokenizer import get_tokenizer
from crate.models.language import LanguageModel
from crate.records import RunFolder
from crate.runtime import Runtime
from crate.tasks.base import Resolved
from crate.tasks.language.task import next_token_loss
from crate.training.loop import spread, update
from crate.training.optim import make_optimizer


def run(
    resolved: Resolved,
    *,
    runtime: Runtime,
    folder: RunFolder,
    identity: str,
    parent: Path | None,
    data_root: Path,
) -> tuple[dict, dict]:
    """Time optimizer updates of the recipe on random tokens; no weights are saved.

    Returns:
        metrics (tokens a second of all processes, from the median update; peak memory of one
        process in bytes: on a GPU that of torch's allocator, on a CPU the growth of the process)
        and details (number of updates timed).
    """
    recipe, device = resolved.recipe, runtime.device
    vocabulary = get_tokenizer(get_dataset(recipe.dataset).tokenizer).vocab_size
    process, on_gpu = psutil.Process(), device.type == "cuda"
    before = peak = process.memory_info().rss
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(resolved.run.seed)
    model = LanguageModel(
        resolved.spec,
        vocab_size=vocabulary,
        block_size=recipe.block_size,
        drop_path=recipe.drop_path,
    ).to(device)
    optimizer, trained = make_optimizer(model, recipe), spread(model, recipe, runtime)
    shape = (recipe.batch_size // runtime.world, recipe.block_size + 1)
    windows = torch.randint(vocabulary, shape, device=device)
    batch = (windows[:, :-1], windows[:, 1:])
    micro = recipe.compute.micro_batch

    model.train()
    began, took = time.perf_counter(), []
    while (
        len(took) < 2
        or runtime.all_reduce_max(int(time.perf_counter() - began < recipe.seconds))[0]
    ):
        start = time.perf_counter()
        update(trained, optimizer, next_token_loss, batch, micro, recipe, runtime)
        if on_gpu:
            torch.cuda.synchronize(device)
        took.append(time.perf_counter() - start)
        peak = max(peak, process.memory_info().rss)
    timed = sorted(took[1:])  # the first is a warm-up
    memory = torch.cuda.max_memory_allocated(device) if on_gpu else peak - before
    tokens = recipe.batch_size * recipe.block_size
    return {
        "tokens_per_second": round(tokens / timed[len(timed) // 2], 1),
        "peak_memory": memory,
    }, {"updates": len(timed)}
