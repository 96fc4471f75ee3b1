"""The documentation: complete, its links whole, its commands real, nothing loaded from a network.

The site is built once, as `make docs` builds it. A slow test carries out the tutorial at smoke.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
import writers
from mkdocs.exceptions import PluginError
from suite import copy_suite, environment

from crate import cli
from crate.costs.budget import read_device
from crate.data.catalogue import get_dataset
from crate.models.zoo import list_models
from crate.planning.loader import Experiments
from crate.planning.plan import Plan
from crate.runs import parse_path
from crate.sources import merge, nested, read_words
from crate.workflow import targets

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PUBLISHED = ROOT / "results/published/mini"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# examples of contributing.md
NEW_FILES = [
    ROOT / "crate/data/readers/numbered.py",
    ROOT / "experiments/steps/imagenet1k_bright.yaml",
]
PLAN = Plan(Experiments(ROOT / "experiments"))
TABLES = PLAN.tables
SECTIONS = [
    "What the paper did", "What we do", "Differences and known conflicts", "How to run it",
    "Regenerated at mini",
]  # fmt: skip


class Html(HTMLParser):
    """What a page loads, where it links to, its anchors, and its tables' rows as text."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif tag == "link" and not {"prev", "next"} & set(attrs["rel"].split()):
            self.loads.append(attrs["href"])
        elif tag in ("script", "img", "source", "iframe", "object"):
            self.loads += [attrs[key] for key in ("src", "srcset", "data") if key in attrs]
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_data(self, data):
        if self._cell:
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(
        words,
        cwd=ROOT,
        env=environment() | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def headings(path: Path) -> list[str]:
    return re.findall(r"^## (.+)$", path.read_text(), flags=re.M)


def test_every_table_has_one_page_with_every_section():
    assert sorted(path.stem for path in DOCS.glob("tables/*.md")) == sorted(TABLES)
    nav = (ROOT / "mkdocs.yml").read_text()
    for path in PAGES:
        assert nav.count(f": {path.relative_to(DOCS).as_posix()}\n") == 1
    for table in TABLES:
        path = DOCS / f"tables/{table}.md"
        text = path.read_text()
        assert headings(path) == SECTIONS
        parts = re.split(r"^## .+$", text, flags=re.M)[1:]
        assert "<!-- recipes -->" in parts[1]
        assert "<!-- regenerated -->" in parts[4]
        assert all(len(part.split()) > 20 for part in parts)
        assert f"table_{table} " in parts[3]
        assert "--profile slurm" in parts[3]
        checked = set(re.findall(r"^crate data check (\w+) ", parts[3], flags=re.M))
        needed = PLAN.datasets(PLAN.table(table)).values()
        assert checked == set().union(*needed), table


def test_pages_show_what_is_published(site):
    """Cell by cell, from the built page; and each figure as it is published."""
    for table in TABLES:
        page = Html(site / f"tables/{table}.html")
        source = PUBLISHED / f"tables/{table}.md"
        if not source.is_file():
            assert "Not published yet" in (site / f"tables/{table}.html").read_text()
            continue
        lines = [line for line in source.read_text().splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        plain = [[cell.replace("**", "").replace("\\", "") for cell in row] for row in cells]
        assert [plain[0], *plain[2:]] == [[c.strip() for c in row] for row in page.tables[-1]]
    shown = {path.stem for path in (site / "figures").iterdir()}
    assert shown == {path.stem for path in (PUBLISHED / "figures").glob("*.png")}
    for path in (site / "figures").iterdir():
        assert path.read_bytes() == (PUBLISHED / "figures" / path.name).read_bytes()


def test_the_readme_has_the_published_table():
    lines = (PUBLISHED / "tables/ablation.md").read_text().splitlines()
    table = "\n".join(line for line in lines if line.startswith("|"))
    assert f"\n\n{table}\n\n" in (ROOT / "README.md").read_text()


def test_the_row_of_the_readme_can_be_pasted(folder):
    model, row = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "README.md").read_text().split("## Add")[1], re.S
    )[:2]
    with (folder / "models.yaml").open("a") as file:
        file.write(model)
    path = folder / "tables/ablation.yaml"
    path.write_text(path.read_text().replace("\nrows:\n", f"\nrows:\n{row}", 1))
    experiments = Experiments(folder)
    settings = experiments.settings()
    runs = Plan(experiments, settings).runs("ablation", settings)
    assert sum("ratio3" in str(run) for run in runs) == 2


