"""The verbs of this folder, joined: `data`, `serve`, `demo`."""

import click

from scripts.data_commands import data
from scripts.serve_command import serve

VERBS_BEFORE: tuple[click.Command, ...] = (data,)
VERBS_SERVER: tuple[click.Command, ...] = (serve,)
