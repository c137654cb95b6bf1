"""The verbs of this folder, joined: `data`, `serve`, `demo`."""

import click

from scripts.serve_command import serve

VERBS_BEFORE: tuple[click.Command, ...] = ()
VERBS_SERVER: tuple[click.Command, ...] = (serve,)
