# The environment of the pipeline: an interpreter of one version, packages of requirements.lock.
#   docker build -t dklfm .
#   apptainer build dklfm.sif docker-daemon://dklfm:latest
FROM python:3.11.14-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/dklfm
COPY . .
RUN make env
ENV PATH=/opt/dklfm/.venv/bin:$PATH
