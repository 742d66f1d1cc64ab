"""The command line ``pfsr``: one group, to which every module here gives its commands.

Heavy imports wait until a command needs them, so that ``--help`` is immediate.
"""

from __future__ import annotations

import typer

from pfsr.cli import central, doctor, report, run, served, settings
from pfsr.cli.data import data_app
from pfsr.cli.deploy import deploy_app
from pfsr.cli.retired import CurrentCommands, TrainingCommand

app = typer.Typer(
    cls=CurrentCommands,
    name="pfsr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""Personalized federated sequential recommendation.

`pfsr run` trains through Flower on simulated nodes, `pfsr deploy` sets up a federation over the
network, and the other commands need no Flower.

    pfsr doctor                              check the installation
    pfsr data fetch ml-100k                  download the data
    pfsr run pfsr                            train a recipe through Flower
    pfsr run pfsr --local                    the same in one process
    pfsr report runs/pfsr-20250131-120000    the report and table of a run
    pfsr recommend --user 42 -k 10
    pfsr deploy --help                       a federation over the network
""",
)
app.command(cls=TrainingCommand)(run.run)
app.command(cls=TrainingCommand)(central.central)
app.command(cls=TrainingCommand)(central.baselines)
app.command()(served.recommend)
app.command()(served.forget)
app.command("item-map")(served.item_map)
app.command()(report.report)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
app.command()(doctor.doctor)
app.command("settings")(settings.list_settings)
