# The CPU environment in an image. Written with care but not built by the project's checks: please report what is wrong.
#
#   docker build --target cpu --tag asymgrpo:cpu .
#   docker run --rm asymgrpo:cpu                                    # the quick start
#   docker run --rm -v "$PWD/runs:/app/runs" asymgrpo:cpu fit --config configs/quickstart.yaml --run_dir runs/docker
#
# A mounted folder must be writable for the user in the image (uid 1000). There is no target for GPUs yet.

FROM python:3.11-slim AS cpu

# vLLM's CPU build links against libnuma.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 app \
    && install --directory --owner=app /app /app/runs
USER app
WORKDIR /app

# The environment first: it changes less often than the code, of which the editable install needs no more than this.
COPY --chown=app requirements/cpu.lock requirements/
COPY --chown=app tools/setup_venv.sh tools/
COPY --chown=app pyproject.toml README.md LICENSE ./
COPY --chown=app asymgrpo_app/__init__.py asymgrpo_app/
RUN PIP_NO_CACHE_DIR=1 tools/setup_venv.sh

COPY --chown=app . .

ENV PATH=/app/.venv/bin:$PATH
ENTRYPOINT ["asymgrpo"]
CMD ["fit", "--config", "configs/quickstart.yaml"]
