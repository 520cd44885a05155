"""Defines the state of a run, all arrays, and how it changes between phases.

`SearchState` holds trees, as checkpoints do; compiled steps hold the same state as `Packed`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
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
from asose_jax.spaces.supernet import HEAD, SuperNet
from asose_jax.train.packing import Packing

# A path to a leaf, as `jax.tree.map_with_path` passes it.
Path = tuple[Any, ...]


class Totals(flax.struct.PyTreeNode):
    """Holds sums since the last evaluation, scalars; in the state, so that a restart loses none.

    Attributes:
      loss: float32, sum of the losses of weight steps.
      correct: int32, training images that weight steps classified right, with drawn operations.
      images: int32, training images seen by weight steps.
      weight_steps: int32, number of weight steps.
      arch_loss: float32, sum of the losses of alpha steps.
      arch_steps: int32, number of alpha steps.
      guarded_rows: int32, number of rows of alpha that were replaced by skip_connect.
      skipped_steps: int32, number of steps whose loss or gradient was not finite.
    """

    loss: jax.Array
    correct: jax.Array
    images: jax.Array
    weight_steps: jax.Array
    arch_loss: jax.Array
    arch_steps: jax.Array
    guarded_rows: jax.Array
    skipped_steps: jax.Array

    @classmethod
    def zeros(cls) -> 'Totals':
        """Returns totals of nothing."""
        names = [field.name for field in dataclasses.fields(cls)]
        dtypes = [jnp.float32 if name.endswith('loss') else jnp.int32 for name in names]
        return cls(*(jnp.zeros((), dtype) for dtype in dtypes))


class SearchState(flax.struct.PyTreeNode):
    """Holds everything that the compiled step reads and writes.

    There is no random key: randomness is a function of the seed and the step.

    Attributes:
      step: int32 scalar, counted over the whole run.
      params: tree of weights.
      arch: tree of alpha, a row `[K]` float32 for each choice; empty in a derived network.
      batch_stats: tree of running statistics of BatchNorm.
      opt_state: state of the optimizer.
      totals: sums since the last evaluation.
      streak: int32 scalar, consecutive steps up to now that were skipped.
      longest_streak: int32 scalar, the longest streak so far.
    """

    step: jax.Array
    params: Any
    arch: Any
    batch_stats: Any
    opt_state: Any
    totals: Totals
    streak: jax.Array
    longest_streak: jax.Array

    @property
    def trainable(self) -> dict[str, Any]:
        """The tree of weights and alpha that the optimizer takes."""
        return {'params': self.params, 'arch': self.arch}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The tree of weights and alpha that evaluations use."""
        return self.trainable

    def with_average(self) -> 'AveragingState':
        """Returns the state with an average of the weights, which begins with the weights."""
        return AveragingState(**_fields_of(self), average=self.params)


class AveragingState(SearchState):
    """Holds an average of the weights beside them, in an optimize phase with `optimize.ema`.

    A class of its own, so that checkpoints of other states are as they were before it existed.

    Attributes:
      average: tree of averaged weights, like `params`.
    """

    average: Any

    @property
    def evaluated(self) -> dict[str, Any]:
        """The tree of averaged weights and alpha."""
        return {'params': self.average, 'arch': self.arch}


def _fields_of(state: SearchState) -> dict[str, Any]:
    """Returns the fields that all states have, by name."""
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(SearchState)}


class Layout:
    """Describes how a state is packed: one vector per dtype in the place of each tree of arrays.

    The optimizer works number by number (but for the norm of all gradients), so it gives the same
    updates for vectors as for the trees that it was made for.

    Args:
      state: a state of arrays or of shapes.

    Attributes:
      like: shapes and dtypes of the state.
      params: packing of the weights.
      arch: packing of alpha.
      batch_stats: packing of BatchNorm statistics.
      totals: packing of the totals.
      average: packing of the averaged weights; `None` in a state without them.
    """

    def __init__(self, state: SearchState) -> None:
        """Records the structure, shapes and dtypes of `state`."""
        self.like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
        self._key = tuple(jax.tree.leaves(self.like)), jax.tree.structure(self.like)
        self.params, self.arch = Packing(state.params), Packing(state.arch)
        self.batch_stats, self.totals = Packing(state.batch_stats), Packing(state.totals)
        averages = isinstance(state, AveragingState)
        self.average = Packing(state.average) if averages else None

    def __eq__(self, other: object) -> bool:
        """Whether the other packs the same states."""
        return isinstance(other, Layout) and self._key == other._key

    def __hash__(self) -> int:
        """Hashes structure, shapes and dtypes."""
        return hash(self._key)

    def each(self, state: SearchState, method: str) -> SearchState:
        """Packs or unpacks every tree of a state: `method` is that of `Packing`."""

        def convert_moments(like: Any, moments: Any) -> Any:
            packing = self._packing_of_moments(like)
            return moments if packing is None else getattr(packing, method)(moments)

        names = ['params', 'arch', 'batch_stats', 'totals', *(['average'] if self.average else [])]
        trees = {name: getattr(getattr(self, name), method)(getattr(state, name)) for name in names}
        opt_state = jax.tree.map(
            convert_moments,
            self.like.opt_state,
            state.opt_state,
            is_leaf=lambda node: self._packing_of_moments(node) is not None,
        )
        return state.replace(**trees, opt_state=opt_state)

    def _packing_of_moments(self, node: Any) -> Packing | None:
        """Returns the packing of moments, which have the structure of the weights or of alpha.

        `None` for any other part of the optimizer's state.
        """
        structure = jax.tree.structure(node)
        return next((p for p in (self.params, self.arch) if p.structure == structure), None)


