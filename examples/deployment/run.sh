#!/usr/bin/env bash
# A federation on one machine as it would be on several: TLS, keys of the nodes, a trunk.
#
# Makes throw-away certificates and keys, starts a SuperLink and three SuperNodes, each a
# process of its own, runs ATLAS from this repository to the end, and stops all it has
# started, whatever happens. Arguments are further keys of the run: "num-rounds=1".
# Logs lie in $LOGS (default: a folder in /tmp, whose path is printed).
# Exits with 0 only if the run was completed.
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
export FLWR_HOME="$work/flwr" # the user's own Flower configuration stays as it is
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 # all is installed already
mkdir "$FLWR_HOME"

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

fail() {
  tail -n 20 "$LOGS"/*.log >&2
  echo "$1" >&2
  exit 1
}

echo "logs: $LOGS"

# Held all at once, so that they differ.
read -r port node_ports < <(python -c "
import socket
held = [socket.create_server(('127.0.0.1', 0)) for _ in range($NODES + 1)]
print(*(one.getsockname()[1] for one in held))
")

# The lab's authority, the SuperLink's certificate, and a key for each node.
certify() { openssl "$@" 2>/dev/null || fail "openssl $1 failed"; }
certify req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
  -subj "/CN=lab CA" -keyout "$work/ca.key" -out "$work/ca.crt" \
  -addext "basicConstraints=critical,CA:TRUE" \
  -addext "keyUsage=critical,keyCertSign,cRLSign"
certify req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=superlink" \
  -keyout "$work/server.key" -out "$work/server.csr"
certify x509 -req -in "$work/server.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" \
  -CAcreateserial -days 2 -out "$work/server.pem" -extfile <(
    printf "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth"
  )
for node in $(seq 0 $((NODES - 1))); do
  ssh-keygen -q -t ecdsa -b 384 -N "" -f "$work/node$node"
done

cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "lab"

[superlink.lab]
address = "127.0.0.1:$port"
root-certificates = "$work/ca.crt"
END

flower-superlink --host 127.0.0.1 --port "$port" --enable-supernode-auth \
  --ssl-certfile "$work/server.pem" --ssl-keyfile "$work/server.key" \
  --ssl-ca-certfile "$work/ca.crt" >"$LOGS/superlink.log" 2>&1 &
superlink=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  kill -0 "$superlink" 2>/dev/null || fail "the SuperLink did not start"
  sleep 0.3
done

carries=""
if [ "${PEERS:-}" ]; then
  atlas-flwr trunk . -c "$CONFIG" -c "$*" --folder "$work/trunk" \
    >"$LOGS/trunk.log" 2>&1 &
  trunk=$!
  until [ -f "$work/trunk/access.json" ]; do
    kill -0 "$trunk" 2>/dev/null || fail "node 0's trunk did not start"
    sleep 0.3
  done
  CONFIG="$CONFIG trunk='peers'"
  carries="trunk-memory='4GiB' trunk-access='$work/trunk/access.json'"
fi

node=0
for own in $node_ports; do
  flwr supernode register "$work/node$node.pub" lab >"$LOGS/register-$node.log" 2>&1 ||
    fail "node $node was not registered"
  flower-supernode --superlink "127.0.0.1:$port" --root-certificates "$work/ca.crt" \
    --auth-supernode-private-key "$work/node$node" --host 127.0.0.1 --port "$own" \
    --node-config "partition-id=$node num-partitions=$NODES $carries" \
    >"$LOGS/supernode-$node.log" 2>&1 &
  node=$((node + 1))
  carries=""
done

# A file, since a later word has to win over an earlier one.
python -c "
import sys
from atlas_flwr.cli.overrides import parse_overrides, to_toml
print(to_toml(parse_overrides(sys.argv[1:])))
" "$CONFIG" "runs-dir='$PWD/runs'" "$@" >"$work/run.toml"

# `flwr run` streams the log, but tells by no exit code how the run ended.
flwr run . lab --stream --run-config "$work/run.toml" | tee "$LOGS/run.log"
until status=$(flwr list lab --format json | grep -o '"finished:[a-z]*"'); do
  sleep 1
done
[ "$status" = '"finished:completed"' ] || fail "the run ended as $status"
