"""Runs a search: python main.py --config=configs/search.py[:digits] --workdir=DIR."""

from asose_jax import cli

if __name__ == '__main__':
    cli.run()
