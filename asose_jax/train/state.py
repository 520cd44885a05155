"""What a run carries from step to step: arrays only, and how a state changes between phases."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asose_jax.arch.genotype import Genotype, NetSpec
from asose_jax.nn import factors
from asose_jax.nn.forward import Mode
from asose_jax.nn.mixed_op import AUXILIARY
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train.packing import Packing


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


class Layout:
    """How a state is packed: a vector in the place of each tree of arrays.

    The optimizer works number by number (but for the norm of all gradients), so vectors are as good
    to it as the trees that it was made for.

    Attributes:
      like: the state's shapes and dtypes.
    """

    def __init__(self, state: SearchState):
        self.like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
        self._known = tuple(jax.tree.leaves(self.like)), jax.tree.structure(self.like)
        self.params, self.arch = Packing(state.params), Packing(state.arch)
        self.batch_stats, self.totals = Packing(state.batch_stats), Packing(state.totals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._known == other._known

    def __hash__(self) -> int:
        return hash(self._known)

    def each(self, state: SearchState, how: str) -> SearchState:
        """Returns `state` packed or unpacked, as `how` names the method of `Packing`."""

        def moments(like, held):
            packing = self._of(like)
            return held if packing is None else getattr(packing, how)(held)

        names = ('params', 'arch', 'batch_stats', 'totals')
        trees = {name: getattr(getattr(self, name), how)(getattr(state, name)) for name in names}
        opt_state = jax.tree.map(
            moments,
            self.like.opt_state,
            state.opt_state,
            is_leaf=lambda node: self._of(node) is not None,
        )
        return state.replace(**trees, opt_state=opt_state)

    def _of(self, node):
        """The packing of moments, which have the structure of what they belong to."""
        structure = jax.tree.structure(node)
        return next((p for p in (self.params, self.arch) if p.structure == structure), None)


@flax.struct.dataclass
class Packed:
    """A state as compiled steps hold it from call to call."""

    vectors: SearchState  # with a vector for each dtype in the place of a tree
    layout: Layout = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, state: SearchState) -> 'Packed':
        """Packs a state. Of arrays on the host, the vectors are on the host."""
        layout = Layout(state)
        return cls(layout.each(state, 'pack'), layout)

    def unpack(self) -> SearchState:
        """Returns the state that was packed; on the host, views of the vectors."""
        return self.layout.each(self.vectors, 'unpack')

    def put(self, **trees: Any) -> 'Packed':
        """Returns a copy with other trees in these fields of the state, of the same shapes."""
        packed = {name: getattr(self.layout, name).pack(tree) for name, tree in trees.items()}
        return self.replace(vectors=self.vectors.replace(**packed))


def init_state(
    model: SuperNet, tx: optax.GradientTransformation, key: jax.Array, below: str | None = None
) -> SearchState:
    """The state at step 0, on the default device.

    Args:
      model: the network.
      tx: its optimizer.
      key: randomness of weights and alpha.
      below: the name of a module; then only what belongs to it is computed, and all else is zeros.

    Returns:
      A fresh state; `arch` is empty where nothing is left to choose.
    """
    made = iter(_computed(model, tx, below, key))

    def value(path, leaf):
        return next(made) if _is_below(path, below) else np.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map_with_path(value, _shapes(model, tx))


# Runs once: time spent on optimizing this program would not come back.
@functools.partial(
    jax.jit, static_argnums=(0, 1, 2), compiler_options={'xla_backend_optimization_level': 0}
)
def _computed(model, tx, below, key):
    """The leaves of a fresh state that belong to the module, in order."""
    leaves = jax.tree.leaves_with_path(_initial(model, tx, key))
    return [leaf for path, leaf in leaves if _is_below(path, below)]


def _is_below(path, module):
    return module is None or any(getattr(part, 'key', None) == module for part in path)


def abstract_state(
    model: SuperNet, tx: optax.GradientTransformation, sharding: jax.sharding.Sharding
) -> SearchState:
    """Shapes, dtypes and placement of `init_state`, without its arrays."""
    return _placed(_shapes(model, tx), sharding)


def abstract_packed(
    model: SuperNet, tx: optax.GradientTransformation, sharding: jax.sharding.Sharding
) -> Packed:
    """Shapes, dtypes and placement of a packed `init_state`, without its arrays."""
    return _placed(jax.eval_shape(Packed.of, _shapes(model, tx)), sharding)


@functools.lru_cache(8)
def _shapes(model, tx):
    return jax.eval_shape(functools.partial(_initial, model, tx), jax.random.key(0))


def _placed(shapes, sharding):
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

    The logits of edges, which are summed whatever is drawn, stay as they are.

    Args:
      key: randomness of the noise.
      arch: alpha tree, float32.
      noise_std: size of the noise; 0 gives `arch` back.

    Returns:
      A tree like `arch` (spec section 3, Knowledge kept).
    """
    keys = iter(jax.random.split(key, max(1, len(jax.tree.leaves(arch)))))

    def noisy(path, leaf):
        noise = jax.random.normal(next(keys), leaf.shape, leaf.dtype)
        return leaf + noise_std * noise if path[-1].key == 'alpha' else leaf

    return jax.tree.map_with_path(noisy, arch)


def derive_state(
    state: SearchState,
    spec: NetSpec,
    chosen: Genotype,
    tx: optax.GradientTransformation,
    fresh: SearchState | None = None,
) -> SearchState:
    """The state of the derived network: what belongs to the chosen operations, as it was.

    Weights, BatchNorm statistics, momentum and the counts of the schedules are carried over; alpha
    and the operations that were not chosen are left behind, and factors are folded. Of a supernet
    with partial channels, the chosen operations begin anew, since they get all channels now.

    Args:
      state: of the supernet.
      spec: of the supernet.
      chosen: the genotype.
      tx: the optimizer.
      fresh: `init_state` of `factors.folded_spec(spec, chosen)`, needed with partial channels.

    Returns:
      A state like a fresh `init_state` of `factors.folded_spec(spec, chosen)`.
    """
    velocity = prune(optax.tree.get(state.opt_state, 'trace')['params'], spec, chosen)
    params, velocity = factors.fold(spec, chosen, prune(state.params, spec, chosen), velocity)
    trainable = {'params': params, 'arch': {}}
    opt_state = adopt(tx.init(trainable), state.opt_state)
    trace = {**optax.tree.get(opt_state, 'trace'), 'params': velocity}
    derived = state.replace(
        params=params,
        arch={},
        batch_stats=prune(state.batch_stats, spec, chosen),
        opt_state=optax.tree.set(opt_state, trace=trace),
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
