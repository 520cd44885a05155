"""How alpha becomes architecture weights, and how their gradient comes back: one row per paper.

A search wants the gradient of E[L], the mean loss over networks drawn with the probabilities
softmax(alpha). Each estimator turns a row of logits and a key into weights whose derivative stands
for it. `tests/arch/estimators_test.py` compares them with the exact gradient, by enumeration.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from asose_jax.arch.gumbel import gumbel_softmax

Array = jax.Array


class Estimator(NamedTuple):
    """One way of drawing.

    Attributes:
      weights: `(logits [K] float32, key, tau, noise) -> weights [K]`, differentiable; `tau` and
        `noise` as in `gumbel.gumbel_softmax`.
      one_hot: whether the weights are, so that a step needs to compute the drawn operation only;
        otherwise operations are mixed.
      dense: whether an alpha step of one-hot weights asks every candidate for its output; otherwise
        those that were not drawn count as images of ones.
      draws: whether chance has a part.
      tempered: whether `tau` changes anything.
      noisy: whether `noise` does.
      least_tau: below which its authors do not use it.
      anchored: whether `anchor_distance` is its regulariser.
    """

    weights: Callable[[Array, Array, Array | float, str], Array]
    one_hot: bool = True
    dense: bool = True
    draws: bool = True
    tempered: bool = True
    noisy: bool = False
    least_tau: float = 0.0
    anchored: bool = False

    def sampling_temperature(self, tau: float | None, noise: str) -> float | None:
        """The t of softmax(alpha / t), which drawn operations follow; `None` where none is drawn.

        Of a soft draw, it is the operation with the largest weight that follows it. `tau` may be
        `None` where it changes nothing.
        """
        if not self.draws or not self.tempered:
            return None
        return tau if self.noisy and noise == 'temperature' else 1.0


def straight_through(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Hard Gumbel-Softmax draws with the gradient of the soft ones (arXiv:1611.01144, sec. 2.2)."""
    return gumbel_softmax(logits, key, tau, hard=True, noise=noise)


def gumbel(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Soft Gumbel-Softmax draws: operations are mixed (arXiv:1611.01144, eq. 2)."""
    return gumbel_softmax(logits, key, tau, hard=False, noise=noise)


def reinmax(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Exact draws with a gradient of second order (Liu et al. 2023, arXiv:2304.08612, alg. 2).

    With p = softmax(logits), D a one-hot draw from p and q = (D + softmax(logits / tau)) / 2, the
    gradient is that of 2 q' - p / 2, where q' is a softmax that has the value q now.
    """
    del noise
    draw = jax.nn.one_hot(jax.random.categorical(key, logits), len(logits), dtype=jnp.float32)
    stop = jax.lax.stop_gradient
    middle = stop((draw + jax.nn.softmax(logits / tau)) / 2)
    # softmax(log(middle)) is middle; the difference passes the gradient on to the logits.
    moving = jax.nn.softmax(jnp.log(middle) + logits - stop(logits))
    soft = 2 * moving - jax.nn.softmax(logits) / 2
    return draw + (soft - stop(soft))


def softmax(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """No draw: operations are mixed by their probabilities (DARTS, arXiv:1806.09055, eq. 2)."""
    del key, tau, noise
    return jax.nn.softmax(logits)


def dirichlet(logits: Array, key: Array, tau: Array | float, noise: str) -> Array:
    """Operations are mixed by a draw of Dirichlet(elu(alpha) + 1) (arXiv:2006.10355, sec. 3)."""
    del tau, noise
    return jax.random.dirichlet(key, _concentration(logits))


def _concentration(logits):
    """elu(alpha) + 1, below -10 as there: float32 rounds it to 0 soon, which has NaN gradients."""
    return jax.nn.elu(jnp.maximum(logits, -10.0)) + 1


def anchor_distance(logits: Array) -> Array:
    """KL(Dirichlet(beta), Dirichlet(1)) of a row `[K]`, beta = elu(alpha) + 1: DrNAS's regulariser.

        log G(B) - log G(K) + sum_k ((beta_k - 1) (psi(beta_k) - psi(B)) - log G(beta_k))

    with B = sum_k beta_k, G the gamma function and psi its logarithmic derivative: the distance d
    of arXiv:2006.10355, in the form that its program calls kl. At the anchor, beta = 1, all
    mixtures are equally likely; far above it all draws are alike, far below nearly one-hot. A row
    that is not finite, which `gumbel.guarded_weights` takes out of the draw, counts as 0.
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
    # The program of GDAS (arXiv:1910.04465): what was not drawn adds its weight as a number.
    'gdas': Estimator(straight_through, dense=False, noisy=True),
    'reinmax': Estimator(reinmax, least_tau=1.0),
    'gumbel': Estimator(gumbel, one_hot=False, noisy=True),
    'softmax': Estimator(softmax, one_hot=False, draws=False, tempered=False),
    'drnas': Estimator(dirichlet, one_hot=False, tempered=False, anchored=True),
}
