"""What a target costs as a whole: sums over tables, sharing, measured speeds, measuring them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from crate import cli
from crate.costs.budget import price_run, read_device, workload_key
from crate.costs.cost import BOARD_WATTS, DEVICES, cost, workloads
from crate.data.catalogue import get_dataset
from crate.errors import UsageError
from crate.models.flops import image_macs, text_macs
from crate.records import write_json
from crate.runs import Run, parse_path
from crate.tasks import cost_of
from crate.tasks.base import Resolved
from crate.tasks.segmentation.cost import windows_of
from crate.tasks.zeroshot.cost import PHRASES

ALPHA = "crate_alpha_base_patch32"
PRETRAINED = Run("paper", ALPHA, 0, ("imagenet21k",))


@pytest.fixture
def told(folder, capsys):
    """`told("plan", …)`: what is printed; the command must succeed."""

    def told(*words: str) -> str:
        assert cli.main(words) == 0
        return capsys.readouterr().out

    return told


def rows(text: str) -> dict[str, list[str]]:
    """First cell → the other cells of the first table in a text."""
    lines = text.split("\n\n")[0].splitlines()
    columns = [mark.span() for mark in re.finditer("-+", lines[1])]
    cells = [[line[start:end].strip() for start, end in columns] for line in lines]
    return {first: rest for first, *rest in cells}


def number(text: str) -> float:
    return float(text.replace(",", ""))


def training_flops(resolved: Resolved) -> int:
    return cost_of(resolved.recipe.task).training_flops(resolved)


def a100_hours(plan, run: Run) -> float:
    """At 35 % of 312 TFLOP/s."""
    price = cost(plan, run)
    return ((price.train_flops + price.eval_flops) / (0.35 * 312e12) + price.seconds) / 3600


# --- sums over tables -----------------------------------------------------------


def test_what_tables_share_counts_once(told, plan):
    found = rows(told("plan", "all", "--scale", "paper"))
    settings = plan.experiments.settings({"scale": "paper"})
    needed = {name: plan.runs(f"table_{name}", settings) for name in plan.tables}
    runs = plan.runs("all", settings)
    assert found["all"][0] == str(len(runs))
    assert found["sum of the tables"][0] == str(sum(map(len, needed.values())))
    summed, saved, whole = (
        [number(found[line][column]) for column in (0, 1, 3, 4)]
        for line in ("sum of the tables", "saved by sharing runs", "all")
    )
    assert [a - b for a, b in zip(summed, saved, strict=True)] == pytest.approx(whole, rel=1e-3)
    hours = {run: a100_hours(plan, run) for run in runs}
    assert whole[1] == pytest.approx(sum(hours.values()), rel=1e-4)
    assert whole[2] == pytest.approx(whole[1] * 400 / 1000, rel=1e-3)  # kWh at 400 W
    for name, of_table in needed.items():
        others = {run for other, runs in needed.items() if other != name for run in runs}
        shared = [run for run in of_table if run in others]
        assert number(found[name][1]) == pytest.approx(sum(hours[r] for r in of_table), rel=0.05)
        assert found[name][5] == str(len(shared))
        assert number(found[name][6]) == pytest.approx(sum(hours[r] for r in shared), rel=0.05)


def test_scale_can_be_said_in_two_ways(told):
    assert told("plan", "all", "--scale", "paper") == told("plan", "all", "--config", "scale=paper")
    listed = told("plan", "all", "--scale", "paper", "--runs")
    assert f"{ALPHA} seed0 imagenet21k/imagenet1k " in listed
    assert "saved by sharing runs" in listed


def test_the_longest_chain_is_spread_over_its_devices(told, plan):
    text = told("plan", "table_ablation", "--scale", "paper")
    chain = [PRETRAINED, dataclasses.replace(PRETRAINED, chain=("imagenet21k", "imagenet1k"))]
    first, second = (a100_hours(plan, run) for run in chain)
    wanted = f"the longest chain takes {first / 16 + second / 8:.2f} hours"  # 2 nodes of 8, then 1
    assert wanted in text
    assert set(BOARD_WATTS) == set(DEVICES)


# --- one run -----------------------------------------------------------


def test_a_faster_device_takes_less(plan):
    found = {
        name: price_run(plan, PRETRAINED, read_device(name, "results")).hours for name in DEVICES
    }
    # by hand: 91 x 3,198 updates of 4,096, 6 FLOPs for each of 6.54e9 products, at 109.2 TFLOP/s
    assert found["a100"] == pytest.approx(91 * 3198 * 4096 * 6 * 6.54e9 / 109.2e12 / 3600, rel=0.01)
    assert found["h100"] * DEVICES["h100"] == pytest.approx(found["v100"] * DEVICES["v100"])


def test_windows_of_a_picture(plan):
    from crate.data.segmentation import scaled_size, windows
    from crate.tasks.segmentation.recipe import Segmentation

    recipe = plan.experiments.recipe("ade20k", "paper")
    for changes in ({}, {"stride": 100}, {"image_size": 1024, "stride": 512}):
        changed = Segmentation(**recipe.model_dump() | changes)
        size = scaled_size(640, 480, *changed.resize)
        count = len(windows(*size[::-1], changed.image_size, changed.stride))
        assert windows_of(changed, get_dataset("ade20k")) == count
    mini = plan.experiments.recipe("ade20k", "mini")
    size = scaled_size(64, 64, *mini.resize)
    count = len(windows(*size, mini.image_size, mini.stride))
    assert windows_of(mini, get_dataset(mini.dataset)) == count == 9


def test_a_decoder_is_counted(plan):
    run = Run("paper", ALPHA, 0, ("ade20k",))
    whole, linear = (
        cost(plan, dataclasses.replace(run, chain=(n,))) for n in ("ade20k", "ade20k_linear")
    )
    # B/32 with UPerNet by hand: its head alone, 16dc + 99c² + 24c at d = c = 768
    assert whole.parameters - linear.parameters > 115 * 768**2
    assert whole.evaluated == 2_000 * 2
    recipe = plan.resolve(run)
    # the second head is trained, and not looked at in a test: 256 (9d + 150) products a patch
    second = 6 * 16**2 * 256 * (9 * 768 + 150)
    assert training_flops(recipe) == pytest.approx(3 * whole.eval_flops / whole.evaluated + second)


def test_the_texts_of_a_zero_shot_classification_are_counted(plan):
    from crate.data.captions import PHRASES as KNOWN
    from crate.data.captions import phrases

    assert {name: len(phrases(name)) for name in KNOWN} == PHRASES
    run = Run("paper", "crate_alpha_clipa_base_patch16", 0, ("imagenet1k_zeroshot",))
    spec, recipe = plan.experiments.spec(run.model, "paper"), plan.resolve(run).recipe
    texts = 80 * 1000 * text_macs(spec, context_length=recipe.context_length)
    pictures = 50_000 * image_macs(spec, image_size=recipe.image_size)
    assert cost(plan, run).eval_flops == 2 * (texts + pictures)


def test_equally_fast_runs_have_equal_workloads(plan):
    def keys(run, **changes):
        resolved = plan.resolve(run, changes or None)
        return workloads(resolved, cost(plan, run, changes or None))

    mine = keys(PRETRAINED)
    assert mine == keys(dataclasses.replace(PRETRAINED, seed=1))
    assert mine == keys(PRETRAINED, lr=1e-3, epochs=3.0, weight_decay=0.0)
    assert mine["train"] != keys(PRETRAINED, optimizer="lion")["train"]
    assert mine["evaluate"] == keys(PRETRAINED, optimizer="lion")["evaluate"]
    assert mine["train"] != keys(PRETRAINED, batch_size=2048)["train"]
    assert mine["train"] != keys(PRETRAINED, compute={"micro_batch": 64})["train"]
    untrained = keys(dataclasses.replace(PRETRAINED, chain=("imagenet21k_untrained",)))
    assert untrained == {"evaluate": mine["evaluate"]}
    model = dataclasses.replace(PRETRAINED, model="crate_alpha_base_patch16")
    assert not {workload_key(w) for w in keys(model).values()} & {
        workload_key(w) for w in mine.values()
    }
    assert keys(Run("paper", ALPHA, 0, ("architecture",))) == {}


# --- measured speeds -----------------------------------------------------------


def bench_file(plan, *, images_per_second: float, path="results/bench/box.json") -> dict:
    """As `crate bench` would leave it: the training of `PRETRAINED` measured, and nothing else."""
    resolved = plan.resolve(PRETRAINED)
    workload = workloads(resolved, cost(plan, PRETRAINED))["train"]
    entry = {
        "workload": workload,
        "examples_per_second": images_per_second,
        "flops": training_flops(resolved),
        "precision": "float32",
    }
    content = {
        "device": "Box",
        "torch": "2",
        "measured": {workload_key(workload): entry},
    }
    write_json(Path(path), content)
    return content


def test_measured_speeds_take_the_place_of_guesses(told, plan):
    bench_file(plan, images_per_second=1000.0)
    device = read_device("box", "results")
    item = price_run(plan, PRETRAINED, device)
    price = item.price
    training = price.examples / 1000 / 3600
    assert item.measured == pytest.approx(training)
    # its evaluation is not measured: at the FLOP/s that training reached
    rate = 1000 * price.train_flops / price.examples
    assert item.hours - training == pytest.approx(price.eval_flops / rate / 3600)
    assert device.watts is None
    text = told("plan", str(PRETRAINED.folder("results")), "--device", "box")
    share = round(100 * item.measured / item.hours)
    assert f"({share}% measured on Box, torch 2, float32; the rest at the median FLOP/s" in text
    assert "energy: the power of box is unknown; give it with --watts" in text
    by_file = ["--device", "results/bench/box.json", "--watts", "65"]
    text = told("plan", str(PRETRAINED.folder("results")), *by_file)
    assert f"energy: about {item.hours * 65 / 1000:,.2f} kWh" in text


def test_the_power_of_a_known_board_and_what_is_no_bench(plan):
    content = bench_file(plan, images_per_second=1000.0)
    write_json(Path("results/bench/h.json"), content | {"device": "NVIDIA H100 80GB HBM3"})
    assert read_device("h", "results").watts == 700
    write_json(Path("results/bench/empty.json"), content | {"measured": {}})
    with pytest.raises(UsageError, match="holds no measurement"):
        read_device("empty", "results")
    write_json(Path("results/bench/other.json"), {"measured": {"a": 1}})
    with pytest.raises(UsageError, match="not a file of 'crate bench'"):
        read_device("other", "results")
    assert read_device("H100", "results") == read_device("h100", "results")
    with pytest.raises(UsageError, match="unknown device 'boxx'; did you mean 'box'"):
        read_device("boxx", "results")


@pytest.mark.parametrize("words", ["-1", "0", "nan", "inf", "much"])
def test_a_power_that_is_none(folder, capsys, words):
    with pytest.raises(SystemExit):
        cli.main(["plan", "all", "--watts", words])
    assert f"argument --watts: {words} is not a positive number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "not_counted"),
    [
        ("coco_maskcut_alpha", "the cuts and CRFs of MaskCut"),
        ("coco_tokens", "the coding rates of layers"),
    ],
)
def test_what_has_no_closed_form_is_counted_where_it_is_measured(plan, step, not_counted):
    run = Run("paper", "crate_alpha_base_patch8", 0, ("imagenet21k", step))
    resolved = plan.resolve(run)
    price = cost(plan, run)
    key = workload_key(workloads(resolved, price)["evaluate"])
    guess = read_device("a100", "results")
    assert price_run(plan, run, guess).left_out == not_counted
    flops = price.eval_flops / price.evaluated
    measured = dataclasses.replace(guess, measured={key: 2 * flops})  # two pictures a second
    item = price_run(plan, run, measured)
    assert (item.hours, item.left_out) == (pytest.approx(price.evaluated / 2 / 3600), "")


# --- measuring -----------------------------------------------------------

SMOKE = f"results/smoke/runs/{ALPHA}/seed0"
CLIPA = "results/smoke/runs/crate_alpha_clipa_base_patch16/seed0"


MEASURED = [
    (f"{SMOKE}/imagenet21k", {"train": 64, "evaluate": 500}),
    (f"{SMOKE}/ade20k", {"train": 8, "evaluate": 16}),
    (f"{SMOKE}/cifar10_probe", {"evaluate": 500}),
    (f"{SMOKE}/imagenet21k/coco_maskcut_alpha", {"train": 64, "evaluate": 1}),
    (f"{SMOKE}/imagenet21k/imagenet1k_layerwise", {"train": 64, "evaluate": 50}),
    (f"{SMOKE}/imagenet21k/voc2012_attention", {"train": 64, "evaluate": 1}),
    ("results/smoke/runs/crate_mae_base/seed0/imagenet1k_mae", {"train": 64, "evaluate": 500}),
    (f"{CLIPA}/datacomp1b_112", {"train": 32, "evaluate": 64}),
    (f"{CLIPA}/datacomp1b_112/imagenet1k_zeroshot_112", {"train": 32, "evaluate": 500}),
    (
        "results/smoke/runs/gpt2_base/seed0/openwebtext_gpt2",
        {"train": 8, "evaluate": 2**26 // (32 * 257)},
    ),
]


@pytest.mark.parametrize(("path", "kinds"), MEASURED)
def test_each_kind_of_step_is_measured(folder, capsys, path, kinds):
    assert cli.main(["bench", path, "--seconds", "0.2"]) == 0
    (file,) = Path("results/bench").glob("*.json")
    record = json.loads(file.read_text())
    found = {
        e["workload"]["kind"]: e
        for e in record["measured"].values()
        if e["run"].endswith(Path(path).name) or e["workload"]["kind"] == "train"
    }
    assert {kind: entry["whole_batch"] for kind, entry in found.items()} == kinds
    for entry in found.values():
        assert entry["examples_per_second"] > 0
        assert entry["flops"] > 0
        assert entry["threads"] == 1
    assert f"--device {file.stem}" in capsys.readouterr().out
    assert cli.main(["plan", path, "--device", file.stem]) == 0
    assert "(100% measured on" in capsys.readouterr().out


def test_no_kind_of_step_with_a_speed_is_forgotten(plan):
    settings = plan.experiments.settings({"scale": "smoke"})
    runs = plan.runs("all", settings)
    timed = {plan.resolve(r).recipe.task for r in runs if workloads(plan.resolve(r), cost(plan, r))}
    assert {plan.resolve(parse_path(path)[0]).recipe.task for path, _ in MEASURED} == timed


@pytest.fixture
def clock(monkeypatch):
    """A bench whose work takes a tenth of a second and a millisecond an example, on its clock."""
    import torch

    import crate.costs.bench as bench

    class Clock:
        now, sizes, memory, stop = 0.0, [], 10_000, None

        def work(self, size):
            if size > self.memory:
                raise torch.OutOfMemoryError("no memory")
            if self.stop is not None and len(self.sizes) >= self.stop:
                raise KeyboardInterrupt
            self.sizes.append(size)
            self.now += 0.1 + size / 1000

    clock = Clock()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock.now)
    for name in ("training", "evaluation"):
        monkeypatch.setattr(bench, name, lambda resolved, here: (clock.work, 64))
    return clock


def measured() -> dict:
    (file,) = Path("results/bench").glob("*.json")
    return json.loads(file.read_text())["measured"]


def test_a_measurement_is_as_large_as_time_and_memory_allow(folder, clock):
    words = ["bench", f"{SMOKE}/imagenet21k", "--seconds"]
    assert cli.main([*words, "100"]) == 0
    assert {e["batch"] for e in measured().values()} == {64}
    assert {e["examples_per_second"] for e in measured().values()} == {float(f"{64 / 0.164:.5g}")}
    assert cli.main([*words, "1.1"]) == 0  # what is measured stays
    assert {e["batch"] for e in measured().values()} == {64}
    assert cli.main([*words, "1.1", "--again"]) == 0  # 5 of 4 take 0.52 s, of 8 would 0.54
    assert {e["batch"] for e in measured().values()} == {16}
    clock.memory = 9
    assert cli.main([*words, "100", "--again"]) == 0
    assert {e["batch"] for e in measured().values()} == {8}


def test_an_interrupted_bench_goes_on(folder, clock, capsys):
    clock.stop = 25
    words = ["bench", "table_ablation", "--scale", "smoke"]
    assert cli.main(words) == 130
    first = measured()
    assert len(first) == 1
    assert "stopped" in capsys.readouterr().err
    clock.stop, clock.sizes = None, []
    assert cli.main(words) == 0
    second = measured()
    assert len(second) > 1
    assert all(second[key] == entry for key, entry in first.items())
    told = capsys.readouterr()
    assert f"{len(second)} of {len(second)} measured (1 before)" in told.out
    lines = [line for line in told.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == len(second) - 1


def test_a_file_that_bench_did_not_write_is_never_replaced(folder, clock, capsys):
    words = ["bench", f"{SMOKE}/imagenet21k"]
    assert cli.main(words) == 0
    (file,) = Path("results/bench").glob("*.json")
    for text in (file.read_text()[:99], "[1]", '{"a": 1}'):
        file.write_text(text)
        capsys.readouterr()
        assert cli.main(words) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert (
            told == f"error: {file}: not a file of 'crate bench'; remove it and run 'crate bench'"
        )
        assert file.read_text() == text


@pytest.mark.parametrize(
    ("model", "step", "unit"),
    [
        ("crate_alpha_base_patch32", "imagenet21k", "images"),
        ("crate_gpt_base", "openwebtext", "sequences"),
        ("crate_alpha_clipa_large_patch14", "datacomp1b", "pairs"),
    ],
)
def test_measured_speeds_have_a_unit(plan, model, step, unit):
    from crate.costs.bench import examples_of  # imports torch

    assert examples_of(plan.resolve(Run("smoke", model, 0, (step,)))) == unit
