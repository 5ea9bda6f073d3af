#!/usr/bin/env bash
# Checks `longrunning serve --demo` with grpcurl, which gets all types by reflection.
# Prints each command in a form that can be pasted into a shell.
#
# Requires LONGRUNNING_BIN and GRPCURL, which tests/clients/run sets.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=server.sh
source "$here/server.sh"
: "${LONGRUNNING_BIN:?the longrunning binary to test}" "${GRPCURL:?the grpcurl to test with}"

scratch=$(mktemp -d)
trap 'kill_server; rm -rf -- "$scratch"' EXIT

ok=0
failed=0
out=
status=0

# === Calls ===

# Prints a call, makes it and prints its output.
call() {
  print_command "$@"
  call_quietly "$@"
  printf '\n%s\n' "$out"
}

# Makes a call; sets $out to its output and $status to its exit code.
call_quietly() {
  status=0
  out=$("$GRPCURL" -plaintext "$@" 2>&1) || status=$?
}

# Prints the command line of a call, quoted for a shell.
print_command() {
  local word
  printf '\n$ grpcurl -plaintext'
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]]; then
      printf ' %s' "$word"
    else
      printf " '%s'" "$word"
    fi
  done
}

# Repeats a call until its output matches $1, for at most 30 s.
wait_for() {
  local pattern=$1 deadline=$((SECONDS + 30))
  shift
  while call_quietly "$@"; [[ ! $out =~ $pattern ]] && ((SECONDS < deadline)); do
    sleep 0.1
  done
}

