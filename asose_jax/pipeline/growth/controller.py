"""Decides when the network of a run grows, and grows it between two steps.

After each evaluation of the growth phase it is checked whether accuracy has reached a plateau. If
so, the possible growths are scored, one is chosen (or one of each kind that is to grow together),
and the programs of the grown network are compiled. The old network trains on for
`growth.lead_epochs`; then the state is grown, and training goes on with the new programs. When a
network grows depends on steps and accuracies only, never on how long something took
(docs/algorithm.md, "Growth").
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from asose_jax.arch import genotype
from asose_jax.costs.limit import CostLimit
from asose_jax.data import batches
from asose_jax.pipeline import compilation, evaluation, run_context
from asose_jax.pipeline.growth import scoring, transforms
from asose_jax.pipeline.growth.scoring import Candidate, Limits
from asose_jax.pipeline.growth.transforms import Fresh, Growth
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.runtime.errors import counted
from asose_jax.spaces import chain
from asose_jax.spaces.chain import ChainSpec
from asose_jax.train import pmap, state
from asose_jax.train.phases import Phase, Span
from asose_jax.train.pmap import Programs
from asose_jax.train.state import SearchState

logger = logging.getLogger('asose_jax')

# Tag of a stream of validation batches for scores; those of `training_loop` have others.
_SCORE_STREAM = 2
# Growths that take place together name their positions in the network as it is before all of them.
# A new block comes last, since it shifts the numbers of the blocks behind it.
_ORDER = ('auto', chain.WIDTH, chain.BRANCH, chain.DEPTH)
# Images in a batch for scores, at most: scores are computed on one device.
_SCORE_IMAGES = 128


def plateau(
    best: float | None, waited: int, accuracy: float, threshold: float, patience: int
) -> tuple[float, int, bool]:
    """Updates the detector of plateaus with the accuracy of an evaluation.

    Args:
      best: accuracy that counts as the best so far; `None` before the first evaluation.
      waited: evaluations since then.
      accuracy: of this evaluation.
      threshold: an accuracy is better only if it exceeds `best` by more than this.
      patience: number of evaluations in a row without a better one that make a plateau.

    Returns:
      The new `best`, the new `waited`, and whether this is a plateau; after one, `waited` is 0.
    """
    if best is None or accuracy > best + threshold:
        return accuracy, 0, False
    if waited + 1 >= patience:
        return best, 0, True
    return best, waited + 1, False


def may_grow(context: RunContext, span: Span) -> bool:
    """Returns whether evaluations of this phase decide on growth.

    If so, the next step must wait for each evaluation.
    """
    return span.phase is Phase.GROWTH and bool(context.config.growth.kinds)


def update(
    context: RunContext,
    current: RunState,
    span: Span,
    record: dict[str, Any],
    batch: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Decides on growths, and grows the network when they are due; called after every evaluation.

    Args:
      context: of the run.
      current: its state; becomes that of the grown network.
      span: the phase.
      record: metrics of the evaluation, with `step` and `valid/accuracy`.
      batch: an example of a chunk to train on.

    Returns:
      An event for each growth that took place, as in metrics and summary.
    """
    c, progress = context.config.growth, current.history.growing
    if not may_grow(context, span):
        return []
    step, accuracy = record['step'], record['valid/accuracy']
    if progress.pending is None:
        progress.best, progress.waited, reached = plateau(
            progress.best, progress.waited, accuracy, c.threshold, c.patience
        )
        epoch = span.epoch_at(step) + c.lead_epochs
        if not reached or span.epochs - epoch < c.last_epochs:
            return []
        due = span.start + epoch * span.epoch_steps
        progress.pending = _decide_growths(context, current, step, due)
        prepare(context, current, batch)
    if progress.pending is None or step < progress.pending['step']:
        return []
    return _grow(context, current, progress.pending, accuracy)


