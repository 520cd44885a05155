# Not built: no Docker daemon was at hand where this was written.
# docker build -f docker/cpu.Dockerfile -t asose_jax .
FROM python:3.12-slim

WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY asose_jax asose_jax
RUN pip install --no-cache-dir .

# Runs and their compiled programs belong on a volume: --volume "$PWD/runs:/runs"
ENV JAX_COMPILATION_CACHE_DIR=/runs/.programs
WORKDIR /runs
ENTRYPOINT ["asose"]
