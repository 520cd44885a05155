"""Reads the networks and genotypes that the fields `network` and `genotype` name or hold."""

import dataclasses
import json
import pathlib
import re

from asose_jax.arch import genotype
from asose_jax.data.dataset import Dataset, warn_of_other_pictures
from asose_jax.nn import operations
from asose_jax.runtime import text_file
from asose_jax.runtime.errors import UserError, describe_os_error
from asose_jax.spaces import genotype_text, registry

# Values of `genotype` and `network` that are no paths: JSON, the texts of DARTS, NAS-Bench-201.
_TEXT = re.compile(r'^\s*\ufeff?\s*\{|\bGenotype\s*\(|[|¦]\w+~\d[|¦]')
_BOM = '\ufeff'
_MAX_VALUE = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class _Source:
    """The text that `genotype` or `network` stands for.

    Attributes:
      text: the content of the file, or the value itself.
      file: its file; `None` if the value is the text.
      name: of one genotype in it, if the value ends with one.
    """

    text: str
    file: pathlib.Path | None = None
    name: str | None = None

    def __str__(self) -> str:
        """Returns what the messages call it."""
        return 'this text' if self.file is None else str(self.file)


def _read_source(field: str, value: str) -> _Source:
    """Reads the text that a field of the config names or holds.

    Args:
      field: `genotype` or `network`.
      value: a file, `FILE:NAME`, a workdir, which holds genotype.json, or the text itself.

    Raises:
      UserError: the file cannot be read.
    """
    if _TEXT.search(value):
        return _Source(value.lstrip(_BOM))
    try:
        file, name = pathlib.Path(value).expanduser(), None
        head, colon, tail = value.rpartition(':')
        if colon and tail.isidentifier() and not file.exists():
            file, name = pathlib.Path(head).expanduser(), tail
        file = file / 'genotype.json' if file.is_dir() else file
        return _Source(text_file.read(file), file, name)
    except OSError as error:
        raise UserError(
            f'{field}={value!r} cannot be read as a {field}: {describe_os_error(error)} It may be '
            'a genotype.json, a workdir with one, a file with the text format of the space, '
            'FILE:NAME, or the text itself.'
        ) from error
    except ValueError as error:
        raise UserError(f'{field}={quoted(value)}: {error}. Name another file.') from error


def warn_if_chosen_on_other_pictures(value: str, images: Dataset) -> None:
    """Warns if the search that chose a network may have used this run's test pictures."""
    if not _TEXT.search(value):
        path = pathlib.Path(value).expanduser()
        warn_of_other_pictures(images, path if path.is_dir() else path.parent)


def quoted(value: str) -> str:
    """Returns a value of `genotype` or `network` for a message; a long one is cut."""
    return repr(value if len(value) <= _MAX_VALUE else f'{value[:_MAX_VALUE]}...')


def chosen_network(value: str, spec: genotype.NetSpec) -> genotype.NetSpec:
    """Returns the network that a genotype derives from a supernet.

    Args:
      value: of the field `genotype`: a file with JSON or with the text format of the space,
        `FILE:NAME` for one of several genotypes in it, a workdir, or the text itself.
      spec: description of the supernet.

    Raises:
      UserError: the genotype cannot be read, or does not fit the supernet.
    """
    source = _read_source('genotype', value)
    try:
        if source.text.lstrip().startswith('{'):
            _require_no_name(source)
            content = json.loads(source.text)
            if content.get('network', {}).get('space', spec.SPACE) != spec.SPACE:
                raise ValueError(f'it is for the space {content["network"]["space"]!r}')
            chosen = genotype.Genotype(genotype.to_tuples(content['genotype']))
        elif (loads := registry.SPACES[spec.SPACE].loads) is not None:
            chosen = loads(source.text, source.name)
        else:
            raise ValueError(f'the space {spec.SPACE!r} has no text format, only genotype.json')
        unknown = {
            name for group in chosen.operations for name in group
        } - operations.PRIMITIVES.keys()
        if unknown:
            raise ValueError(f'unknown operations {sorted(unknown)}')
        return genotype.derive(spec, chosen)
    except genotype_text.ChoiceError as error:
        raise UserError(f'genotype={quoted(value)}: {source}: {error}.') from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if (other := _space_of(source.text)) not in (None, spec.SPACE):
            raise UserError(
                f'genotype={quoted(value)}: {source} holds a genotype of the space {other!r}, but '
                f'model.space={spec.SPACE!r}. Start with the preset of that space, {other!r}.'
            ) from error
        raise UserError(
            f'genotype={quoted(value)}: {source} holds no genotype for a network of '
            f'model.space={spec.SPACE!r}: {_reason(error)}. Name a genotype.json, a workdir, or a '
            'file with the text format of the space, and set the fields of model to fit it.'
        ) from error