def test_results_are_those_of_the_tables_that_they_name():
    parts = re.split(r"^## ", (DOCS / "results.md").read_text(), flags=re.M)[1:]
    checked = 0
    for part in parts:
        names = re.findall(r"\(tables/(\w+)\.md\)", part)
        tables = [(PUBLISHED / f"tables/{name}.md").read_text() for name in names]
        published = "\n".join(tables).replace("**", "")
        for number in re.findall(r"[+]?\d+\.\d+(?:\s±\s\d+\.\d+)?", re.sub("`.*?`", "", part)):
            assert " ".join(number.split()) in published, part
            checked += 1
    assert checked > 30
    runs = (PUBLISHED / "runs.jsonl").read_text().count("\n")
    assert f"the records of their {runs} runs" in parts[0]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path):
    """In code: `crate/models/zoo.py`, `experiments/steps/`; not those with a placeholder."""
    for name in re.findall(
        r"`((?:crate|tests|docs|experiments|workflow)/[^`\s]*)`", path.read_text()
    ):
        if not set(name) & set("<>*{…"):
            assert (ROOT / name).exists() or ROOT / name in NEW_FILES, name


def test_gallery_has_every_figure_with_a_sentence(site):
    parts = re.split(r"^## ", (DOCS / "gallery.md").read_text(), flags=re.M)[1:]
    told = {name: part for part in parts for name in re.findall(r"<!-- figure: (\w+) -->", part)}
    assert set(told) == {name for name in PLAN.figures() if not PLAN.shows_training(name)}
    for name, part in told.items():
        assert part.startswith(f"[{name}](tables/{PLAN.figures()[name]}.md)")
        assert re.search(r"\blook\b", part)
    loads = Html(site / "gallery.html").loads
    published = {path.name for path in (site / "figures").iterdir()}
    assert published == {Path(x).name for x in loads if x.startswith("figures/")}
    assert "images/report.png" in loads


def test_recipes_are_those_of_the_steps(site):
    rows = Html(site / "tables/ablation.html").tables[0]
    assert rows[0] == ["step", "at paper scale", "at mini"]
    told = {row[0]: row[1:] for row in rows}
    assert list(told)[1:] == [
        "imagenet21k", "imagenet1k", "imagenet21k_untrained", "imagenet1k_untrained",
    ]  # fmt: skip
    assert told["imagenet21k"][0] == (
        "ImageNet-21K (winter 2021, 19,167 classes), 91 epochs, batches of 4,096, AdamW, "
        "rate 0.0008, decay 0.1, 224 px"
    )
    assert told["imagenet1k"][1].startswith("Fashion-MNIST, 1.5 epochs, batches of 32")
    assert told["imagenet1k_untrained"][0] == "ImageNet-1K, 224 px, nothing is trained"


def test_what_is_not_published_is_said_to_be(hooks, monkeypatch, tmp_path):
    monkeypatch.setattr(hooks, "PUBLISHED", tmp_path)
    assert hooks.regenerated("layerwise", "../") == (
        "*Not published yet: `snakemake --cores all table_layerwise` makes it.*"
    )
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/layerwise.md").write_text("A caption.")
    assert hooks.regenerated("layerwise", "../") == (
        "A caption.\n\n*Not published yet: `snakemake --cores all figure_layerwise` makes it.*"
    )


def test_links_that_leave_the_documentation_become_text(hooks):
    page = SimpleNamespace(
        file=SimpleNamespace(src_uri="tables/x.md", abs_src_path=str(DOCS / "tables/x.md"))
    )
    config = SimpleNamespace(docs_dir=str(DOCS))
    text = "[`a`](../../Makefile) [b](../../Makefile) [c](../index.md) [d](https://a.org) [e](#f)"
    assert hooks.on_page_markdown(text, page, config, None) == (
        "`a` b (`Makefile`) [c](../index.md) [d](https://a.org) [e](#f)"
    )
    with pytest.raises(PluginError, match=r"tables/x\.md: there is no \.\./\.\./Makefle"):
        hooks.on_page_markdown("[a](../../Makefle)", page, config, None)


# --- links ----------------------------------------------------------------------------------------


