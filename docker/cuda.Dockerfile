# Not built: no Docker daemon was at hand where this was written.
# docker build -f docker/cuda.Dockerfile -t asose_jax:cuda .
# The wheels of jax[cuda13] bring CUDA; the host brings the driver and the NVIDIA Container Toolkit.
FROM python:3.12-slim

WORKDIR /src
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY asose_jax asose_jax
RUN pip install --no-cache-dir ".[cuda]"

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Runs and their compiled programs belong on a volume: --volume "$PWD/runs:/runs"
ENV JAX_COMPILATION_CACHE_DIR=/runs/.programs
WORKDIR /runs
ENTRYPOINT ["asose"]
