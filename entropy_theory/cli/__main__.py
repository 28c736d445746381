"""`python -m entropy_theory.cli` is `entropy-theory`."""

import sys

from entropy_theory.cli import main

sys.exit(main())
