"""The command line, as a table: names and where each command lives. A module is imported when its command is called."""

from typing import Final

from cyclopts import App

_COMMANDS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "": {
        "up": ("up:up", "Run NATS, PostgreSQL and all services here until Ctrl-C."),
        "status": ("status:status", "Show processes, addresses, queue lag and versions."),
        "chat": ("chat:chat", "Ask a model and print its answer as it comes."),
        "reconcile": ("reconcile:reconcile", "Compare the books with each other, the bus, closed days or a bill."),
        "recompute": ("reconcile:recompute", "Price the calls of a period again, as a dry run or as adjustments."),
        "migrate": ("maintenance:migrate", "Apply the migrations of all services."),
        "provision": ("maintenance:provision", "Make streams, consumers and buckets."),
    },
    "calls": {
        "list": ("calls:list_calls", "List calls, newest first."),
        "show": ("calls:show", "Show all that is known of one call."),
    },
    "usage": {"tail": ("usage:tail", "Print a line for each usage event, until Ctrl-C.")},
    "keys": {
        "create": ("keys:create", "Make an access key and show it, this once."),
        "list": ("keys:list_keys", "List access keys, newest first, without their text."),
        "revoke": ("keys:revoke", "Revoke a key on every gateway, within a second."),
    },
    "credits": {
        "grant": ("credits:grant", "Give credits to an account."),
        "list": ("credits:list_accounts", "List accounts and what they have."),
        "balance": ("credits:balance", "Show what an account has; without one, what each has."),
        "adjust": ("credits:adjust", "Give credits or, below 0, take them."),
        "refund": ("credits:refund", "Give a charge back, or take unused credits of a grant back."),
        "convert": ("credit_conversion:convert", "Convert balances and rates into another unit of credits."),
        "expire": ("credits:expire", "End a grant now."),
        "grants": ("credit_history:grants", "List an account's grants and what is left of each."),
        "transactions": (
            "credit_history:transactions",
            "List charges and what was given or taken, with the balance after.",
        ),
        "statement": ("credit_history:statement", "Show an account's month."),
    },
    "payments": {
        "status": ("payments:status", "Show how reporting to Payment Kit goes, and what is parked."),
        "pause": ("payments:pause", "Send no more meter events; they are kept."),
        "resume": ("payments:resume", "Go on sending meter events."),
        "units": ("grant_conversion:units", "Show the meters of both units, and what is left in the older one."),
        "retry": ("payments:retry", "Try parked meter events again, as they are; without names, all."),
    },
    "rates": {
        "set": ("rates:set_rates", "Set credits per unit for models that match a pattern."),
        "list": ("rates:list_rates", "List the rates in force, the most specific first."),
        "history": ("rates:history", "Show rate versions: who changed what, when and why."),
        "deprecate": ("rates:deprecate", "Take models out of lists and service, or put them back."),
        "remove": ("rates:remove", "Take a pattern's rates away; their history stays."),
        "import": ("rates_review:import_rates", "Take unit costs from the price package over into the rates."),
        "margin": ("rates_review:margin", "Compute all imported rates again with another margin."),
        "check": ("rates_review:check", "Compare rates with what vendors take now."),
        "proposals": ("rates_review:proposals", "List rate changes that wait for approval."),
        "approve": ("rates_review:approve", "Approve a proposed rate change."),
        "refuse": ("rates_review:refuse", "Refuse a proposed rate change."),
    },
}
_HELP: Final = {
    "calls": "What became of calls.",
    "usage": "Usage events, as other systems get them.",
    "keys": "Access keys.",
    "credits": "What accounts have and may spend.",
    "payments": "Reports of usage to Payment Kit.",
    "rates": "What models cost.",
}


def application() -> App:
    """The `hub` command."""
    app = App(name="hub", help="AIGNE Hub: run it, look into it, give it keys, credits and prices.")
    for group, commands in _COMMANDS.items():
        target = app
        if group:
            target = App(name=group, help=_HELP[group])
            app.command(target)
        for name, (where, text) in commands.items():
            target.command(f"hub_local.commands.{where}", name=name, help=text)
    return app


def completed(arguments: list[str]) -> list[str]:
    """`hub calls` means `hub calls list`; so do keys, credits and rates."""
    group, rest = arguments[:1], arguments[1:]
    names_one = bool(rest) and (not rest[0].startswith("-") or rest[0] in {"-h", "--help"})
    if group and "list" in _COMMANDS.get(group[0], {}) and not names_one:
        return [*group, "list", *rest]
    return arguments
