#!/usr/bin/env bash
# A federation on one machine as it would be on several: TLS, keys of the nodes, a trunk.
#
# Makes throw-away certificates and keys, starts a SuperLink and three SuperNodes, each a
# process of its own, runs ATLAS from this repository to the end, and stops all it has
# started, whatever happens. Arguments are further keys of the run: "num-rounds=1".
# Logs lie in $LOGS (default: a folder in /tmp, whose path is printed).
# Exits with 0 only if the run was completed.
# With RESIDENT=1 the nodes keep a worker that answers their messages, with all imported.
# With MUTUAL=1 the trunk is a process of its own, which asks all for certificates.
# With MUTUAL=inside the ServerApp's own trunk asks nodes for them.
# With PEERS=1 there is no trunk on the server: node 0 serves it, for itself and both others.
set -euo pipefail
cd "$(dirname "$0")/../.."

CONFIG="model='minilm' tasks='questions,spam' num-clusters=2 num-rounds=3
  local-steps=20 batch-size=16 train-examples=256 test-examples=48 learning-rate=0.002
  min-available-nodes=3 min-train-nodes=3 min-evaluate-nodes=3"
NODES=3

work=$(mktemp -d)
LOGS=${LOGS:-$(mktemp -d)}
mkdir -p "$LOGS"

finish() {
  trap - EXIT
  local jobs below
  jobs=$(jobs -p)
  if [ -n "$jobs" ]; then
    below=$(python -c "
import sys
import psutil
alive = [psutil.Process(int(pid)) for pid in sys.argv[1:] if psutil.pid_exists(int(pid))]
print(*(child.pid for job in alive for child in job.children(recursive=True)))
" $jobs)
    kill $jobs 2>/dev/null || true
    wait $jobs 2>/dev/null || true
    # What these have started ends by itself some seconds later.
    for _ in $(seq 100); do
      kill -0 $below 2>/dev/null || break
      sleep 0.2
    done
    kill -KILL $below 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Ends with this script even where that is killed outright, if Linux' setpriv is there.
tied() {
  command -v setpriv >/dev/null || exec "$@"
  exec setpriv --pdeathsig TERM "$@"
}

fail() {
  tail -n 20 "$LOGS"/*.log >&2
  echo "$1" >&2
  exit 1
}

echo "logs: $LOGS"

# Held all at once, so that they differ.
read -r port trunk_port node_ports < <(python -c "
import socket
held = [socket.create_server(('127.0.0.1', 0)) for _ in range($NODES + 2)]
print(*(one.getsockname()[1] for one in held))
")

# A folder for each machine: certificates, keys, start scripts.
carries="" resident="" own_trunk="" lone_trunk=""
case "${MUTUAL:-}" in
"") ;;
inside) own_trunk=", trunk-port: $trunk_port, trunk-mutual: true" ;;
*) lone_trunk="trunk: {host: 127.0.0.1, port: $trunk_port, listen: 127.0.0.1, mutual: true}" ;;
esac
if [ "${RESIDENT:-}" ]; then
  resident="resident: 600"
  export XDG_RUNTIME_DIR="$work"  # a worker ends when its socket is gone
fi
if [ "${PEERS:-}" ]; then
  CONFIG="$CONFIG trunk='peers'"
  carries="trunk-memory: 4GiB, trunk-access: '$work/trunk/access.json', "
fi
{
  printf 'name: lab\nvalid-days: 2\n'
  printf 'link: {host: 127.0.0.1, port: %s, listen: 127.0.0.1%s}\n' "$port" "$own_trunk"
  printf '%s\nnodes:\n' "$lone_trunk"
  node=0
  for own in $node_ports; do
    printf '  - {name: node%s, port: %s, config: {%s}}\n' \
      "$node" "$own" "$carries$resident"
    node=$((node + 1))
    carries=""
  done
  printf 'run:\n  app: "%s"\n  config: ' "$PWD"
  # JSON, which YAML contains. A later word wins over an earlier one.
  python -c "
import json, sys
from atlas_flwr.cli.overrides import parse_overrides
print(json.dumps(parse_overrides(sys.argv[1:])))
" "$CONFIG" "runs-dir='$PWD/runs'" "$@"
} >"$work/site.yaml"
kits="$work/site"
atlas-flwr provision "$work/site.yaml" --out "$kits" >"$LOGS/provision.log" 2>&1 ||
  fail "no folders were made"

# Starts what a folder is for, and waits until it listens at its port.
serve() {
  tied "$kits/$1/start.sh" >"$LOGS/$2.log" 2>&1 &
  local process=$!
  until (exec 3<>"/dev/tcp/127.0.0.1/$3") 2>/dev/null; do
    kill -0 "$process" 2>/dev/null || fail "the $2 did not start"
    sleep 0.3
  done
}

serve link superlink "$port"
[ -z "$lone_trunk" ] || serve trunk trunk "$trunk_port"

if [ "${PEERS:-}" ]; then
  tied atlas-flwr trunk . -c "$CONFIG" -c "$*" --folder "$work/trunk" \
    >"$LOGS/trunk.log" 2>&1 &
  trunk=$!
  until [ -f "$work/trunk/access.json" ]; do
    kill -0 "$trunk" 2>/dev/null || fail "node 0's trunk did not start"
    sleep 0.3
  done
fi

"$kits/link/register.sh" >"$LOGS/register.log" 2>&1 || fail "a node was not registered"
for node in $(seq 0 $((NODES - 1))); do
  tied "$kits/nodes/node$node/start.sh" >"$LOGS/supernode-$node.log" 2>&1 &
done

# `flwr run` streams the log, but tells by no exit code how the run ended.
"$kits/link/run.sh" | tee "$LOGS/run.log"
until status=$("$kits/link/flwr.sh" list lab --format json | grep -o '"finished:[a-z]*"'); do
  sleep 1
done
[ "$status" = '"finished:completed"' ] || fail "the run ended as $status"