def test_the_site_loads_nothing_from_elsewhere_and_its_links_lead_somewhere(site):
    pages = {path: Html(path) for path in site.rglob("*.html")}
    assert len(pages) == len(PAGES) + 1  # and 404.html
    for path, page in pages.items():
        for address in [*page.loads, *page.links]:
            parts = urlsplit(address)
            if address in page.links and (parts.scheme or parts.netloc):
                assert parts.scheme == "https", f"{path.name}: {address}"
                assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), address
                continue
            assert not parts.scheme + parts.netloc, f"{path.name} loads {address}"
            start = site if parts.path.startswith("/") else path.parent  # 404.html: from the root
            target = path if not parts.path else start / unquote(parts.path).lstrip("/")
            target = Path(os.path.normpath(target))
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: {address}"
            if parts.fragment and target in pages and target.name != "404.html":
                found = pages[target].anchors
                assert unquote(parts.fragment) in found, f"{path.relative_to(site)}: {address}"
    for style in site.rglob("*.css"):
        for address in re.findall(r"url\(([^)]+)\)|@import ([^;]+)", style.read_text()):
            assert not re.match(r"[\"']?(https?:)?//", "".join(address)), f"{style.name}: {address}"


def test_pages_fit_a_phone_and_ask_no_network(site, page):
    page.resize(390, 844)
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":
            continue  # its addresses begin at a server's root
        page.open(path)
        width = page.run("document.documentElement.scrollWidth")
        assert width == 390, f"{path.relative_to(site)} is {width} px wide"
    assert page.errors == []
    assert all(request.startswith(("file:", "data:")) for request in page.requests)


# --- commands -------------------------------------------------------------------------------------


def commands(path: Path) -> list[list[str]]:
    """The `snakemake` and `crate` commands of a page's code, less those left open (…, FILE)."""
    text = path.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\w*[^\n]*\n(.*?)^```$", text, flags=re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    prose = re.sub(r"^\| `crate \w+` \|", "", prose, flags=re.M)  # a table and a step, of `tune`
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^ {4,}(.+)$", prose, flags=re.M)
    lines += re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)
    lines = [line for line in lines if re.match(r"(snakemake|crate) ", line)]
    found = [shlex.split(line.replace("\n", " "), comments=True) for line in lines]
    return [x for x in found if not any(re.search("[…<{]|^[A-Z]+$", word) for word in x)]


def check_command(words: list[str], plan: Plan) -> None:
    """Fails where a command names an option, target, table, step, … that there is not."""
    if words[0] == "snakemake":
        from snakemake.cli import get_argument_parser

        options = get_argument_parser().parse_args(words[1:])
        pairs = read_words(options.config or [], "--config")
        settings = plan.experiments.settings(pairs)
        assert options.cores or options.dryrun or options.profile, "snakemake would ask for --cores"
        assert all((ROOT / name / "config.yaml").is_file() for name in options.profile or [])
        for target in options.targets:
            targets.check_target(target, plan, settings)
        return
    parser = cli.make_parser()
    rest = [word for word in words[1:] if word != "--help"]
    while rest and parser._subparsers and rest[0] in parser._subparsers._group_actions[0].choices:
        parser, rest = parser._subparsers._group_actions[0].choices[rest[0]], rest[1:]
    if not rest:
        return  # a command, named
    options = vars(cli.make_parser().parse_args(words[1:]))
    pairs = read_words(options.get("config") or [], "--config")
    scale = {"scale": options["scale"]} if options.get("scale") else {}
    settings = plan.experiments.settings(merge(pairs, scale))
    plan.experiments.scale(settings.scale)
    for key in ("target", "path", "run", "weights"):
        target = options.get(key)
        if key == "weights" and "/runs/" not in str(target):
            continue  # a file
        if target and "/" in target:
            plan.resolve(parse_path(target)[0])
        elif target:
            plan.target_tables(target)  # with or without table_
    table = options.get("table")
    if table:
        content = plan.table(table)
        assert options.get("row") in [None, *(row.label for row in content.rows)]
        assert options.get("column") in [None, *content.columns]
    if options.get("step"):
        grid = dict(pair.split("=", 1) for pair in options["grid"])
        first = [f"{key}={values.split(',')[0]}" for key, values in grid.items()]
        changes = nested(read_words(first, "--grid"))
        plan.experiments.recipe(options["step"], settings.scale, changes)
        assert options["step"] in {
            s.stage for r in plan.table_runs(table, settings) for s in r.lineage
        }
    if options.get("name"):
        get_dataset(options["name"])
    if options.get("pattern"):
        assert list_models(options["pattern"])
    if options.get("model"):
        plan.experiments.spec(options["model"], None)
    if options.get("device"):
        read_device(options["device"], settings.results)


def edit(page: Path, folder: Path) -> None:
    """Make a page's edits in a copy of the suite: blocks that have a file as title.

    Lines of `hl_lines` are new, among lines that the file has; without, the block is appended, or
    is a new file.
    """
    found = re.findall(
        r'^```(?:yaml|python) title="([^"]+)"([^\n]*)\n(.*?)^```$', page.read_text(), re.M | re.S
    )
    assert found
    for name, rest, block in found:
        path = folder / name
        marked = re.search(r'hl_lines="([\d ]+)"', rest)
        if not marked:
            before = path.read_text() + "\n" if path.exists() else ""
            path.write_text(before + block)
            continue
        new = {int(number) for number in marked[1].split()}
        lines = block.splitlines(keepends=True)
        old = "".join(line for place, line in enumerate(lines, 1) if place not in new)
        assert path.read_text().count(old) == 1, f"{name} no longer has\n{old}"
        path.write_text(path.read_text().replace(old, block))


