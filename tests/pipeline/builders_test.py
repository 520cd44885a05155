"""Data of a run: what its config makes of them is said where it can be of no use."""

import logging

import pytest
from helpers.runs import tiny

from asose_jax.pipeline import builders


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('data.cutout', 14, ''),
        ('data.cutout', 15, 'data.cutout=15: every training image is covered whole'),
        ('data.cutout', 500, 'since images have 8x8 pixels. Take at most 4, or 0'),
        ('data.crop_padding', 8, ''),
        ('data.crop_padding', 9, 'data.crop_padding=9: most crops hold less than half of an image'),
    ],
)
def test_augmentation_that_hides_the_images_is_told_of_new_runs(caplog, field, value, told):
    config = tiny(**{field: value})
    for begun in (True, False):
        with caplog.at_level(logging.WARNING, 'asose_jax'):
            builders.load_data(config, 'content', begun=begun)
        assert len(caplog.messages) == bool(told and not begun)
    assert not told or told in caplog.messages[0]
