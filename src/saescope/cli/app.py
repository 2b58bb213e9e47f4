"""The command line: one thin file per command, nothing heavy imported before a command runs."""

from __future__ import annotations

import typer

from saescope.cli.advise_l0 import advise_l0
from saescope.cli.analyze import analyze
from saescope.cli.attribute import attribute
from saescope.cli.cache import cache
from saescope.cli.convert import convert
from saescope.cli.demo import demo
from saescope.cli.eval import evaluate
from saescope.cli.export import export
from saescope.cli.features import features
from saescope.cli.find import find
from saescope.cli.info import info
from saescope.cli.list import list_
from saescope.cli.match import match
from saescope.cli.model import model
from saescope.cli.push import push
from saescope.cli.serve import serve
from saescope.cli.show import show
from saescope.cli.steer import steer
from saescope.cli.store import store
from saescope.cli.sweep import sweep
from saescope.cli.train import train

app = typer.Typer(
    name="saescope",
    help="Sparse autoencoders: train them, measure them, see what each feature means.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(train)
app.command()(cache)
app.command(name="eval")(evaluate)
app.command()(sweep)
app.command(name="advise-l0")(advise_l0)
app.command()(match)
app.command()(analyze)
app.command()(features)
app.command()(find)
app.command()(steer)
app.command()(attribute)
app.command()(serve)
app.command()(info)
app.command()(convert)
app.command()(push)
app.add_typer(list_, name="list")
app.add_typer(show, name="show")
app.add_typer(store, name="store")
app.add_typer(export, name="export")
app.command(name="model")(model)
