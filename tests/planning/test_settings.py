"""Settings as people write them, in files and after --config: one reader, and errors that help."""

from pathlib import Path

import pytest

from crate.cli import main
from crate.errors import UsageError
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.planning.settings import Settings
from crate.runs import parse_path
from crate.schema import parse
from crate.sources import expand_path, merge, nested, read_words, read_yaml


def site(folder: Path, text: str) -> dict:
    """What is read of a site's file."""
    path = folder.parent / "site.yaml"
    path.write_text(text)
    return read_yaml(path)


def settings(folder: Path, *words: str, text: str = "") -> Settings:
    """config.yaml, a site's file with this text, and these words after --config."""
    content = merge(site(folder, text), read_words(words, "--config"))
    return Experiments(folder).settings(content)


def refusal(folder: Path, *words: str, text: str = "") -> str:
    with pytest.raises(UsageError) as caught:
        settings(folder, *words, text=text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


# --- names are text, as they are written


NAMES = ["0471", "1e5", "1_000", "on", "2026-01-31", "0x1F", "1:30", "4711", "true", "1.10", "+7"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "gpu_type"])
def test_a_name_that_looks_like_a_number_stays_as_written(folder, key, name):
    assert getattr(settings(folder, text=f"{key}: {name}"), key) == name
    assert getattr(settings(folder, f"{key}={name}"), key) == name
    assert getattr(settings(folder, text=f"{key}: '{name}'"), key) == name


@pytest.mark.parametrize("name", NAMES)
def test_names_in_lists_and_options_stay_as_written(folder, name):
    if name != "true":
        assert settings(folder, text=f"sbatch: {{reservation: {name}}}").sbatch == {
            "reservation": name
        }
    assert settings(folder, text=f"setup: [{name}]").setup == [name]
    assert settings(folder, f"setup=[{name}]").setup == [name]
    assert settings(folder, text=f"sbatch: {{{name}: x}}").sbatch == {name: "x"}


def test_labels_of_tables_stay_as_written(folder):
    path = folder / "tables/ablation.yaml"
    path.write_text(path.read_text().replace("label: CRATE-alpha, untrained", "label: 010"))
    assert "010" in [row.label for row in Experiments(folder).table("ablation").rows]


def test_null_is_no_name(folder):
    told = refusal(folder, text="launcher: slurm\naccount: ~")
    assert told.endswith("site.yaml: line 2: account: None should be a valid string")
    assert "results" in refusal(folder, "results=~")


# --- numbers are those of YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 10), ("0010", 10), ("+7", 7), ("12", 12)],
)
def test_digits_are_decimal_wherever_they_stand(folder, text, value):
    assert settings(folder, f"seeds={text}").seeds == [value]
    assert settings(folder, text=f"seeds: {text}").seeds == [value]
    assert settings(folder, text=f"seeds: [{text}]").seeds == [value]
    assert settings(folder, f"max_jobs={text}").max_jobs == value
    assert settings(folder, text=f"signal_seconds: {text}").signal_seconds == value


@pytest.mark.parametrize("text", ["1:30", "1_0", "0x1F", "0o17", "0b11", "1,000", "1:30:00"])
@pytest.mark.parametrize("key", ["max_jobs", "pack_hours", "signal_seconds"])
def test_what_is_no_decimal_number_is_refused(folder, key, text):
    assert f"{key}: '{text}' should be a valid" in refusal(folder, f"{key}={text}")
    assert f"line 1: {key}: '{text}' should be a valid" in refusal(folder, text=f"{key}: {text}")


@pytest.mark.parametrize("text", ["1:30", "1_0", "0x1F", "0-1:30", "1,1_0"])
def test_seeds_are_decimal_too(folder, text):
    assert "is not a seed" in refusal(folder, f"seeds={text}")
    assert "is not a seed" in refusal(folder, text=f"seeds: {text}")


@pytest.mark.parametrize("text", ["5e-2", "5.e-2", "0.05", "+.05", "50.0E-3"])
def test_a_site_and_a_command_read_the_same_number(folder, text):
    assert settings(folder, text=f"pack_hours: {text}").pack_hours == 0.05
    assert settings(folder, f"pack_hours={text}").pack_hours == 0.05


