"""Click commands of this folder."""

import click

VERBS: tuple[click.Command, ...] = ()
