"""`python -m crate` is the same as `crate`; started by a rule, it may be done by a warm process."""

import sys

from crate.workflow.client import run_warm

status = run_warm(sys.argv[1:])
if status is None:
    from crate.cli import main

    status = main()
sys.exit(status)