def prepare(context: RunContext, current: RunState, batch: Mapping[str, Any]) -> None:
    """Starts to compile the grown network in the background, if a growth is decided."""
    pending = current.history.growing.pending
    if pending is None:
        return
    growths = _pending_growths(pending)
    spec = cast(ChainSpec, current.spec)
    for growth in growths:
        spec = transforms.grown_spec(spec, growth)
    context.measure_costs(spec)
    logger.info('compiling the grown network: %s', ', '.join(map(_description, growths)))

    def work() -> tuple[Programs, SearchState]:
        programs = compilation.compile_network(context, spec, Phase.GROWTH, batch)
        return programs, _fresh_maker(context, pending['step'], growths[-1])(spec)

    current.ahead = compilation.in_background(work)


def _pending_growths(pending: Mapping[str, Any]) -> list[Growth]:
    """Returns the growths that are to take place together, in order."""
    return [Growth.from_json(growth) for growth in _as_list(pending['growth'])]


def _as_list(value: Any) -> list[Any]:
    """Returns `value` as a list; checkpoints of older versions have a single growth and score."""
    return value if isinstance(value, list) else [value]


def _key(context: RunContext, step: int) -> jax.Array:
    return jax.random.fold_in(context.key(run_context.GROWTH), step)


def _fresh_maker(context: RunContext, step: int, growth: Growth) -> Fresh:
    """Returns a function that makes fresh weights and alpha for what a growth adds.

    Alpha starts with the biases of `config.growth`: a block has its residual already, to which a
    skip_connect would add nothing new.

    Args:
      context: of the run.
      step: when the growth takes place; fixes the randomness.
      growth: only the block that it names is computed, all other arrays are zeros.
    """
    biases, key, block = context.config.growth, _key(context, step), f'block_{growth.where}'

    def fresh(spec: ChainSpec) -> SearchState:
        model = context.model(spec, biases)
        return jax.device_get(state.init_state(model, context.tx, key, block))

    return fresh


# --- Which growths


def _decide_growths(
    context: RunContext, current: RunState, step: int, due: int
) -> dict[str, Any] | None:
    """Chooses the growths that will take place.

    Tries the entries of `growth.kinds` in turn until one of them is possible. Returns the growths
    and their scores as JSON, with the step when they are `due`; `None` if the limits allow none.
    """
    c, progress, started = context.config.growth, current.history.growing, time.monotonic()
    limits = Limits(c.max_depth, c.max_channels, c.max_branches, c.max_params)
    search_state = current.state
    for _ in c.kinds:
        kinds = c.kinds[progress.turn % len(c.kinds)]
        progress.turn += 1
        chosen = _choose_together(context, current, kinds, search_state, step, limits)
        context.save_latencies()  # a run that is resumed decides by the same ones
        if chosen:
            return {
                'growth': [candidate.growth.to_json() for candidate in chosen],
                'score': [candidate.score for candidate in chosen],
                'step': due,
                'stall_seconds': time.monotonic() - started,
            }
    return None


def _choose_together(
    context: RunContext,
    current: RunState,
    kinds: str,
    search_state: SearchState,
    step: int,
    limits: Limits,
) -> list[Candidate]:
    """Chooses a growth of each kind in an entry such as `'depth+width'`.

    The limits hold after all of the growths. Returns those that are possible, in the order in which
    they take place.
    """
    c, chosen = context.config.growth, []
    for kind in sorted(kinds.split('+'), key=_ORDER.index):
        candidates, refused = scoring.list_candidates(
            cast(ChainSpec, current.spec),
            search_state.params,
            chain.KINDS_OF_GROWTH if kind == 'auto' else (kind,),
            c.width_factor,
            dataclasses.replace(limits, params=_remaining(limits.params, chosen)),
        )
        if context.limit is not None:
            candidates, beyond = _within_cost_limit(
                context.limit, cast(ChainSpec, current.spec), chosen, candidates
            )
            refused += beyond
        best = None
        if candidates:
            best = _choose(context, current, kind, candidates, search_state, step)
        if best is None:
            reasons = '; '.join(refused) or 'the network has no position for it'
            logger.info('growth (%s) is not possible: %s', kind, reasons)
        else:
            chosen.append(best)
    return chosen