# Creates an operation for directory $1; sets $name to its name.
create() {
  call -d "{\"directory\": \"$1\"}" "$CLIENTS" longrunning.demo.v1.Checksums/CreateChecksum
  name=
  if [[ $out =~ \"name\":\ *\"([^\"]+)\" ]]; then
    name=${BASH_REMATCH[1]}
  fi
}

# === Checks of the last call ===

# Records the result $1 (yes or no) of check $2, with the reason $3 of a failure.
record() {
  if [[ $1 == yes ]]; then
    ok=$((ok + 1))
    printf '  ok      %s\n' "$2"
  else
    failed=$((failed + 1))
    printf '  FAILED  %s (%s)\n' "$2" "$3"
  fi
}

# Check $1: the output matches the pattern $2.
matches() {
  local passed=no
  if [[ $out =~ $2 ]]; then passed=yes; fi
  record "$passed" "$1" "no match for $2 in the output, exit code $status"
}

# Check $1: the output does not match the pattern $2.
does_not_match() {
  local passed=yes
  if [[ $out =~ $2 ]]; then passed=no; fi
  record "$passed" "$1" "unexpected match for $2"
}

# Check $1: the call succeeded.
succeeds() {
  local passed=no
  if [[ $status == 0 ]]; then passed=yes; fi
  record "$passed" "$1" "exit code $status"
}

# Check $1: the call failed with code $2 and exactly one ErrorInfo with reason $3.
fails_with() {
  local claim=$1 code=$2 reason=$3 infos
  matches "$claim: code" "Code: $code"
  infos=$(grep -c 'type.googleapis.com/google.rpc.ErrorInfo' <<<"$out" || true)
  local passed=no
  if [[ $infos == 1 && $out =~ \"reason\":\ *\"$reason\" && $out =~ \"domain\":\ *\"longrunning.dev\" ]]; then
    passed=yes
  fi
  record "$passed" "$claim: one ErrorInfo, $reason of longrunning.dev" "$infos ErrorInfo in the output"
}

# Check $1: the type of the metadata was resolved. grpcurl marks others with @error or
# @value.
has_readable_metadata() {
  matches "$1 has its type" '"@type": *"type.googleapis.com/longrunning.v1.OperationMetadata"'
  does_not_match "$1 has no raw bytes" '"@(error|value)"'
}

# === Services ===

mkdir -p "$scratch/offered/small/nested" "$scratch/offered/slow"
printf 'one\n' >"$scratch/offered/small/a.txt"
printf 'two\n' >"$scratch/offered/small/nested/b.txt"
# A sparse file takes no disk space, but hashing it takes far longer than this script.
truncate -s 40G "$scratch/offered/slow/sparse.bin"

start_server "$scratch/offered" "$scratch/log"

operations=google.longrunning.Operations

call "$CLIENTS" list
for service in "$operations" longrunning.v1.OperationWatch longrunning.demo.v1.Checksums grpc.health.v1.Health; do
  matches "$service is listed" "(^|"$'\n'")${service//./\\.}("$'\n'"|$)"
done

call "$CLIENTS" describe "$operations"
for method in ListOperations GetOperation DeleteOperation CancelOperation WaitOperation; do
  matches "$method is described" "rpc $method "
done

call "$CLIENTS" describe google.longrunning.Operation
matches 'the Operation message is described' 'oneof result'

call "$CLIENTS" describe longrunning.demo.v1.Checksums
matches 'the slow method returns an operation' 'rpc CreateChecksum [^)]*\) returns \( \.google\.longrunning\.Operation \)'

# grpcurl uses v1 and falls back to v1alpha. Call each explicitly, with a minimal schema.
for version in v1 v1alpha; do
  cat >"$scratch/$version.proto" <<PROTO
syntax = "proto3";
package grpc.reflection.$version;
service ServerReflection {
  rpc ServerReflectionInfo(stream Request) returns (stream Response);
}
message Request { string file_containing_symbol = 4; string list_services = 7; }
message Response { Files file_descriptor_response = 4; Services list_services_response = 6; }
message Files { repeated bytes file_descriptor_proto = 1; }
message Services { repeated Service service = 1; }
message Service { string name = 1; }
PROTO
  call -use-reflection=false -import-path "$scratch" -proto "$version.proto" -d '{"list_services": "*"}' \
    "$CLIENTS" "grpc.reflection.$version.ServerReflection/ServerReflectionInfo"
  matches "reflection $version lists the services" "\"$operations\""
  # Do not print the descriptor, which is long.
  call_quietly -use-reflection=false -import-path "$scratch" -proto "$version.proto" \
    -d '{"file_containing_symbol": "longrunning.v1.OperationMetadata"}' \
    "$CLIENTS" "grpc.reflection.$version.ServerReflection/ServerReflectionInfo"
  matches "reflection $version knows the metadata type" '"fileDescriptorProto"'
done

call -d "{\"service\": \"$operations\"}" "$CLIENTS" grpc.health.v1.Health/Check
matches 'the service is healthy' '"status": *"SERVING"'

# === An operation that succeeds ===

create small
succeeds 'CreateChecksum returns an operation immediately'
matches 'its name belongs to the collection' '"name": *"operations/[^"]+"'
small=$name

call -d "{\"name\": \"$small\", \"timeout\": \"20s\"}" "$CLIENTS" "$operations/WaitOperation"
matches 'WaitOperation returns when it is done' '"done": *true'
matches 'the response is a readable Checksum' '"@type": *"type.googleapis.com/longrunning.demo.v1.Checksum"'
# The proto defines the digest as that of the output of sha256sum.
expected=$(cd "$scratch/offered/small" && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -d ' ' -f 1)
matches 'the digest is that of sha256sum' "\"sha256\": *\"$expected\""

call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/GetOperation"
has_readable_metadata 'the metadata'
matches 'its state is SUCCEEDED' '"state": *"SUCCEEDED"'
matches 'its progress is complete' '"doneUnits": *"8"'

# === An operation that is cancelled while it is watched ===

create slow
slow=$name
wait_for '"doneUnits": *"[1-9]' -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/GetOperation"

call -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/GetOperation"
has_readable_metadata 'the metadata of a running operation'
matches 'its state is RUNNING' '"state": *"RUNNING"'
matches 'its progress has done_units' '"progress": *\{[^}]*"doneUnits": *"[1-9]'
matches 'its progress has total_units' '"totalUnits": *"42949672960"'
matches 'its progress unit is bytes' '"unit": *"bytes"'
does_not_match 'the operation is not done' '"done": *true'

call -d "{\"name\": \"$slow\", \"timeout\": \"0.5s\"}" "$CLIENTS" "$operations/WaitOperation"
succeeds 'WaitOperation with a timeout of 0.5 s returns OK'
does_not_match 'the operation is not done after the wait' '"done": *true'

# A deadline instead of a timeout: grpcurl sends it as grpc-timeout.
call -max-time 2 -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/WaitOperation"
succeeds 'WaitOperation with a deadline of 2 s returns OK in time'

call "$CLIENTS" "$operations/ListOperations"
matches 'ListOperations lists the done operation' "\"name\": *\"$small\""
matches 'ListOperations lists the running operation' "\"name\": *\"$slow\""
has_readable_metadata 'the metadata of a list'

call -d '{"name": "operations", "page_size": 1}' "$CLIENTS" "$operations/ListOperations"
matches 'a page of size 1 has the newest operation' "\"name\": *\"$slow\""
matches 'the page has a token for the next page' '"nextPageToken": *"[A-Za-z0-9_-]+"'

call -d '{"name": "operations", "filter": "done = true"}' "$CLIENTS" "$operations/ListOperations"
matches 'a filter returns matching operations' "\"name\": *\"$small\""
does_not_match 'a filter omits other operations' "\"name\": *\"$slow\""

call -d '{"name": "operations", "filter": "done = = true"}' "$CLIENTS" "$operations/ListOperations"
fails_with 'an invalid filter' InvalidArgument INVALID_FILTER

"$GRPCURL" -plaintext -d "{\"name\": \"$slow\"}" "$CLIENTS" longrunning.v1.OperationWatch/WatchOperation \
  >"$scratch/watch" 2>&1 &
watch=$!
# Wait for the first state before the cancel.
for _ in {1..100}; do
  if [[ -s $scratch/watch ]]; then break; fi
  sleep 0.1
done

call -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/CancelOperation"
succeeds 'CancelOperation returns immediately'
matches 'the response is empty' '^\{[[:space:]]*\}$'

call -d "{\"name\": \"$slow\", \"timeout\": \"20s\"}" "$CLIENTS" "$operations/WaitOperation"
matches 'the cancelled operation is done' '"done": *true'
matches 'its error is CANCELLED' '"error": *\{[^}]*"code": *1[^0-9]'
matches 'its state is CANCELLED' '"state": *"CANCELLED"'
matches 'its metadata has cancel_requested' '"cancelRequested": *true'

status=0
wait "$watch" || status=$?
print_command -d "{\"name\": \"$slow\"}" "$CLIENTS" longrunning.v1.OperationWatch/WatchOperation
printf '    # started before the cancel; the last of %s messages:\n' "$(grep -c '^{' "$scratch/watch" || true)"
first=$(sed '/^}/q' "$scratch/watch")
out=$(awk '/^{/ { message = "" } { message = message $0 "\n" } END { printf "%s", message }' "$scratch/watch")
printf '%s\n' "$out"
succeeds 'WatchOperation ended with OK when the operation was done'
matches 'its last message has the outcome' '"state": *"CANCELLED"'
matches 'its last message is done' '"done": *true'
out=$first
matches 'its first message has the running operation' '"state": *"RUNNING"'
has_readable_metadata 'the metadata of the stream'

# === An operation that fails ===

create no-such-directory
call -d "{\"name\": \"$name\", \"timeout\": \"20s\"}" "$CLIENTS" "$operations/WaitOperation"
succeeds 'WaitOperation of a failed operation returns OK'
matches 'its error is NOT_FOUND' '"error": *\{[^}]*"code": *5[^0-9]'
matches 'its error has a reason' '"reason": *"DIRECTORY_NOT_FOUND"'
matches 'its error has the domain of the server' '"domain": *"longrunning.dev"'
matches 'its state is FAILED' '"state": *"FAILED"'

call -d '{"directory": "../"}' "$CLIENTS" longrunning.demo.v1.Checksums/CreateChecksum
matches 'a directory outside of the root is rejected by the call' 'Code: InvalidArgument'

# === Delete and unknown names ===

call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/DeleteOperation"
succeeds 'DeleteOperation returns OK'
call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/DeleteOperation"
fails_with 'a second delete' NotFound OPERATION_NOT_FOUND
call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/GetOperation"
fails_with 'a get after the delete' NotFound OPERATION_NOT_FOUND
for method in GetOperation WaitOperation CancelOperation; do
  call -d '{"name": "operations/unknown"}' "$CLIENTS" "$operations/$method"
  fails_with "$method of an unknown name" NotFound OPERATION_NOT_FOUND
done
call -d '{"name": "operations/unknown"}' "$CLIENTS" longrunning.v1.OperationWatch/WatchOperation
fails_with 'WatchOperation of an unknown name' NotFound OPERATION_NOT_FOUND
call "$CLIENTS" "$operations/GetOperation"
fails_with 'a get without a name' InvalidArgument INVALID_NAME

# === Shutdown ===

status=0
stop_server || status=$?
printf '\n# SIGTERM\n'
succeeds 'the server exits with 0'

printf '\ngrpcurl checks: %d ok, %d failed\n' "$ok" "$failed"
((failed == 0))
