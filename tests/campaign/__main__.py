"""`make campaign`, or `python -m campaign` with `tests` on the path."""

from campaign.main import main

raise SystemExit(main())