class Packed(flax.struct.PyTreeNode):
    """Holds a state as compiled steps take and return it.

    Example:
      packed = Packed.of(state)
      state = packed.unpack()

    Attributes:
      vectors: the state with a vector per dtype in the place of each tree.
      layout: static description of the packing.
    """

    vectors: SearchState
    layout: Layout = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, state: SearchState) -> 'Packed':
        """Packs a state. Vectors of NumPy arrays are NumPy arrays."""
        layout = Layout(state)
        return cls(layout.each(state, 'pack'), layout)

    def unpack(self) -> SearchState:
        """Returns the state as trees; of NumPy vectors, views."""
        return self.layout.each(self.vectors, 'unpack')

    def put(self, **trees: Any) -> 'Packed':
        """Returns a copy with other trees in some fields of the state."""
        packed = {name: getattr(self.layout, name).pack(tree) for name, tree in trees.items()}
        return self.replace(vectors=self.vectors.replace(**packed))


def init_state(
    model: SuperNet, tx: optax.GradientTransformation, key: jax.Array, below: str | None = None
) -> SearchState:
    """Initialises a state at step 0, on the default device.

    Args:
      model: the network.
      tx: its optimizer.
      key: random key of weights and alpha.
      below: the name of a module: only its arrays are computed, and all others are zeros. `None`
        computes all.

    Returns:
      A fresh state; `arch` is empty where nothing is left to choose.
    """
    computed = iter(_initial_leaves(model, tx, below, key))

    def value(path: Path, leaf: jax.ShapeDtypeStruct) -> jax.Array | np.ndarray:
        return next(computed) if _is_below(path, below) else np.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map_with_path(value, _shapes(model, tx))


# Runs once, so optimizing this program would take longer than it saves.
@functools.partial(
    jax.jit, static_argnums=(0, 1, 2), compiler_options={'xla_backend_optimization_level': 0}
)
def _initial_leaves(
    model: SuperNet, tx: optax.GradientTransformation, below: str | None, key: jax.Array
) -> list[jax.Array]:
    """Returns the leaves of a fresh state that belong to the module `below`, in order."""
    leaves = jax.tree.leaves_with_path(_initial(model, tx, key))
    return [leaf for path, leaf in leaves if _is_below(path, below)]


def _is_below(path: Path, module: str | None) -> bool:
    return module is None or any(getattr(part, 'key', None) == module for part in path)


def abstract_state(
    model: SuperNet,
    tx: optax.GradientTransformation,
    sharding: jax.sharding.Sharding,
    averages: bool = False,
) -> SearchState:
    """Returns shapes, dtypes and placement of a state, without its arrays.

    If it `averages`, it has an average of the weights.
    """
    shapes = _shapes(model, tx)
    return _with_sharding(shapes.with_average() if averages else shapes, sharding)


def abstract_packed(
    model: SuperNet,
    tx: optax.GradientTransformation,
    sharding: jax.sharding.Sharding,
    averages: bool = False,
) -> Packed:
    """Returns shapes, dtypes and placement of a packed state; see `abstract_state`."""
    shapes = abstract_state(model, tx, sharding, averages)
    return _with_sharding(jax.eval_shape(Packed.of, shapes), sharding)


@functools.lru_cache(8)
def _shapes(model: SuperNet, tx: optax.GradientTransformation) -> SearchState:
    return jax.eval_shape(functools.partial(_initial, model, tx), jax.random.key(0))


