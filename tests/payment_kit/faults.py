"""Faults on demand: which requests go wrong, how, and how often."""

import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Action = Literal[
    "lose_reply",  # applied, then the connection breaks
    "drop",  # not applied, the connection breaks
    "error",  # not applied, answered with `status`
    "error_after",  # applied, answered with `status`
    "hang",  # not applied until `seconds` are over
    "hang_after",  # applied, answered after `seconds`
    "html",  # not applied, a page with status 200
    "redirect",  # not applied, 302
    "wrong_amount",  # applied, but the answer names another amount
]
GrantList = Literal["counted", "uncounted", "data", "bare"]
"""How grants are listed: nobody recorded which one it is."""
DuplicateForm = Literal["text", "conflict", "object", "list", "database", "same_event", "error_in_success"]


@dataclass
class Rule:
    """One fault."""

    action: Action
    path: str = "/api/meter-events"
    """Exact path."""
    method: str = "POST"
    times: int | None = None
    """How often; None = always."""
    p: float = 1.0
    status: int = 503
    retry_after: int | None = None
    seconds: float = 5.0


@dataclass
class Faults:
    """The rules in force; the first that fits is used."""

    rules: list[Rule] = field(default_factory=list)
    duplicate_form: DuplicateForm = "text"
    hits: Counter[str] = field(default_factory=Counter)
    grant_list: GrantList = "counted"
    grant_filters: bool = True
    """Whether a currency narrows the list of grants."""
    grant_page_max: int = 100

    def replace(self, rules: list[dict[str, Any]]) -> None:
        """Other rules; what was hit so far is forgotten."""
        self.rules = [Rule(**rule) for rule in rules]
        self.hits.clear()

    def pick(self, method: str, path: str) -> Rule | None:
        """The fault that befalls a request."""
        for rule in self.rules:
            if rule.method == method and rule.path == path and rule.times != 0 and random.random() < rule.p:  # noqa: S311 - no secret
                if rule.times is not None:
                    rule.times -= 1
                self.hits[rule.action] += 1
                return rule
        return None

    def listed(self, page: dict[str, Any]) -> Any:
        """A page of grants in the form in force."""
        match self.grant_list:
            case "uncounted":
                return {"list": page["list"], "paging": page["paging"]}
            case "data":
                return {"data": page["list"]}
            case "bare":
                return page["list"]
            case _:
                return page

    def told(self) -> dict[str, Any]:
        """For whoever asks over HTTP."""
        return {"rules": [asdict(rule) for rule in self.rules], "hits": dict(self.hits)}


def duplicate(form: DuplicateForm, event: dict[str, Any]) -> tuple[int, Any]:
    """An answer to an identifier that is known: nobody recorded which one the real Payment Kit gives."""
    forms: dict[DuplicateForm, tuple[int, Any]] = {
        "text": (400, {"error": f"Event with identifier {event['identifier']} already exists"}),
        "conflict": (409, {}),
        "object": (422, {"error": {"code": "duplicate", "message": "identifier must be unique"}}),
        "list": (400, {"errors": [{"path": "identifier", "message": "has been used"}]}),
        "database": (500, {"error": "SequelizeUniqueConstraintError: Validation error"}),
        "same_event": (200, event),
        "error_in_success": (200, {"error": "Duplicate identifier"}),
    }
    return forms[form]
