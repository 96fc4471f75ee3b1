# One rule per kind of step; the last step of a run's chain selects the rule.

for task, steps in STEPS.items():

    rule:
        name:
            f"run_{task}"
        input:
            parent=parent_of,
        output:
            metrics=f"{RUN}/metrics.json",
        log:
            f"{RUN}/log.txt",
        wildcard_constraints:
            model="[^/]+",
            seed="[0-9]+",
            chain=rf"(.+/)?({'|'.join(steps)})(@[^/]+)?",
        threads: threads_of
        resources:
            mem_mb=lambda wildcards: 1000 * run_of(wildcards).recipe.compute.memory_gb,
            jobs=int(LAUNCHED),
            gpu=gpu_of,
        params:
            # A run is stale if this differs from what Snakemake recorded.
            identity=lambda wildcards: run_of(wildcards).identity,
        message:
            "{wildcards.model} seed{wildcards.seed} {wildcards.chain}"
        shell:
            "python -m crate run {output.metrics:q} --identity {params.identity}"
