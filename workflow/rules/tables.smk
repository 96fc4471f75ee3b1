# Runs → metrics/<table>.csv → tables/<table>.{md,tex,csv} and figures/<figure>.{pdf,svg,png}.
# Only the first of the three reads runs.
import json

for table in TABLES:

    rule:
        name:
            f"collect_{table}"
        input:
            runs_of(table),
            records_of(table),
            recipe_of(table),
        output:
            collected(table),
        log:
            f"{RESULTS}/metrics/{table}.log",
        localrule: True
        params:
            table=table,
            seeds=SETTINGS.seeds,
            code=definition_identity("crate.reporting.collect:collect"),
        message:
            "metrics of table {params.table}"
        shell:
            "python -m crate collect {params.table} 2>&1 | tee {log:q}"

    rule:
        name:
            f"table_{table}"
        input:
            f"{RESULTS}/metrics/{table}.csv",
            recipe_of(table),
        output:
            multiext(f"{RESULTS}/tables/{table}", ".md", ".tex"),
            report(
                f"{RESULTS}/tables/{table}.csv",
                caption="../report/table.rst",
                category="Tables",
                labels={"table": PLAN.table(table).title},
            ),
        log:
            f"{RESULTS}/tables/{table}.log",
        localrule: True
        params:
            table=table,
            seeds=SETTINGS.seeds,
            facts=json.dumps(PLAN.caption_facts(table, SETTINGS.scale), sort_keys=True),
            code=definition_identity("crate.reporting.tables:write_table"),
            caption=caption_of(table),
        message:
            "table {params.table}"
        shell:
            "python -m crate tables table_{params.table} 2>&1 | tee {log:q}"

    rule:  # the table's name alone is a target too
        name:
            table
        input:
            f"{RESULTS}/tables/{table}.md",
        localrule: True


for figure, table in FIGURES.items():

    rule:
        name:
            f"figure_{figure}"
        input:
            collected(table),
            recipe_of(table),
        output:
            multiext(f"{RESULTS}/figures/{figure}", ".pdf", ".svg"),
            report(
                f"{RESULTS}/figures/{figure}.png",
                caption="../report/figure.rst",
                category="Figures",
                labels={"figure": PLAN.figure_title(figure)},
            ),
        log:
            f"{RESULTS}/figures/{figure}.log",
        localrule: True
        params:
            figure=figure,
            seeds=SETTINGS.seeds,
            facts=json.dumps(PLAN.caption_facts(table, SETTINGS.scale), sort_keys=True),
            code=definition_identity("crate.reporting.figures:write_figure"),
            caption=caption_of(table),
        message:
            "figure {params.figure}"
        shell:
            "python -m crate tables figure_{params.figure} 2>&1 | tee {log:q}"


rule figure_training:
    input:
        [
            f"{RESULTS}/figures/{figure}.png"
            for figure in FIGURES
            if PLAN.shows_training(figure)
        ],
    localrule: True


rule joined_metrics:
    input:
        expand(f"{RESULTS}/metrics/{{table}}.csv", table=TABLES),
    output:
        f"{RESULTS}/metrics.csv",
    log:
        f"{RESULTS}/metrics.log",
    localrule: True
    message:
        "metrics of all tables in one file"
    shell:
        "python -m crate collect all 2>&1 | tee {log:q}"


rule report:
    input:
        rules.all.input,
        [runs_of(table) + records_of(table) + [recipe_of(table)] for table in TABLES],
        f"{PACKAGE}/reporting/report.html",
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"report": "all results, with the provenance of each number"},
        ),
    log:
        f"{RESULTS}/report.log",
    localrule: True
    params:
        code=definition_identity("crate.reporting.report:write_report"),
    message:
        "report of all tables and figures"
    shell:
        "python -m crate report 2>&1 | tee {log:q}"
