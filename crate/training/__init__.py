"""The training loop, and what any training needs.

May import data and the ground.
"""
