#!/usr/bin/env bash
# Checks both gRPC listeners of `longrunning serve` for conformance with RFC 9113 and
# RFC 7541 by h2spec.
#
# Requires LONGRUNNING_BIN and H2SPEC, which tests/clients/run sets.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=server.sh
source "$here/server.sh"
: "${LONGRUNNING_BIN:?the longrunning binary to test}" "${H2SPEC:?the h2spec to test with}"

scratch=$(mktemp -d)
trap 'kill_server; rm -rf -- "$scratch"' EXIT

# All sections but http2/3.5/2: a connection without the HTTP/2 preface is HTTP/1.1 on
# these ports. It gets an HTTP/1.1 response and is closed.
sections=(generic hpack http2/3.5/1 http2/4 http2/5 http2/6 http2/7 http2/8)

# Prints the failed cases of the h2spec report in the form of its arguments, such as
# http2/8.1.2.6/1.
failed_cases() {
  awk '
    /^Failures:/ { failures = 1 }
    !failures { next }
    /^Generic tests/ { group = "generic" }
    /^Hypertext Transfer Protocol/ { group = "http2" }
    /^HPACK/ { group = "hpack" }
    $1 ~ /^[0-9][0-9.]*\.$/ { section = substr($1, 1, length($1) - 1) }
    $1 == "×" { print group "/" section "/" $2 + 0 }
  ' "$scratch/out"
}

start_server "$scratch" "$scratch/log"
ok=0
failed=0
for address in "$CLIENTS" "$WORKERS"; do
  printf '\n$ h2spec -h %s -p %s %s\n' "${address%:*}" "${address##*:}" "${sections[*]}"
  cases=("${sections[@]}") total=0 bad=1
  # h2spec counts a response that was sent before its invalid frame arrived as a failure,
  # which happens at random on a busy machine. Retry the failed cases alone.
  for _ in {1..20}; do
    "$H2SPEC" -h "${address%:*}" -p "${address##*:}" --timeout 5 "${cases[@]}" >"$scratch/out" 2>&1 || true
    # An aborted run has no such line, and a run may miss cases: repeat both unchanged.
    read -r tried bad < <(sed -n 's/^\([0-9]*\) tests, .* \([0-9]*\) failed$/\1 \2/p' "$scratch/out") || continue
    ((tried >= ${#cases[@]})) || { bad=1 && continue; }
    total=$((total > tried ? total : tried))
    [[ $bad != 0 ]] || break
    mapfile -t cases < <(failed_cases)
    echo "failed, retrying: ${cases[*]}"
  done
  if ((total < 144)); then
    echo "expected 144 cases, but only $total ran"
    total=144 bad=144
  fi
  if [[ ${bad:=1} != 0 ]]; then
    cat "$scratch/out"
    echo "  FAILED  ${cases[*]} at $address"
  fi
  echo "$total cases, $bad failed"
  ok=$((ok + total - bad))
  failed=$((failed + bad))
done
stop_server

printf '\nh2spec checks: %d ok, %d failed\n' "$ok" "$failed"
((failed == 0))
