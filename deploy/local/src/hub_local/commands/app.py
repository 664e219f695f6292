"""The command line, as a table: names and where each command lives."""

from cyclopts import App

app = App(name="hub", help="AIGNE Hub: run it, look into it, give it keys, credits and prices.")
app.command("hub_local.commands.up:up", name="up")
