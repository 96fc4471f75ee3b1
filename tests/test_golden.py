"""Golden losses of every kind of training and of every operator, and what evaluations measure.

Each run of RUNS goes through the whole suite, as `crate run` starts it, at a tiny scale of its own.
The losses of its updates and its metrics must stay what tests/golden/losses.json says: to the last
of six decimals on the machine that wrote the file, nearly so on others, whose arithmetic differs.
This file uses only the command line, recipes' names and keys, and the files that a run leaves. A
change of the code inside therefore leaves this file as it is.

    python tests/test_golden.py --write

writes the golden file anew. Do that only when a change of the losses is meant, and say why in the
commit. (A run draws its initial weights from the names of its steps: a renamed step is such a
change.) To compare all six decimals on another machine, write the file there at the commit before
the change, and do not commit it.
"""

import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "losses.json"

# `evaluate_updates: 1` writes a line of train.jsonl, and so a loss, after each update.
SCALE = """
title: golden scale (five updates of tiny models)

datasets:
  imagenet21k: handwritten_digits
  imagenet21k_fall11: handwritten_digits
  imagenet1k: handwritten_digits
  cifar10: fashion_mnist_tiny
  ade20k: composites_tiny
  voc2012: composites_tiny
  coco: composites_tiny
  datacomp1b: captioned_tiny
  openwebtext: speeches_tiny
  lambada: king_james_bible_tiny

models:
  "*": {dim: 16, depth: 2, heads: 2}
  "*_patch32*": {patch_size: 14}
  "*_patch16*": {patch_size: 7}
  "*_patch8*": {patch_size: 7}
  "*_mae_*": {patch_size: 7}
  "vit_mae_*": {decoder_dim: 24, decoder_depth: 1, decoder_heads: 3}
  "*_clipa_*": {embed_dim: 16, text_dim: 16, text_depth: 2, text_heads: 2}

defaults:
  image_size: 28
  eval_resize: null
  batch_size: 32
  evaluate_epochs: null
  evaluate_updates: 1
  eps: 1e-4  # of Adam: rounding of gradients near zero does not become whole steps
  tokenizer: clip
  compute:
    nodes: 1
    gpus: 0
    threads: 1
    workers: 0
    micro_batch: null
    autocast: float32
    checkpoint_seconds: 1000

steps:
  # AdamW, MixUp and CutMix, decay of kernels, clipping; 20 updates an epoch
  imagenet21k: {epochs: 0.25, warmup_epochs: 0.1, lr: 4e-3, crop_area_min: 0.3}
  imagenet21k_droppath: {drop_path: 0.5, compute: {micro_batch: 12}}
  imagenet21k_no_mixup: {label_smoothing: 0.2, layer_decay: 0.5, decay: matrices, schedule: linear}
  # Lion; centre crops
  imagenet21k_cpal: {epochs: 0.25, warmup_epochs: 0.1, lr: 2e-4}
  imagenet1k_lion: {epochs: 0.25, warmup_epochs: 0.1, lr: 2e-4}
  # fine-tuning with larger pictures, so that positions are resized
  imagenet1k: {epochs: 0.25, warmup_epochs: 0.05, lr: 2e-3, image_size: 56, randaugment: null}
  # 32 updates an epoch
  cifar10: {epochs: 0.15625, lr: 2e-3}
  cifar10_from21k: {epochs: 0.15625}
  cifar10_probe: {penalties: [0.1, 1.0]}
  imagenet1k_mae: {epochs: 0.25, warmup_epochs: 0.1, lr: 4e-3}
  datacomp1b:
    image_size: 14
    text_tower: null
    freeze_text: false
    updates: 5
    warmup_updates: 2
    lr: 5e-3
    evaluation_batch: 64
    compute: {micro_batch: 12}
  datacomp1b_112: {compute: {micro_batch: null}}
  datacomp1b_finetune: {image_size: 28, updates: 5, warmup_updates: 2, lr: 5e-3}
  imagenet1k_zeroshot: {templates: simple}
  ade20k:
    image_size: 56
    stride: 28
    resize: [84, 84]
    layers: [0, 0, 1, 1]
    updates: 5
    warmup_updates: 2
    batch_size: 4
    lr: 2e-3
  openwebtext:
    block_size: 32
    updates: 5
    batch_size: 4
    lr: 5e-3
    min_lr: 5e-4
    warmup_updates: 2
  coco_maskcut_cpal: {image_size: 140, layer: 1}
  coco_maskcut_alpha: {image_size: 140, layer: 1, crf: false}
  voc2012_attention: {image_size: 56, layer: 1}
  imagenet1k_layerwise: {pictures: 20}
  coco_tokens: {image_size: 56, pictures: 6}
"""

