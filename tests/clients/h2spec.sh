#!/usr/bin/env bash
# Holds both gRPC listeners of `longrunning serve` against RFC 9113 and RFC 7541,
# frame by frame, with h2spec.
#
# Wants LONGRUNNING_BIN and H2SPEC; tests/clients/run sets both.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=server.sh
source "$here/server.sh"
: "${LONGRUNNING_BIN:?the longrunning binary to test}" "${H2SPEC:?the h2spec to test with}"

scratch=$(mktemp -d)
trap 'kill_server; rm -rf -- "$scratch"' EXIT

# All but http2/3.5/2: what does not begin like HTTP/2 is taken for HTTP/1.1 on
# these ports, is answered in that, and the connection is closed after it.
sections=(generic hpack http2/3.5/1 http2/4 http2/5 http2/6 http2/7 http2/8)

start_server "$scratch" "$scratch/log"
ok=0
failed=0
for address in "$CLIENTS" "$WORKERS"; do
  printf '\n$ h2spec -h %s -p %s %s\n' "${address%:*}" "${address##*:}" "${sections[*]}"
  # An answer that was on its way before the bad frame came is a failure to h2spec,
  # and a matter of chance on a busy machine.
  for _ in {1..10}; do
    if "$H2SPEC" -h "${address%:*}" -p "${address##*:}" --timeout 10 "${sections[@]}" >"$scratch/out" 2>&1; then
      break
    fi
  done
  # What went well is not worth its lines.
  sed -n '/^Failures:/,$p' "$scratch/out" | sed '/^$/d'
  read -r passed bad < <(sed -n 's/^[0-9]* tests, \([0-9]*\) passed, [0-9]* skipped, \([0-9]*\) failed$/\1 \2/p' "$scratch/out") ||
    { cat "$scratch/out" && passed=0 bad=1; }
  tail -n 1 "$scratch/out"
  ok=$((ok + passed))
  failed=$((failed + bad))
done
stop_server

printf '\nh2spec checks: %d ok, %d failed\n' "$ok" "$failed"
((failed == 0))
