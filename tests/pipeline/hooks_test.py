"""Hooks decide what happens after an evaluation."""

import types

import pytest

from asose_jax.pipeline import hooks
from asose_jax.pipeline.growth import controller


@pytest.mark.parametrize('decides', [False, True])
def test_time_in_which_a_growth_is_decided_does_not_count_as_training(monkeypatch, decides):
    growing = types.SimpleNamespace(pending=None)
    current = types.SimpleNamespace(history=types.SimpleNamespace(growing=growing))

    def update(*_):
        growing.pending = {'step': 20} if decides else None
        return []

    monkeypatch.setattr(controller, 'update', update)
    evaluation = types.SimpleNamespace(record={}, span=None, batch=None)
    decision = hooks.GrowNetwork().on_evaluation(None, current, evaluation)
    assert decision == hooks.Decision(stalled=decides)
