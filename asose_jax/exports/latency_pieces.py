"""Writes the operations of a search as ONNX files, to be timed on another machine.

`measure.py` times them there and writes a table, which `cost.table` names: docs/device_latency.md.
"""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from asose_jax.arch.genotype import NetSpec
from asose_jax.config.consistency import as_config, flatten, validate
from asose_jax.costs import expected_cost, flops, latency
from asose_jax.costs.flops import Part
from asose_jax.costs.latency import Operation
from asose_jax.exports import translation
from asose_jax.pipeline import builders, initialization
from asose_jax.runtime import packages, paths, process, workdir
from asose_jax.runtime.errors import os_errors

logger = logging.getLogger('asose_jax')

FOLDER = 'latency'  # in the workdir
_SCRIPT = 'measure.py'
_ONES = ('scale', 'var')


@os_errors('writing the operations of a search')
def write(config: Any, directory: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the operations of the network that a search would begin with, and `measure.py`.

    Args:
      config: of the search.
      directory: the folder is made in it.

    Returns:
      The folder.

    Raises:
      UserError: a package is missing, the config is wrong, its data are not there, or a file
        cannot be written.
    """
    packages.require('--mode=latency', 'onnx')
    config, directory = as_config(config), paths.expand_workdir(directory)
    paths.require_local_fields(flatten(config))
    process.require_platform()
    validate(config, 1)
    spec = _initial_network(config)
    target = directory / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    pieces = _write_pieces(spec, target)
    content = {
        'space': spec.SPACE,
        'images': config.cost.batch_size or 1,
        'dtype': 'float32',
        'pieces': pieces,
    }
    workdir.write_atomically(target / 'pieces.json', json.dumps(content, indent=2) + '\n')
    with workdir.naming(target / _SCRIPT):
        shutil.copyfile(pathlib.Path(__file__).with_name(_SCRIPT), target / _SCRIPT)
    if expected_cost.grows(config):
        logger.warning(
            'the operations are those of the network before it grows: a search that uses their '
            'latencies needs growth.epochs=0'
        )
    logger.info(
        '%d operations in %d files are in %s. Copy it to the machine, and run measure.py there.',
        *(len(pieces), len({*pieces.values()}), target),
    )
    return target


def _initial_network(config: ml_collections.ConfigDict) -> NetSpec:
    images = builders.load_data(config, 'content', begun=False)
    schedule = builders.make_schedule(config, len(images.train))
    return initialization.find_origin(config, images, schedule).spec


def _write_pieces(spec: NetSpec, target: pathlib.Path) -> dict[str, str]:
    """Writes a file for each latency, and one for all that are equal.

    Returns:
      Names of files by the names of the latencies.
    """
    names, files = {}, {}
    for key, part in latency.required(spec).items():
        model = _piece(part)
        if model not in files:
            files[model] = f'{key.replace(" ", "_")}.onnx'
            with workdir.naming(target / files[model]):
                (target / files[model]).write_bytes(model)
        names[key] = files[model]
    return names


def _piece(part: Operation | NetSpec) -> bytes:
    """Returns the ONNX file of an operation, of nothing, or of a network, with random weights."""
    from asose_jax.exports.onnx_graph import Graph  # imported here: it needs onnx

    graph = Graph()
    if isinstance(part, Operation):
        x = graph.features(part.shape)
        if part.name == latency.NOTHING:
            y = graph.corners(x, part.stride)
        else:
            variables = _random(part.program(1, 'float32'))
            y = translation.add_operation(graph, part.name, x, variables, part.stride)
        graph.result(y)
    else:
        plain, channels = dataclasses.replace(part, factors=()), part.image_shape[-1]
        variables = _random(flops.network_program(part, 1, 'float32'))
        mean, std = np.zeros(channels), np.ones(channels)
        translation.add_network(graph, plain, variables, mean=mean, std=std)
    return graph.model().SerializeToString(deterministic=True)


def _random(part: Part) -> Mapping[str, Any]:
    """Returns variables in whose results no number is extreme, which might take longer."""
    random = np.random.default_rng(0)

    def values(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if leaf.ndim > 1:
            return random.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape)
        return np.full(leaf.shape, float(path[-1].key in _ONES))

    shapes = jax.eval_shape(part.start, jax.random.key(0), part.x)
    return jax.tree.map_with_path(values, shapes)
