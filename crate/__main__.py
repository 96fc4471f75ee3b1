"""`python -m crate` is the same as `crate`; started by a rule, it may be done by a warm process."""

import sys

from crate.workflow.client import run_warm

try:
    status = run_warm(sys.argv[1:])
    if status is None:
        from crate.cli import main

        status = main()
except KeyboardInterrupt:  # before the command began
    print("stopped", file=sys.stderr)
    status = 130
sys.exit(status)
