"""``python -m quantplan`` is the command line."""

import sys

from quantplan.cli import main

sys.exit(main())
