"""The CRATE reproduction suite: models, recipes and tables of the white-box transformer papers.

Importing this package imports no torch; `crate.models.create_model` does when it is called.
"""

__version__ = "0.1.0"
