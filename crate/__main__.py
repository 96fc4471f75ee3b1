"""`python -m crate` is the same as `crate`."""

import sys

from crate.cli import main

sys.exit(main())
