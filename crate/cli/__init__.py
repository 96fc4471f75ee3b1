"""`crate …`: what the workflow calls, and what a person asks.

Exit status: 0 done, 1 a run failed, 2 the request made no sense (one line says what to do).
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from crate.errors import RunError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.command(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `crate models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crate", description="Regenerate the tables of the CRATE papers."
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    def command(name: str, function, text: str, *, target: bool = False, settings: bool = True):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        if target:
            sub.add_argument("target", help="all, table_<name>, figure_<name> or a run's path")
        if settings:
            sub.add_argument(
                "--config",
                nargs="+",
                default=[],
                metavar="KEY=VALUE",
                help="as Snakemake's: scale=mini seeds=0,1 data_root=… results=…",
            )
        return sub

    sub = command("run", _run, "bring one run to its end (its parent must be finished)")
    sub.add_argument("path", help="results/<scale>/runs/<model>/seed<k>/<step>/…")
    sub.add_argument("--identity", help="refuse to run if this is not the run's identity")
    sub.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change the recipe (only under results/<scale>/trials/<name>/runs/…)",
    )
    sub.add_argument("--fresh", action="store_true", help="train again even if it is finished")

    sub = command(
        "launch", _launch, "a run as a job of the cluster of slurm/site.yaml", target=True
    )
    sub.add_argument("--configfile", default="slurm/site.yaml", help="facts of the site")
    sub.add_argument(
        "--preflight",
        action="store_true",
        help="submit nothing: print the job script of each kind of job, check what they need",
    )
    sub.add_argument(
        "--probe", action="store_true", help="with --preflight: one short job that looks around"
    )
    command("jobs", _jobs, "the jobs under way: state, node, elapsed time, progress, restarts")
    command("cancel", _cancel, "cancel the jobs of a run, a table, or all", target=True)

    sub = command("plan", _plan, "what a target would run, and what it costs", target=True)
    sub.add_argument("--scale", help="as --config scale=…")
    sub.add_argument(
        "--device", default="a100", help="a100, h100, …, or a name or file that 'crate bench' left"
    )
    sub.add_argument("--watts", type=_positive, help="power of a device, for the energy")
    sub.add_argument("--runs", action="store_true", help="list the runs of several tables too")

    sub = command(
        "bench", _bench, "measure the speed of a target's runs here, for 'plan'", target=True
    )
    sub.add_argument("--scale", help="as --config scale=…")
    sub.add_argument(
        "--seconds", type=_positive, default=2.0, help="of each measurement, about (default: 2)"
    )
    sub.add_argument("--again", action="store_true", help="measure what is measured already too")

    sub = command("explain", _explain, "the runs, configurations and commits behind a cell")
    sub.add_argument("table")
    sub.add_argument("--row", required=True)
    sub.add_argument("--column")

    sub = command("collect", _collect, "read a table's runs into metrics/<table>.csv")
    sub.add_argument("table", help="a table's name; all joins what is collected into metrics.csv")

    sub = command("tables", _tables, "write tables (and figures) from their metrics", target=True)
    sub.add_argument(
        "--partial", action="store_true", help="collect first, with failed and missing runs marked"
    )
    sub = command("show", _show, "print a table, where its files are, and what to do next")
    sub.add_argument("table")

    sub = command("report", _report, "one HTML page of all tables, figures and what is behind them")
    sub.add_argument("--published", action="store_true", help="that of results/published instead")

    sub = command("publish", _publish, "copy results with their provenance to results/published")

    sub = command("tune", _tune, "try recipes on held-out images, all models alike")
    sub.add_argument("table", help="the models tried are this table's")
    sub.add_argument("step", help="the step whose recipe is changed")
    sub.add_argument("--grid", nargs="+", required=True, metavar="KEY=V1,V2,…")
    sub.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trials at once")

    sub = command("models", _models, "list model names", settings=False)
    sub.add_argument("pattern", nargs="?", default="*")

    sub = command(
        "segment", _segment, "find the objects of pictures of your own (MaskCut)", settings=False
    )
    sub.add_argument("images", nargs="+", metavar="image", help="files of any format and size")
    sub.add_argument("--model", required=True, help="of 'crate models' or models.yaml")
    sub.add_argument("--out", required=True, help="a folder for overlays and objects.json")
    sub.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="of a finished run, or an official checkpoint",
    )
    sub.add_argument("--protocol", default="coco_maskcut_cpal", help="a step of objects")
    sub.add_argument("--scale", help="of the weights' run (default: sizes as published)")
    sub.add_argument("--image-size", type=int, help="side the network sees, in pixels")
    sub.add_argument("--layer", type=int, help="block whose features are used, from 0")
    sub.add_argument("--feature", choices=("key", "query", "value", "tokens"))
    sub.add_argument("--tau", type=float, help="cosine above which patches are alike")
    sub.add_argument("--masks", type=int, help="at most so many of a picture")
    sub.add_argument("--crf", action=argparse.BooleanOptionalAction, help="sharpen masks")

    text = "attention, sparse codes and tokens of a run's model on pictures of your own, by layer"
    sub = command("inspect", _inspect, text, settings=False)
    sub.add_argument("run", help="a finished run: results/<scale>/runs/<model>/seed<k>/<step>/…")
    sub.add_argument("images", nargs="+", metavar="image", help="files of any format and size")
    sub.add_argument("--out", default="inspected", help="a folder (default: inspected)")
    sub.add_argument("--image-size", type=int, help="side the network sees (default: the run's)")

    sub = command(
        "sample", _sample, "let a language model write, from a prompt of your own", settings=False
    )
    sub.add_argument("--run", help="a finished run: results/<scale>/runs/<model>/seed<k>/<step>/…")
    sub.add_argument(
        "--weights",
        metavar="FILE",
        help="in place of a run: an official checkpoint, such as GPT-2's",
    )
    sub.add_argument("--model", help="of 'crate models' or models.yaml, with --weights")
    sub.add_argument("--scale", help="of the weights' run (default: sizes as published)")
    sub.add_argument("--prompt", default="", help="how the text begins (default: as any document)")
    sub.add_argument("--tokens", type=int, default=200, help="at most so many more (default: 200)")
    sub.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest (default: 0.8)"
    )
    sub.add_argument("--top-k", type=int, metavar="K", help="of the K likeliest tokens only")
    sub.add_argument("--seed", type=int, default=0)

    data = commands.add_parser("data", help="look at data sets, prepare them").add_subparsers(
        metavar="command", required=True
    )
    check = data.add_parser("check", help="say what of a data set is there and what is missing")
    check.add_argument("name")
    check.add_argument("--data-root", default=None)
    check.set_defaults(command=_data_check)
    prepare = data.add_parser("prepare", help="download or unpack a data set, and index it")
    prepare.add_argument("name")
    prepare.add_argument("--data-root", default=None)
    prepare.set_defaults(command=_data_prepare)

    weights = commands.add_parser(
        "weights", help="official checkpoints in, finished runs out"
    ).add_subparsers(metavar="command", required=True)
    text = "the official checkpoints that are known, and which of them are here"
    listed = weights.add_parser("list", help=text, description=text)
    listed.add_argument("--data-root", default=None)
    listed.set_defaults(command=_weights_list)
    text = "an official checkpoint (.pth, .npz, …) as weights of ours"
    taken = weights.add_parser("import", help=text, description=text)
    taken.add_argument("file")
    taken.add_argument("--model", required=True, help="of 'crate models' or models.yaml")
    taken.add_argument("--out", required=True, help="a .safetensors file to write")
    taken.set_defaults(command=_weights_import)
    text = "the weights of a finished run, for others"
    given = weights.add_parser("export", help=text, description=text)
    given.add_argument("path", help="results/<scale>/runs/<model>/seed<k>/<step>/…")
    given.add_argument("--to", required=True, help="safetensors, onnx or torch-official")
    given.add_argument("--out", required=True, help="the file to write")
    given.set_defaults(command=_weights_export)
    return parser


# --- commands: each imports what it needs -----------------------------------------------------


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive number")
    return value


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{option}: '{word}' is not KEY=VALUE")
        pairs[key] = value
    return pairs


def _open(options, site: dict | None = None):
    """The plan and the settings: the command's own over the workflow's, a site's, config.yaml."""
    from crate.planning.loader import Experiments
    from crate.planning.plan import Plan
    from crate.planning.settings import SETTINGS_VARIABLE
    from crate.schema import read_value

    experiments = Experiments()
    try:
        handed_down = dict(json.loads(os.environ.get(SETTINGS_VARIABLE, "{}")))
    except ValueError:
        raise UsageError(
            f"the environment variable {SETTINGS_VARIABLE} is no JSON object"
        ) from None
    own = {key: read_value(text) for key, text in _pairs(options.config, "--config").items()}
    scale = getattr(options, "scale", None)
    if scale is not None and own.setdefault("scale", scale) != scale:
        raise UsageError(f"--scale {scale} and --config scale={own['scale']} exclude each other")
    settings = experiments.settings((site or {}) | handed_down | own)
    return Plan(experiments), settings


