"""One run, in this process or as a job of a cluster.

May import tasks, planning, training, data and the ground; not reporting, workflow or cli.
"""
