"""What runs cost: counted in closed form, and measured on this machine's device.

May import planning, tasks, training, models, data and the ground.
"""
