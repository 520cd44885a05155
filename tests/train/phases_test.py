"""Phases, turns and tau as pure functions of the step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import networks

from asose_jax.train.phases import Phase

EPOCHS = {Phase.WARMUP: 2, Phase.SEARCH: 40, Phase.GROWTH: 3, Phase.OPTIMIZE: 1}
SCHEDULE = networks.make_schedule(EPOCHS, 10)


def test_epoch_is_one_pass_of_the_weights():
    lengths = {span.phase: (span.stop - span.start) / span.epochs for span in SCHEDULE.spans}
    assert lengths == {Phase.WARMUP: 10, Phase.SEARCH: 15, Phase.GROWTH: 15, Phase.OPTIMIZE: 10}
    assert SCHEDULE.steps == 20 + 600 + 45 + 10


def test_alpha_moves_every_third_step_of_search_and_growth_and_in_no_other():
    turns = [bool(SCHEDULE.is_alpha_turn(step)) for step in range(SCHEDULE.steps)]
    assert not any(turns[:20])
    assert turns[20:665] == [step % 3 == 0 for step in range(600)] + [
        step % 3 == 0 for step in range(45)
    ]
    assert not any(turns[665:])


@pytest.mark.parametrize('period', [2, 3, 7])
def test_updates_count_the_turns_before_a_step(period):
    schedule = networks.make_schedule(EPOCHS, 10, turn_period=period)
    turns = np.array([bool(schedule.is_alpha_turn(step)) for step in range(schedule.steps)])
    for step in range(schedule.steps + 1):
        assert schedule.alpha_updates(step) == turns[:step].sum()
        assert schedule.weight_updates(step) == (~turns[:step]).sum()


def test_weights_that_move_together_with_alpha_move_in_every_step():
    schedule = networks.make_schedule(EPOCHS, 10, turn_period=2, turns='together')
    assert schedule.steps == 10 * sum(EPOCHS.values())  # alpha needs no steps of its own
    turns = [bool(schedule.is_alpha_turn(step)) for step in range(schedule.steps)]
    assert turns[20:450] == [True, False] * 215
    assert all(schedule.is_weight_turn(step) for step in range(schedule.steps))
    assert [schedule.weight_updates(step) for step in (30, 450)] == [30, 450]
    assert schedule.alpha_updates(schedule.steps) == 215


def test_traced_and_plain_steps_read_the_same_plan():
    steps = jnp.arange(SCHEDULE.steps)
    traced = jax.vmap(
        lambda s: (SCHEDULE.is_alpha_turn(s), SCHEDULE.alpha_updates(s), SCHEDULE.tau(s))
    )(steps)
    plain = [
        (SCHEDULE.is_alpha_turn(s), SCHEDULE.alpha_updates(s), SCHEDULE.tau(s))
        for s in range(SCHEDULE.steps)
    ]
    turns, updates, taus = zip(*plain, strict=True)
    np.testing.assert_array_equal(traced[0], turns)
    np.testing.assert_array_equal(traced[1], updates)
    np.testing.assert_allclose(traced[2], taus, rtol=1e-5)  # float32 on the device


def test_tau_falls_only_after_alpha_updates_and_reaches_the_floor_with_search():
    taus = np.array([SCHEDULE.tau(step) for step in range(20, 665)])
    np.testing.assert_allclose(taus[0], 0.8, rtol=1e-6)
    for step in range(20, 664):
        if not SCHEDULE.is_alpha_turn(step):
            assert taus[step - 20 + 1] == taus[step - 20]
    assert (np.diff(taus) <= 0).all()
    assert taus.min() == 0.1
    assert taus[599] > 0.1 or SCHEDULE.alpha_updates(619) == 200
    np.testing.assert_array_equal(taus[600:], 0.1)


def test_short_search_still_reaches_the_floor():
    schedule = networks.make_schedule({**EPOCHS, Phase.SEARCH: 2}, 10)
    assert schedule.tau(schedule.spans[1].stop) == 0.1


def test_growth_without_search_spreads_the_decays_over_itself():
    schedule = networks.make_schedule({**EPOCHS, Phase.SEARCH: 0}, 10)
    start, stop = schedule.spans[1].start, schedule.spans[1].stop
    taus = np.array([schedule.tau(step) for step in range(start, stop + 1)])
    np.testing.assert_allclose(taus[0], 0.8, rtol=1e-6)
    assert taus[len(taus) // 2] > 0.2
    assert taus[-1] == 0.1


def test_slow_decays_of_a_long_run_are_the_same_on_device_and_host():
    schedule = networks.make_schedule({**EPOCHS, Phase.SEARCH: 1000}, 312, tau_rate=0.9999)
    steps = np.linspace(0, schedule.steps, 50, dtype=np.int32)
    host = [schedule.tau(int(step)) for step in steps]
    device = jax.jit(jax.vmap(schedule.tau))(steps)
    np.testing.assert_allclose(device, host, rtol=1e-3)
    assert schedule.tau(schedule.spans[1].stop) == 0.1
    assert schedule.tau(schedule.spans[1].stop - 2 * 312) > 0.1


def test_anneal_every_one_is_the_seed_to_the_letter():
    schedule = networks.make_schedule(EPOCHS, 10, anneal_every=1)
    expected = max(0.1, 0.8 * 0.98 ** schedule.alpha_updates(100))
    np.testing.assert_allclose(schedule.tau(100), expected, rtol=1e-5)


def test_phase_at_every_boundary():
    names = [SCHEDULE.span_at(step).phase for step in (0, 19, 20, 619, 620, 664, 665, 674, 675)]
    w, s, g, o = Phase
    assert names == [w, w, s, s, g, g, o, o, o]


def test_phase_without_epochs_is_left_out():
    schedule = networks.make_schedule({**EPOCHS, Phase.WARMUP: 0, Phase.GROWTH: 0}, 10)
    assert [span.phase for span in schedule.spans] == [Phase.SEARCH, Phase.OPTIMIZE]


def test_reported_tau_is_none_in_warmup_and_the_limit_in_optimize():
    assert SCHEDULE.reported_tau(0) is None
    assert SCHEDULE.reported_tau(SCHEDULE.steps) == 0.01
    assert SCHEDULE.reported_tau(20) == pytest.approx(0.8)


def test_epochs_are_numbered_from_one():
    span = SCHEDULE.spans[1]
    assert [span.epoch_at(step) for step in (20, 21, 35, 36, 620)] == [1, 1, 1, 2, 40]
    assert [span.epoch_end(step) for step in (20, 34, 35)] == [35, 35, 50]


def test_optimized_counts_the_epochs_of_optimize_that_are_done():
    last = SCHEDULE.spans[-1]
    steps = [0, last.start, last.start + last.epoch_steps, last.stop - 1, last.stop]
    expected = [0, 0, 1 / last.epochs, 1 - 1 / last.epochs, 1]
    np.testing.assert_allclose([SCHEDULE.optimized(step) for step in steps], expected)
    np.testing.assert_allclose(jax.vmap(SCHEDULE.optimized)(jnp.array(steps)), expected, rtol=1e-6)


def test_alpha_rests_in_the_frozen_epochs_and_tau_with_it():
    schedule = networks.make_schedule(EPOCHS, 10, freeze_epochs=4)
    turns = [bool(schedule.is_alpha_turn(step)) for step in range(schedule.steps)]
    first = 20 + 4 * 15
    assert not any(turns[:first])
    assert turns[first:665] == turns_of(SCHEDULE, first, 665)
    assert [schedule.alpha_updates(step) for step in (first, first + 1)] == [0, 1]
    assert schedule.weight_updates(first) == first
    assert schedule.tau(first) == 0.8
    assert schedule.tau(620) == pytest.approx(0.1, rel=0.02)


def turns_of(schedule, start, stop):
    return [bool(schedule.is_alpha_turn(step)) for step in range(start, stop)]


def test_plan_of_a_search_that_ended_early_is_that_of_fewer_epochs():
    """But for tau, which has gone its way already."""
    planned = networks.make_schedule({**EPOCHS, Phase.SEARCH: 7}, 10, freeze_epochs=4)
    ended = networks.make_schedule(EPOCHS, 10, freeze_epochs=4).with_search_until(20 + 7 * 15)
    assert ended.spans == planned.spans
    assert ended.with_search_until(20 + 7 * 15) == ended
    for count in ('alpha_updates', 'weight_updates'):
        assert getattr(ended, count)(ended.steps) == getattr(planned, count)(planned.steps)


def test_optimize_gets_the_epochs_of_a_search_that_has_settled():
    schedule = networks.make_schedule(EPOCHS, 10, freeze_epochs=4)
    ended = schedule.with_search_until(20 + 7 * 15, hands_over=True)
    before, after = ({span.phase: span for span in s.spans} for s in (schedule, ended))
    left = before[Phase.SEARCH].epochs - 7
    assert after[Phase.SEARCH].epochs == 7
    assert after[Phase.OPTIMIZE].epochs == before[Phase.OPTIMIZE].epochs + left
    assert after[Phase.OPTIMIZE].epoch_steps == before[Phase.OPTIMIZE].epoch_steps == 10
    assert ended.weight_updates(ended.steps) == schedule.weight_updates(schedule.steps)
    assert ended.with_search_until(20 + 7 * 15, hands_over=True) == ended


def test_beta_is_one_through_warmup_falls_linearly_over_search_and_stays_at_zero():
    betas = np.array([SCHEDULE.beta(step) for step in range(SCHEDULE.steps + 1)])
    np.testing.assert_array_equal(betas[:20], 1.0)
    np.testing.assert_allclose(betas[20:621], np.linspace(1, 0, 601))
    np.testing.assert_array_equal(betas[620:], 0.0)
    traced = jax.vmap(SCHEDULE.beta)(jnp.arange(SCHEDULE.steps + 1))
    np.testing.assert_allclose(traced, betas, rtol=1e-6)  # float32 on the device


def test_beta_is_zero_without_a_search():
    schedule = networks.make_schedule({**EPOCHS, Phase.SEARCH: 0}, 10)
    assert schedule.beta(0) == schedule.beta(schedule.steps) == 0
