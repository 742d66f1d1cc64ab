"""The ServerApp: how a run ends that cannot go on."""

from __future__ import annotations

import io
import logging

import pytest
from flwr.app import Context, RecordDict
from flwr.supercore import log

from pfsr_core.assembly.settings import flat_settings
from pfsr_core.settings.fields import SettingsError
from server_app.app import app
from tests.helpers.tiny import tiny_settings
from tests.integration.loopback import LoopbackGrid


@pytest.fixture
def flowers_log():
    """What Flower's logger prints; both loggers are afterwards as they were."""
    text = io.StringIO()
    flower, ours = logging.getLogger("flwr"), logging.getLogger("pfsr")
    before = [*ours.handlers], ours.level, ours.propagate, [*flower.filters]
    handler = logging.StreamHandler(text)
    flower.addHandler(handler)
    yield text
    flower.removeHandler(handler)
    ours.handlers, ours.level, ours.propagate, flower.filters = before


def end_as_flower_does(config, errors):
    """Runs the app, and logs what it raises as Flower's processes do."""
    with pytest.raises(errors) as raised:
        app(LoopbackGrid(config, []), Context(1, 1, {}, RecordDict(), config))
    log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=raised.value)


def test_a_refused_setting_ends_with_its_message_and_without_a_traceback(flowers_log, capsys):
    config = {**flat_settings(tiny_settings()), "train.batch-size": 0}
    end_as_flower_does(config, SettingsError)
    said = capsys.readouterr().out
    assert said.count("train.batch-size") == 1
    assert "ServerApp raised an exception" in flowers_log.getvalue()
    assert "Traceback" not in said + flowers_log.getvalue()


def test_a_mistake_in_the_code_keeps_its_traceback(flowers_log, monkeypatch):
    def broken(*_arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("server_app.app.run_federation", broken)
    end_as_flower_does(flat_settings(tiny_settings()), ZeroDivisionError)
    assert "Traceback" in flowers_log.getvalue()
