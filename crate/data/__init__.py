"""Data sets: what they are, where they lie, and how they become batches.

May import the ground only.
"""
