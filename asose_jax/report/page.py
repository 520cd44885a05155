"""report.html: all that a run, or several, came to on one page, drawn from the files of a workdir.

The page is a function of these files alone, so it can be drawn again at any time
(`--mode=report`). It loads nothing and runs no script.
"""

import functools
import logging
import pathlib
import time

import jinja2

from asose_jax.metrics import run_record
from asose_jax.report import run_figures, run_sections, sweep_sections
from asose_jax.runtime import workdir
from asose_jax.runtime.errors import UserError

logger = logging.getLogger('asose_jax')

NAME = 'report.html'
_SHARE = 0.02  # of the time of a run, at most, goes into pages between the ends of phases


class Page:
    """The page of a run, drawn again while it runs. What goes wrong here never stops the run.

    Args:
      directory: the workdir.
      is_primary_host: whether this process is the one, of those on many hosts, that writes.
    """

    def __init__(self, directory: pathlib.Path, is_primary_host: bool = True):
        self._directory, self._is_primary_host = directory, is_primary_host
        self._free = 0.0  # when the next page may be drawn

    def draw(self, at_once: bool = True) -> None:
        """Draws the page; unless `at_once`, only if the last one is old enough for its cost."""
        start = time.monotonic()
        if not self._is_primary_host or (start < self._free and not at_once):
            return
        try:
            write(self._directory)
        except Exception as error:  # a page is worth no run, whatever is wrong with it
            logger.warning('%s was not drawn: %s: %s', NAME, type(error).__name__, error)
        end = time.monotonic()
        self._free = end + (end - start) / _SHARE


def write(directory: pathlib.Path) -> None:
    """Draws the page of the run in `directory`, or of all that are in it, and writes it there."""
    told = run_record.read(directory)
    if told.config.get('seeds'):
        text = _template('several').render(sweep_sections.content(directory, told, NAME))
    else:
        text = render(told)
    workdir.write_atomically(directory / NAME, text)


def rebuild(directory: str | pathlib.Path) -> pathlib.Path:
    """Draws the page of a run, or of several, that are there already and may be at work.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no run.
    """
    directory = pathlib.Path(directory).expanduser()
    path = directory / 'config.json'
    if not path.exists():
        raise UserError(f'{directory} holds no run: there is no config.json. Name the --workdir.')
    try:
        write(directory)
    except OSError as error:
        raise UserError(f'{error.filename or directory}: {error.strerror or error}') from error
    logger.info('%s', directory / NAME)
    return directory / NAME


def render(told: run_record.Record) -> str:
    """The page of one run, as text."""
    return _template('report').render(
        head=run_sections.head(told),
        numbers=run_sections.numbers(told),
        accuracy=run_figures.accuracy(told),
        curves=run_figures.curves(told),
        choices=run_figures.choices(told),
        counts=run_figures.counts(told),
        networks=run_figures.networks(told),
        growths=run_sections.growths(told),
        alarms=run_sections.alarms(told),
        guards=run_sections.guards(told),
        phases=run_sections.phases(told),
        setup=run_sections.setup(told),
        legend=run_figures.legend(),
    )


@functools.cache
def _template(name):
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f'{name}.html.jinja')
