"""A trained model on a person's own pictures and texts.

May import reporting, planning, tasks and what those may import.
"""
