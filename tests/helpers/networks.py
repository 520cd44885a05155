"""Small networks of every space."""

import jax
import jax.numpy as jnp

from asose_jax.forward import Mode
from asose_jax.model import SuperNet


def parameters(spec):
    net, x = SuperNet(spec), jnp.zeros((1, *spec.image_shape))
    made = jax.eval_shape(lambda: net.init(jax.random.key(0), x, mode=Mode.ARGMAX, train=False))
    return sum(leaf.size for leaf in jax.tree.leaves(made['params']))
