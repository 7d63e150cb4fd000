"""`python -m optimc` is the console script."""

from __future__ import annotations

import sys

from optimc.cli import main

sys.exit(main())