@pytest.mark.parametrize("text", ["[0, 1]", "[0,1]", "0,1", "0-1"])
def test_seeds_may_be_a_list_on_the_command_line(folder, text):
    assert settings(folder, f"seeds={text}").seeds == [0, 1]
    assert settings(folder, text=f"seeds: {text}").seeds == [0, 1]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("FALSE", False)])
def test_switches(folder, text, value):
    read = settings(folder, f"frozen={text}", text=f"memory: {text}")
    assert (read.frozen, read.memory) == (value, value)


@pytest.mark.parametrize("text", ["yes", "on", "1", "'true'", ""])
def test_switches_that_are_none(folder, text):
    assert "frozen: " in refusal(folder, f"frozen={text}")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("sbatch={a: 1", "--config: sbatch={a: 1: the value cannot be read as YAML"),
        ("seeds=[0", "--config: seeds=[0: the value cannot be read as YAML"),
        ("account='x", "--config: account='x: the value cannot be read as YAML"),
        ("seeds", "--config: 'seeds' is not KEY=VALUE"),
        ("=1", "--config: '=1' is not KEY=VALUE"),
    ],
)
def test_a_word_that_does_not_end_is_told(folder, word, told):
    assert refusal(folder, word) == told


@pytest.mark.parametrize("text", ["a: b", "@x", "%x", "a&ib", "x: [1"])
def test_a_word_with_signs_of_yaml_is_text(folder, text):
    assert settings(folder, f"constraint={text}").constraint == text


# --- numbers have bounds


@pytest.mark.parametrize(
    "text",
    [
        "pack_hours: " + "9" * 200,
        "pack_hours: " + "9" * 5000,
        "pack_hours: 1e300",
        "max_jobs: " + "9" * 200,
        "max_jobs: 0",
        "signal_seconds: 10000000",
        "poll_seconds: -1",
        "pack: 9223372036854775808",
        "seeds: 0-1000000000",
        "seeds: 0-1001",
        "seeds: [4294967296]",
        "seeds: " + "1" * 400,
        "seeds: '" + "1" * 400 + "'",
    ],
)
def test_an_absurd_number_is_one_line(folder, text):
    key, value = text.split(": ")
    if len(text) < 300 or "'" in text:
        assert f"site.yaml: line 1: {key}" in refusal(folder, text=text)
        assert f"--config: {key}" in refusal(folder, f"{key}={value}")
    else:
        assert "line 1: a number of" in refusal(folder, text=text)


@pytest.mark.parametrize("digits", [30, 400, 5000])
@pytest.mark.parametrize("key", ["dictionary_ratio", "step_size", "depth"])
def test_an_absurd_model_is_one_line(folder, key, digits):
    (folder / "models.yaml").write_text(f"m: {{base: crate_base_patch32, {key}: {'9' * digits}}}\n")
    with pytest.raises(UsageError, match=r"^[^\n]*models.yaml: line 1: [^\n]{,200}$"):
        Experiments(folder).spec("m", "paper")


# --- paths


def test_paths_are_expanded_on_entry(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SITE", "/site")
    text = "scratch: $SITE/jobs\npython: ~/env/bin/python\n"
    read = settings(folder, "results=~/res", "data_root=${SITE}/data//sets/", text=text)
    assert read.results == str(tmp_path / "home/res")
    assert read.data_root == "/site/data/sets"
    assert read.scratch == "/site/jobs"
    assert read.python == str(tmp_path / "home/env/bin/python")
    assert settings(folder, "scratch=jobs").scratch == str(tmp_path / "jobs")
    assert settings(folder, "python=python3.11").python == "python3.11"
    (folder / "config.yaml").write_text("data_root: ~/data\nresults: ./res/\n")
    read = Experiments(folder).settings()
    assert (read.data_root, read.results) == (str(tmp_path / "home/data"), "res")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("$NO_SUCH/x", "the environment variable NO_SUCH is not set"),
        ("${NO_SUCH}", "the environment variable NO_SUCH is not set"),
        ("a/$EMPTY/b", "the environment variable EMPTY is not set"),
        ("~no_such_user/x", "there is no user no_such_user"),
        ("''", "is empty; name a folder"),
        ("'  '", "is empty; name a folder"),
        ('"a\\0b"', "has a character that cannot be printed"),
        ('"a\\nb"', "has a character that cannot be printed"),
        ("x" * 256, "is longer than 255 bytes for a name"),
        ("é" * 128, "is longer than 255 bytes for a name"),
        ("x/" * 1500, "is longer than 255 bytes for a name and 2,048 for a path"),
    ],
)
@pytest.mark.parametrize("key", ["results", "data_root"])
def test_a_path_that_is_none_is_told(folder, monkeypatch, key, value, told):
    monkeypatch.delenv("NO_SUCH", raising=False)
    monkeypatch.setenv("EMPTY", "")
    message = refusal(folder, text=f"launcher: slurm\n{key}: {value}")
    assert f"site.yaml: line 2: {key}: " in message
    assert told in message
    assert f"--config: {key}: " in refusal(folder, f"{key}={value}")


