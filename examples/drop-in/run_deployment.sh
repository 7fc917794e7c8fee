#!/usr/bin/env bash
# Start a SuperLink and three SuperNodes on free ports, run the app, end them again.
# Arguments go to `flwr run`, e.g. --run-config "num-server-rounds=1".
# Exits with 0 only if the run was completed.
set -euo pipefail
cd "$(dirname "$0")"

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

fail() {
  tail -n 20 "$FLWR_HOME"/*.log >&2
  echo "$1" >&2
  exit 1
}

# Held all at once, so that they differ.
read -r port port0 port1 port2 < <(python -c "
import socket
held = [socket.create_server(('127.0.0.1', 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in held))
")

cat >"$FLWR_HOME/config.toml" <<END
[superlink]
default = "three-nodes"

[superlink.three-nodes]
address = "127.0.0.1:$port"
insecure = true
END

flower-superlink --insecure --host 127.0.0.1 --port "$port" \
  >"$FLWR_HOME/superlink.log" 2>&1 &
superlink=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  kill -0 "$superlink" 2>/dev/null || fail "the SuperLink did not start"
  sleep 0.3
done

node=0
for own in "$port0" "$port1" "$port2"; do
  flower-supernode --insecure --superlink "127.0.0.1:$port" \
    --host 127.0.0.1 --port "$own" \
    --node-config "partition-id=$node num-partitions=3" \
    >"$FLWR_HOME/supernode-$node.log" 2>&1 &
  node=$((node + 1))
done

# `flwr run` streams the log, but tells by no exit code how the run ended.
flwr run . three-nodes --stream "$@"
until status=$(flwr list three-nodes --format json | grep -o '"finished:[a-z]*"'); do
  sleep 1
done
[ "$status" = '"finished:completed"' ] || fail "the run ended as $status"
