"""`python -m bench`, with `tests/` on the path: what `make bench` runs."""

import sys

from bench.main import main

sys.exit(main())