def test_an_empty_word_is_told(folder):
    assert refusal(folder, "results=") == "--config: results: is empty; name a folder"


@pytest.mark.parametrize(
    "words",
    ["data check pets --data-root={}/x", "weights import {}/x --model m --out y", "bench {}/a/b"],
)
def test_paths_of_other_options_are_expanded_too(folder, capsys, monkeypatch, words):
    assert main(words.format("$NO_SUCH_ONE").split()) == 2
    told = capsys.readouterr().err
    assert "the environment variable NO_SUCH_ONE is not set" in told
    assert told.count("\n") == 1


def test_the_folder_of_data_is_expanded_behind_an_equals_sign(
    folder, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["data", "check", "imagenet1k", "--data-root=~/sets"]) == 1
    assert str(tmp_path / "home/sets/imagenet1k") in capsys.readouterr().err


def test_a_file_whose_name_looks_like_a_variable_is_taken(tmp_path, monkeypatch):
    from crate.cli.common import path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a$b.png").touch()
    assert path("a$b.png") == "a$b.png"
    with pytest.raises(UsageError, match="variable b is not set"):
        path("c$b.png")
    assert expand_path("./x/../y") == "y"


# --- errors name file, line and key


SITE = "# a site\nlauncher: slurm\n{}\nmax_hours: 3\n"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lancher: slurm", "unknown key 'lancher'; did you mean 'launcher'?"),
        ("partition: [a]", "partition: ['a'] should be a valid string"),
        ("account: {a: b}", "account: {'a': 'b'} should be a valid string"),
        ("gpu_flag: gpu", "gpu_flag: 'gpu' should be 'gpus-per-node' or 'gres'"),
        ("memory: 1", "memory: 1 should be a valid boolean"),
        ("sbatch: [a]", "sbatch: ['a'] should be a valid dictionary"),
        ("sbatch: {a: [1]}", "sbatch.a: [1] should be a valid"),
        ("setup: module load cuda", "setup: 'module load cuda' should be a valid list"),
        ("signal_seconds: 1.5", "signal_seconds: 1.5 should be a valid integer"),
        ("on_interrupt: stop", "on_interrupt: 'stop' should be 'cancel' or 'leave'"),
        ("pack: 0", "pack: 0 should be greater than 0"),
        ("seeds: x", "seeds: 'x' is not a seed"),
        ("scale: mnii", "unknown scale 'mnii'; did you mean 'mini'?"),
        ("launcher: local", "duplicate key 'launcher'; keep one"),
        ("a: [b", "did not find expected"),
        ("\tqos: x", "found a tab character that violates indentation"),
    ],
)
def test_a_mistake_in_a_sites_file_names_its_line(folder, line, told):
    message = refusal(folder, "qos=long", text=SITE.format(line))
    place = message[: message.index(": line ")]
    assert place.endswith("site.yaml")
    assert ": line 3: " in message or "[b" in line
    assert told in message