# <model>/<step>/<step>…; what a run follows stands before it.
RUNS = [
    # every operator, stem, initialisation and pooling
    "crate_base_patch32/imagenet21k",
    "crate_tiny_patch8_mlp/imagenet21k",
    "crate_tiny_patch8_mhsa/imagenet21k",
    "crate_base_patch32_plain/imagenet21k",
    "crate_base_patch32_overcomplete/imagenet21k",
    "crate_base_patch32_overcomplete_decoupled/imagenet21k",
    "crate_alpha_base_patch32/imagenet21k",
    "vit_base_patch32/imagenet21k",
    "vit_tiny_patch16_pooled/imagenet21k",
    # other recipes
    "crate_alpha_base_patch32/imagenet21k_droppath",
    "crate_alpha_base_patch32/imagenet21k_no_mixup",
    "crate_base_patch32/imagenet21k_cpal",
    "vit_base_patch32/imagenet1k_lion",
    "crate_alpha_base_patch32/imagenet21k_untrained",
    # fine-tuning
    "crate_alpha_base_patch32/imagenet21k/imagenet1k",
    "crate_alpha_base_patch16/from-crate_alpha_base_patch32-imagenet21k/imagenet1k",
    "crate_alpha_base_patch32/imagenet21k/cifar10_from21k",
    "vit_base_patch32/from-vit_base_patch32-imagenet21k/imagenet21k",
    # masked autoencoders
    "crate_mae_small/imagenet1k_mae",
    "vit_mae_small/imagenet1k_mae",
    "vit_mae_small_asymmetric/imagenet1k_mae",
    "crate_mae_small/imagenet1k_mae/cifar10_mae",
    # contrastive models
    "crate_alpha_clipa_base_patch16/datacomp1b",
    "vit_clipa_base_patch16/datacomp1b_112",
    "crate_alpha_clipa_base_patch16/datacomp1b/datacomp1b_finetune",
    "crate_alpha_clipa_base_patch16/datacomp1b/datacomp1b_finetune/imagenet1k_zeroshot",
    "vit_clipa_base_patch16/datacomp1b_112/imagenet1k_zeroshot_112",
    # segmentation
    "crate_alpha_base_patch32/imagenet21k/ade20k",
    "vit_base_patch32/imagenet21k/ade20k_linear",
    "crate_base_patch32/ade20k_whole_image",
    # language models, and the counts that are their controls
    "crate_gpt_base/openwebtext",
    "crate_alpha_gpt_small/openwebtext",
    "gpt2_small/openwebtext",
    "gpt2_small/openwebtext/lambada",
    "gpt2_small/openwebtext_unigram",
    "gpt2_small/openwebtext_bigram",
    "gpt2_small/openwebtext_bigram/lambada",
    # looks at what was trained
    "crate_alpha_base_patch32/imagenet21k/cifar10_probe",
    "vit_base_patch32/imagenet21k/cifar10_knn",
    "crate_mae_small/imagenet1k_mae/cifar10_knn",
    "crate_tiny_patch8_mlp/imagenet21k/coco_maskcut_cpal",
    "vit_tiny_patch16_pooled/imagenet21k/coco_maskcut_alpha",
    "crate_base_patch32/imagenet21k/voc2012_attention",
    "vit_base_patch32/imagenet21k/voc2012_attention",
    "crate_base_patch32/imagenet21k/coco_tokens",
    "crate_alpha_base_patch32/imagenet21k/imagenet1k/imagenet1k_layerwise",
    "vit_base_patch32/imagenet21k/coco_tokens",
]


def write_suite(folder: Path) -> Path:
    """A working directory with the suite's recipes and the scale of this file."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    (folder / "experiments" / "scales" / "golden.yaml").write_text(SCALE)
    return folder


def machine() -> dict:
    """What the last decimals depend on."""
    import torch

    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def parent(run: str) -> str | None:
    """The run that `run` starts from."""
    model, *before, _ = run.split("/")
    if not before:
        return None
    if before[-1].startswith("from-"):
        return "/".join(before[-1].split("-")[1:])
    return "/".join((model, *before))


def bring(run: str) -> dict:
    """The losses and metrics of a run; it and what it follows are run where they are not here."""
    from crate.cli import main

    model, chain = run.split("/", 1)
    folder = Path("results/golden/runs", model, "seed0", chain)
    if not (folder / "metrics.json").exists():
        if parent(run):
            bring(parent(run))
        assert main(["run", str(folder)]) == 0, run
    losses, history = [], folder / "train.jsonl"
    if history.exists():
        losses = [json.loads(line)["loss"] for line in history.read_text().splitlines()]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    return {"losses": [round(loss, 6) for loss in losses], "metrics": metrics}


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return write_suite(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("run", RUNS)
def test_a_run_has_its_golden_losses_and_metrics(run, suite, golden, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("golden losses are the CPU's")
    monkeypatch.chdir(suite)
    monkeypatch.delenv("CRATE_SETTINGS", raising=False)  # set where a workflow runs the tests
    found, expected = bring(run), golden["runs"][run]
    same = machine() == golden["machine"]
    near = {"abs": 2e-6} if same else {"abs": 1e-3}
    assert found["losses"] == pytest.approx(expected["losses"], **near)
    # elsewhere, a network may decide differently about a few pictures of a thousand
    near = {"abs": 2e-6} if same else {"rel": 1e-3, "abs": 0.5}
    assert found["metrics"] == pytest.approx(expected["metrics"], **near)


def test_golden_losses_tell_runs_apart(golden):
    assert list(golden["runs"]) == RUNS
    losses = [tuple(found["losses"]) for found in golden["runs"].values() if found["losses"]]
    assert len(set(losses)) == len(losses) > 25


def write() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(write_suite(Path(temporary)))
        found = {run: bring(run) for run in RUNS}
    lines = [f"    {json.dumps(run)}: {json.dumps(values)}" for run, values in found.items()]
    text = f'{{\n  "machine": {json.dumps(machine())},\n  "runs": {{\n'
    GOLDEN.write_text(text + ",\n".join(lines) + "\n  }\n}\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # golden losses are the CPU's
    write()
