"""Official checkpoints: which are known, how they are read, and their weights as ours and back.

May import models, layers and the ground.
"""
