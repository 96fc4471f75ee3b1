"""`crate models`: the names of all models."""

from crate.cli.common import add_command
from crate.errors import UsageError, nearest


def add_parser(commands) -> None:
    parser = add_command(commands, "models", models, "list model names", settings=False)
    parser.add_argument("pattern", nargs="?", default="*", help="such as 'crate_*_patch16'")


def models(options) -> None:
    from crate.models.zoo import list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(
            f"no model is called '{options.pattern}'{nearest(options.pattern, list_models())}"
        )
    print("\n".join(names))