def _within_cost_limit(
    limit: CostLimit, spec: ChainSpec, chosen: Sequence[Candidate], candidates: Sequence[Candidate]
) -> tuple[list[Candidate], list[str]]:
    """Leaves out growths after which no network could be derived within the limit on its cost.

    `chosen` take place before. Returns the candidates that are left, and for each other one a
    sentence that says why.
    """
    for candidate in chosen:
        spec = transforms.grown_spec(spec, candidate.growth)
    kept, refused = [], []
    for candidate in candidates:
        if limit.is_reachable(transforms.grown_spec(spec, candidate.growth)):
            kept.append(candidate)
        else:
            refused.append(f'with {_description(candidate.growth)}, no network would keep {limit}')
    return kept, refused


def _remaining(max_params: int | None, chosen: Sequence[Candidate]) -> int | None:
    """Returns the limit of parameters less what the chosen growths will add."""
    if max_params is None:
        return None
    return max_params - sum(candidate.added for candidate in chosen)


def _choose(
    context: RunContext,
    current: RunState,
    kind: str,
    candidates: list[Candidate],
    search_state: SearchState,
    step: int,
) -> Candidate | None:
    """Chooses one of the growths of a kind as `growth.where` says; see `_choose_together`.

    Returns:
      The growth; `None` if the limits refuse the one at the last position that `'last'` asks for.
    """
    c, key = context.config.growth, _key(context, step)
    if c.where == 'random':
        return candidates[int(jax.random.randint(key, (), 0, len(candidates)))]
    spec = cast(ChainSpec, current.spec)
    if c.where == 'last':
        last = {
            chain.DEPTH: len(spec.blocks) - 1,
            chain.WIDTH: transforms.stages(spec)[-1],
            chain.BRANCH: len(spec.blocks) - 1,
        }[kind]
        return next((candidate for candidate in candidates if candidate.growth.where == last), None)
    logger.info('growth: scoring %s for %s', counted(len(candidates), 'place'), kind)
    images = score_batches(context, len(current.history.growth))
    network = context.most_likely(spec, search_state.arch)
    scored = scoring.score_candidates(
        candidates, spec, search_state, images, key, network, context.class_weights
    )
    for candidate in scored:
        logger.info(
            'growth candidate: %s at %d, score %.2e, adds %s parameters',
            candidate.growth.kind,
            candidate.growth.where,
            candidate.score,
            f'{candidate.added:,}',
        )
    if kind == 'auto':
        return max(scored, key=lambda candidate: candidate.gain_per_parameter)
    return max(scored, key=lambda candidate: candidate.score)


