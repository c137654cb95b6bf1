"""The next useful command, which every verb names last.

    name_next(f"retinaserve serve {repository}")        # "next: retinaserve serve repository" on stderr

Inside a command that runs others, such as `demo`, nothing is said: only the outer one knows what is left to do.
"""

import click

__all__ = ["INNER", "name_next"]

INNER = "a step of another command"  # as the `obj` of a click context


def name_next(command: str, *, where: str = "") -> None:
    """Name the next command on stderr; `where` says on which machine, if not on this one."""
    context = click.get_current_context(silent=True)
    if context and context.find_root().obj == INNER:
        return
    click.secho(f"next, {where}: {command}" if where else f"next: {command}", dim=True, err=True)
