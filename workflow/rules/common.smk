# Paths and functions that the rules share.
RUN = f"{RESULTS}/runs/{{model}}/seed{{seed}}/{{chain}}"
LAUNCHED = SETTINGS.launcher == "slurm"
STEPS = PLAN.recipes_by_task(SETTINGS.scale)
TABLES, FIGURES = PLAN.tables, PLAN.figures()


def run_of(wildcards):
    """The run a wildcard match names, with its configuration and code."""
    run, _ = parse_path(RUN.format(**wildcards))
    return PLAN.resolve(run)


def threads_of(wildcards):
    """A run's threads on this machine: 1 for a process that only waits for a job.

    A run that needs more than the machine has, or that measures time, runs alone.
    """
    recipe = run_of(wildcards).recipe
    return 1 if LAUNCHED else workflow.cores if recipe.TIMED else recipe.compute.cores


def gpu_of(wildcards):
    """1 for a run that uses this machine's GPUs; such runs do not share them."""
    return int(not LAUNCHED and run_of(wildcards).recipe.compute.gpus > 0)


def parent_of(wildcards):
    """The result whose weights a run starts from, if any."""
    parent = run_of(wildcards).run.parent
    return [] if parent is None else f"{parent.folder(SETTINGS.results)}/metrics.json"


def runs_of(table):
    """The results of a table's runs."""
    return [
        f"{run.folder(SETTINGS.results)}/metrics.json"
        for run in PLAN.table_runs(table, SETTINGS)
    ]


def records_of(table):
    """The file of published records, if the table shows any in place of runs (`frozen=true`)."""
    content = PLAN.table(table)
    cells = PLAN.cells(content, SETTINGS.scale, SETTINGS.seeds)
    folders = (
        PLAN.published_folder(run, SETTINGS)
        for _, _, run, _ in cells
        if SETTINGS.frozen
    )
    return sorted({str(record_file(folder)) for folder in folders if folder})


def collected(table):
    """The files that `crate collect` writes for a table."""
    return targets.collected_files(table, PLAN, SETTINGS)


def recipe_of(table):
    return f"{PLAN.experiments.folder}/tables/{table}.yaml"


def caption_of(table):
    """The caption of a table and its figure in Snakemake's own report."""
    content = PLAN.table(table)
    facts = PLAN.caption_facts(table, SETTINGS.scale)
    return {
        "table": table,
        "title": content.title,
        "source": content.source,
        "note": content.note,
        "title_of_scale": facts["title"],
        "stand_ins": facts["stand_ins"],
    }


def needed_recipes(dag):
    """The recipes of all runs that will start."""
    jobs = [
        job for job in dag.needrun_jobs() if job.rule.name.removeprefix("run_") in STEPS
    ]
    return [run_of(job.wildcards).recipe for job in jobs]
