#!/usr/bin/env bash
# Starts a server with three operations and runs "$@", the checks of a REST client,
# against it. ENDPOINT is the URL of the server. The operations are:
#
#   operations/done      succeeded with the Struct {"answer": 42}
#   operations/waiting   pending; its queue has no worker
#   operations/other     pending; for the second page and for delete
#
# Requires LONGRUNNING_BIN, which tests/clients/run sets.
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
  "$LONGRUNNING_BIN" submit unserved --id waiting
  "$LONGRUNNING_BIN" submit unserved --id other
} >"$scratch/created" 2>&1 || {
  cat "$scratch/created" >&2
  exit 1
}
"$@"
stop_server
