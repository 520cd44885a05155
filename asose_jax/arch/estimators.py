"""Gradient estimators of alpha: how logits become architecture weights, one row per paper.

A search needs the gradient of E[L], the mean loss over networks drawn with the probabilities
softmax(alpha). Each estimator maps a row of logits and a random key to weights, and the derivative
of the weights stands in for that gradient (docs/algorithm.md, "Drawing operations").
`tests/arch/estimators_test.py` compares each with the exact gradient, computed by enumeration.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from asose_jax.arch.gumbel import gumbel_softmax

Array = jax.Array


class WeightFunction(Protocol):
    """Maps one row of logits to architecture weights, differentiably."""

    def __call__(self, logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
        """Returns the weights.

        Args:
          logits: one row of alpha `[K]`, float32.
          key: random key of the draw.
          tau: temperature, positive.
          noise: `'unit'` or `'temperature'`, see `gumbel.gumbel_softmax`.

        Returns:
          `[K]`, float32, which sum to 1. An estimator need not use `key`, `tau` and `noise`.
        """
        ...


class Estimator(NamedTuple):
    """Describes one way to turn logits into weights, and what the rest of the program may assume.

    Attributes:
      weights: function of logits, key, `tau` and `noise` that returns the weights.
      one_hot: whether the weights are one-hot, so that a step only has to compute the drawn
        candidate; otherwise candidates are mixed.
      dense: whether an alpha step with one-hot weights computes the output of every candidate;
        otherwise each candidate that was not drawn counts as an image of ones.
      draws: whether the weights are random.
      tempered: whether the weights or their gradient depend on `tau`.
      noisy: whether they depend on `noise`.
      least_tau: smallest `tau` that the authors of the method use.
      anchored: whether `anchor_distance` is the regulariser of the method.
    """

    weights: WeightFunction
    one_hot: bool = True
    dense: bool = True
    draws: bool = True
    tempered: bool = True
    noisy: bool = False
    least_tau: float = 0.0
    anchored: bool = False

    def sampling_temperature(self, tau: float | None, noise: str) -> float | None:
        """Returns the temperature t of softmax(alpha / t), the distribution of the draws.

        For a mixture, this is the distribution of the candidate with the largest weight.

        Args:
          tau: temperature of the step; may be `None` if the estimator does not depend on it.
          noise: `'unit'` or `'temperature'`, see `gumbel.gumbel_softmax`.

        Returns:
          t, or `None` if nothing is drawn or the draws do not follow a softmax.
        """
        if not self.draws or not self.tempered:
            return None
        return tau if self.noisy and noise == 'temperature' else 1.0


def straight_through(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Draws one-hot weights with the gradient of the soft draw (arXiv:1611.01144, sec. 2.2)."""
    return gumbel_softmax(logits, key, tau, hard=True, noise=noise)


def gumbel(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Draws soft Gumbel-Softmax weights, which mix the candidates (arXiv:1611.01144, eq. 2)."""
    return gumbel_softmax(logits, key, tau, hard=False, noise=noise)


def reinmax(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Draws from softmax(logits), with a second-order gradient (arXiv:2304.08612, alg. 2).

    With p = softmax(logits), D a one-hot draw from p and q = (D + softmax(logits / tau)) / 2, the
    gradient is that of 2 q' - p / 2, where q' is a softmax of the logits whose current value is q.
    So `tau` changes the gradient only.
    """
    del noise
    draw = jax.nn.one_hot(jax.random.categorical(key, logits), len(logits), dtype=jnp.float32)
    stop = jax.lax.stop_gradient
    mean = stop((draw + jax.nn.softmax(logits / tau)) / 2)
    # softmax(log(mean)) is mean; the difference passes the gradient on to the logits.
    moving = jax.nn.softmax(jnp.log(mean) + logits - stop(logits))
    soft = 2 * moving - jax.nn.softmax(logits) / 2
    return draw + (soft - stop(soft))


def softmax(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Mixes by the probabilities of alpha, without a draw (DARTS, arXiv:1806.09055, eq. 2)."""
    del key, tau, noise
    return jax.nn.softmax(logits)


def dirichlet(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Draws mixture weights from Dirichlet(elu(logits) + 1) (DrNAS, arXiv:2006.10355, sec. 3)."""
    del tau, noise
    return jax.random.dirichlet(key, _concentration(logits))


def _concentration(logits: Array) -> Array:
    """Returns the concentrations elu(alpha) + 1 of DrNAS, with alpha clipped to at least -10.

    DrNAS clips likewise: further down, float32 soon rounds the sum to 0, which has NaN gradients.
    """
    return jax.nn.elu(jnp.maximum(logits, -10.0)) + 1


def anchor_distance(logits: Array) -> Array:
    """Returns KL(Dirichlet(beta), Dirichlet(1)) with beta = elu(alpha) + 1, DrNAS's regulariser.

        log G(B) - log G(K) + sum_k ((beta_k - 1) (psi(beta_k) - psi(B)) - log G(beta_k))

    with B = sum_k beta_k, G the gamma function and psi its logarithmic derivative: the distance d
    of arXiv:2006.10355, in the form that the authors' program calls `kl`. At the anchor, beta = 1,
    all mixtures are equally likely; far above it all draws are alike, far below nearly one-hot. It
    is 0 for a row that is not finite, which `gumbel.guarded_weights` leaves out of the draw.
    """
    beta = _concentration(jnp.where(jnp.isfinite(logits).all(), logits, 0.0))
    total = beta.sum()
    slopes = digamma(beta) - digamma(total)
    return (
        gammaln(total)
        - gammaln(jnp.float32(len(logits)))
        + ((beta - 1) * slopes - gammaln(beta)).sum()
    )


ESTIMATORS: dict[str, Estimator] = {
    'straight_through': Estimator(straight_through, noisy=True),
    # As in the program of GDAS (arXiv:1910.04465), each candidate that was not drawn adds its
    # weight, a number, instead of its output.
    'gdas': Estimator(straight_through, dense=False, noisy=True),
    'reinmax': Estimator(reinmax, least_tau=1.0),
    'gumbel': Estimator(gumbel, one_hot=False, noisy=True),
    'softmax': Estimator(softmax, one_hot=False, draws=False, tempered=False),
    'drnas': Estimator(dirichlet, one_hot=False, tempered=False, anchored=True),
}
