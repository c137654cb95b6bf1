"""Click commands of this folder."""

import click

VERBS_BEFORE: tuple[click.Command, ...] = ()
VERBS_SERVER: tuple[click.Command, ...] = ()
