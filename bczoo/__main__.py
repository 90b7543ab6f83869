"""``python -m bczoo``: the command line."""

import sys

from bczoo.cli import main

sys.exit(main())
