"""`crate …` as a person meets it: exit statuses, one line for a mistake, and what it imports."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from crate import cli
from crate.data.catalogue import DATASETS
from crate.records import RunFolder, lock, write_json
from crate.runs import Run

ROOT = Path(__file__).parents[2]
ALPHA = "crate_alpha_base_patch32"


@pytest.fixture
def crate(folder, capsys):
    """`crate("plan", …)` in a folder with nothing but `experiments/`: status, output, errors."""

    def crate(*words: str) -> tuple[int, str, str]:
        status = cli.main(words)
        return status, *capsys.readouterr()

    return crate


MINI = f"results/mini/runs/{ALPHA}/seed0"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "run nonsense",
            "nonsense: not the path of a run; expected results/<scale>/runs/<model>/seed<k>/",
        ),
        ("run results/mini/runs/crate_alpha_bse_patch32/seed0/imagenet21k", f"mean '{ALPHA}'?"),
        (f"run {MINI}/imagenet21", "unknown step 'imagenet21'; did you mean 'imagenet21k'?"),
        (f"run results/mni/runs/{ALPHA}/seed0/imagenet21k", "scale 'mni'; did you mean 'mini'?"),
        (f"run results/mini/runs/{ALPHA}/seedx/imagenet21k", "the seed 'x' is not a whole number"),
        (f"run {MINI}/imagenet1k", "'imagenet1k' cannot begin a chain; it follows: imagenet21k"),
        (
            f"run {MINI}/imagenet21k/imagenet1k",
            f"its parent is not finished; first run {MINI}/imagenet21k/metrics.json",
        ),
        (
            f"run {MINI}/imagenet21k --set model.dim=1",
            "a name of its own in experiments/models.yaml",
        ),
        (f"run {MINI}/imagenet21k --set lr", "--set: 'lr' is not KEY=VALUE"),
        (f"run {MINI}/imagenet21k --set lr=[1", "lr=[1: the value cannot be read as YAML"),
        (f"run {MINI}/imagenet21k --identity 0", "start the command again"),
        (
            f"run results/mini/trials/t/runs/{ALPHA}/seed0/imagenet21k --set lrr=1",
            "unknown key 'lrr'; did you mean 'lr'?",
        ),
        ("plan table_ablatoin", "unknown target 'table_ablatoin'; did you mean 'table_ablation'?"),
        ("plan all --device h10", "unknown device 'h10'; did you mean 'h100'?"),
        ("plan all --device my.json", "my.json: not found; 'crate bench' writes such files to "),
        ("plan all --scale mimi", "unknown scale 'mimi'; did you mean 'mini'?"),
        ("plan all --scale mini --config scale=paper", "--config scale=paper exclude each other"),
        ("bench table_ablatoin", "unknown target 'table_ablatoin'; did you mean 'table_ablation'?"),
        (
            "bench table_models",
            "table_models: nothing to measure; no run depends on the device's speed",
        ),
        ("plan all --config scal=mini", "unknown key 'scal'; did you mean 'scale'?"),
        ("plan all --config scale=mimi", "unknown scale 'mimi'; did you mean 'mini'?"),
        ("plan all --config seeds=0,x", "seeds: 'x' is not a seed"),
        ("plan all --config mini", "--config: 'mini' is not KEY=VALUE"),
        ("plan all --config =mini", "--config: '=mini' is not KEY=VALUE"),
        ("explain ablatio --row CRATE", "unknown table 'ablatio'; did you mean 'ablation'?"),
        ("explain ablation --row decuopled", "unknown row 'decuopled'; did you mean '+ decoupled"),
        ("explain ablation --row CRATE-alpha", "may be '+ residual (CRATE-alpha)' or 'CRATE-alph"),
        (
            "explain ablation --row CRATE --column imagenet2k",
            "table ablation: unknown column 'imagenet2k'; did you mean 'imagenet21k'?",
        ),
        ("collect ablaton", "unknown table 'ablaton'; did you mean 'ablation'?"),
        ("tables figure_abltion", "did you mean 'figure_ablation'?"),
        ("models crate_alpha_base_patch33", "no model is called 'crate_alpha_base_patch33'; did"),
        ("data check imagnet1k", "unknown data set 'imagnet1k'; did you mean 'imagenet1k'?"),
        (
            "tune ablation imagenet2k --grid lr=1",
            "unknown step 'imagenet2k'; did you mean 'imagenet21k'?",
        ),
        ("tune ablation imagenet21k --grid lrr=1", "unknown key 'lrr'; did you mean 'lr'?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(crate, tmp_path, words, told):
    status, out, errors = crate(*words.split(" "))
    assert (status, out) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert told in errors
    assert not (tmp_path / "results").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("collect ablation", "imagenet21k/metrics.json is not there"),
        ("collect all", "no table is collected yet; run 'crate collect <table>' first"),
        ("tables table_ablation", "is not there; run 'crate collect ablation' first"),
        ("publish", "there are no tables under results/mini to publish"),
        ("data check imagenet1k", "ImageNet-1K is not at data/imagenet1k/train: download"),
    ],
)
def test_what_is_not_there_yet_is_one_line_and_status_1(crate, words, told):
    status, out, errors = crate(*words.split(" "))
    assert (status, out) == (1, "")
    assert errors.startswith("failed: ")
    assert errors.count("\n") == 1
    assert told in errors


@pytest.mark.parametrize("words", [[], ["paln"], ["run"], ["explain", "ablation"]])
def test_a_command_that_is_none_ends_with_status_2(folder, capsys, words):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "usage: crate" in capsys.readouterr().err


def test_every_command_has_a_file_of_its_name():
    files = {path.stem for path in (ROOT / "crate" / "cli").glob("*.py")}
    commands = cli.make_parser()._subparsers._group_actions[0].choices
    assert files - {"__init__", "common"} == set(commands)
    assert [f"crate.cli.{name}" for name in commands] == [m.__name__ for m in cli.COMMANDS]


def test_as_a_process_there_is_no_traceback(folder):
    def crate(*words):
        return subprocess.run(
            [sys.executable, "-m", "crate", *words],
            cwd=folder.parent,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = crate("plan", "table_ablatoin")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: unknown target 'table_ablatoin'; did you mean 'table_ablation'?\n"
    )
    (folder / "config.yaml").write_text("scale: [mini\n")
    done = crate("plan", "all")
    assert done.returncode == 2
    assert done.stderr.startswith("error: experiments/config.yaml: line 2: ")
    assert done.stderr.count("\n") == 1
    (folder / "config.yaml").unlink()
    folder.rename(folder.with_name("elsewhere"))
    done = crate("tables", "all")
    assert (done.returncode, done.stderr) == (
        2, "error: no folder experiments/ here; 'crate init' makes a project with one\n"
    )  # fmt: skip


def test_stopping_and_closed_pipes_are_no_errors(crate, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("crate.models.zoo.list_models", stopped)
    assert crate("models") == (130, "", "stopped\n")


# --- what is printed -----------------------------------------------------------


def test_models_by_pattern(crate):
    status, out, _ = crate("models", "crate_alpha_*_patch32")
    assert status == 0
    assert out.split() == [
        f"crate_alpha_{size}_patch32" for size in ("base", "huge", "large", "small", "tiny")
    ]
    assert "vit_base_patch16" in crate("models")[1].split()


def test_a_plan_tells_runs_and_costs(crate):
    status, out, _ = crate("plan", "table_ablation", "--config", "scale=paper", "seeds=0,1")
    assert status == 0
    lines = out.splitlines()
    row = next(line for line in lines if f"{ALPHA} seed1 imagenet21k/imagenet1k" in line)
    # parameters of B/32 with 1000 classes; 91 epochs of 312 batches of 4,096
    assert row.split()[3:5] == ["73.99", "116,584,448"]
    (total,) = (line for line in lines if line.startswith("20 runs at scale paper, a job each, "))
    assert "35% of the device's bfloat16 peak" in total
    fast = crate("plan", "table_ablation", "--device", "h100", "--config", "scale=paper")[1]
    assert "h100 hours" in fast


@pytest.fixture
def ran(plan, finish):
    """The runs of the row `+ decoupled`: seed 0 finished, seed 1 failed, seed 2 never started."""
    model = "crate_base_patch32_overcomplete_decoupled"
    for chain in (("imagenet21k",), ("imagenet21k", "imagenet1k")):
        finish(Run("mini", model, 0, chain), top1=71.25)
        folder = Run("mini", model, 1, chain).folder("results")
        write_json(folder / "run.json", {"status": "failed", "error": "the loss is nan at step 9"})


def test_explain_tells_where_a_cell_comes_from(crate, ran):
    words = ["--row", "+ decoupled", "--config", "seeds=0,1,2"]
    status, out, _ = crate("explain", "ablation", *words, "--column", "imagenet1k")
    assert status == 0
    head, *cells = out.split("\n\n")
    assert head == "Ablation of the sparse-coding block: + decoupled"
    assert [cell.splitlines()[0] for cell in cells] == [
        "ImageNet-1K top-1 · seed 0: 71.2 %",
        "ImageNet-1K top-1 · seed 1: ✗",
        "ImageNet-1K top-1 · seed 2: …",
    ]
    first, second, third = cells
    where = "results/mini/runs/crate_base_patch32_overcomplete_decoupled/seed0"
    for told in (
        "paper     75.8 (CRATE-alpha figure (68.5 + 5.3 + 2.0), mark C)",
        f"run       {where}/imagenet21k/imagenet1k\n",
        "step      imagenet21k: Fashion-MNIST, epochs ",
        "step      imagenet1k: Fashion-MNIST, epochs ",
        "model     dim 48, ",
        "residual False",
        "status    complete",
        "commit c0ffee",
        "a test's CPU",
        "training 60 s",
        f"snakemake --cores all {where}/imagenet21k/imagenet1k/metrics.json --force --config "
        "scale=mini",
    ):
        assert told in first
    assert "changed since" not in first
    assert "status    failed: the loss is nan at step 9" in second
    assert "status    not run yet" in third
    # without a column: all of the row, by a part of its label too
    everything = crate("explain", "table_ablation", "--row", "DECOUPLED")[1]
    assert everything.count("status    complete") == 2


def test_explain_tells_how_far_a_run_under_way_is(crate, ran, plan):
    run = Run("mini", "crate_base_patch32_plain", 0, ("imagenet21k",))
    folder, resolved = RunFolder(run.folder("results")), plan.resolve(run)
    record = {"config": resolved.config, "code": resolved.code, "status": "running"}
    write_json(folder.record, record)
    folder.append({"step": 1200, "epoch": 0.5, "loss": 1.25})
    words = ["explain", "ablation", "--row", "CRATE", "--column", "imagenet21k"]
    with lock(folder.lock):
        told = crate(*words)[1]
    assert "status    under way, epoch 0.50, update 1,200, loss 1.250" in told
    assert "status    killed, epoch 0.50" in crate(*words)[1]  # its process holds the lock no more


def test_explain_tells_when_a_rerun_is_due(crate, ran, folder):
    path = folder / "scales" / "mini.yaml"
    path.write_text(path.read_text() + "  imagenet1k_untrained: {lr: 0.5}\n")
    words = ["explain", "ablation", "--row", "+ decoupled", "--column", "imagenet1k"]
    assert "a rerun is due" not in crate(*words)[1]
    path.write_text(path.read_text().replace("  imagenet1k: {", "  imagenet1k: {eps: 0.5, "))
    assert "a rerun is due" in crate(*words)[1]


def test_explain_names_the_folders_of_a_rerun_where_they_are_unusual(crate):
    words = ["explain", "ablation", "--row", "CRATE", "--config", "results=my results"]
    assert crate(*words)[1].endswith("--force --config scale=mini 'results=my results'\n")


def test_a_value_of_zero_is_a_value(crate, finish):
    finish(Run("mini", "crate_base_patch32_plain", 0, ("imagenet21k",)), top1=0.0)
    out = crate("explain", "ablation", "--row", "CRATE", "--column", "imagenet21k")[1]
    assert "seed 0: 0.0 %" in out


def test_collect_tables_and_figure_of_partial_results(crate, ran):
    assert crate("tables", "table_ablation", "--partial")[0] == 0
    assert Path("results/mini/metrics/ablation.csv").is_file()
    text = Path("results/mini/tables/ablation.md").read_text()
    assert "71.2" in text
    assert "not run yet" in text
    assert not Path("results/mini/figures").exists()
    assert crate("tables", "figure_ablation")[0] == 0
    assert Path("results/mini/figures/ablation.svg").is_file()
    assert crate("collect", "all")[0] == 0
    assert Path("results/mini/metrics.csv").read_text().startswith("table,row,column,")


# --- data -----------------------------------------------------------


def test_embedded_data_is_complete(crate):
    status, out, _ = crate("data", "check", "fashion_mnist_pretrain")
    assert status == 0
    assert out == (
        "fashion_mnist_pretrain: embedded, complete "
        "(10 classes; train 45,000, validation 5,000, test 10,000)\n"
    )


@pytest.fixture
def tree(tmp_path):
    """An image folder of two classes for each part of ImageNet-1K."""
    for part in ("train", "val"):
        for name in ("n01", "n02"):
            path = tmp_path / "sets" / "imagenet1k" / part / name
            path.mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(path / "1.JPEG")
            (path / "readme.txt").touch()
    return tmp_path / "sets"


def test_a_wrong_number_of_classes_is_told(crate, tree):
    status, _, errors = crate("data", "check", "imagenet1k", "--data-root", str(tree))
    assert status == 1
    assert errors.startswith(
        f"{tree}/imagenet1k/train: has 2 class folders, ImageNet-1K has 1,000\n"
        f"{tree}/imagenet1k/train: 2 images, ImageNet-1K has 1,281,167\n"
    )
    assert "failed: ImageNet-1K is not complete: download ILSVRC2012_img_train.tar" in errors


def test_a_tree_is_counted_and_an_empty_class_told(crate, tree, monkeypatch):
    import dataclasses

    two = dataclasses.replace(DATASETS["imagenet1k"], classes=2, splits={"train": 2, "test": 2})
    monkeypatch.setitem(DATASETS, "imagenet1k", two)
    status, out, _ = crate("data", "check", "imagenet1k", "--data-root", str(tree))
    assert status == 0
    assert out.splitlines() == [
        f"{tree}/imagenet1k/{part}: 2 class folders, 2 images; no index"
        for part in ("train", "val")
    ]
    (tree / "imagenet1k/val/n02/1.JPEG").unlink()
    status, _, errors = crate("data", "check", "imagenet1k", "--data-root", str(tree))
    assert (status, errors.count("\n")) == (1, 3)
    assert "no images in 1 of its classes, first n02" in errors
    assert "val: 1 images, ImageNet-1K has 2" in errors


# --- what is imported -----------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("crate.planning.plan", "torch torchvision pandas scipy matplotlib snakemake"),
        ("crate.cli", "torch torchvision pandas scipy matplotlib snakemake yaml numpy pydantic"),
        ("crate.workflow.driver", "torch torchvision pandas scipy matplotlib"),
        ("crate.reporting.collect", "torch torchvision matplotlib"),
        ("crate.reporting.tables", "torch torchvision matplotlib"),
        ("crate.reporting.explain", "torch torchvision matplotlib"),
        ("crate.reporting.figures", "torch torchvision matplotlib"),
        ("crate.launch.run", "torch torchvision pandas"),
        ("crate.launch.wait", "torch torchvision pandas submitit"),
        ("crate.models", "torch torchvision"),
    ],
)
def test_planning_and_printing_import_no_torch(module, never):
    program = f"import sys, {module}; print(*sorted(set({never.split()}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout == "\n"


def test_a_whole_plan_and_a_whole_table_import_no_torch(folder, ran):
    program = (
        "import sys; from crate.cli import main; "
        "assert main(['plan', 'all', '--config', 'scale=paper']) == 0; "
        "assert 'pandas' not in sys.modules; "
        "assert main(['tables', 'table_ablation', '--partial']) == 0; "
        "assert main(['explain', 'ablation', '--row', '+ decoupled']) == 0; "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )


def test_models_of_ones_own_are_listed(crate):
    assert crate("models", "*_ratio2") == (0, "crate_alpha_base_patch32_ratio2\n", "")
    status, out, _ = crate("models")
    assert status == 0
    assert {ALPHA, "crate_alpha_base_patch32_ratio2"} <= set(out.splitlines())


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("mine: {base: crate_alpha_bse_patch32}", f"did you mean '{ALPHA}'?"),
        (f"mine: {{base: {ALPHA}, dept: 3}}", "unknown model setting 'dept'; did you mean 'depth'"),
        (f"mine: {{base: {ALPHA}, heads: 7}}", "line 10: mine: "),
        ("mine: {depth: 3}", "mine: the key 'base' is missing"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["models", "plan table_models"])
def test_a_mistake_in_a_model_that_nothing_uses_is_found(crate, folder, entry, told, command):
    path = folder / "models.yaml"
    path.write_text(path.read_text() + entry + "\n")
    status, out, errors = crate(*command.split())
    assert (status, out) == (2, "")
    assert errors.startswith("error: experiments/models.yaml: ")
    assert told in errors
    assert errors.count("\n") == 1


def test_tables_are_named_with_and_without_their_prefix(crate, folder):
    whole = crate("plan", "table_autoencoding", "--scale", "smoke")
    assert whole[0] == 0
    short = crate("plan", "autoencoding", "--scale", "smoke")
    assert [text.replace("table_", "") for text in short[1:]] == [
        text.replace("table_", "") for text in whole[1:]
    ]
    table = folder.parent / "results/mini/tables/ablation.md"
    table.parent.mkdir(parents=True)
    table.write_text("the table")
    assert crate("show", "ablation") == crate("show", "table_ablation")
    assert crate("show", "table_ablation")[0] == 0
    assert crate("plan", "table_table_ablation")[0] == 2


def test_a_name_that_is_like_no_other_is_told_the_nearest(crate):
    _, _, errors = crate("data", "check", "xyz")
    assert f"unknown data set 'xyz'; the nearest of {len(DATASETS)} names: " in errors
    assert sum(f" {name}" in errors.replace(",", "") for name in DATASETS) >= 3


def test_the_version_is_that_of_the_package(crate, capsys):
    with pytest.raises(SystemExit) as ended:
        crate("--version")
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (ended.value.code, capsys.readouterr().out) == (0, f"crate {stated}\n")