def test_the_source_that_is_wrong_is_blamed(folder):
    assert refusal(folder, "max_hours=x", text="max_hours: y").startswith(
        "--config: max_hours: 'x'"
    )
    assert "site.yaml: line 1: pack: " in refusal(folder, "max_hours=1", text="pack: x")
    (folder / "config.yaml").write_text("scale: mini\nseeds: [0, x]\n")
    assert "config.yaml: line 2: seeds.1: 'x'" in refusal(folder, "max_hours=1")


def read_all(experiments: Experiments, scale: str) -> None:
    plan = Plan(experiments)
    for name in experiments.recipes:
        experiments.recipe(name, scale)
    for name in experiments.tables:
        plan.table_runs(name, experiments.settings({"scale": scale}))


def plan_refusal(folder: Path, file: str, text: str, scale: str = "smoke") -> str:
    (folder / file).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_all(Experiments(folder), scale)
    message = str(caught.value)
    assert "\n" not in message
    return message


STEP = """# A step.
task: classification
dataset: imagenet1k
follows: [start]
epochs: 1
batch_size: 8
lr: 1.0
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("task: classification", "excends: imagenet1k", "line 2: unknown key 'excends'; did you "),
        ("task: classification", "tsak: x", "line 2: unknown key 'tsak'; did you mean 'task'?"),
        ("task: classification", "extends: imagnet1k", "line 2: unknown step 'imagnet1k'; did you"),
        ("task: classification", "extends: [a]", "line 2: extends: ['a'] should be the name"),
        ("task: classification", "extends: new", "line 2: extends: recipes extend each other"),
        ("task: classification", "", "new.yaml (scale smoke): the key 'task' is missing"),
        ("task: classification", "task: x", "line 2: unknown task 'x'"),
        ("lr: 1.0", "lr: fast", "line 7: lr: 'fast' should be a valid number"),
        ("lr: 1.0", "lr: 1.0\ncompute: {theads: 2}", "line 8: unknown key 'compute.theads'; did"),
        ("epochs: 1", "epochs: 1\nupdates: 3", "line 5: give exactly one of 'epochs' and 'upd"),
        ("follows: [start]", "follows: [strat]", "line 4: follows: unknown step 'strat'"),
        ("batch_size: 8", "", "the key 'batch_size' is missing"),
    ],
)
def test_a_mistake_in_a_step_names_its_line(folder, old, new, told):
    (folder / "scales/smoke.yaml").write_text("title: nothing\n")
    message = plan_refusal(folder, "steps/new.yaml", STEP.replace(old, new))
    assert "steps/new.yaml" in message
    assert told in message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps:\n  new:\n    lr: fast\n", "line 4: lr: 'fast' should be a valid number"),
        ("steps:\n  new: {lrr: 1}\n", "line 3: unknown key 'lrr'; did you mean 'lr'?"),
        ("defaults:\n  flip: 3\n", "line 3: flip: 3 should be a valid boolean"),
        ("defaults:\n  compute:\n    threads: x\n", "line 4: compute.threads: 'x' should be"),
        ("defaults:\n  flop: true\n", "line 3: defaults: unknown key 'flop'; did you mean 'flip"),
        ("steps:\n  nww: {}\n", "line 3: steps: unknown step 'nww'; did you mean 'new'?"),
        ("datasets:\n  imagnet1k: x\n", "line 3: datasets: unknown data set 'imagnet1k'"),
        ("models:\n  '*':\n    dim: x\n", "line 4: models: '*': dim must be an integer, got 'x'"),
        ("models:\n  '*_x':\n    dim: 3\n", "line 3: models: '*_x' matches no model"),
        ("modles: {}\n", "line 2: unknown key 'modles'; did you mean 'models'?"),
    ],
)
def test_a_mistake_in_a_scale_is_blamed_on_the_scale(folder, text, told):
    (folder / "steps/new.yaml").write_text(STEP)
    message = plan_refusal(folder, "scales/smoke.yaml", f"title: small\n{text}")
    assert "scales/smoke.yaml: " in message
    assert told in message


TABLE = """title: T
source: none
columns:
  a: {label: A, metric: top1, chain: imagenet21k}
rows:
  - label: one
    model: vit_tiny_patch16
    steps: {a: imagenet21k}
  - {label: two, model: vit_tiny_patch16}
