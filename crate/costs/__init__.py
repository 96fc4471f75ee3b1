"""What runs cost, counted, and measured on the device at hand.

May import planning, tasks, training, models, data and the ground.
"""
