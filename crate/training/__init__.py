"""The training loop, optimizers, trackers, and the resumable map over images.

May import data and the ground.
"""