def _run(options) -> None:
    from crate.environment import mismatch
    from crate.launch.run import perform, prepare
    from crate.reporting.tuning import nested
    from crate.training.trackers import check_installed

    warning = mismatch()
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    plan, settings = _open(options)
    check_installed(settings.log)
    overrides = nested(_pairs(options.overrides, "--set"))
    fresh = options.fresh or bool(os.environ.get("CRATE_FRESH"))
    if settings.launcher == "local":
        prepared = prepare(options.path, plan, expected=options.identity, overrides=overrides)
        perform(prepared, settings, fresh=fresh)
    else:
        from crate.launch.job import launch

        launch(options.path, plan, settings, options.identity, overrides, fresh)


def _launch(options) -> None:
    from pathlib import Path

    from crate.launch.job import launch
    from crate.schema import read_yaml
    from crate.training.trackers import check_installed

    plan, settings = _open(options, read_yaml(Path(options.configfile)))
    check_installed(settings.log)
    if options.preflight:
        from crate.launch.jobs import preflight

        if not preflight(options.target, plan, settings, submit_probe=options.probe):
            raise RunError("not everything is there")
    elif "/" not in options.target:
        raise UsageError(
            f"one run is launched by its path; snakemake --profile slurm {options.target} "
            "launches all runs of a target"
        )
    elif settings.launcher == "local":
        raise UsageError(f"{options.configfile}: launcher is local; 'crate run' runs it here")
    else:
        launch(options.target, plan, settings)


