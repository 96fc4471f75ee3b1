"""`crate launch`: one run as a job, and the preflight checks of a cluster."""

from crate.cli.common import add_command, open_plan, path
from crate.errors import RunError, UsageError


def add_parser(commands) -> None:
    text = "complete one run as a job of the cluster that slurm/site.yaml describes"
    parser = add_command(commands, "launch", launch, text, target=True)
    parser.add_argument(
        "--configfile",
        type=path,
        default="slurm/site.yaml",
        help="the site's file (default: %(default)s)",
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="submit nothing: print the script of each kind of job and check what it needs",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="with --preflight: also run one short job that describes its node",
    )


def launch(options) -> None:
    from crate.training.trackers import check_installed

    plan, settings = open_plan(options, options.configfile)
    check_installed(settings.log)
    if options.preflight:
        from crate.launch.preflight import preflight

        if not preflight(options.target, plan, settings, check_node=options.probe):
            raise RunError("a preflight check failed")
    elif "/" not in options.target:
        raise UsageError(
            f"one run is launched by its path; snakemake --profile slurm {options.target} "
            "launches all runs of a target"
        )
    elif settings.launcher == "local":
        raise UsageError(f"{options.configfile}: launcher is local; 'crate run' runs it here")
    else:
        from crate.launch import wait

        wait.launch(options.target, plan, settings)