def _with_sharding(shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def _initial(model: SuperNet, tx: optax.GradientTransformation, key: jax.Array) -> SearchState:
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


def smooth_transition_to_search(key: jax.Array, arch: Any, noise_std: float) -> Any:
    """Returns `arch + noise_std * N(0, 1)`: search starts near what warmup ended with.

    Logits of edges get no noise: all edges are summed, whatever is drawn
    (docs/algorithm.md, "Four phases").

    Args:
      key: random key of the noise.
      arch: tree of alpha, float32.
      noise_std: standard deviation of the noise; 0 changes nothing.

    Returns:
      A tree like `arch`.
    """
    keys = iter(jax.random.split(key, max(1, len(jax.tree.leaves(arch)))))

    def noisy(path: Path, leaf: jax.Array) -> jax.Array:
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
    """Derives the state of the network that keeps the chosen operations only.

    Weights, BatchNorm statistics, momentum and the counts of the schedules go on; alpha and all
    other operations are dropped, and factors are folded (docs/algorithm.md, "Derivation"). With
    partial channels, the chosen operations start from `fresh`, since they get all channels now.

    Args:
      state: state of the supernet.
      spec: description of the supernet.
      chosen: the genotype.
      tx: the optimizer.
      fresh: `init_state` of `factors.folded_spec(spec, chosen)`; needed with partial channels.

    Returns:
      A state like a fresh `init_state` of `factors.folded_spec(spec, chosen)`.
    """
    velocity = prune(optax.tree.get(state.opt_state, 'trace')['params'], spec, chosen)
    params, velocity = factors.fold(spec, chosen, prune(state.params, spec, chosen), velocity)
    trainable = {'params': params, 'arch': {}}
    opt_state = match_leaves(tx.init(trainable), state.opt_state)
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
    """Returns `old` as the start of another run, with all schedules at step 0.

    Weights, alpha, BatchNorm statistics, momentum and all of Adam's state go on. That includes
    Adam's count, which corrects its moments: without it, alpha would hardly move at first. The
    step, the counts of the learning rates and the totals are reset. An average of the weights takes
    their place.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def reset(node: Any) -> Any:
        return node._replace(count=jnp.zeros_like(node.count)) if is_schedule(node) else node

    return SearchState(**_fields_of(old)).replace(
        step=jnp.int32(0),
        params=old.evaluated['params'],
        opt_state=jax.tree.map(reset, old.opt_state, is_leaf=is_schedule),
        totals=Totals.zeros(),
        streak=jnp.int32(0),
        longest_streak=jnp.int32(0),
    )


def inherit(fresh: SearchState, old: SearchState, with_head: bool) -> SearchState:
    """Returns `old` as the state of a network with another head.

    Args:
      fresh: `init_state` of the network, of which only what is below `HEAD` is used.
      old: a state that has all leaves of `fresh`, and may have a second head beside them.
      with_head: whether the head goes on, too; else its weights are fresh, and its momentum is 0.

    Returns:
      A state like `fresh`.
    """
    inherited = match_leaves(fresh, old)
    if with_head:
        return inherited
    return jax.tree.map_with_path(
        lambda path, new, kept: new if _is_below(path, HEAD) else kept, fresh, inherited
    )


def prune(tree: Any, spec: NetSpec, chosen: Genotype) -> Any:
    """Removes operations that were not chosen, and auxiliary skips, from `params` or `batch_stats`.

    The pruned copy shares its arrays with `tree`, which may also be a tree like them.
    """
    tree = jax.tree.map(lambda leaf: leaf, tree)  # copies the dictionaries only
    for group, member, candidates in spec.rows():
        unwanted = {*candidates, AUXILIARY} - {chosen.operations[group][member]}
        for place in spec.places(group, member):
            _remove(tree, place.path, unwanted)
    return tree


def _remove(tree: dict[str, Any], path: Sequence[str], names: Iterable[str]) -> None:
    """Removes `names` from the dictionary at `path`, and the dictionaries that this empties."""
    if path:
        if path[0] not in tree:  # no candidate has arrays in this collection
            return
        _remove(tree[path[0]], path[1:], names)
        names = {path[0]} if not tree[path[0]] else ()
    for name in names:
        tree.pop(name, None)


def match_leaves(fresh: Any, old: Any) -> Any:
    """Returns `fresh` with every leaf replaced by the leaf of `old` at the same path.

    Raises:
      KeyError: `old` has no leaf at some path of `fresh`.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(old)}
    return jax.tree.map_with_path(lambda path, _: leaves[jax.tree_util.keystr(path)], fresh)