def _jobs(options) -> None:
    from crate.launch.jobs import list_jobs

    print(list_jobs(_open(options)[1]))


def _cancel(options) -> None:
    from crate.launch.jobs import cancel_jobs

    plan, settings = _open(options)
    print("\n".join(cancel_jobs(options.target, plan, settings)))


def _plan(options) -> None:
    from crate.costs.budget import describe, read_device

    plan, settings = _open(options)
    device = read_device(options.device, settings.results, options.watts)
    print(describe(plan, options.target, settings, device, each_run=options.runs))


def _bench(options) -> None:
    plan, settings = _open(options)
    plan.runs(options.target, settings)  # a mistake is told before torch is imported
    from crate.costs.bench import bench

    bench(plan, options.target, settings, seconds=options.seconds, again=options.again)


def _explain(options) -> None:
    from crate.reporting.explain import explain

    plan, settings = _open(options)
    print(
        explain(options.table.removeprefix("table_"), options.row, options.column, plan, settings)
    )


def _collect(options) -> None:
    from crate.reporting.collect import collect, write_joined_metrics

    plan, settings = _open(options)
    if options.table == "all":
        write_joined_metrics(plan, settings.results, settings.scale)
    else:
        collect(options.table, plan, settings)


def _tables(options) -> None:
    from crate.reporting.collect import collect
    from crate.reporting.tables import write_table

    plan, settings = _open(options)
    for name in plan.target_tables(options.target):
        if options.partial:
            collect(name, plan, settings, partial=True)
        if options.partial or not options.target.startswith("figure_"):
            write_table(name, plan, settings)
    for figure in plan.target_figures(options.target):
        from crate.reporting.charts import write_figure

        write_figure(figure, plan, settings)


def _show(options) -> None:
    from pathlib import Path

    plan, settings = _open(options)
    plan.experiments.table(options.table)
    path = Path(settings.results) / settings.scale / "tables" / f"{options.table}.md"
    if not path.is_file():
        raise UsageError(f"{path} is not there; run 'snakemake --cores all table_{options.table}'")
    print(path.read_text(encoding="utf-8"))
    print(f"files:  {path.with_suffix('')}.md .tex .csv")
    drawn = path.parents[1] / "figures" / (plan.figure_of(options.table) or options.table)
    if drawn.with_suffix(".png").is_file():
        print(f"figure: {drawn}.pdf .svg .png")
    print(f"next:   snakemake --cores all table_{options.table} --config seeds=0,1,2")


