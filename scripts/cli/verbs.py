"""The verbs of this folder, joined, in the order of use."""

import click

from retinaserve.scripts.cli.admit import admit
from retinaserve.scripts.cli.bench import bench
from retinaserve.scripts.cli.data import data
from retinaserve.scripts.cli.demo import demo
from retinaserve.scripts.cli.doctor import doctor
from retinaserve.scripts.cli.drill import drill
from retinaserve.scripts.cli.evaluate import evaluate
from retinaserve.scripts.cli.infer import infer
from retinaserve.scripts.cli.models import models
from retinaserve.scripts.cli.precisions import precisions
from retinaserve.scripts.cli.predict import predict
from retinaserve.scripts.cli.sensitivity import sensitivity
from retinaserve.scripts.cli.serve import serve
from retinaserve.scripts.cli.verify import verify
from retinaserve.scripts.cli.web import web
from retinaserve.scripts.lab.capacity_command import capacity
from retinaserve.scripts.lab.compile_check_command import compile_check
from retinaserve.scripts.lab.efficiency_command import efficiency
from retinaserve.scripts.lab.model_table_command import model_table

VERBS_BEFORE: tuple[click.Command, ...] = (data,)
VERBS_SERVER: tuple[click.Command, ...] = (serve, models)
VERBS_ASK: tuple[click.Command, ...] = (infer, verify, predict, evaluate, bench, web)
VERBS_AFTER: tuple[click.Command, ...] = (
    admit,
    sensitivity,
    precisions,
    model_table,
    compile_check,
    efficiency,
    capacity,
    drill,
    doctor,
    demo,
)
