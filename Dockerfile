# Two images of one source: `operator` (watches the cluster; no torch) and `runner` (one trial; torch). `example` is the runner
# with scikit-learn, and the pattern for images with packages of your own.
#   docker build --target operator -t modelpress/operator .      docker build --target runner -t modelpress/runner .
# BASE: any image of Debian with Python 3.11 to 3.13 and its venv module. A tag moves; for a build that can be repeated name a
# digest, which the builder verifies:  --build-arg BASE=python:3.11-slim-bookworm@sha256:...
# Everything from an index is pinned by hash in requirements/. Debian's git and ssh client are those of the day: its archive keeps
# only the newest of a release, signed, so that a pinned version would fail to install as soon as it is mended.
# They run as user 65532 and write below /tmp only: a read-only root file system with a volume there is enough.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
RUN groupadd --gid 65532 modelpress \
 && useradd --uid 65532 --gid 65532 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin modelpress
ENV PATH=/opt/modelpress/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
LABEL org.opencontainers.image.title=modelpress org.opencontainers.image.licenses=Apache-2.0

FROM base AS wheel
COPY requirements/build.txt /src/requirements/
RUN --mount=type=cache,target=/tmp/.cache/pip \
    python3 -m venv /pip && /pip/bin/pip install --require-hashes --requirement /src/requirements/build.txt
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY modelpress modelpress
COPY operator operator
COPY runner runner
RUN /pip/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels .

# Dependencies come before the source, as a layer of their own: a change of the source changes a small layer only. pip itself
# stays in a folder that the same step removes.
FROM base AS operator
COPY requirements/operator.txt /opt/modelpress/requirements.txt
# A quarter of it all would never be loaded: the Kubernetes client's classes for each kind (the operator speaks in plain
# objects), what Optuna keeps studies in databases with, and tests.
RUN --mount=type=cache,target=/tmp/.cache/pip \
    python3 -m venv --without-pip /opt/modelpress && python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/modelpress/bin/python install --no-compile \
      --require-hashes --requirement /opt/modelpress/requirements.txt \
 && /tmp/pip/bin/pip --python /opt/modelpress/bin/python uninstall --yes --quiet sqlalchemy alembic mako \
 && rm -r /tmp/pip && cd /opt/modelpress/lib/python3*/site-packages \
 && find kubernetes/client/api kubernetes/client/models kubernetes/aio/client/api kubernetes/aio/client/models \
      -name '*.py' ! -name __init__.py -delete \
 && find numpy -type d -name tests -prune -exec rm -r {} + \
 && python -m compileall -q /opt/modelpress/lib
COPY --from=wheel /wheels /opt/modelpress/wheels
RUN python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/modelpress/bin/python install --no-deps --no-index /opt/modelpress/wheels/*.whl \
 && rm -r /tmp/pip
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["python", "-m", "modelpress_operator"]

FROM base AS runner
# For code from git repositories.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git openssh-client && rm -rf /var/lib/apt/lists/*
COPY requirements/runner.txt /opt/modelpress/requirements.txt
RUN --mount=type=cache,target=/tmp/.cache/pip \
    python3 -m venv --without-pip /opt/modelpress && python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/modelpress/bin/python install \
      --require-hashes --requirement /opt/modelpress/requirements.txt \
 && rm -r /tmp/pip
COPY --from=wheel /wheels /opt/modelpress/wheels
RUN python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/modelpress/bin/python install --no-deps --no-index /opt/modelpress/wheels/*.whl \
 && rm -r /tmp/pip
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["python", "-m", "modelpress_runner.main"]

# What examples/ needs besides. Of your own: FROM the runner, then the same step with your requirements.
FROM runner AS example
USER root
COPY requirements/examples.txt /opt/modelpress/requirements-examples.txt
RUN --mount=type=cache,target=/tmp/.cache/pip \
    python3 -m venv /tmp/pip \
 && /tmp/pip/bin/pip --python /opt/modelpress/bin/python install \
      --require-hashes --requirement /opt/modelpress/requirements-examples.txt \
 && rm -r /tmp/pip
USER 65532:65532