def _report(options) -> None:
    from crate.reporting.report import write_report

    print(write_report(*_open(options), published=options.published))


def _publish(options) -> None:
    from crate.reporting.publish import publish

    plan, settings = _open(options)
    for path in publish(plan, settings):
        print(path)


def _tune(options) -> None:
    from crate.reporting.tuning import tune

    plan, settings = _open(options)
    grid = {key: value.split(",") for key, value in _pairs(options.grid, "--grid").items()}
    tune(options.table, options.step, grid, plan, settings, jobs=options.jobs)


def _models(options) -> None:
    from crate.errors import nearest
    from crate.models import list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(
            f"no model is called '{options.pattern}'{nearest(options.pattern, list_models())}"
        )
    print("\n".join(names))


def _segment(options) -> None:
    from pathlib import Path

    from crate.explore.segment import Request, segment

    keys = ("image_size", "layer", "feature", "tau", "masks", "crf")
    asked = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    request = Request(
        images=options.images,
        model=options.model,
        out=Path(options.out),
        weights=Path(options.weights),
        protocol=options.protocol,
        scale=options.scale,
        changes=asked,
    )
    segment(request)


def _inspect(options) -> None:
    from pathlib import Path

    from crate.explore.inspect import Request, inspect

    inspect(Request(options.run, options.images, Path(options.out), options.image_size))


def _sample(options) -> None:
    from pathlib import Path

    from crate.explore.sample import Request, sample

    sample(
        Request(
            run=options.run,
            model=options.model,
            weights=options.weights and Path(options.weights),
            prompt=options.prompt,
            tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
            scale=options.scale,
        )
    )


def _data_check(options) -> None:
    from crate.data.check import check
    from crate.data.datasets import advice

    dataset, data_root = _data_set(options)
    there, wrong = check(dataset, data_root)
    print("\n".join(there), end="\n" if there else "")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        raise RunError(f"{dataset.title} is not whole: {advice(dataset, data_root)}")


def _data_prepare(options) -> None:
    from crate.data.prepare import prepare

    print("\n".join(prepare(*_data_set(options))))


def _data_set(options) -> tuple:
    """The named set and the folder of all sets, the option's or config.yaml's."""
    from crate.data.catalogue import get_dataset
    from crate.planning.loader import Experiments

    dataset = get_dataset(options.name)
    return dataset, options.data_root or Experiments().settings().data_root


def _weights_list(options) -> None:
    from tabulate import tabulate

    from crate.checkpoints.convert import manifest, place, presence
    from crate.environment import EXPERIMENTS
    from crate.planning.loader import Experiments

    data_root = options.data_root or Experiments().settings().data_root
    entries = manifest(EXPERIMENTS)
    rows = [
        [
            name,
            entry.model or "none of ours",
            f"{entry.classes:,}" if entry.classes else "",
            f"{entry.bytes:,}" if entry.bytes else "unknown",
            entry.sha256 or "unknown",
            entry.status,
            presence(place(name, data_root), entry),
        ]
        for name, entry in entries.items()
    ]
    headers = ["file", "model", "classes", "bytes", "sha256", "status", "here"]
    sides = ("left", "left", "right", "right", "left", "left", "left")
    print(tabulate(rows, headers, disable_numparse=True, colalign=sides))
    print()
    for name, entry in entries.items():
        print(f"{name}: {entry.source}{'; ' if entry.note else ''}{entry.note}")
    print(f"\nlooked for in {place('', data_root)}/; nothing is downloaded for you")


def _weights_import(options) -> None:
    from pathlib import Path

    from crate.checkpoints.convert import verify_listed
    from crate.environment import EXPERIMENTS
    from crate.planning.loader import Experiments
    from crate.planning.plan import Plan

    path, out = Path(options.file), Path(options.out)
    spec = Plan(Experiments()).spec(options.model, None)
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: should end in .safetensors")
    verify_listed(path, options.model, EXPERIMENTS)
    from crate.checkpoints.export import import_official

    print(import_official(path, options.model, spec, out))


def _weights_export(options) -> None:
    from pathlib import Path

    from crate.checkpoints.export import export_run

    print(export_run(options.path, options.to, Path(options.out)))
