"""`python -m servicekit.cli`: the `arbor` command without its script, for the supervisor's children."""

import sys

from servicekit.cli.main import main

sys.exit(main())
