# shellcheck shell=bash
# Starts and stops one `longrunning serve --demo` on free loopback ports.
# Sourced, by grpcurl.sh and .ci/run. Wants LONGRUNNING_BIN.

# Offers directory $1. Sets SERVER_PID, CLIENTS, WORKERS and ADMIN (host:port each) once
# the server says that it serves; its log goes to file $2.
# shellcheck disable=SC2034  # For those who source this.
start_server() {
  local directory=$1 log=$2
  "$LONGRUNNING_BIN" serve --demo "$directory" \
    --listen 127.0.0.1:0 --worker-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 >"$log" 2>&1 &
  SERVER_PID=$!
  for _ in {1..150}; do
    if grep -q '"message":"serving"' "$log"; then
      CLIENTS=$(bound_address clients "$log")
      WORKERS=$(bound_address workers "$log")
      ADMIN=$(bound_address admin "$log")
      return 0
    fi
    kill -0 "$SERVER_PID" 2>/dev/null || break
    sleep 0.1
  done
  echo "the server did not say that it serves; its log:" >&2
  cat "$log" >&2
  return 1
}

# Asks the server to stop and returns its exit code.
stop_server() {
  local pid=$SERVER_PID
  SERVER_PID=
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid"
}

# For an EXIT trap: leaves no server behind, whatever happened.
kill_server() {
  if [[ -n ${SERVER_PID:-} ]]; then
    kill -KILL "$SERVER_PID" 2>/dev/null || true
    # Reaps it, and keeps bash from reporting the kill.
    wait "$SERVER_PID" 2>/dev/null || true
  fi
}

# The log is JSON lines here, because it goes to a file.
bound_address() {
  sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$2" | sed -n 1p
}
