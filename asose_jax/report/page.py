"""Writes report.html, one page with the results of a run or a sweep, from the files of a workdir.

The page is a function of these files alone, so that it can be drawn again at any time
(`--mode=report`). It loads nothing and runs no script.
"""

import functools
import logging
import pathlib
import time

import jinja2

from asose_jax.metrics import run_record
from asose_jax.report import alpha_chart, run_figures, run_sections, sweep_sections
from asose_jax.runtime import paths, workdir
from asose_jax.runtime.errors import UserError, describe_os_error, os_errors

logger = logging.getLogger('asose_jax')

NAME = 'report.html'
_MAX_TIME_FRACTION = 0.02  # of a run, for pages between the ends of phases


class Page:
    """Draws the page of a run again and again while it runs; a failure never stops the run.

    Args:
      directory: workdir of the run or the sweep.
      is_primary_host: whether this is the one process, of those on several hosts, that writes.
    """

    def __init__(self, directory: pathlib.Path, is_primary_host: bool = True) -> None:
        """Draws nothing yet."""
        self._directory, self._is_primary_host = directory, is_primary_host
        self._next_time = 0.0  # of `time.monotonic`, before which no page is drawn on the way

    def draw(self, at_once: bool = True) -> None:
        """Draws the page, at once or if enough time has passed since the last one.

        That is enough if drawing takes at most 2 % of the time.
        """
        start = time.monotonic()
        if not self._is_primary_host or (start < self._next_time and not at_once):
            return
        try:
            write(self._directory)
        except OSError as error:
            logger.warning('%s was not drawn: %s', NAME, describe_os_error(error))
        except Exception as error:  # whatever is wrong with a page, the run is worth more
            logger.warning('%s was not drawn: %s: %s', NAME, type(error).__name__, error)
        end = time.monotonic()
        self._next_time = end + (end - start) / _MAX_TIME_FRACTION


def write(directory: pathlib.Path) -> None:
    """Draws the page of the run or the sweep in `directory`, and writes it there."""
    record = run_record.read(directory)
    if record.config.get('seeds'):
        text = _template('several').render(sweep_sections.build(directory, record, NAME))
    else:
        text = render(record)
    workdir.write_atomically(directory / NAME, text)


@os_errors('writing the report of a run')
def rebuild(directory: str | pathlib.Path) -> pathlib.Path:
    """Draws the page of an existing run or sweep, which may still be going on; returns its path.

    Raises:
      UserError: there is no run in `directory`, its config.json is damaged, or the page cannot be
        written.
    """
    directory = paths.expand_workdir(directory)
    config = workdir.read_config(directory)
    if config is None or 'seed' not in config:
        fault = 'there is no config.json' if config is None else 'its config.json is of no run'
        raise UserError(
            f'{directory} holds no run: {fault}. Pass the workdir of a run as --workdir.'
        )
    write(directory)
    logger.info('%s', directory / NAME)
    return directory / NAME


def render(record: run_record.Record) -> str:
    """Renders the page of a single run as HTML."""
    return _template('report').render(
        head=run_sections.head(record),
        numbers=run_sections.numbers(record),
        accuracy=run_figures.accuracy(record),
        curves=run_figures.curves(record),
        choices=alpha_chart.heat_maps(record),
        counts=run_figures.counts(record),
        networks=run_figures.networks(record),
        growths=run_sections.growths(record),
        alarms=run_sections.alarms(record),
        guards=run_sections.guards(record),
        phases=run_sections.phases(record),
        setup=run_sections.setup(record),
        legend=run_figures.legend(),
    )


@functools.cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f'{name}.html.jinja')