"""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("chain: imagenet21k", "chain: ''", "line 4: columns.a.chain: '' should be steps joined"),
        ("chain: imagenet21k", "chain: a//b", "line 4: columns.a.chain: 'a//b' should be steps"),
        ("steps: {a: imagenet21k}", "chain: ''", "line 8: rows.0.chain: '' should be steps joined"),
        ("steps: {a: imagenet21k}", "steps: {a: ''}", "line 8: rows.0.steps.a: '' should be steps"),
        (
            "chain: imagenet21k",
            "chain: imagnet21k",
            "line 4: row 'two', a: unknown step 'imagnet21k'",
        ),
        ("{a: imagenet21k}", "{a: imagnet1k}", "line 8: row 'one', a: unknown step 'imagnet1k'"),
        ("{a: imagenet21k}", "{b: imagenet1k}", "line 8: row 'one': unknown column 'b'"),
        (
            "two, model: vit_tiny",
            "two, model: vti_tiny",
            "line 9: row 'two', a: unknown model 'vti",
        ),
        ("metric: top1", "metric: top_1", "line 4: row 'one', a: unknown metric 'top_1'"),
        ("label: two", "label: one", "line 9: two rows have the label 'one'; rename one"),
        ("label: two, ", "", "line 9: the key 'rows.1.label' is missing"),
        ("title: T", "titel: T", "line 1: unknown key 'titel'; did you mean 'title'?"),
    ],
)
def test_a_mistake_in_a_table_names_its_line(folder, old, new, told):
    message = plan_refusal(folder, "tables/new.yaml", TABLE.replace(old, new))
    assert "tables/new.yaml: " in message
    assert told in message


def test_words_for_parts_of_a_recipe(folder):
    changes = nested(read_words(["compute.threads=2", "compute.hours=1", "lr=1e-3"], "--set"))
    assert changes == {"compute": {"threads": 2, "hours": 1}, "lr": 1e-3}
    recipe = Experiments(folder).recipe("imagenet1k", "paper", changes)
    assert (recipe.compute.threads, recipe.compute.hours, recipe.lr) == (2, 1.0, 1e-3)
    wrong = nested(read_words(["compute.threads=x"], "--set"))
    with pytest.raises(UsageError, match=r"^--set: compute.threads: 'x' should be"):
        Experiments(folder).recipe("imagenet1k", "paper", wrong)


def test_later_words_and_files_add_to_options(folder):
    text = "sbatch: {reservation: a, exclusive: true}"
    read = settings(folder, "sbatch={reservation: b, exclusive: null}", text=text)
    assert read.sbatch == {"reservation": "b", "exclusive": None}


def test_plain_dictionaries_are_checked_too():
    with pytest.raises(UsageError, match=r"^here: max_jobs: 'x' should be a valid integer"):
        parse(Settings, {"max_jobs": "x"}, "here")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("min_lr=1", "'min_lr' 1 is above 'lr' "),
        ("lr=1e-9", "is above 'lr' 1e-09"),
        ("epochs=9223372036854775808", "epochs: 9223372036854775808 should be at most 1,000,000"),
        ("batch_size=1e9", "batch_size: 1000000000.0 should be at most 10,000,000"),
        ("image_size=99999", "image_size: 99999 should be at most 16,384"),
        ("betas=[0.9,1e20]", "betas: 1e+20 should be at most 1,000,000,000,000"),
        ("compute.threads=100000", "compute.threads: 100000 should be at most 1,024"),
        ("compute.memory_gb=1e7", "compute.memory_gb: 10000000.0 should be at most 100,000"),
        ("compute.memory_gb=0x10", "compute.memory_gb: '0x10' should be a valid integer"),
        ("compute.hours=1:30", "compute.hours: '1:30' should be a valid number"),
    ],
)
def test_a_recipe_without_sense_is_refused_by_the_plan(folder, word, told):
    words = [word] if word.startswith("min_lr") or "lr" not in word else [word, "min_lr=1e-8"]
    with pytest.raises(UsageError) as caught:
        Experiments(folder).recipe("imagenet1k", "mini", nested(read_words(words, "--set")))
    assert str(caught.value).startswith("--set: ")
    assert told in str(caught.value)


def test_digits_of_a_recipe_are_decimal(folder):
    changes = nested(read_words(["compute.memory_gb=010"], "--set"))
    assert Experiments(folder).recipe("imagenet1k", "paper", changes).compute.memory_gb == 10


@pytest.mark.parametrize("tau", ["1.01", "-2", "1e300"])
def test_a_cosine_is_at_most_1(folder, tau):
    with pytest.raises(UsageError, match=r"^--set: tau: "):
        Experiments(folder).recipe(
            "coco_maskcut_cpal", "paper", read_words([f"tau={tau}"], "--set")
        )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("metric: top1,", "metric: top1, tolerance: 1e30,", "line 4: columns.a.tolerance: 1e+30"),
        ("metric: top1,", "metric: top1, decimals: 40,", "line 4: columns.a.decimals: 40"),
        ("metric: top1,", "metric: top1, factor: 1e200,", "line 4: columns.a.factor: 1e+200"),
    ],
)
def test_a_table_without_sense_is_refused(folder, old, new, told):
    assert told in plan_refusal(folder, "tables/new.yaml", TABLE.replace(old, new))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("results/smoke/runs/m/seed{}/x".format("1" * 5000), "is not a whole number"),
        ("results/smoke/runs/m/seed٣/x", "is not a whole number"),
        ("results/smoke/runs/{}/seed0/x".format("m" * 300), "more than 255 bytes"),
        ("results/smoke/trials/{}/runs/m/seed0/x".format("é" * 130), "more than 255 bytes"),
        ("{}/smoke/runs/m/seed0/x".format("r" * 256), "more than 255 bytes"),
    ],
)
def test_a_path_of_a_run_that_no_file_system_takes(path, told):
    with pytest.raises(UsageError, match=told) as caught:
        parse_path(path)
    assert len(str(caught.value)) < 400


def test_two_slashes_are_one():
    assert parse_path("r/smoke/runs/m/seed0/a//b/metrics.json")[0].chain == ("a", "b")
    assert parse_path("r/smoke/runs/m/seed0//a/")[0].chain == ("a",)


@pytest.mark.parametrize("words", ["run {}/smoke/runs/m/seed0/x", "plan all --config results={}"])
def test_a_name_that_no_file_system_takes_is_one_line(folder, capsys, words):
    assert main(words.format("x" * 300).split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


ODD = [
    "", " ", "~", "-", "-1", "0", "010", "1e400", ".nan", "-.inf", "9" * 40, "9" * 400, "9" * 5000,
    "[", "[]", "[[[[1]]]]", "{", "{}", "{a: {b: c}}", "'", "''", '"\\0"', "é" * 200, "%", "@x",
    "&a", "*a", "!!python/name:os.system", "!x 1", "|", ">", "# c", "? a", ": ", "a: b: c", "1_0",
    "$HOME", "$NO_SUCH", "${", "${}", "~no_such", "../..", "/", "true", "null", "on", "1:30", "<<",
    "2026-01-31", "0-99999999999", "0-", "-0", "1,1", "x" * 300, "\u202e", "\x7f", "[1, {3: 4}]",
    "{<<: 1}", "{<<: {a: 1}}", "[" * 5000, "{a: " * 3000, "1" * 12 + "." + "1" * 400,
]  # fmt: skip


def test_no_odd_value_of_any_setting_is_more_than_one_line(folder):
    """Each odd value for each setting, in a file and on the command line."""
    experiments, path = Experiments(folder), folder.parent / "site.yaml"
    told = []
    for key in [*Settings.model_fields, "no_such_key", "k" * 300]:
        for value in ODD:
            path.write_text(f"# a site\n{key}: {value}\n", encoding="utf-8")
            for read, source in ((read_yaml, path), (read_words, [f"{key}={value}"])):
                try:
                    experiments.settings(read(source, *["--config"] * (read is read_words)))
                except UsageError as error:
                    told.append(str(error))
    assert len(told) > 1000
    assert all(text.startswith((str(path), "--config: ")) for text in told)
    assert not any("\n" in text for text in told)
    assert max(told, key=len)[:600] == max(told, key=len)
