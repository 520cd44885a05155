"""Builds what a run needs from its config: data, schedule, network."""

import logging

import jax
import ml_collections
import numpy as np

from asose_jax.arch import genotype, gumbel
from asose_jax.config.consistency import frozen_epochs, has_exact_start
from asose_jax.data import dataset
from asose_jax.data.mixing import Mixing
from asose_jax.data.randaugment import RandAugment
from asose_jax.nn.forward import NetSettings
from asose_jax.runtime.errors import UserError, counted
from asose_jax.spaces.supernet import SuperNet
from asose_jax.train import phases
from asose_jax.train.phases import Phase, Schedule
from asose_jax.train.step_config import AXIS, Recipe

logger = logging.getLogger('asose_jax')

_MAX_STEPS = 2**31 - 1  # the compiled steps count them in int32


def make_supernet(
    config: ml_collections.ConfigDict,
    spec: genotype.NetSpec,
    start: ml_collections.ConfigDict | None = None,
    platform: str = 'cpu',
) -> SuperNet:
    """Builds the network of a description, as a run with this config trains it.

    Args:
      config: of the run.
      spec: description of the network.
      start: has the initial biases of alpha, `none_bias` and `skip_bias`: `config.arch` (also with
        `None`), or `config.growth` for the mixed operations that a growth adds.
      platform: of the devices that will run it, see `pmap.platform`.

    Returns:
      The module; its BatchNorms pool their statistics over the axis `AXIS`.
    """
    settings = make_settings(config, config.arch if start is None else start)
    dtype = config.model.dtype
    return SuperNet(spec, settings, dtype, synced_over=AXIS, for_cpu=platform == 'cpu')


def make_settings(
    config: ml_collections.ConfigDict, biases: ml_collections.ConfigDict
) -> NetSettings:
    """Builds the settings of a network; `biases` is `start` of `make_supernet`."""
    c = config
    return NetSettings(
        init_std=c.arch.init_std,
        none_bias=biases.none_bias,
        skip_bias=biases.skip_bias,
        estimator=c.search.estimator,
        # Estimators without noise ignore it.
        noise=c.search.noise or 'temperature',
        thresholds=gumbel.Thresholds(*c.search.thresholds),
        remat=c.model.remat,
        guard=c.guard.alpha,
        drop_path=c.optimize.drop_path,
        second_head=c.optimize.second_head,
        exact_start=has_exact_start(c),
        auxiliary_skip=c.search.auxiliary_skip,
    )


