"""One run, in this process or as a job of a cluster.

May import planning, tasks, training and the ground.
"""
