"""What the site is built with beside its pages; tables of ours are put in, never typed.

MkDocs calls the `on_…` functions. They copy the figures of `results/published/mini`, to which the
pages then link, turn other links that leave `docs/` into text, and replace marks in the pages:

    <!-- recipes -->        in tables/<name>.md: the steps behind the table, at paper scale and mini
    <!-- regenerated -->    in tables/<name>.md: the published table and its figure
    <!-- figure: NAME -->   a published figure
"""

import os
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package beside this folder, installed or not
from crate.data.catalogue import get_dataset  # noqa: E402
from crate.planning.loader import Experiments  # noqa: E402
from crate.planning.plan import Plan  # noqa: E402
from crate.published import published_runs  # noqa: E402
from crate.recipes import Recipe  # noqa: E402
from crate.records import canonical_json  # noqa: E402

PUBLISHED = ROOT / "results/published/mini"
PLAN = Plan(Experiments(ROOT / "experiments"))
MARK = re.compile(r"^<!-- (recipes|regenerated|figure: (\w+)) -->$", flags=re.M)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FIGURE = re.compile(r"(?<=\]\()(?:\.\./)+results/published/mini/figures/(?=\w+\.png\))")

# Keys of a recipe that say most of it, in the order they are told
TOLD = {
    "updates": "{:,} updates",
    "epochs": "{:g} epochs",
    "batch_size": "batches of {:,}",
    "optimizer": "{}",
    "lr": "rate {:g}",
    "weight_decay": "decay {:g}",
    "mask_ratio": "{:.0%} of patches hidden",
    "decoder": "{} decoder",
    "method": "{}",
    "image_size": "{} px",
    "block_size": "windows of {:,} tokens",
    "stride": "stride {}",
    "layer": "layer {}",
    "tau": "τ {:g}",
    "crf": "CRF",
    "pictures": "{:,} pictures",
    "seconds": "{:g} s",
}
NAMES = {"adamw": "AdamW", "lion": "Lion", "upernet": "UPerNet", "knn": "k-NN"}


def published_figure(name: str) -> Path | None:
    """The file of a published figure; None where it is not published."""
    path = PUBLISHED / f"figures/{name}.png"
    return path if path.is_file() else None


def on_files(files, config):
    """Add the published figures to the site, as figures/<name>."""
    for path in filter(None, map(published_figure, PLAN.figures())):
        files.append(File.generated(config, f"figures/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in the marks, and make text of the links to files that the site does not have."""
    name = Path(page.file.src_uri).stem
    up = "../" * page.file.src_uri.count("/")

    def fill(match) -> str:
        kind, figure = match[1], match[2]
        if figure:
            return image(figure, up)
        return recipes(name) if kind == "recipes" else regenerated(name, up)

    folder = Path(page.file.abs_src_path).parent

    def outside(match) -> str:
        text, target = match[1], Path(os.path.normpath(folder / match[2]))
        if target.is_relative_to(config.docs_dir):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: there is no {match[2]}")
        path = target.relative_to(ROOT).as_posix()
        return text if text.startswith("`") else f"{text} (`{path}`)"

    markdown = FIGURE.sub(f"{up}figures/", markdown)
    return MARK.sub(fill, LINK.sub(outside, markdown))


def unpublished(target: str) -> str:
    return f"*Not published yet: `snakemake --cores all {target}` makes it.*"


def image(figure: str, up: str) -> str:
    """A published figure in Markdown, a link to itself; `up` leads from the page to docs/."""
    path = published_figure(figure)
    if path is None:
        return unpublished(f"figure_{figure}")
    where = f"{up}figures/{path.name}"
    return f"[![{PLAN.figure_title(figure)} (mini scale)]({where})]({where})"


def regenerated(table: str, up: str) -> str:
    """The published table with its caption and notes, and its figure."""
    path = PUBLISHED / f"tables/{table}.md"
    if not path.is_file():
        return unpublished(f"table_{table}")
    own = PLAN.figure_of(table)
    text = path.read_text(encoding="utf-8") + (f"\n\n{image(own, up)}" if own else "")
    return f"{earlier(table)}{text}"


def earlier(table: str) -> str:
    """A warning where published runs behind a table have another recipe than today's."""
    records, settings = published_runs(PUBLISHED), PLAN.experiments.settings({"seeds": "0"})
    behind = {}
    for run in PLAN.runs(f"table_{table}", settings):
        record = records.get(run.folder("").as_posix().removeprefix("mini/"))
        if record:
            behind[run] = canonical_json(record.get("config")) == PLAN.resolve(run).config_json
    if all(behind.values()):
        return ""
    changed = list(behind.values()).count(False)
    return (
        f"**Of earlier recipes:** those of {changed} of {len(behind)} runs of a seed behind this "
        f"table have changed since it was published. `snakemake --cores all table_{table}` makes "
        "it with today's.\n\n"
    )


def recipes(table: str) -> str:
    """The steps of a table's chains, what they do at paper scale, and what mini changes of it."""
    content = PLAN.experiments.table(table)
    cells = PLAN.cells(content, "paper", [0])
    steps = dict.fromkeys(each.stage for _, _, run, _ in cells for each in run.lineage)
    lines = ["| step | at paper scale | at mini |", "|:--|:--|:--|"]
    for name in steps:
        paper, mini = (told(PLAN.experiments.recipe(name, scale)) for scale in ("paper", "mini"))
        lines.append(f"| `{name}` | {paper} | {'the same' if mini == paper else mini} |")
    return "\n".join(lines)


def told(recipe: Recipe) -> str:
    """Data and recipe of a step in a line."""
    values = recipe.model_dump()
    if recipe.AS_PUBLISHED:
        return "the published model, no data"
    parts = [get_dataset(recipe.dataset).title if recipe.READS_DATA else "no data"]
    if values.get("answer", "model") != "model":
        return f"{parts[0]}; no network: {values['answer'].replace('_', ' ')}"
    idle = 0 in (values.get("epochs"), values.get("updates"))
    training = {"updates", "epochs", "batch_size", "optimizer", "lr", "weight_decay"}
    for key, text in TOLD.items():
        value = values.get(key)
        if value is None or value is False or (idle and key in training):
            continue
        parts.append(text.format(NAMES.get(value, value)))
    line = ", ".join([*parts, "nothing is trained"] if idle else parts)
    return re.sub(r"e-0", "e-", line)
