"""What a run carries from step to step: arrays only, and how a state changes between phases."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from asose_jax.forward import Mode
from asose_jax.genotype import Genotype, NetSpec
from asose_jax.mixed import AUXILIARY
from asose_jax.model import SuperNet


@flax.struct.dataclass
class Totals:
    """Sums since the last evaluation; scalars. Part of the state so that a restart loses none."""

    loss: jax.Array  # of weight steps, summed over steps
    correct: jax.Array  # training images classified right, as drawn
    images: jax.Array  # training images seen by weight steps
    weight_steps: jax.Array
    arch_loss: jax.Array  # of alpha steps, summed over steps
    arch_steps: jax.Array
    guarded_rows: jax.Array  # architecture rows replaced by skip_connect
    skipped_steps: jax.Array  # steps whose gradient was not finite

    @classmethod
    def zeros(cls) -> 'Totals':
        def integer():
            return jnp.zeros((), jnp.int32)

        def real():
            return jnp.zeros((), jnp.float32)

        return cls(
            loss=real(),
            correct=integer(),
            images=integer(),
            weight_steps=integer(),
            arch_loss=real(),
            arch_steps=integer(),
            guarded_rows=integer(),
            skipped_steps=integer(),
        )


@flax.struct.dataclass
class SearchState:
    """Everything the compiled step reads and writes.

    There is no random key: randomness is a function of the seed and the step.
    """

    step: jax.Array  # int32, counted over the whole run
    params: Any
    arch: Any
    batch_stats: Any
    opt_state: Any
    totals: Totals
    streak: jax.Array  # int32, steps in a row that were skipped
    longest_streak: jax.Array  # int32, the longest streak so far

    @property
    def trainable(self) -> dict[str, Any]:
        """The tree that the optimizer knows."""
        return {'params': self.params, 'arch': self.arch}


def init_state(model: SuperNet, tx: optax.GradientTransformation, key: jax.Array) -> SearchState:
    """The state at step 0, on the default device.

    Args:
      model: the network.
      tx: its optimizer.
      key: randomness of weights and alpha.

    Returns:
      A fresh state; `arch` is empty where nothing is left to choose.
    """
    initial = functools.partial(_initial, model, tx)
    # Runs once: time spent on optimizing this program would not come back.
    return jax.jit(initial, compiler_options={'xla_backend_optimization_level': 0})(key)


def abstract_state(
    model: SuperNet, tx: optax.GradientTransformation, sharding: jax.sharding.Sharding
) -> SearchState:
    """Shapes, dtypes and placement of `init_state`, without its arrays."""
    shapes = jax.eval_shape(functools.partial(_initial, model, tx), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def _initial(model, tx, key):
    image = jnp.zeros((1, *model.spec.image_shape), jnp.float32)
    weights_key, arch_key = jax.random.split(key)
    keys = {'params': weights_key, 'arch': arch_key}
    variables = model.init(keys, image, mode=Mode.SKIP, train=False)
    trainable = {'params': variables['params'], 'arch': variables.get('arch', {})}
    return SearchState(
        step=jnp.int32(0),
        batch_stats=variables['batch_stats'],
        opt_state=tx.init(trainable),
        totals=Totals.zeros(),
        streak=jnp.int32(0),
        longest_streak=jnp.int32(0),
        **trainable,
    )


def smooth_transition_to_search(key: jax.Array, arch: Any, noise_std: float = 0.05) -> Any:
    """alpha_search = alpha_warmup + noise_std * N(0, 1); the knowledge of warmup is kept.

    Args:
      key: randomness of the noise.
      arch: alpha tree, float32.
      noise_std: size of the noise; 0 gives `arch` back.

    Returns:
      A tree like `arch` (spec section 3, Knowledge kept).
    """
    leaves, tree = jax.tree.flatten(arch)
    keys = jax.random.split(key, max(1, len(leaves)))
    noisy = [
        alpha + noise_std * jax.random.normal(k, alpha.shape, alpha.dtype)
        for alpha, k in zip(leaves, keys, strict=False)
    ]
    return tree.unflatten(noisy)


def derive_state(
    state: SearchState,
    spec: NetSpec,
    chosen: Genotype,
    tx: optax.GradientTransformation,
    fresh: SearchState | None = None,
) -> SearchState:
    """The state of the derived network: what belongs to the chosen operations, as it was.

    Weights, BatchNorm statistics, momentum and the counts of the schedules are carried over; alpha
    and the operations that were not chosen are left behind. Of a supernet with partial channels,
    the chosen operations begin anew, since they get all channels now.

    Args:
      state: of the supernet.
      spec: of the supernet.
      chosen: the genotype.
      tx: the optimizer.
      fresh: `init_state` of `genotype.derive(spec, chosen)`, needed with partial channels.

    Returns:
      A state with the tree structure of a fresh `init_state` of `genotype.derive(spec, chosen)`.
    """
    params = prune(state.params, spec, chosen)
    derived = state.replace(
        params=params,
        arch={},
        batch_stats=prune(state.batch_stats, spec, chosen),
        opt_state=adopt(tx.init({'params': params, 'arch': {}}), state.opt_state),
    )
    if spec.partial == 1:
        return derived
    # Every array of an operation counts channels, so it has another shape than before.
    return jax.tree.map(lambda new, old: old if old.shape == new.shape else new, fresh, derived)


def restart(old: SearchState) -> SearchState:
    """`old` as the start of another run: what was learned stays, the schedules start at 0.

    Weights, alpha, BatchNorm statistics, momentum and all of Adam's state are those of `old` (its
    moments are sums that its count corrects: without it, alpha would hardly move at first); the
    step, the learning rates' place in their cosines and the totals begin anew.
    """

    def anew(node):
        return node._replace(count=jnp.zeros_like(node.count)) if is_schedule(node) else node

    def is_schedule(node):
        return isinstance(node, optax.ScaleByScheduleState)

    return old.replace(
        step=jnp.int32(0),
        opt_state=jax.tree.map(anew, old.opt_state, is_leaf=is_schedule),
        totals=Totals.zeros(),
        streak=jnp.int32(0),
        longest_streak=jnp.int32(0),
    )


def prune(tree: Any, spec: NetSpec, chosen: Genotype) -> Any:
    """`params` or `batch_stats` without operations that were not chosen, and auxiliary skips."""
    tree = jax.tree.map(lambda leaf: leaf, tree)  # a copy of the dictionaries, not of the arrays
    for group, member, candidates in spec.rows():
        unwanted = {*candidates, AUXILIARY} - {chosen.operations[group][member]}
        for place in spec.places(group, member):
            _drop(tree, place.path, unwanted)
    return tree


def _drop(tree, path, names):
    """Removes `names` from the dictionary at `path`, and with it whatever is empty then."""
    if path:
        if path[0] not in tree:  # none of the candidates has anything to hold in this collection
            return
        _drop(tree[path[0]], path[1:], names)
        names = {path[0]} if not tree[path[0]] else ()
    for name in names:
        tree.pop(name, None)


def adopt(fresh: Any, old: Any) -> Any:
    """`fresh` with every leaf replaced by the leaf that `old` has at the same path."""
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}
    return jax.tree.map_with_path(lambda path, _: known[jax.tree_util.keystr(path)], fresh)
