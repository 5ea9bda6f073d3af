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

# The failed cases in the report of h2spec as it takes them: http2/8.1.2.6/1.
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
  # An answer that was on its way before the bad frame came is a failure to h2spec,
  # and a matter of chance on a busy machine: what failed is tried again by itself.
  for _ in {1..20}; do
    "$H2SPEC" -h "${address%:*}" -p "${address##*:}" --timeout 5 "${cases[@]}" >"$scratch/out" 2>&1 || true
    # A run that broke off has no such line, and is repeated as it was; so is one
    # that did not find its cases.
    read -r tried bad < <(sed -n 's/^\([0-9]*\) tests, .* \([0-9]*\) failed$/\1 \2/p' "$scratch/out") || continue
    ((tried >= ${#cases[@]})) || { bad=1 && continue; }
    total=$((total > tried ? total : tried))
    [[ $bad != 0 ]] || break
    mapfile -t cases < <(failed_cases)
    echo "failed, and tried again: ${cases[*]}"
  done
  if ((total < 144)); then
    echo "only $total cases ran, and there are 144"
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
