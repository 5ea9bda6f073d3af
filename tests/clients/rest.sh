#!/usr/bin/env bash
# Starts a server with a few operations and runs a check of a REST client, "$@",
# against it. The check finds the server at ENDPOINT, and there:
#
#   operations/done      has succeeded with the Struct {"answer": 42}
#   operations/waiting   waits for a worker that never comes, so does
#   operations/other     for a second page and for delete
#
# Wants LONGRUNNING_BIN; tests/clients/run sets it.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=server.sh
source "$here/server.sh"
: "${LONGRUNNING_BIN:?the longrunning binary to test}"

scratch=$(mktemp -d)
trap 'kill_server; rm -rf -- "$scratch"' EXIT

start_server "$scratch" "$scratch/log"
export ENDPOINT=http://$CLIENTS
export LONGRUNNING_ENDPOINT=$ENDPOINT LONGRUNNING_WORKER_ENDPOINT=http://$WORKERS
{
  "$LONGRUNNING_BIN" run --id 'done' -- echo '{"answer": 42}'
  "$LONGRUNNING_BIN" submit nobody --id waiting
  "$LONGRUNNING_BIN" submit nobody --id other
} >"$scratch/made" 2>&1 || {
  cat "$scratch/made" >&2
  exit 1
}
"$@"
stop_server
