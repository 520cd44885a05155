"""When a run's network grows, and how that happens between two steps (spec section 6).

After each evaluation of the growth phase: has accuracy come to a plateau? Then the candidates are
scored, one is chosen, and its programs are compiled. `growth.lead_epochs` later, in which the old
network trains on, the state is grown, and training goes on with the new programs. When a network
grows depends on steps and accuracies only, never on how long something took.
"""

import dataclasses
import logging
import time
from typing import Any

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.data import batches
from asose_jax.pipeline import compilation, evaluation, run_context
from asose_jax.pipeline.growth import scoring, transforms
from asose_jax.pipeline.growth.transforms import Growth
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.spaces import chain
from asose_jax.train import pmap, state
from asose_jax.train.phases import Phase, Span

logger = logging.getLogger('asose_jax')

_SCORES = 2  # the stream of validation batches for scores; `loop` has the streams before
# Growths that take place together name their places in the network as it stands: a new block, which
# moves others up, comes last.
_ORDER = ('auto', chain.WIDTH, chain.BRANCH, chain.DEPTH)
_NOWHERE = 'no such place'
_SCORE_IMAGES = 128  # in one of them, at most: scores are computed on one device


def plateau(
    best: float | None, waited: int, accuracy: float, threshold: float, patience: int
) -> tuple[float, int, bool]:
    """The controller of spec section 6.

    Args:
      best: accuracy that counts as the best so far; `None` before the first evaluation.
      waited: evaluations since then.
      accuracy: of this evaluation.
      threshold: what counts as better: more than `best` by so much.
      patience: so many evaluations without getting better are a plateau.

    Returns:
      `best`, `waited`, and whether this is a plateau; `waited` starts again behind one.
    """
    if best is None or accuracy > best + threshold:
        return accuracy, 0, False
    if waited + 1 >= patience:
        return best, 0, True
    return best, waited + 1, False


def decides(context: RunContext, span: Span) -> bool:
    """Whether evaluations of this phase decide on growth, so that the next step must wait."""
    return span.phase is Phase.GROWTH and bool(context.config.growth.kinds)


