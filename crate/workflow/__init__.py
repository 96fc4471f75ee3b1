"""What the Snakefile does before and around the DAG: checks, the driver's lock, clearing.

May import every other room but cli.
"""
