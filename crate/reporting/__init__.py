"""From finished runs to tables, figures and pages.

May import planning, tasks, training, models, data and the ground.
"""
