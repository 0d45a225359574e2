# Two images: `postgres`, the server with a role for hpo, and `hpo`, whose containers train, show and submit.
# VARIANT says which torch hpo's has: cpu (its default) or cuda.
#
# Base images are pinned by full version and Debian release. To pin one by content too, append the digest that your
# registry shows: python:3.11.15-slim-trixie@sha256:...

FROM postgres:18.4-trixie AS postgres
# Not mounted from the checkout: its owner and mode there are the host's business, and the server has to read it.
COPY --chmod=0444 docker/roles.sql /docker-entrypoint-initdb.d/
USER postgres


FROM python:3.11.15-slim-trixie AS python


FROM python AS build
ARG VARIANT=cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Without pip: the environment shall hold hpo, what hpo needs, and nothing else.
RUN python -m venv --without-pip /opt/hpo
COPY constraints.txt constraints-cuda.txt ./
# On PyPI torch for Linux is the CUDA build. The CPU build is called the same and comes from PyTorch's own index, which
# is asked for torch and nothing else: with both indexes at once, either could answer for any package.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$VARIANT" in \
    cpu) pip --python /opt/hpo/bin/python install --no-deps -c constraints.txt \
             --index-url https://download.pytorch.org/whl/cpu torch ;; \
    cuda) ;; \
    *) echo "VARIANT is '$VARIANT'; it can be cpu or cuda" >&2; exit 1 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY hpo hpo
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/hpo/bin/python install -c constraints.txt -c constraints-cuda.txt .
# A package that nobody has pinned ends the build, by its name.
RUN pip --python /opt/hpo/bin/python freeze --all --exclude hpo > /tmp/installed \
    && sed -i 's/+cpu$//' /tmp/installed \
    && test -s /tmp/installed \
    && ! grep --line-regexp --fixed-strings --invert-match -f constraints.txt -f constraints-cuda.txt /tmp/installed


FROM python AS hpo
# Nothing is installed in a running container, so what installs goes. An empty volume takes /data's owner and folders.
RUN pip uninstall --yes --root-user-action=ignore setuptools wheel pip \
    && groupadd --gid 10001 hpo \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin hpo \
    && install --directory --owner=hpo --group=hpo /data /data/artifacts /data/cache /data/datasets
COPY --from=build /opt/hpo /opt/hpo
ENV PATH=/opt/hpo/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /hpo
ENTRYPOINT ["hpo"]
CMD ["--help"]