def score_batches(context: RunContext, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Reads the validation images for the scores of a growth, before which `number` took place.

    Each growth has batches of its own: images `[B, H, W, C]`, normalized, float32, and labels
    `[B]`.
    """
    c, n = context.config, context.config.growth.score_batches
    size = min(c.batch_size, _SCORE_IMAGES)
    result = []
    for batch_number in range(number * n, (number + 1) * n):
        indices = batches.batch_indices(
            context.data.valid, c.seed, _SCORE_STREAM, batch_number, size
        )
        result.append(evaluation.normalized_images(context, indices))
    return result


# --- The growth itself


class _GrownNetwork(NamedTuple):
    """Holds the record of the network after one of the growths that take place together."""

    params: int
    network: dict[str, Any]  # JSON of the description
    genotype: list[list[str]]


def _grow(
    context: RunContext, current: RunState, pending: Mapping[str, Any], accuracy: float
) -> list[dict[str, Any]]:
    """Grows the network, and measures that its logits have not changed.

    Returns an event for each growth; `pending` is what `_decide_growths` has decided.
    """
    started = time.monotonic()
    ahead = current.ahead
    assert ahead is not None, '`prepare` compiles for a growth before its step'
    if not ahead.done():
        compilation.log_wait('growth')
    programs, fresh_state = ahead.result()
    params_before = evaluation.count_parameters(current)
    spec, grown, networks = _grown_state(context, current, pending, fresh_state)
    before = evaluation.evaluate(context, current, context.data.valid)
    carried = _carried(context, current, pending)
    current.spec, current.state = spec, grown
    current.use(programs)
    current.ahead, current.history.growing.pending = None, None
    after = evaluation.evaluate(context, current, context.data.valid, carried)
    current.history.genotype = networks[-1].genotype
    measured = {
        'valid_accuracy_before': accuracy,
        'valid_accuracy_after': evaluation.mean_loss_and_accuracy(after)[1],
        'max_abs_logit_change': _max_logit_change(before, after),
    }
    events = _growth_events(pending, params_before, networks, measured)
    events[0]['stall_seconds'] = pending['stall_seconds'] + time.monotonic() - started
    current.history.growth.extend(events)
    logger.info(
        'growth: %s; %s to %s parameters, logits changed by at most %.1e, waited %.1f s',
        ', '.join(map(_description, _pending_growths(pending))),
        f'{params_before:,}',
        f'{networks[-1].params:,}',
        measured['max_abs_logit_change'],
        events[0]['stall_seconds'],
    )
    return events


def _grown_state(
    context: RunContext, current: RunState, pending: Mapping[str, Any], fresh_state: SearchState
) -> tuple[ChainSpec, SearchState, list[_GrownNetwork]]:
    """Applies the pending growths one after another.

    `fresh_state` is that of the network after the last growth, see `prepare`. Returns description
    and state of the grown network, on the host, and a record of the network after each growth.
    """
    step, growths = pending['step'], _pending_growths(pending)
    key, spec, grown = _key(context, step), cast(ChainSpec, current.spec), current.state
    networks = []
    for growth in growths:
        is_last = growth == growths[-1]
        fresh = (lambda _: fresh_state) if is_last else _fresh_maker(context, step, growth)
        spec, grown = transforms.grow(spec, grown, growth, fresh=fresh, key=key)
        networks.append(
            _GrownNetwork(
                params=evaluation.count_parameters_in(grown.params),
                network=spec.to_json(),
                genotype=context.most_likely(spec, grown.arch).to_json(),
            )
        )
    return spec, grown, networks


def _carried(
    context: RunContext, current: RunState, pending: Mapping[str, Any]
) -> genotype.Genotype | None:
    """Returns the genotype of the grown network that computes what is evaluated before the growth.

    Under a limit on the cost, the grown network may have to choose others, which compute something
    else. `None` without a limit: the most likely genotype is such a one.
    """
    if context.limit is None:
        return None
    carried = context.most_likely(current.spec, current.state.arch)
    for growth in _pending_growths(pending):
        carried = transforms.carried_genotype(carried, growth)
    return carried


def _max_logit_change(
    before: Sequence[Mapping[str, jax.Array]], after: Sequence[Mapping[str, jax.Array]]
) -> float:
    """Returns the largest difference between the logits of two evaluations of the same images."""
    return max(
        float(np.abs(pmap.local_shards(new['logits']) - pmap.local_shards(old['logits'])).max())
        for old, new in zip(before, after, strict=True)
    )


def _growth_events(
    pending: Mapping[str, Any],
    params_before: int,
    networks: Sequence[_GrownNetwork],
    measured: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Describes growths that took place together, as in metrics and summary.

    `networks` has the network after each of them; accuracies and the change of logits are
    `measured` over all. All events but the last also have the network that the next one started
    from.
    """
    sizes = [params_before, *(network.params for network in networks)]
    growths, scores = _pending_growths(pending), _as_list(pending['score'])
    events = []
    for number, growth in enumerate(growths):
        event = {
            'step': pending['step'],
            'kind': growth.kind,
            'where': growth.where,
            'score': scores[number],
            'params_before': sizes[number],
            'params_after': sizes[number + 1],
            **measured,
            'stall_seconds': 0.0,
        }
        if number < len(growths) - 1:
            network = networks[number]
            event |= {'network': network.network, 'genotype': network.genotype}
        events.append(event)
    return events


def _description(growth: Growth) -> str:
    """Describes what a growth adds, for the log."""
    return {
        chain.DEPTH: f'a new block at position {growth.where}',
        chain.WIDTH: f'stage {growth.where} with {growth.channels} channels',
        chain.BRANCH: f'one more branch in block {growth.where}',
    }[growth.kind]
