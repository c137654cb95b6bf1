"""The verbs of this folder, joined, in the order of use."""

import click

from scripts.admit_command import admit
from scripts.compile_check_command import compile_check
from scripts.data_commands import data
from scripts.demo_command import demo
from scripts.doctor_command import doctor
from scripts.drill_command import drill
from scripts.efficiency_command import efficiency
from scripts.model_table_command import model_table
from scripts.models_command import models
from scripts.precisions_command import precisions
from scripts.sensitivity_command import sensitivity
from scripts.serve_command import serve

VERBS_BEFORE: tuple[click.Command, ...] = (data,)
VERBS_SERVER: tuple[click.Command, ...] = (serve, models)
VERBS_AFTER: tuple[click.Command, ...] = (
    admit,
    sensitivity,
    precisions,
    model_table,
    compile_check,
    efficiency,
    drill,
    doctor,
    demo,
)
