#!/bin/sh
# A small study on the demo's data with the programs in the folder BIN, far from this checkout:
# what is installed there must be enough.
set -eu
bin=$(cd "$1" && pwd)
unset PYTHONPATH QA_HPO_STORAGE QA_HPO_CACHE
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"$bin/qa-hpo" version --verbose
"$bin/qa-hpo" demo demo > /dev/null
cat > study.toml <<'STUDY'
[study]
name = "small"
[data]
train = "demo/train-v2.json"
train_limit = 600
validation = "demo/validation-v2.json"
validation_limit = 200
max_length = 128
[starts]
base = "demo/base"
[starts.v1]
from = "base"
train = "demo/train-v1.json"
train_limit = 300
epochs = 1
[search.start]
choices = ["base", "v1"]
[search.learning_rate]
low = 1e-4
high = 1e-3
log = true
[search.epochs]
choices = [1, 2]
[search.retention.method]
choices = ["none", "lora"]
[training]
doc_stride = 32
[evaluation]
doc_stride = 32
[budget]
trials = 4
STUDY
"$bin/qa-hpo" check study.toml
"$bin/qa-hpo" run study.toml --workers 2
"$bin/qa-hpo" status study.toml
"$bin/qa-hpo" report study.toml --out report.html
"$bin/qa-hpo" export study.toml winner
"$bin/qa-hpo" evaluate winner demo/validation-v2.json
echo "The River Falengor was dammed in 1714. It flows through Maramrik." > rivers.txt
"$bin/qa-hpo" answer winner --context rivers.txt --question "When was the River Falengor dammed?"
