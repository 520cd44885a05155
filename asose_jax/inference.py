"""The trained network of a finished run: prediction, evaluation and export."""

import contextlib
import csv
import dataclasses
import errno
import functools
import itertools
import json
import logging
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from asose_jax.arch.genotype import Genotype, NetSpec, to_tuples
from asose_jax.config.consistency import require_whole, unflatten
from asose_jax.data import dataset, pictures
from asose_jax.data.fingerprint import MissingDataError
from asose_jax.data.pictures import Picture
from asose_jax.exports import stablehlo, torch_file, torch_module, translation
from asose_jax.metrics import classification, run_record
from asose_jax.nn import factors
from asose_jax.nn.forward import DERIVED, Mode
from asose_jax.pipeline import builders, old_checkpoints
from asose_jax.runtime import log, packages, paths, process, workdir
from asose_jax.runtime.errors import UserError, counted, os_errors
from asose_jax.spaces import registry
from asose_jax.spaces.supernet import SECOND_HEAD, SuperNet
from asose_jax.train import checkpoint, optimizer, pmap, state

logger = logging.getLogger('asose_jax')

_PREDICT_BATCH = 128  # images per call of the compiled network
_EVALUATE_BATCH = 1000  # images that `evaluate` reads at once
_LISTED_CLASSES = 5  # the most likely ones, in predictions.csv
_LOGGED_PREDICTIONS = 10
_PIXELS = (-32, 287)  # beyond 0..255 by what scaling and sharpening overshoot
_IMAGES = 'Take an array, the path of a picture, a Pillow image, or a list of these.'
# Entries of summary.json that a network needs, and their types.
_SUMMARY = {'classes': list, 'genotype': list, 'images': dict, 'mean': list, 'std': list}
# Exports, and the packages that they need beside those of this one.
EXPORTS = {
    'stablehlo': (),
    'onnx': ('onnx',),
    'int8': ('onnx', 'onnxruntime'),
    'torch': ('safetensors',),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network with everything that is needed to use it.

    Example:
      model = load('/tmp/digits')
      names = [model.class_names[k] for k in model.predict(images).argmax(-1)]

    Attributes:
      directory: workdir of the run.
      spec: description of the network; every operation is chosen.
      class_names: one name for each output.
      variables: the collections `params` and `batch_stats`.
      mean: mean of each channel, in pixel values 0..255, float32 `[C]`.
      std: standard deviation of each channel, in the same units, float32 `[C]`.
      dtype: dtype of the activations.
      summary: results of the run, as in summary.json.
      config: fields of the config by name, as in config.json.
    """

    directory: pathlib.Path
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
        """Returns the chosen operations, by group and member."""
        return Genotype(to_tuples(self.summary['genotype']))

    def predict(
        self, images: Picture | np.ndarray | jax.Array | Iterable[Picture | np.ndarray | jax.Array]
    ) -> np.ndarray:
        """Returns the probability of each class.

        Args:
          images: pixel values 0..255 of any dtype, `[N, H, W, C]`, with the H, W and C that the
            network was trained on; the path of a picture, or a Pillow image, which are brought to
            that form (see `pictures.pixels`); or a list of these, in which an array may also be a
            single image `[H, W, C]`.

        Returns:
          Probabilities, float32 `[N, classes]`, in the order of the images.

        Raises:
          ValueError: H, W or C of an array differ, its pixels are no numbers or not finite, or
            `images` is of another type.
          UserError: pictures cannot be read; they are named.
        """
        shape = self.spec.image_shape

        def read(image: Picture | np.ndarray) -> np.ndarray:
            return image if isinstance(image, np.ndarray) else pictures.pixels(image, shape)

        if isinstance(images, bytes) or not isinstance(
            images, Iterable | os.PathLike | Image.Image
        ):
            raise ValueError(f'images={reprlib.repr(images)} is no image. {_IMAGES}')
        several = (
            [images]
            if isinstance(images, str | os.PathLike | Image.Image | np.ndarray | jax.Array)
            else images
        )
        singles = itertools.chain.from_iterable(map(self._singles, several))
        has_floats, least, largest = False, np.inf, -np.inf
        parts = [np.zeros((0, len(self.class_names)), np.float32)]
        with futures.ThreadPoolExecutor() as pool:
            while chunk := list(itertools.islice(singles, _PREDICT_BATCH)):
                # Every call has the same shape, so that the network is compiled only once.
                batch = np.zeros((_PREDICT_BATCH, *shape), np.float32)
                is_decoded = all(isinstance(image, np.ndarray) for image in chunk)
                decoded: list[Any] = (
                    chunk if is_decoded else pictures.of_each(read, chunk, pool.map)
                )
                with np.errstate(over='ignore'):  # such pixels are warned of below
                    batch[: len(chunk)] = decoded
                parts.append(np.asarray(self._call(batch))[: len(chunk)])
                has_floats |= any(_is_float(image) for image in chunk)
                least = min(least, batch[: len(chunk)].min())
                largest = max(largest, batch[: len(chunk)].max())
        if has_floats and largest <= 1:
            logger.warning(
                'all pixels are at most %g, but the network takes pixel values 0..255: if yours '
                'are 0..1, multiply them by 255',
                largest,
            )
        elif least < _PIXELS[0] or largest > _PIXELS[1] or (least < 0 and largest < 16):
            logger.warning(
                'pixels go from %g to %g, but the network takes pixel values 0..255: bring yours '
                'to that range (16 bits: divide them by 257)',
                least,
                largest,
            )
        return np.concatenate(parts)

    def _singles(
        self, images: Picture | np.ndarray | jax.Array
    ) -> Iterator[Picture] | Iterator[np.ndarray]:
        """Yields a picture as it is, and the images of an array one by one."""
        if isinstance(images, str | os.PathLike | Image.Image):
            return iter([images])
        array = np.asarray(images)
        if not jnp.issubdtype(array.dtype, np.number) and array.dtype != bool:
            raise ValueError(f'images hold {array.dtype}, not numbers. {_IMAGES}')
        if jnp.issubdtype(array.dtype, np.complexfloating):
            raise ValueError(f'images hold {array.dtype}, but pixels are real numbers')
        if array.shape[-3:] != self.spec.image_shape or array.ndim not in (3, 4):
            raise ValueError(
                f'images have shape {array.shape}, but this network takes '
                f'{(None, *self.spec.image_shape)}: any number of images (height, width, channels)'
            )
        if _is_float(array) and not np.isfinite(array).all():
            raise ValueError('images have pixels that are NaN or infinite')
        return iter(array.reshape(-1, *self.spec.image_shape))

    @functools.cached_property
    def _call(self) -> Callable[[np.ndarray], jax.Array]:
        return jax.jit(self.probabilities)

    def probabilities(self, images: jax.Array) -> jax.Array:
        """Computes the same as `predict`, as a function that JAX can trace.

        Args:
          images: pixel values 0..255 of any dtype, `[N, H, W, C]`.

        Returns:
          Probabilities, float32 `[N, classes]`.
        """
        return jax.nn.softmax(self.logits(images))

    def logits(self, images: jax.Array) -> jax.Array:
        """Computes the logits, whose softmax are the probabilities; JAX can trace it.

        Args:
          images: pixel values 0..255 of any dtype, `[N, H, W, C]`.

        Returns:
          Logits, float32 `[N, classes]`.
        """
        mean, std = (np.reshape(values, (1, 1, 1, -1)) for values in (self.mean, self.std))
        normalised = (images.astype(jnp.float32) - mean) / std
        net = SuperNet(self.spec, DERIVED, self.dtype)
        logits = net.apply(self.variables, normalised, mode=Mode.ARGMAX, train=False)
        return cast(jax.Array, logits)

    @os_errors('exporting the network of a run')
    def export(self, *formats: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
        """Exports the network, as the function `export` does with the workdir of its run."""
        formats = formats or ('stablehlo',)
        _require_exports(formats)
        data = None
        if 'int8' in formats or data_dir is not None:
            data = _load_data(self, data_dir)
        else:
            _require_same_data_if_present(self)
        target = self.directory / 'export'
        target.mkdir(exist_ok=True)
        if 'stablehlo' in formats:
            stablehlo.write(target / 'model.stablehlo', self.probabilities, self.spec.image_shape)
        content = {
            'classes': list(self.class_names),
            'image_shape': list(self.spec.image_shape),
            'mean': self.mean.tolist(),
            'std': self.std.tolist(),
            'genotype': self.genotype.to_json(),
            'network': self.spec.to_json(),
            'test_accuracy': self.summary.get('test_accuracy'),
            'versions': self.summary.get('versions'),
        }
        if (target / 'model.stablehlo').exists():
            content['platforms'] = list(stablehlo.PLATFORMS)
        workdir.write_atomically(target / 'model.json', json.dumps(content, indent=2) + '\n')
        if 'stablehlo' in formats:
            stablehlo.save_parameters((target / 'parameters').absolute(), self.variables)
        if {'onnx', 'int8'} & {*formats}:
            _write_onnx(self, target / 'model.onnx')
        if 'int8' in formats:
            assert data is not None
            from asose_jax.exports import int8  # imported here: it needs onnxruntime

            int8.write(target / 'model.onnx', target / 'model_int8.onnx', data)
        if 'torch' in formats:
            _write_torch(self, target / 'model_torch.py')
        logger.info('exported to %s', target)
        return target


def _is_float(image: Picture | np.ndarray) -> bool:
    """Returns whether an image is an array that may hold pixels 0..1, not 0..255."""
    return isinstance(image, np.ndarray) and (
        image.dtype == bool or jnp.issubdtype(image.dtype, np.floating)
    )


@os_errors('loading the network of a run')
def load(directory: str | pathlib.Path) -> Trained:
    """Loads the network of the finished run in a workdir.

    Args:
      directory: workdir of a single run, not of a sweep.

    Returns:
      The network, with the operations that were chosen and their trained weights.

    Raises:
      UserError: the directory holds no finished run, holds several runs, or its checkpoint cannot
        be read.
    """
    directory = paths.expand_workdir(directory)
    record = run_record.read(directory)
    _require_loadable(directory, record)
    process.require_platform()
    config, summary = unflatten(record.config), record.summary
    try:
        spec, restored = _restored(directory, config, summary)
    except checkpoint.DamagedError as error:
        raise UserError(
            f'{error}. Restore it from a copy, or run the command of the run again: it goes on '
            'from the newest checkpoint that can be read.'
        ) from error
    _require_fitting_summary(directory, summary, spec)
    params, stats = restored.params, restored.batch_stats
    if not spec.is_derived():  # without the phase optimize, a run ends with the supernet's weights
        spec, params, stats = _derived(directory, spec, summary, params, stats)
    return Trained(
        directory=directory,
        spec=spec,
        class_names=tuple(summary['classes']),
        variables={
            'params': _without_second_head(params),
            'batch_stats': _without_second_head(stats),
        },
        mean=np.array(summary['mean'], np.float32),
        std=np.array(summary['std'], np.float32),
        dtype=config.model.dtype,
        summary=summary,
        config=record.config,
    )


def _require_loadable(directory: pathlib.Path, record: run_record.Record) -> None:
    """Fails unless the workdir holds one finished run with a complete summary."""
    config = workdir.read_config(directory)  # names the file if it is damaged
    summary = directory / 'summary.json'
    if summary.exists() and not record.summary:
        raise UserError(
            f'{summary} cannot be read: it is damaged. Restore it from a copy, or delete it and '
            'run the command of the run again: it goes on from the last checkpoint.'
        )
    if not record.summary:
        raise UserError(
            f'{directory} holds no finished run: it has no summary.json. Name the workdir of a '
            'finished run, or finish this one: the command that started it also resumes it.'
        )
    if record.config.get('seeds'):
        runs = sorted(str(path.parent) for path in directory.glob('**/metrics.jsonl'))
        raise UserError(
            f'{directory} holds several runs; name one of them as --workdir:\n  '
            + '\n  '.join(runs)
        )
    if config is None:
        raise UserError(
            f'{directory} has a summary but no config.json, which says what its network is. '
            'Restore it from a copy, or from the command in summary.json.'
        )
    require_whole(directory / 'config.json', config)
    unusable = [
        name for name, kind in _SUMMARY.items() if not isinstance(record.summary.get(name), kind)
    ]
    if unusable:
        raise UserError(
            f'{summary} has no {", ".join(unusable)} that can be used: it was written by an older '
            'version of asose_jax, or edited. Restore it from a copy.'
        )


def _require_fitting_summary(
    directory: pathlib.Path, summary: Mapping[str, Any], spec: NetSpec
) -> None:
    """Fails unless classes, mean and standard deviation in summary.json are those of a network."""
    fault, channels = None, spec.image_shape[-1]
    if len(summary['classes']) != spec.num_classes:
        fault = (
            f'it names {counted(len(summary["classes"]), "class", "classes")}, but the network has '
            f'{spec.num_classes}'
        )
    for name in ('mean', 'std'):
        numbers = [run_record.finite_or_none(value) for value in summary[name]]
        if len(numbers) != channels or None in numbers:
            fault = f'{name} must be {counted(channels, "finite number")}, one for each channel'
    if fault is not None:
        raise UserError(
            f'{directory / "summary.json"} is damaged: {fault}. Restore it from a copy.'
        )


def _restored(
    directory: pathlib.Path, config: ml_collections.ConfigDict, summary: Mapping[str, Any]
) -> tuple[NetSpec, state.SearchState]:
    """Reads the description and the state of the last checkpoint into host memory."""
    if not checkpoint.has_checkpoint(directory / 'checkpoints'):
        raise UserError(
            f'{directory} has a summary but no checkpoints, so the weights of its network are '
            'lost. Restore its checkpoints, or repeat the run in another --workdir.'
        )
    schedule = builders.make_schedule(config, summary['images']['train'])
    tx = optimizer.make_optimizer(config, schedule)
    with checkpoint.Checkpoints(directory / 'checkpoints') as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        meta = checkpoints.describe(step)
        spec = registry.spec_from_json(meta['spec'])
        model_of = functools.partial(builders.make_supernet, config)
        if old_checkpoints.has_gates(meta['checksums']):
            return old_checkpoints.restore(checkpoints, step, spec, model_of, tx)
        averages = checkpoint.has_average(meta['checksums'])
        like = state.abstract_state(model_of(spec), tx, pmap.replicated_sharding(), averages)
        return spec, jax.device_get(checkpoints.restore(step, like))


def _derived(
    directory: pathlib.Path,
    spec: NetSpec,
    summary: Mapping[str, Any],
    params: dict[str, Any],
    stats: dict[str, Any],
) -> tuple[NetSpec, dict[str, Any], dict[str, Any]]:
    """Reduces a supernet and its weights to the operations that the run chose."""
    if spec.partial > 1:
        raise UserError(
            f'{directory}: the chosen operations were never trained on all channels, since '
            f'search.partial_channels={spec.partial} and optimize.epochs=0. Train the network from '
            f'scratch: --mode=retrain --config.genotype={directory}'
        )
    chosen = Genotype(to_tuples(summary['genotype']))
    params, stats = (state.prune(tree, spec, chosen) for tree in (params, stats))
    params, _ = factors.fold(spec, chosen, params)
    return factors.folded_spec(spec, chosen), params, stats


def _without_second_head(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {name: subtree for name, subtree in tree.items() if name != SECOND_HEAD}


@log.shown()
@os_errors('evaluating a run')
def evaluate(
    directory: str | pathlib.Path, data_dir: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Evaluates the network of a finished run on its test split.

    Logs the numbers, then writes evaluation.json and confusion.png into the workdir.

    Args:
      directory: workdir of a finished run.
      data_dir: where the data of the run are now; `None` means where they were. They are compared
        with what the run recorded.

    Returns:
      The content of evaluation.json, see `classification.scores`.

    Raises:
      UserError: there is no finished run, its data are missing or have changed, its network returns
        numbers that are not finite, or the workdir cannot be written; the numbers are in the log
        then.
    """
    from asose_jax.report import confusion  # imported here: matplotlib takes a second to import

    directory = paths.expand_workdir(directory)
    model = load(directory)
    data = _load_data(model, data_dir)
    truths, predictions = [], []
    for part in np.array_split(data.test, -(-len(data.test) // _EVALUATE_BATCH)):
        pixels, labels = data.images.read(part)
        truths.append(labels)
        predictions.append(model.predict(pixels))
    labels, probabilities = np.concatenate(truths), np.concatenate(predictions)
    if not np.isfinite(probabilities).all():
        broken = int((~np.isfinite(probabilities)).any(-1).sum())
        raise UserError(
            f'the network in {directory} returns numbers that are not finite for {broken} of '
            f'{len(labels)} test images, so it cannot be evaluated. Repeat the run in another '
            "--workdir with a lower weights.lr, or with model.dtype='float32'."
        )
    result = classification.scores(labels, probabilities, model.class_names)
    for line in classification.describe(result):
        logger.info('%s', line)
    # Written last: where the workdir cannot be written, the numbers are in the log.
    workdir.write_atomically(directory / 'evaluation.json', json.dumps(result, indent=2) + '\n')
    picture = confusion.figure(np.array(result['confusion']), list(model.class_names))
    with workdir.naming(directory / 'confusion.png'):
        picture.savefig(directory / 'confusion.png', dpi=confusion.DPI)
    logger.info('evaluation.json and confusion.png are in %s', directory)
    return result


def _load_data(model: Trained, data_dir: str | os.PathLike[str] | None = None) -> dataset.Dataset:
    """Loads the data of the run; fails if they are gone or have changed.

    Args:
      model: the network of the run.
      data_dir: see `_data_config`.
    """
    directory = model.directory
    try:
        split_by = dataset.recorded_split(model.summary, directory)
        data = builders.load_data(_data_config(model, data_dir), split_by, begun=True)
    except MissingDataError as error:
        raise UserError(
            f'the data of the run in {directory}: {error}. If they have moved, name their place: '
            '--data_dir=DIR.'
        ) from error
    except UserError as error:
        raise UserError(f'the data of the run in {directory}: {error}') from error
    recorded = {**model.summary, 'image_shape': list(model.spec.image_shape)}
    dataset.require_same_data(data, recorded, directory)
    return data


def _data_config(
    model: Trained, data_dir: str | os.PathLike[str] | None = None
) -> ml_collections.ConfigDict:
    """Returns the config of a run with the place where its data are now.

    Args:
      model: the network of the run.
      data_dir: the place, if the user names one. Otherwise a relative `data.dir` counts from the
        directory that the run was started in or, where that has no such folder, from the current.
    """
    config = unflatten(model.config)
    name, folder = config.data.name, config.data.dir
    if data_dir is not None:
        if name == 'digits':
            raise UserError(
                f'--data_dir={os.fspath(data_dir)}: the digits come with scikit-learn; leave it out'
            )
        paths.require_local(data_dir, '--data_dir')
        if 'data' not in model.summary:
            logger.warning(
                'the run was begun by an older version, which recorded no digest of its data: of '
                '--data_dir only the classes and the number of images are compared'
            )
        config.data.dir = os.fspath(data_dir)
    elif folder is not None:
        began = workdir.read_json_object(model.directory / 'run.json').get('directory')
        there = os.path.join(began if isinstance(began, str) else '', os.path.expanduser(folder))
        if os.path.isdir(there):
            config.data.dir = there
    return config


def _require_same_data_if_present(model: Trained) -> None:
    """Fails if the data of the run are there and differ from what it was trained on."""
    if 'data' not in model.summary:  # the digits, or a run of an older version
        return
    directory = model.directory
    split_by = dataset.recorded_split(model.summary, directory)
    try:
        identity = dataset.identify(_data_config(model).data, split_by)
    except MissingDataError as error:
        logger.info('the data of the run are not there, so they are not compared: %s', error)
        return
    except UserError as error:
        raise UserError(f'the data of the run in {directory}: {error}') from error
    dataset.require_same_identity(identity, model.summary, directory)


@log.shown()
@os_errors('predicting the classes of pictures')
def predict(
    directory: str | pathlib.Path,
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Predicts the classes of pictures by the network of a finished run, into a table.

    The table has a line for each picture, in order: `file`, `class` and `probability`, then
    `class_2`, `probability_2` and so on for the classes that come next, up to five in all. A
    picture that cannot be read is named in the log and has no line.

    Args:
      directory: workdir of a finished run.
      images: pictures, folders and globs, see `pictures.find`.
      out: the table, a CSV file in UTF-8; `None` means WORKDIR/predictions.csv.

    Returns:
      The path of the table.

    Raises:
      UserError: there is no finished run, no picture is found or can be read, or the table cannot
        be written.
    """
    directory = paths.expand_workdir(directory)
    target = directory / 'predictions.csv'
    if out is not None:
        paths.require_local(out, 'out')
        target = pathlib.Path(out).expanduser()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    model = load(directory)
    files = pictures.find(images)
    if target.exists() and any(os.path.samefile(target, f) for f in files if os.path.exists(f)):
        raise UserError(f'out={os.fspath(target)!r} is one of the pictures. Name another file.')
    count = min(_LISTED_CLASSES, len(model.class_names))
    later = [f'{name}_{k}' for k in range(2, count + 1) for name in ('class', 'probability')]
    read = 0
    with workdir.written_atomically(target) as file:
        table = csv.writer(file, lineterminator='\n')
        table.writerow(['file', 'class', 'probability', *later])
        for name, row in _predictions(model, files):
            best = np.argsort(-row, kind='stable')[:count]
            cells = [(model.class_names[k], f'{row[k]:.6f}') for k in best]
            shown = pictures.printable(name)
            table.writerow([shown, *itertools.chain.from_iterable(cells)])
            read += 1
            if read <= _LOGGED_PREDICTIONS:
                logger.info('%s: %s %.1f %%', shown, model.class_names[best[0]], 100 * row[best[0]])
        if not read:
            raise UserError(
                f'no picture can be read ({counted(len(files), "file")} tried); the lines above '
                f'say why. Check images={images!r}.'
            )
    unread = f'; {len(files) - read} could not be read' if read < len(files) else ''
    logger.info('the classes of %s are in %s%s', counted(read, 'picture'), target, unread)
    return target


def _predictions(model: Trained, files: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each picture that can be read and its probabilities, float32 `[classes]`."""

    def read(file: str) -> np.ndarray:
        return pictures.pixels(file, model.spec.image_shape)

    with futures.ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _PREDICT_BATCH):
            part = files[start : start + _PREDICT_BATCH]
            results = pictures.attempt_each(read, part, pool.map)
            for file, result in zip(part, results, strict=True):
                if isinstance(result, Exception):
                    logger.warning('passed over: %s', pictures.failure(file, result))
            readable = [not isinstance(result, Exception) for result in results]
            found = model.predict(itertools.compress(results, readable))
            yield from zip(itertools.compress(part, readable), found, strict=True)


@log.shown()
@os_errors('exporting the network of a run')
def export(
    directory: str | pathlib.Path, *formats: str, data_dir: str | os.PathLike[str] | None = None
) -> pathlib.Path:
    """Exports the network of a finished run for use without this package.

    Every export takes pixel values uint8 `[N, H, W, C]`, for any N, and writes `model.json` into
    WORKDIR/export: class names, sizes, normalisation and genotype. Beside it:

      * `'stablehlo'` writes `model.stablehlo`, which returns probabilities float32 `[N, classes]`
        and runs on CPU, CUDA and TPU by `jax.export.deserialize(...).call(images)`; and
        `parameters`, an Orbax checkpoint of the variables.
      * `'onnx'` writes `model.onnx`, with the outputs `probabilities` and `logits`. If onnxruntime
        is installed, the file is run and compared with the network.
      * `'int8'` writes `model.onnx` and, quantised to integers, `model_int8.onnx`, with
        `model_int8.json`: accuracy and size of both.
      * `'torch'` writes `model_torch.py`, a module of plain PyTorch, and `model_torch.safetensors`,
        its weights. If PyTorch is installed, it is run and compared with the network.

    Args:
      directory: workdir of a finished run.
      *formats: of `EXPORTS`; `'stablehlo'` if there is none.
      data_dir: where the data of the run are now; `None` means where they were.

    Returns:
      The folder WORKDIR/export.

    Raises:
      UserError: there is no finished run, its data have changed, WORKDIR/export cannot be written,
        a format is unknown, or a package that it needs is missing. Data that are not there are not
        compared; only `'int8'` and `data_dir` need them.
    """
    _require_exports(formats)
    return load(directory).export(*formats, data_dir=data_dir)


def _require_exports(formats: Sequence[str]) -> None:
    """Fails if an export is unknown, or a package that it needs is not installed."""
    for name in formats:
        if not isinstance(name, str) or name not in EXPORTS:
            raise UserError(
                f'there is no export {name!r}. Choose from {", ".join(EXPORTS)}; in Python, each '
                'is an argument of its own.'
            )
        packages.require(f'the export {name!r}', *EXPORTS[name])


def _write_onnx(model: Trained, path: pathlib.Path) -> None:
    """Writes an ONNX file of the network, in float32 whatever the run computed in."""
    from asose_jax.exports import onnx_file, onnx_graph  # imported here: they need onnx

    about = {
        'class_names': list(model.class_names),
        'mean': model.mean.tolist(),
        'std': model.std.tolist(),
        'space': model.spec.SPACE,
        'genotype': model.genotype.to_json(),
        'trained_dtype': model.dtype,
        'test_accuracy': model.summary.get('test_accuracy'),
        'versions': model.summary.get('versions'),
    }
    graph = onnx_graph.Graph()
    translation.add_network(graph, model.spec, model.variables, mean=model.mean, std=model.std)
    with _exact_logits(model) as logits:
        onnx_file.write(path, graph.model(), about, logits)


def _write_torch(model: Trained, path: pathlib.Path) -> None:
    """Writes a PyTorch module of the network, in float32 whatever the run computed in."""
    constants = {
        'CLASS_NAMES': list(model.class_names),
        'SPACE': model.spec.SPACE,
        'GENOTYPE': model.genotype.to_json(),
        'TEST_ACCURACY': model.summary.get('test_accuracy'),
    }
    module = torch_module.Module()
    translation.add_network(module, model.spec, model.variables, mean=model.mean, std=model.std)
    with _exact_logits(model) as logits:
        torch_file.write(path, module, constants, logits)


@contextlib.contextmanager
def _exact_logits(model: Trained) -> Iterator[Callable[[np.ndarray], jax.Array]]:
    """Gives a function from images to the logits of the network in float32."""
    plain = dataclasses.replace(model, dtype='float32')
    # Accelerators multiply float32 in fewer bits unless told otherwise.
    with jax.default_matmul_precision('highest'):
        yield jax.jit(plain.logits)
