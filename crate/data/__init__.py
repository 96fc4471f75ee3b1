"""Data sets: what they are, where they lie, and how they become batches.

May import the ground only. `readers` has one module for each form of real data on disk.
"""
