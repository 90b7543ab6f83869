"""What processes of tests have imported before they are forked off: everything that a training needs."""

import bczoo
import bczoo.cli.function
import bczoo.cli.trainer

for name in bczoo.__all__:
    getattr(bczoo, name)