def make_schedule(config: ml_collections.ConfigDict, train_size: int) -> Schedule:
    """Builds the schedule of a run: its phases, turns and temperatures by step.

    An epoch has about as many weight steps as the training images fill whole batches.

    Raises:
      UserError: the learning rate would rise through all of its updates, or steps are more than an
        int32 can count.
    """
    schedule = phases.make_schedule(
        {phase: config[phase].epochs for phase in Phase},
        max(1, train_size // config.batch_size),
        config.search,
        frozen_epochs(config),
    )
    if schedule.steps > _MAX_STEPS:
        epochs = ', '.join(f'{phase}.epochs={config[phase].epochs}' for phase in Phase)
        raise UserError(
            f'{epochs}: these are {schedule.steps} steps, but at most {_MAX_STEPS} can be counted. '
            'Take fewer epochs.'
        )
    _require_short_warmup(config, schedule)
    return schedule


def _require_short_warmup(config: ml_collections.ConfigDict, schedule: Schedule) -> None:
    """Raises UserError unless each cosine of the weights is longer than the rise in it."""
    rise, updates = config.weights.lr_warmup_steps, schedule.weight_updates(schedule.steps)
    cosines = [updates]
    if config.optimize.lr is not None:
        before = schedule.weight_updates(schedule.steps_before_optimize)
        cosines = [number for number in (before, updates - before) if number]
    if rise and rise >= min(cosines):
        raise UserError(
            f'weights.lr_warmup_steps={rise}: with these epochs, data and batch_size, a learning '
            f'rate has {min(cosines)} weight updates; take fewer (with --mode=retrain: in '
            'retrain.lr_warmup_steps)'
        )


def make_recipe(config: ml_collections.ConfigDict) -> Recipe:
    """Builds the recipe of the phase optimize."""
    o = config.optimize
    return Recipe(
        label_smoothing=o.label_smoothing,
        mixing=Mixing(o.mixup, o.cutmix),
        randaugment=RandAugment(o.randaugment, o.randaugment_magnitude),
        ema=o.ema,
    )


def load_data(
    config: ml_collections.ConfigDict, split_by: str = 'content', begun: bool = False
) -> dataset.Dataset:
    """Loads the data set that `config` names, and logs its sizes.

    Args:
      config: of the run.
      split_by: how the run splits a folder of pictures, see `dataset.recorded_split`.
      begun: whether the run was already trained on these data, see `tfds.load`.

    Raises:
      UserError: the data set cannot be read, has fewer training images than a batch, or images too
        small for the reductions of the network.
    """
    d = config.data
    images = dataset.load(d, config.seed, split_by=split_by, begun=begun)
    logger.info(
        '%s: %d train, %d valid, %d test images %s, %d classes, %s',
        d.name,
        len(images.train),
        len(images.valid),
        len(images.test),
        'x'.join(map(str, images.image_shape)),
        len(images.class_names),
        'streamed' if images.images.arrays is None else 'resident on the device',
    )
    if len(images.train) < config.batch_size:
        largest = max(1, len(images.train) // jax.device_count()) * jax.device_count()
        raise UserError(
            f'batch_size={config.batch_size}: there are only {counted(len(images.train), "image")} '
            f'to train on. Take at most {largest} (with --mode=retrain: in retrain.batch_size), or '
            'add images.'
        )
    smallest = 2 ** len(config.model.reductions)
    if min(images.image_shape[:2]) < smallest:
        raise UserError(
            f'images of {images.image_shape[0]}x{images.image_shape[1]} are too small for '
            f'{len(config.model.reductions)} reductions, which need at least {smallest} pixels a '
            "side. Set fewer (--config.model.reductions='(1,)') or a larger data.image_size."
        )
    if not begun:
        _warn_if_hidden(config, images.image_shape)
    return images


def _warn_if_hidden(config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]) -> None:
    """Warns if augmentation leaves nothing of the training images, or little of most.

    A square of cutout covers an image of side s wherever it lies if its own is at least 2 s - 1.
    Padding that is wider than an image leaves less than half of it in most crops.
    """
    side, data = max(image_shape[:2]), config.data
    for field, value, largest, what in (
        ('cutout', data.cutout, 2 * side - 2, 'every training image is covered whole'),
        ('crop_padding', data.crop_padding, side, 'most crops hold less than half of an image'),
    ):
        if value > largest:
            logger.warning(
                'data.%s=%d: %s, since images have %dx%d pixels. Take at most %d, or 0 for none '
                '(--mode=retrain has retrain.cutout).',
                field,
                value,
                what,
                *image_shape[:2],
                side // 2,
            )


def make_class_weights(
    config: ml_collections.ConfigDict, images: dataset.Dataset
) -> np.ndarray | None:
    """Computes the weights of the classes in the training loss, and logs their range.

    They are float32 `[classes]`, by label; `None` if all images count alike. A set of TFDS that is
    streamed is read for its labels.
    """
    if config.data.class_weights is None:
        return None
    weights = dataset.balanced_class_weights(images)
    names, present = np.array(images.class_names), weights > 0
    least, most = weights[present].argmin(), weights[present].argmax()
    logger.info(
        'balanced class weights in the training loss: %.3g (%s) to %.3g (%s)',
        weights[present][least],
        names[present][least],
        weights[present][most],
        names[present][most],
    )
    return weights
