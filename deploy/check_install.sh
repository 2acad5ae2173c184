#!/usr/bin/env bash
# The install path of the Dockerfile's cpu target without Docker: the wheel, built and installed in a
# fresh environment by the same steps, serves a picture and stops when told to.
#
#   deploy/check_install.sh [FOLDER]     FOLDER: where to work; a temporary one when not given
#
# Needs Python 3.11, and some minutes: everything is installed anew.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$(mktemp -d)}
python=${PYTHON:-python3.11}
port=${PORT:-8765}
mkdir -p "$work"
export VLLM_NO_USAGE_STATS=1 VLLM_CACHE_ROOT=$work/cache/vllm HF_HUB_OFFLINE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

step 'build the wheel'
mkdir -p "$work/src"
cp -r "$root"/{pyproject.toml,README.md,LICENSE,zipar_vllm,server} "$work/src/"
"$python" -m venv "$work/build"
"$work/build/bin/pip" install -qq setuptools==78.1.1
"$work/build/bin/pip" wheel -qq --no-deps --no-build-isolation --wheel-dir "$work/dist" "$work/src"

step 'install the lock and the wheel'
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/pip" install -qq --no-deps)
torch=$(sed -n 's/^\(torch==[^ ;]*\).*/\1/p' "$root/requirements/cpu.txt")
"${pip[@]}" "$torch" 2>/dev/null \
  || "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "$torch"
"${pip[@]}" -r "$root/requirements/cpu.txt"
"${pip[@]}" "$work"/dist/*.whl

# Away from the checkout, so that only what is installed is found.
cd "$work"

step "import every family's module and draw a picture without the engine, as the image's build does"
"$work/venv/bin/python" "$root/deploy/check_models.py" "$work/reference.png"

step 'start the server'
"$work/venv/bin/zipar" serve --host 127.0.0.1 --port "$port" --shutdown-timeout 60 \
  >"$work/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; tail -n 30 "$work/server.log"' EXIT
until curl -fs "http://127.0.0.1:$port/health"; do
  kill -0 "$server" || { echo 'the server ended before it was healthy'; exit 1; }
  [ "$SECONDS" -lt 1200 ] || { echo 'the server did not become healthy'; exit 1; }
  sleep 1
done

step 'ask for a picture'
curl -fsS "http://127.0.0.1:$port/v1/images/generations" -H 'Content-Type: application/json' \
  -d '{"prompt": "red apple", "seed": 7}' >"$work/answer.json"
"$work/venv/bin/python" - "$work/answer.json" "$work/picture.png" <<'PY'
import base64, io, json, sys
from PIL import Image

answer = json.load(open(sys.argv[1]))
data = base64.b64decode(answer["data"][0]["b64_json"])
image = Image.open(io.BytesIO(data))
image.load()
assert image.format == "PNG" and f"{image.width}x{image.height}" == answer["size"], answer["size"]
assert len(image.getcolors(1 << 24)) > 16, "one flat colour is no picture"
open(sys.argv[2], "wb").write(data)
print(f"        a {answer['size']} PNG of {len(data)} bytes")
PY

step 'stop the server'
kill -TERM "$server"
wait "$server" && code=0 || code=$?
[ "$code" = 0 ] || { echo "exit code $code after SIGTERM, expected 0"; exit 1; }
trap - EXIT
step "done: $work/picture.png"
