#!/usr/bin/env bash
# The paper's own subjects with the paper's settings, for whoever has the hub (and better a GPU):
#   bash bench/pythia.sh 70m|410m [--model M] [--corpus C] [--tokens N] [--pairs N] [--features N] [--out DIR] [--dry-run]
# Writes DIR/run.toml from bench/pythia-*.toml with what is given here in place of what stands there, and runs it; the same
# command goes on where it was stopped. `monolex figure DIR` then draws the paper's figures.
set -euo pipefail
python=${PYTHON:-python}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
size=${1:-}
case $size in 70m | 410m) shift ;; *) echo "usage: bash bench/pythia.sh 70m|410m [options]; see its head" >&2; exit 2 ;; esac
model= corpus= tokens= pairs= features= dry= out=pythia-$size
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=--dry-run; shift; continue ;;
    --model | --corpus | --tokens | --pairs | --features | --out) ;;
    *) echo "pythia.sh: unknown argument $1" >&2; exit 2 ;;
  esac
  [ $# -gt 1 ] || { echo "pythia.sh: $1 needs a value" >&2; exit 2; }
  declare "${1#--}=$2"
  shift 2
done
mkdir -p "$out"
MODEL=$model CORPUS=$corpus TOKENS=$tokens PAIRS=$pairs FEATURES=$features "$python" - "$here/pythia-$size.toml" "$out/run.toml" <<'PY'
import json, os, re, sys

source, target = sys.argv[1:]
text = open(source, encoding="utf-8").read()
for key, name in (("model", "MODEL"), ("corpus", "CORPUS")):
    if value := os.environ[name]:
        text = re.sub(rf"^{key} = .*$", lambda _: f"{key} = {json.dumps(value)}", text, count=1, flags=re.M)
for key, name in (("max_tokens", "TOKENS"), ("pairs", "PAIRS"), ("features", "FEATURES")):
    if value := os.environ[name]:
        text = re.sub(rf"^{key} = \d.*$", f"{key} = {int(value)}", text, flags=re.M)
open(target, "w", encoding="utf-8").write(text)
PY
exec "$python" -m monolex run "$out/run.toml" $dry
