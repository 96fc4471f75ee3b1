"""From finished runs to metrics, tables, figures, the report and results/published.

May import planning, tasks, models, data and the ground (with crate.published); no torch.
"""
