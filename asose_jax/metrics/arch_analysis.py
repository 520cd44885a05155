"""What a run tells: the analysis of alpha, metrics.jsonl, and the progress of a phase."""

import collections
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from asose_jax.arch import genotype
from asose_jax.arch.genotype import NetSpec
from asose_jax.nn import operations

logger = logging.getLogger('asose_jax')


def analyze_architecture(
    arch: Mapping[str, Any],
    spec: NetSpec,
    before: list[list[str]] | None = None,
    sampling_temperature: float | None = None,
) -> dict[str, Any]:
    """What alpha says at this moment (spec section 7).

    Args:
      arch: alpha tree; empty for a derived network, which is sure of every choice.
      spec: of the network.
      before: the genotype of the evaluation before, to compare with.
      sampling_temperature: the t of softmax(alpha / t), which draws follow; `None` where nothing
        is drawn.

    Returns:
      JSON values: `arch/entropy` (mean, nats) and `arch/entropies` (per row of alpha),
      `arch/draw_entropy` (that of the draws, mean, nats; `None` without them),
      `arch/confidence` (mean of the largest probabilities), `arch/skip_fraction`,
      `arch/none_fraction` and `arch/param_free_fraction` (of the operations that are used),
      `arch/counts` (per operation), `arch/probabilities` (the rows, to four digits),
      `arch/changed` (numbers of the blocks, or nodes of cells, whose choice changed), `genotype`.
    """
    rows = genotype.probabilities(spec, arch)
    chosen = genotype.most_likely(spec, arch)
    used = spec.used(chosen)

    def share(names):
        return sum(name in names for name in used) / max(1, len(used))

    entropies = _entropies(rows)
    drawn = (
        None
        if sampling_temperature is None
        else _entropies(genotype.probabilities(spec, arch, sampling_temperature))
    )
    pairs = [] if before is None else zip(chosen.to_json(), before, strict=True)
    return {
        'arch/entropy': float(np.mean(entropies)),
        'arch/entropies': entropies,
        'arch/draw_entropy': None if drawn is None else float(np.mean(drawn)),
        'arch/confidence': float(np.mean([row.max() for row in rows])),
        'arch/skip_fraction': share({'skip_connect'}),
        'arch/none_fraction': share({'none'}),
        'arch/param_free_fraction': share(operations.PARAMETER_FREE),
        'arch/counts': dict(collections.Counter(used)),
        'arch/probabilities': [np.round(row.astype(float), 4).tolist() for row in rows],
        'arch/changed': [i for i, (now, then) in enumerate(pairs) if now != then],
        'genotype': chosen.to_json(),
    }


def _entropies(rows):
    return [float(stats.entropy(row)) for row in rows]


def rounded_factors(factors: list[list[list[Any]]]) -> list[list[list[float | None]]]:
    """Factors as JSON, to four digits; `None` where there is none, or one is not finite."""

    def digits(factor):
        return None if factor is None or not math.isfinite(factor) else round(float(factor), 4)

    return [[[digits(factor) for factor in row] for row in group] for group in factors]
