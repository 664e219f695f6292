"""What every part's tests share: fixtures, and how Hypothesis looks for examples."""

from hypothesis import settings

pytest_plugins = ["rig.fixtures", "rig.bus"]

# A red run is the change's fault, not the dice's or the machine's; `make fuzz` throws the dice.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=2_000, deadline=None)
settings.load_profile("steady")
