"""The server side of Flower: a run from the settings that ``flwr run`` gives."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.errors import DataError
from pfsr_core.settings.fields import SettingsError
from server_app.checkpoints import CheckpointError
from server_app.roster import FederationError
from server_app.run import print_results, run_federation
from server_app.run_log import configure_logging, logger
from server_app.strategy import RoundsAbandonedError

EXPLAINED = (SettingsError, DataError, FederationError, RoundsAbandonedError, CheckpointError)
"""Errors whose text says where and what to do: a traceback would only hide it."""

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the federation. An explained error is logged in one message and ends the run as failed.

    Flower calls a run failed when its ServerApp raises, and logs what was raised.
    """
    configure_logging()
    logging.getLogger("flwr").addFilter(without_traceback)
    try:
        print_results(run_federation(grid, parse_settings(context.run_config)))
    except EXPLAINED as error:
        logger.error(f"the run cannot go on: {error}")
        raise


def without_traceback(record: logging.LogRecord) -> bool:
    """A filter of Flower's log that takes the traceback off explained errors; passes every line."""
    if record.exc_info and isinstance(record.exc_info[1], EXPLAINED):
        record.exc_info = None
    return True
