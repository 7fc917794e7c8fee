#!/usr/bin/env bash
# Start a SuperLink and three SuperNodes on this machine, run the app, end them again.
# PORT (default 8000) is the SuperLink's; the SuperNodes take the three after it.
# Arguments go to `flwr run`, e.g. --run-config "num-server-rounds=1".
set -euo pipefail
cd "$(dirname "$0")"

port=${PORT:-8000}
FLWR_HOME=$(mktemp -d) # the user's own Flower configuration stays as it is
export FLWR_HOME
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 # all is installed already

finish() {
  trap - EXIT
  local jobs
  jobs=$(jobs -p)
  if [ -n "$jobs" ]; then
    kill $jobs 2>/dev/null || true
    wait $jobs 2>/dev/null || true
  fi
  rm -rf "$FLWR_HOME"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cat >"$FLWR_HOME/config.toml" <<EOF
[superlink]
default = "three-nodes"

[superlink.three-nodes]
address = "127.0.0.1:$port"
insecure = true
EOF

flower-superlink --insecure --host 127.0.0.1 --port "$port" \
  >"$FLWR_HOME/superlink.log" 2>&1 &
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  if ! kill -0 $! 2>/dev/null; then
    cat "$FLWR_HOME/superlink.log"
    exit 1
  fi
  sleep 0.3
done

for node in 0 1 2; do
  flower-supernode --insecure --superlink "127.0.0.1:$port" \
    --host 127.0.0.1 --port $((port + 1 + node)) \
    --node-config "partition-id=$node num-partitions=3" \
    >"$FLWR_HOME/supernode-$node.log" 2>&1 &
done

flwr run . three-nodes --stream "$@"
