# shellcheck shell=bash
# Starts and stops one `longrunning serve --demo` on free loopback ports.
# To be sourced; requires LONGRUNNING_BIN.

# Starts a server that serves directory $1 and logs to file $2. Waits until it is ready,
# then sets SERVER_PID, CLIENTS, WORKERS and ADMIN (host:port each).
# shellcheck disable=SC2034  # Used by the scripts that source this file.
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
  echo "the server did not become ready; its log:" >&2
  cat "$log" >&2
  return 1
}

# Sends SIGTERM to the server and returns its exit code.
stop_server() {
  local pid=$SERVER_PID
  SERVER_PID=
  kill -TERM "$pid" 2>/dev/null || true
  wait "$pid"
}

# Kills the server if it still runs. For an EXIT trap.
kill_server() {
  if [[ -n ${SERVER_PID:-} ]]; then
    kill -KILL "$SERVER_PID" 2>/dev/null || true
    # Reaps it, and keeps bash from reporting the kill.
    wait "$SERVER_PID" 2>/dev/null || true
  fi
}

# Prints the address of listener $1 from log file $2, which has one JSON object a line.
bound_address() {
  sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$2" | sed -n 1p
}
