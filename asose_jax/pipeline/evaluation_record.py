"""Builds the line of metrics.jsonl that an evaluation becomes, and raises its alarms."""

import logging
from typing import Any

import jax

from asose_jax.arch import genotype
from asose_jax.arch.estimators import ESTIMATORS
from asose_jax.costs import flops
from asose_jax.metrics import arch_analysis
from asose_jax.pipeline import evaluation
from asose_jax.pipeline.run_context import RunContext, RunState
from asose_jax.runtime.errors import UserError
from asose_jax.train import pmap
from asose_jax.train.phases import Phase, Span

logger = logging.getLogger('asose_jax')


def training_metrics(context: RunContext, step: int, metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics of training since the last evaluation, from those of `steps.train_steps`.

    Raises:
      UserError: more than `guard.max_consecutive` steps in a row had a gradient that is not finite.
    """
    limit, phase = context.config.guard.max_consecutive, context.schedule.span_at(step - 1).phase
    if pmap.fetch_replicated(metrics['longest_streak']) > limit:
        last = context.checkpoints.latest()
        good = 'there is no checkpoint yet'
        if last is not None:
            good = f'the last good checkpoint is {context.checkpoints.directory / str(last)}'
        raise UserError(
            f'{phase}: before step {step}, more than {limit} steps '
            f'in a row (guard.max_consecutive) had a gradient that is not finite; {good}. '
            "Look at the data, lower weights.lr, or use model.dtype='float32'."
        )
    totals = jax.tree.map(lambda total: total.item(), pmap.fetch_replicated(metrics['totals']))
    tempered = ESTIMATORS[context.config.search.estimator].tempered
    shows_tau = tempered or not phase.searches
    return {
        'step': step,
        'train/loss': totals.loss / max(1, totals.weight_steps),
        'train/accuracy': totals.correct / max(1, totals.images),
        'arch/loss': totals.arch_loss / totals.arch_steps if totals.arch_steps else None,
        'tau': context.schedule.reported_tau(step - 1) if shows_tau else None,
        'guard/arch': totals.guarded_rows,
        'guard/grad': totals.skipped_steps,
    }


def build(
    context: RunContext,
    current: RunState,
    span: Span,
    figures: dict[str, Any],
    metrics: dict[str, Any],
    sums: list[dict[str, jax.Array]],
) -> dict[str, Any]:
    """Builds the record of an evaluation, and logs its alarms.

    Args:
      context: of the run.
      current: state of the run; its history takes up the genotype, accuracies and FLOPs.
      span: the phase.
      figures: see `training_metrics`.
      metrics: what the training call before the evaluation returned.
      sums: what the evaluation returned, see `evaluation.evaluate`; waits for it.

    Returns:
      The line of metrics.jsonl, without what hooks add.
    """
    # With data.valid_fraction=0, nothing was evaluated.
    loss, accuracy = evaluation.mean_loss_and_accuracy(sums) if sums else (None, None)
    arch, totals, candidate_factors = pmap.fetch_replicated(
        [metrics[key] for key in ('arch', 'totals', 'factors')]
    )
    temperature = _sampling_temperature(context, current, span, figures['tau'])
    _count_training_flops(context, current, span, arch, totals, temperature)
    chosen = context.most_likely(current.spec, arch)
    analysis = arch_analysis.analyze_architecture(
        arch, current.spec, current.history.genotype, temperature, chosen
    )
    current.history.genotype = analysis['genotype']
    is_first = span.epoch_at(figures['step']) == 1
    if is_first:
        current.row['valid_accuracy_first'] = accuracy
    current.row['valid_accuracy_last'] = accuracy
    alarms = _fall_alarm(context, current) if is_first else []
    alarms += _collapse_alarm(context, span, analysis)
    for alarm in alarms:
        logger.warning('%s (epoch %d of %s)', alarm, span.epoch_at(figures['step']), span.phase)
    return {
        **figures,
        'epoch': span.epoch_at(figures['step']),
        'phase': span.phase,
        'valid/loss': loss,
        'valid/accuracy': accuracy,
        **analysis,
        **_expected_cost(context, current, arch),
        **_limit_share(context, current, chosen),
        'params': evaluation.count_parameters(current),
        'train_flops': current.history.train_flops,
        'alarms': alarms,
        'factors': arch_analysis.rounded_factors(candidate_factors),
        **({'network': current.spec.to_json()} if is_first else {}),
    }


def _sampling_temperature(
    context: RunContext, current: RunState, span: Span, tau: float | None
) -> float | None:
    """Returns the t of softmax(alpha / t), which draws follow; `None` where nothing is drawn."""
    if not span.phase.searches:
        return None
    settings = context.model(current.spec).settings
    return ESTIMATORS[settings.estimator].sampling_temperature(tau, settings.noise)


def _count_training_flops(
    context: RunContext,
    current: RunState,
    span: Span,
    arch: Any,
    totals: Any,
    temperature: float | None,
) -> None:
    """Adds the FLOPs of the steps since the last evaluation to those of the run."""
    c, step_config = context.config, context.step_config(current.spec)
    current.history.train_flops += flops.training_flops(
        current.spec,
        step_config.weight_mode(span.phase),
        ESTIMATORS[c.search.estimator],
        genotype.probabilities(current.spec, arch, temperature or 1.0),
        int(totals.images),
        int(totals.arch_steps) * c.batch_size * c.arch.samples,
        second_order=c.search.second_order,
        together=context.schedule.together,
        frozen=step_config.is_frozen(span.phase),
    )


def _expected_cost(context: RunContext, current: RunState, arch: Any) -> dict[str, float]:
    if context.budget is None:
        return {}
    rows = genotype.probabilities(current.spec, arch)
    return {'cost/expected': float(context.budget.expected(current.spec, rows))}


def _limit_share(
    context: RunContext, current: RunState, chosen: genotype.Genotype
) -> dict[str, float]:
    if context.limit is None:
        return {}
    return {'cost/limit_share': context.limit.share(current.spec, chosen)}


def _fall_alarm(context: RunContext, current: RunState) -> list[str]:
    """Warns where accuracy falls as the search begins (docs/algorithm.md, "Evaluation")."""
    rows = current.history.phases
    if len(rows) < 2 or rows[-2]['name'] != Phase.WARMUP:
        return []
    before, after = rows[-2]['valid_accuracy_last'], rows[-1]['valid_accuracy_first']
    if after >= context.config.alarm.fall * before:
        return []
    return [
        f'fall: validation accuracy went from {100 * before:.1f} % at the end of warmup to '
        f'{100 * after:.1f} % at the first evaluation of {rows[-1]["name"]}'
    ]


def _collapse_alarm(context: RunContext, span: Span, analysis: dict[str, Any]) -> list[str]:
    """Warns where most operations of the genotype do nothing."""
    idle = analysis['arch/skip_fraction'] + analysis['arch/none_fraction']
    if span.phase is Phase.WARMUP or idle <= context.config.alarm.skip_share:
        return []
    return [f'collapse: {100 * idle:.0f} % of the genotype is skip_connect or none']
