"""`make model`: what was explored, and the shortest schedule that refutes each weakened variant."""

import time

from model.explore import explore
from model.variants import AS_BUILT, WEAKENED


def main() -> int:
    """0 when the protocol as built holds and nothing weaker does."""
    bad = 0
    for variant in (*AS_BUILT, *WEAKENED):
        began = time.perf_counter()
        found = explore(variant.protocol)
        spent = f"{found.states} states, {found.resting} at rest, {time.perf_counter() - began:.1f} s"
        as_expected = (found.violation is None) == (not variant.breaks)
        bad += not as_expected
        print(f"{'' if as_expected else 'UNEXPECTED: '}{variant.name}: {spent}: {found.violation or 'holds'}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
