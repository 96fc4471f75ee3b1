"""The equations: every operator, fast and literal, and the block made of them.

May import the ground only.
"""
