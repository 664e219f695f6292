"""Fixtures that every part's tests share."""

pytest_plugins = ["rig.fixtures", "rig.bus"]
