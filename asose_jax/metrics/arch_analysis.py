"""Analyzes the architecture parameters alpha at an evaluation: entropy, confidence, genotype."""

import collections
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from asose_jax.arch import genotype
from asose_jax.arch.genotype import Genotype, NetSpec
from asose_jax.nn import operations


def analyze_architecture(
    arch: Mapping[str, Any],
    spec: NetSpec,
    before: list[list[str]] | None = None,
    sampling_temperature: float | None = None,
    chosen: Genotype | None = None,
) -> dict[str, Any]:
    """Computes the architecture metrics of one evaluation.

    Args:
      arch: tree of alpha; empty for a derived network, where every choice has probability 1.
      spec: description of the network.
      before: genotype of the previous evaluation, for `arch/changed`.
      sampling_temperature: t of softmax(alpha / t), the distribution that operations are drawn
        from; `None` where nothing is drawn.
      chosen: genotype that would be derived, where that is not the most likely one.

    Returns:
      JSON values:

      * `arch/entropy` (mean over rows, nats) and `arch/entropies` (per row of alpha);
      * `arch/draw_entropy`: mean entropy of the distribution of the draws, nats; `None` where
        nothing is drawn;
      * `arch/confidence`: mean over rows of the largest probability;
      * `arch/skip_fraction`, `arch/none_fraction` and `arch/param_free_fraction`: fractions of the
        operations that the derived network would use;
      * `arch/counts`: number of times each operation is used;
      * `arch/probabilities`: the rows of softmax(alpha), to four digits;
      * `arch/changed`: indices of the blocks, or of the nodes of cells, whose choice changed;
      * `genotype`: the genotype that would be derived.
    """
    rows = genotype.probabilities(spec, arch)
    chosen = genotype.most_likely(spec, arch) if chosen is None else chosen
    used = spec.used(chosen)

    def fraction(names: Collection[str]) -> float:
        return sum(name in names for name in used) / max(1, len(used))

    entropies = _entropies(rows)
    draw_entropies = (
        None
        if sampling_temperature is None
        else _entropies(genotype.probabilities(spec, arch, sampling_temperature))
    )
    pairs = [] if before is None else zip(chosen.to_json(), before, strict=True)
    return {
        'arch/entropy': float(np.mean(entropies)),
        'arch/entropies': entropies,
        'arch/draw_entropy': None if draw_entropies is None else float(np.mean(draw_entropies)),
        'arch/confidence': float(np.mean([row.max() for row in rows])),
        'arch/skip_fraction': fraction({'skip_connect'}),
        'arch/none_fraction': fraction({'none'}),
        'arch/param_free_fraction': fraction(operations.PARAMETER_FREE),
        'arch/counts': dict(collections.Counter(used)),
        'arch/probabilities': [np.round(row.astype(float), 4).tolist() for row in rows],
        'arch/changed': [i for i, (now, then) in enumerate(pairs) if now != then],
        'genotype': chosen.to_json(),
    }


def _entropies(rows: Sequence[np.ndarray]) -> list[float]:
    return [float(stats.entropy(row)) for row in rows]


def rounded_factors(factors: list[list[list[Any]]]) -> list[list[list[float | None]]]:
    """Rounds factors by group, member and candidate to four digits, for JSON.

    `None` stands for a candidate without a factor, and for a factor that is not finite.
    """

    def rounded(factor: Any) -> float | None:
        return None if factor is None or not math.isfinite(factor) else round(float(factor), 4)

    return [[[rounded(factor) for factor in row] for row in group] for group in factors]
