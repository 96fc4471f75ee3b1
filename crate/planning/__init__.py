"""Reads experiments/, lists the runs that a target needs, and computes their identities.

May import the recipes and costs of tasks, models, data and the ground; no torch.
"""