def test_commands_name_what_exists(folder):
    writers.leaves(Path("pictures"))  # of own_data.md
    writers.cells(Path("pictures"))
    plan = Plan(Experiments(folder))
    found = 0
    for path in [*PAGES, ROOT / "README.md"]:
        if path.name in ("tutorial.md", "own_data.md", "own_code.md"):
            edit(path, folder.parent)
            plan = Plan(Experiments(folder))
        for words in commands(path):
            try:
                check_command(words, plan)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{path.name}: {shlex.join(words)}: {error}")
            found += 1
    assert found > 130


@pytest.mark.parametrize(
    "command",
    [
        "snakemake --cores all table_ablations",
        "snakemake table_ablation",
        "snakemake --cores all table_ablation --config sale=mini",
        "snakemake --cores all table_ablation --no-such-option",
        "crate data check imagenet",
        "crate explain ablation --row CRAT",
        "crate tune ablation imagenet1k --grid lt=1e-3",
        "crate tune ablation cifar10 --grid lr=1e-3",
        "crate plan table_ablation --scale big",
        "crate inspect results/mini/runs/crate_alpha_base_patch8/seed0/imagenet21 photo.jpg",
        "crate predict mine.pth photo.jpg --model crate_alpha_bas_patch8",
        "crate plan table_ablation --device abacus",
        "crate plane all",
    ],
)
def test_wrong_commands_are_found(plan, command):
    with pytest.raises((Exception, SystemExit)):
        check_command(shlex.split(command), plan)


# --- the tutorial ---------------------------------------------------------------------------------


def at_smoke(line: str) -> list[str]:
    words = shlex.split(line.replace("results/mini", "results/smoke"))
    if words[0] in ("snakemake", "crate") and "--scale" not in words:
        words += ["--config", "scale=smoke"]
    if words[0] == "crate":
        words = [sys.executable, "-m", *words]
    return words


@pytest.mark.slow
def test_the_tutorial_can_be_carried_out(tmp_path):
    page = DOCS / "tutorial.md"
    suite = copy_suite(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    name = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a", "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@a"}  # fmt: skip

    def run(words: list[str]) -> str:
        done = subprocess.run(
            words, cwd=suite, env=environment() | name | {"PATH": path}, capture_output=True,
            text=True, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    run(["git", "init", "--quiet"])
    run(["git", "add", "experiments"])
    run(["git", "commit", "--quiet", "--message", "as it was"])

    table = suite / "results/smoke/tables/ablation.md"
    edited, seen = False, {}
    blocks = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    for kind, block in blocks:
        if kind == "yaml" and not edited:
            edit(page, suite)
            edited = True
        for line in re.findall(r"^\$ (.+)$", block, flags=re.M) if kind == "console" else ():
            output = run(at_smoke(line))
            seen.setdefault(line, []).append((output, table.read_text()))

    label = "overcomplete ×2"
    (_, before), (_, after), (_, undone) = seen["snakemake --cores all table_ablation"]
    assert label not in before
    row = re.search(rf"^\| {label} +\| +([\d.*]+) \| +([\d.*]+) \| +n/a \|$", after, flags=re.M)
    assert row, after
    assert undone == before

    dry = seen["snakemake -n table_ablation"][0][0]
    assert re.search(r"^run_classification +2$", dry, flags=re.M), dry
    told = {line.split()[1]: outputs[0][0] for line, outputs in seen.items() if "crate" in line[:5]}
    assert f"{row[2].strip('*')} %" in told["explain"]
    assert "dictionary_ratio 2" in told["explain"]
    assert "mean of 5 runs" in told["tune"]
    assert label in told["show"]
    assert not (suite / "results/smoke/runs/crate_base_patch32_ratio2").exists()
    shutil.rmtree(suite / ".git")
