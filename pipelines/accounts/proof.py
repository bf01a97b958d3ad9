"""The outcome of verify: one table for people, one JSON document for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.accounts.summary import printable, without_secrets
from pipelines.sink.audit_files import Check


def proved(checks: Sequence[Check]) -> bool:
    """Whether nothing was found."""
    return not any(check.found for check in checks)


def show(sink_uri: str, checks: Sequence[Check], console: Console | None = None) -> None:
    """Print the table: what was checked, how many, the verdict; below it what was found, the first few by name."""
    out = console or Console(highlight=False)
    table = Table(title=Text(f"verify {printable(sink_uri)}"), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("check", style="cyan", no_wrap=True)
    table.add_column("how many", justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for check in checks:
        verdict = Text(f"{check.found:,} wrong: ", style="red") if check.found else Text("ok: ", style="green")
        table.add_row(
            check.name, f"{check.checked:,} {check.of}", verdict.append(check.claim, style="not bold default")
        )
        more = [f"and {check.found - len(check.findings):,} more"] if check.found > len(check.findings) else []
        for told in (*check.findings, *more):
            table.add_row("", "", Text(f"- {printable(told)}", style="red"))
        for note in check.notes:
            table.add_row("", "", Text(f"- {printable(note)}", style="yellow"))
    out.print(table)
    wrong = sum(check.found for check in checks)
    end = Text("proved", style="bold green") if not wrong else Text(f"not proved: {wrong:,} findings", style="bold red")
    out.print(end.append(f"  (exit {int(bool(wrong))})", style="not bold default"))


def document(sink_uri: str, checks: Sequence[Check]) -> str:
    """The same on one line of JSON."""
    found = {"verify": sink_uri, "proved": proved(checks), "checks": [asdict(check) for check in checks]}
    return json.dumps(without_secrets(found))
