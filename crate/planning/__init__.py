"""From experiments/ to runs, and what identifies each.

May import the recipes and costs of tasks, models, data and the ground; no torch.
"""
