# Regenerates the tables of the CRATE papers. Targets: all, report, table_<name>, figure_<name>,
# figure_training (behind every table; figure_training_<table>: one), or the path of a single run.
# Settings follow the targets:
#     snakemake --cores all table_ablation --config scale=mini seeds=0,1,2
import sys

from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, workflow.basedir)  # the package beside this file, installed or not
from crate.environment import PACKAGE
from crate.workflow import driver, targets
from crate.planning.identity import definition_identity
from crate.runs import parse_path
from crate.published import record_file

PLAN, SETTINGS = driver.open_plan(workflow)
RESULTS = f"{SETTINGS.results}/{SETTINGS.scale}"


include: "workflow/rules/common.smk"


workflow.register_resource("jobs", SETTINGS.max_jobs)
workflow.register_resource("gpu", 1)


rule all:
    input:
        expand(f"{RESULTS}/tables/{{table}}.md", table=TABLES),
        expand(f"{RESULTS}/figures/{{figure}}.png", figure=FIGURES),
        f"{RESULTS}/metrics.csv",
    localrule: True


include: "workflow/rules/steps.smk"
include: "workflow/rules/tables.smk"


onstart:
    workflow.scheduler.keepgoing = True  # one failed run never sinks a sweep
    # Its limit of 100 new jobs a second has every finished job start a timer that looks at all
    # ready jobs each second from then on: a core's work after some hundred runs
    workflow.scheduler.job_rate_limiter = None
    driver.check_launcher(SETTINGS)
    driver.fresh_if_forced(workflow.dag_settings)
    driver.check_data(SETTINGS, needed_recipes(workflow.dag))
    driver.start_warm(SETTINGS)


onerror:
    driver.partial_tables(PLAN, SETTINGS)