def _space_of(text: str) -> str | None:
    """Returns the space in whose text format there are genotypes in a text, if there is one."""
    for name, space in registry.SPACES.items():
        if space.loads is not None:
            try:
                space.loads(text)
            except genotype_text.ChoiceError:  # there are several
                return name
            except ValueError:
                continue
            return name
    return None


def _reason(error: Exception) -> str:
    """Returns the message of a ValueError, and also the type of an error without a sentence."""
    return str(error) if type(error) is ValueError else f'{type(error).__name__}: {error}'


def _require_no_name(source: _Source) -> None:
    """Raises ValueError if a JSON file, which holds one genotype, is named with one of several."""
    if source.name is not None:
        raise ValueError(f'it is JSON and holds one genotype without a name, not {source.name!r}')


def read_network(value: str, images: Dataset) -> genotype.NetSpec:
    """Reads the derived network that a genotype.json describes.

    Raises:
      UserError: the network cannot be read, is not derived, or does not fit the images.
    """
    source = _read_source('network', value)
    named = f'network={quoted(value)}'
    try:
        _require_no_name(source)
        content = json.loads(source.text)
        # Schema 1 had the space beside the network, not in it.
        space = content['network'].get('space', content.get('space'))
        schema = content['schema']
        readable = space in registry.SPACES and schema == genotype.SCHEMA
        spec = registry.spec_from_json(content['network']) if readable else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if (space := _space_of(source.text)) is not None:
            raise UserError(
                f'{named}: {source} holds a genotype of the space {space!r}, not the sizes of a '
                f'network. Start with the preset of that space, {space!r}, and set genotype.'
            ) from error
        raise UserError(
            f'{named}: {source} cannot be read as a network ({type(error).__name__}: '
            f'{error}). Name a genotype.json, or the workdir of a finished run.'
        ) from error
    if spec is None:
        raise UserError(
            f'{named}: {source} is of space {space!r}, schema {schema!r}; this version '
            f'reads schema {genotype.SCHEMA} of {", ".join(map(repr, registry.SPACES))}. Use the '
            'version of asose_jax that wrote it.'
        )
    unknown = {
        name for row in spec.rows() for name in row.candidates
    } - operations.PRIMITIVES.keys()
    if unknown or not spec.is_derived():
        fault = (
            f'unknown operations {sorted(unknown)}' if unknown else 'choices of several candidates'
        )
        raise UserError(
            f'{named}: {source} has {fault}. Every choice must name exactly one of '
            f'{", ".join(operations.PRIMITIVES)}.'
        )
    _require_same_images(images, spec, f'{named} is for')
    # Factors that were left at the end of a search belong to its weights, which are not read.
    return dataclasses.replace(spec, factors=())


def _require_same_images(images: Dataset, spec: genotype.NetSpec, source: str) -> None:
    """Raises UserError unless a network takes the images of the data set, and knows their classes.

    `source` begins the message, such as `"network='FILE' is for"`.
    """
    ours = (images.image_shape, len(images.class_names))
    if (spec.image_shape, spec.num_classes) != ours:
        raise UserError(
            f'{source} images {spec.image_shape} of {spec.num_classes} classes; the images of '
            f'data.name are {ours[0]}, of {ours[1]} classes.'
        )
