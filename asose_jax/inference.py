"""The network that a finished run has left, ready to use: predictions, evaluation, export."""

import dataclasses
import functools
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import export as jax_export
from sklearn import metrics

from asose_jax.arch.genotype import Genotype, NetSpec, frozen
from asose_jax.config.validation import unflatten
from asose_jax.data import dataset
from asose_jax.metrics import run_record
from asose_jax.nn import factors
from asose_jax.nn.forward import Mode
from asose_jax.pipeline import builders, old_checkpoints
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError
from asose_jax.spaces import registry
from asose_jax.spaces.supernet import SECOND_HEAD, SuperNet
from asose_jax.train import checkpoint, pmap, state

logger = logging.getLogger('asose_jax')

_AT_ONCE = 128  # images in one call
PLATFORMS = ('cpu', 'cuda', 'tpu')


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A network that is trained, with all that it takes to use it.

    Attributes:
      spec: its description; every operation is chosen.
      class_names: one for each of its outputs.
      variables: `params` and `batch_stats`.
      mean: per channel, of pixel values 0..255, float32 `[C]`.
      std: standard deviation, likewise.
      dtype: of activations.
      summary: what the run came to, as in summary.json.
      config: of the run, as in config.json.
    """

    spec: NetSpec
    class_names: tuple[str, ...]
    variables: dict[str, Any]
    mean: np.ndarray
    std: np.ndarray
    dtype: str
    summary: dict[str, Any]
    config: dict[str, Any]

    @property
    def genotype(self) -> Genotype:
        """The operation of every choice."""
        return Genotype(frozen(self.summary['genotype']))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """How likely each class is.

        Args:
          images: `[N, H, W, C]`, of the size that the network was trained on, in pixel values
            0..255, of any dtype.

        Returns:
          Probabilities `[N, classes]`, float32.

        Raises:
          ValueError: the images have another shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.spec.image_shape:
            raise ValueError(
                f'images of shape {images.shape}: this network takes '
                f'{(None, *self.spec.image_shape)}, any number of images (height, width, channels)'
            )
        count = len(images)
        padded = np.zeros((-(-count // _AT_ONCE) * _AT_ONCE, *images.shape[1:]), np.float32)
        padded[:count] = images
        parts = [self._call(part) for part in np.split(padded, len(padded) // _AT_ONCE or 1)]
        return np.concatenate(parts)[:count]

    @functools.cached_property
    def _call(self):
        return jax.jit(self.probabilities)

    def probabilities(self, images: jax.Array) -> jax.Array:
        """As `predict`, traced: `[N, H, W, C]` in pixel values to `[N, classes]` float32."""
        scale = [np.reshape(each, (1, 1, 1, -1)) for each in (self.mean, self.std)]
        normalised = (images.astype(jnp.float32) - scale[0]) / scale[1]
        net = SuperNet(self.spec, dtype=self.dtype)
        logits = net.apply(self.variables, normalised, mode=Mode.ARGMAX, train=False)
        return jax.nn.softmax(logits)


def load(directory: str | pathlib.Path) -> Trained:
    """The network of the finished run in a workdir.

    Raises:
      UserError: there is none, or its checkpoint cannot be read.
    """
    directory = pathlib.Path(directory).expanduser()
    told = run_record.read(directory)
    if not told.summary or not told.config:
        raise UserError(
            f'{directory} holds no finished run: there is no summary.json in it. Name the workdir '
            'of a run that has come to its end; the command that began it goes on.'
        )
    if told.config.get('seeds'):
        each = sorted(str(found.parent) for found in directory.glob('**/metrics.jsonl'))
        raise UserError(
            f'{directory} holds several runs; name one of them as --workdir:\n  '
            + '\n  '.join(each)
        )
    missing = {'classes', 'mean', 'std', 'genotype', 'images'} - told.summary.keys()
    if missing:
        raise UserError(
            f'{directory / "summary.json"} has no {", ".join(sorted(missing))}: it was written by '
            'an older version of asose_jax, or changed'
        )
    config, summary = unflatten(told.config), told.summary
    try:
        spec, held = _restored(directory, config, summary)
    except checkpoint.DamagedError as error:
        raise UserError(str(error)) from error
    params, stats = held.params, held.batch_stats
    if not spec.is_derived():  # a run without optimize ends with the supernet's weights
        if spec.partial > 1:
            raise UserError(
                f'{directory}: the chosen operations were never trained, as search.'
                f'partial_channels={spec.partial} and optimize.epochs=0. Train what was found: '
                f'--mode=retrain --config.genotype={directory}'
            )
        chosen = Genotype(frozen(summary['genotype']))
        params, stats = (state.prune(tree, spec, chosen) for tree in (params, stats))
        params, _ = factors.fold(spec, chosen, params)
        spec = factors.folded_spec(spec, chosen)
    params = {name: tree for name, tree in params.items() if name != SECOND_HEAD}
    stats = {name: tree for name, tree in stats.items() if name != SECOND_HEAD}
    return Trained(
        spec=spec,
        class_names=tuple(summary['classes']),
        variables={'params': params, 'batch_stats': stats},
        mean=np.array(summary['mean'], np.float32),
        std=np.array(summary['std'], np.float32),
        dtype=config.model.dtype,
        summary=summary,
        config=told.config,
    )


def _restored(directory, config, summary):
    """Description and state of the last checkpoint, on the host."""
    if not checkpoint.has_any(directory / 'checkpoints'):
        raise UserError(f'{directory} has a summary but no checkpoints: the weights are gone')
    schedule = builders.make_schedule(config, summary['images']['train'])
    tx = builders.make_optimizer(config, schedule)
    with checkpoint.Checkpoints(directory / 'checkpoints') as checkpoints:
        step = checkpoints.latest()
        told = checkpoints.describe(step)
        spec = registry.spec_from_json(told['spec'])
        model_of = functools.partial(builders.make_supernet, config)
        if old_checkpoints.are_in(told['checksums']):
            return old_checkpoints.restore(checkpoints, step, spec, model_of, tx)
        like = state.abstract_state(model_of(spec), tx, pmap.replicated_sharding())
        return spec, jax.device_get(checkpoints.restore(step, like))


def evaluate(directory: str | pathlib.Path) -> dict[str, Any]:
    """Looks at the test split of a finished run: accuracy, by class, and what is taken for what.

    Writes evaluation.json and confusion.png into the workdir.

    Returns:
      As in evaluation.json: `accuracy`, `classes` (precision, recall, images of each) and
      `confusion` (rows: what it is; columns: what the network says).

    Raises:
      UserError: no finished run, or its data are not there or not what they were.
    """
    from asose_jax.report import confusion  # only here: matplotlib takes a second to import

    directory = pathlib.Path(directory).expanduser()
    made = load(directory)
    try:
        images = builders.load_data(unflatten(made.config))
    except UserError as error:
        raise UserError(f'the data of the run in {directory}: {error}') from error
    known = {**made.summary, 'image_shape': list(made.spec.image_shape)}
    dataset.require_same_data(images, known, directory)
    truths, said = [], []
    for part in np.array_split(images.test, -(-len(images.test) // 1000)):
        pixels, labels = images.images.read(part)
        truths.append(labels)
        said.append(made.predict(pixels).argmax(-1))
    truth, guess = np.concatenate(truths), np.concatenate(said)
    names = list(made.class_names)
    numbers = range(len(names))
    each = metrics.classification_report(
        truth, guess, labels=numbers, output_dict=True, zero_division=0
    )
    found = {
        'accuracy': float((truth == guess).mean()),
        'classes': [
            {
                'name': name,
                'precision': each[str(k)]['precision'],
                'recall': each[str(k)]['recall'],
                'images': int(each[str(k)]['support']),
            }
            for k, name in enumerate(names)
        ],
        'confusion': metrics.confusion_matrix(truth, guess, labels=numbers).tolist(),
    }
    text = json.dumps(found, indent=2) + '\n'
    workdir.write_atomically(directory / 'evaluation.json', text)
    picture = confusion.figure(np.array(found['confusion']), names)
    picture.savefig(directory / 'confusion.png', dpi=confusion.DPI)
    logger.info('test accuracy %.2f %% of %d images', 100 * found['accuracy'], len(truth))
    for row in found['classes']:
        logger.info(
            '%s: %.1f %% found, %.1f %% of what is called so, %d images',
            row['name'],
            100 * row['recall'],
            100 * row['precision'],
            row['images'],
        )
    return found


def export(directory: str | pathlib.Path) -> pathlib.Path:
    """Writes the network of a finished run where no asose_jax is needed to use it.

    `model.stablehlo` takes pixel values `[N, H, W, C]` uint8, any N, and gives probabilities; it
    runs on CPU, CUDA and TPU, by `jax.export.deserialize(...).call(images)`. `model.json` has the
    class names, sizes and genotype; `parameters` is an Orbax checkpoint of the variables.

    Returns:
      The folder, WORKDIR/export.

    Raises:
      UserError: no finished run.
    """
    directory = pathlib.Path(directory).expanduser()
    made = load(directory)
    target = directory / 'export'
    target.mkdir(exist_ok=True)
    (count,) = jax_export.symbolic_shape('n')
    images = jax.ShapeDtypeStruct((count, *made.spec.image_shape), np.uint8)
    exported = jax_export.export(jax.jit(made.probabilities), platforms=PLATFORMS)(images)
    (target / 'model.stablehlo').write_bytes(exported.serialize())
    content = {
        'classes': list(made.class_names),
        'image_shape': list(made.spec.image_shape),
        'mean': made.mean.tolist(),
        'std': made.std.tolist(),
        'genotype': made.genotype.to_json(),
        'network': made.spec.to_json(),
        'test_accuracy': made.summary['test_accuracy'],
        'versions': made.summary['versions'],
        'platforms': list(PLATFORMS),
    }
    workdir.write_atomically(target / 'model.json', json.dumps(content, indent=2) + '\n')
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((target / 'parameters').absolute(), made.variables, force=True)
    logger.info('%s', target)
    return target
