"""The verbs of this folder, joined: `data`, `serve`, `admit`, `efficiency`, `doctor`, `demo`."""

import click

from scripts.admit_command import admit
from scripts.data_commands import data
from scripts.demo_command import demo
from scripts.doctor_command import doctor
from scripts.efficiency_command import efficiency
from scripts.serve_command import serve

VERBS_BEFORE: tuple[click.Command, ...] = (data,)
VERBS_SERVER: tuple[click.Command, ...] = (serve,)
VERBS_AFTER: tuple[click.Command, ...] = (admit, efficiency, doctor, demo)
