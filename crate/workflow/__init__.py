"""What the Snakefile calls before and around the DAG.

May import every other room but cli.
"""