def consider(
    context: RunContext,
    current: RunState,
    span: Span,
    record: dict[str, Any],
    batch: dict[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Grows the network, if it is time; to be called after every evaluation.

    Args:
      context: of the run.
      current: where it is; becomes the grown network.
      span: the phase.
      record: of the evaluation, with `step` and `valid/accuracy`.
      batch: an example of a chunk to train on.

    Returns:
      The growths that took place, as in metrics and summary.
    """
    c, told = context.config.growth, current.history.growing
    if not decides(context, span):
        return []
    step, accuracy = record['step'], record['valid/accuracy']
    if told.pending is None:
        told.best, told.waited, reached = plateau(
            told.best, told.waited, accuracy, c.threshold, c.patience
        )
        epoch = span.epoch_at(step) + c.lead_epochs
        if not reached or span.epochs - epoch < c.last_epochs:
            return []
        told.pending = _decide(context, current, step, span.start + epoch * span.epoch_steps)
        prepare(context, current, batch)
    if told.pending is None or step < told.pending['step']:
        return []
    return _grow(context, current, accuracy)


def prepare(context: RunContext, current: RunState, batch: dict[str, np.ndarray]) -> None:
    """Begins to compile for the growth that was decided, if there is one."""
    pending = current.history.growing.pending
    if pending is None:
        return
    spec = current.spec
    for step in _steps(pending):
        spec = transforms.grown_spec(spec, step)
    context.measure_costs(spec)
    logger.info('compiling the grown network: %s', ', '.join(map(_in_words, _steps(pending))))

    def work():
        programs = compilation.compile_network(context, spec, Phase.GROWTH, batch)
        return programs, _fresh(context, pending['step'], _steps(pending)[-1])(spec)

    current.ahead = compilation.in_background(work)


def _steps(pending):
    """The growths that are to take place together, one after another."""
    held = pending['growth']
    return [Growth.from_json(each) for each in (held if isinstance(held, list) else [held])]


def _key(context, step):
    return jax.random.fold_in(context.key(run_context.GROWTH), step)


def _fresh(context, step, what):
    """Weights and alpha of what is new. Its residual is there already: a skip would add nothing."""
    start, key, block = context.config.growth, _key(context, step), f'block_{what.where}'

    def made(spec):
        return jax.device_get(state.init_state(context.model(spec, start), context.tx, key, block))

    return made


def _decide(context, current, step, due):
    """What will be done at step `due`; `None` if the limits allow nothing. JSON."""
    c, told, start = context.config.growth, current.history.growing, time.monotonic()
    limits = scoring.Limits(c.max_depth, c.max_channels, c.max_branches, c.max_params)
    held = current.state
    for _ in c.kinds:
        kinds = c.kinds[told.turn % len(c.kinds)]
        told.turn += 1
        chosen = _choose_together(context, current, kinds, held, step, limits)
        if chosen:
            return {
                'growth': [each.growth.to_json() for each in chosen],
                'score': [each.score for each in chosen],
                'step': due,
                'stall_seconds': time.monotonic() - start,
            }
    return None


def _choose_together(context, current, kinds, held, step, limits):
    """The best candidate of each kind in `'depth+width'`, in the order in which they are made."""
    c, chosen = context.config.growth, []
    for kind in sorted(kinds.split('+'), key=_ORDER.index):
        found, refused = scoring.possible(
            current.spec,
            held.params,
            chain.KINDS_OF_GROWTH if kind == 'auto' else (kind,),
            c.width_factor,
            dataclasses.replace(limits, params=_left(limits.params, chosen)),
        )
        best = _choose(context, current, kind, found, held, step) if found else None
        if best is None:
            logger.info('growth (%s) is not possible: %s', kind, '; '.join(refused) or _NOWHERE)
        else:
            chosen.append(best)
    return chosen


def _left(params, chosen):
    return None if params is None else params - sum(each.added for each in chosen)


def _choose(context, current, kind, found, held, step):
    c, key = context.config.growth, _key(context, step)
    if c.where == 'random':
        return found[int(jax.random.randint(key, (), 0, len(found)))]
    if c.where == 'last':
        last = {
            chain.DEPTH: len(current.spec.blocks) - 1,
            chain.WIDTH: transforms.stages(current.spec)[-1],
            chain.BRANCH: len(current.spec.blocks) - 1,
        }[kind]
        return next((each for each in found if each.growth.where == last), None)
    scored = scoring.scored(
        found, current.spec, held, score_batches(context, len(current.history.growth)), key
    )
    for each in scored:
        logger.info(
            'growth candidate: %s at %d, score %.2e, %d parameters',
            each.growth.kind,
            each.growth.where,
            each.score,
            each.added,
        )
    if kind == 'auto':
        return max(scored, key=lambda each: each.gain_per_parameter)
    return max(scored, key=lambda each: each.score)


def score_batches(context: RunContext, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Validation images, normalised, and labels for the scores of growth `number` of a run."""
    c, n = context.config, context.config.growth.score_batches
    size = min(c.batch_size, _SCORE_IMAGES)
    result = []
    for each in range(number * n, (number + 1) * n):
        chosen = batches.batch_indices(context.data.valid, c.seed, _SCORES, each, size)
        result.append(evaluation.normalized_images(context, chosen))
    return result


def _grow(context, current, accuracy):
    """Makes `current` the grown network; returns an event for each growth."""
    start, told = time.monotonic(), current.history.growing
    pending = told.pending
    step = pending['step']
    if not current.ahead.done():
        logger.info('growing: waiting for the compiler')
    programs, made = current.ahead.result()
    key, spec, grown = _key(context, step), current.spec, current.state
    sizes, between = [evaluation.count_parameters(current)], []
    for each in _steps(pending):
        fresh = (lambda _: made) if each == _steps(pending)[-1] else _fresh(context, step, each)
        spec, grown = transforms.grow(spec, grown, each, fresh=fresh, key=key)
        sizes.append(evaluation.count_parameters_in(grown.params))
        chosen = genotype.most_likely(spec, grown.arch).to_json()
        between.append({'network': spec.to_json(), 'genotype': chosen})
    before = evaluation.evaluate(context, current, context.data.valid)
    current.spec, current.state = spec, grown
    current.use(programs)
    current.ahead, told.pending = None, None
    after = evaluation.evaluate(context, current, context.data.valid)
    current.history.genotype = chosen
    change = max(
        float(np.abs(pmap.local_shards(new['logits']) - pmap.local_shards(old['logits'])).max())
        for old, new in zip(before, after, strict=True)
    )
    scores = pending['score']
    scores = scores if isinstance(scores, list) else [scores]
    events = []
    for number, each in enumerate(_steps(pending)):
        events.append(
            {
                'step': step,
                'kind': each.kind,
                'where': each.where,
                'score': scores[number],
                'params_before': sizes[number],
                'params_after': sizes[number + 1],
                'valid_accuracy_before': accuracy,
                'valid_accuracy_after': evaluation.mean_loss_and_accuracy(after)[1],
                'max_abs_logit_change': change,
                'stall_seconds': 0.0,
            }
        )
        if number < len(between) - 1:  # what the others began with
            events[-1] |= between[number]
    events[0]['stall_seconds'] = pending['stall_seconds'] + time.monotonic() - start
    current.history.growth.extend(events)
    logger.info(
        'growth: %s; %d to %d parameters, logits changed by at most %.1e, waited %.1f s',
        ', '.join(_in_words(each) for each in _steps(pending)),
        sizes[0],
        sizes[-1],
        change,
        events[0]['stall_seconds'],
    )
    return events


def _in_words(what):
    return {
        chain.DEPTH: f'a new block {what.where}',
        chain.WIDTH: f'stage {what.where} has {what.channels} channels now',
        chain.BRANCH: f'block {what.where} has a branch more',
    }[what.kind]
