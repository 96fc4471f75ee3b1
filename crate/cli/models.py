"""`crate models`: the names of all models."""

from crate.cli.common import add_command
from crate.errors import UsageError, nearest


def add_parser(commands) -> None:
    text = "list model names, those of experiments/models.yaml last"
    parser = add_command(commands, "models", models, text, settings=False)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'crate_*_patch16'")


def models(options) -> None:
    from fnmatch import fnmatchcase

    from crate.models.zoo import list_models
    from crate.planning.loader import Experiments
    from crate.planning.plan import Plan

    own = sorted(Plan(Experiments()).experiments.models)
    names = list_models(options.pattern)
    names += [name for name in own if fnmatchcase(name, options.pattern)]
    if not names:
        hint = nearest(options.pattern, [*list_models(), *own])
        raise UsageError(f"no model is called '{options.pattern}'{hint}")
    print("\n".join(names))
