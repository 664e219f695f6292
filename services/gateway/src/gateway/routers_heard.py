"""Which routers are alive, as a gateway hears it from themselves."""

from typing import Final

ROUTER_SILENT_S: Final = 4.0
"""A router beats once a second while it has calls of ours; after this silence it is gone."""
_MANY: Final = 64
"""More have been started again and again: the oldest is forgotten."""


class RoutersHeard(dict[str, float]):
    """Monotonic time of each router's last word."""

    def is_silent(self, router: str, now: float, *, connected: bool) -> bool:
        """Whether a router has said nothing for too long; without a bus nobody can be heard."""
        if not connected:
            self.clear()  # our own silence, not the routers'
        return now - self.setdefault(router, now) > ROUTER_SILENT_S

    def beat(self, router: str, now: float) -> None:
        """A router asks whether we live, and lives itself."""
        self[router] = now
        if len(self) > _MANY:
            del self[min(self, key=lambda router: self[router])]
