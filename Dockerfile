# qa_hpo for the services of compose.yaml: coordinator, workers, dashboard.
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# On Linux, pip's torch brings the CUDA libraries along: GPUs need only their driver on the host.
RUN pip install --no-cache-dir -c constraints.txt '.[postgres,s3]'

# A study's file and data are mounted here; paths in a study file are relative to it.
WORKDIR /study
