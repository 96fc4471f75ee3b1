"""The equations: every operator, in a fast and a literal form, and the block that joins them.

May import the ground only.
"""
