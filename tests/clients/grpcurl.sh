#!/usr/bin/env bash
# Drives `longrunning serve --demo` with the real grpcurl, which knows no type
# but those that reflection tells it. What it prints is meant to be pasted.
#
# Wants LONGRUNNING_BIN and GRPCURL; tests/clients/run sets both.
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

# One call, shown as a person would type it, with its output.
call() {
  printf '\n$ grpcurl -plaintext'
  shown_as_typed "$@"
  quietly "$@"
  printf '\n%s\n' "$out"
}

# One call; leaves its output in $out and its exit code in $status.
quietly() {
  status=0
  out=$("$GRPCURL" -plaintext "$@" 2>&1) || status=$?
}

shown_as_typed() {
  local word
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=-]+$ ]]; then
      printf ' %s' "$word"
    else
      printf " '%s'" "$word"
    fi
  done
}

# Asks until the output matches $1, at most 30 s: for states that come by themselves.
until_says() {
  local pattern=$1 deadline=$((SECONDS + 30))
  shift
  while quietly "$@"; [[ ! $out =~ $pattern ]] && ((SECONDS < deadline)); do
    sleep 0.1
  done
}

create() {
  call -d "{\"directory\": \"$1\"}" "$CLIENTS" longrunning.demo.v1.Checksums/CreateChecksum
  name=
  if [[ $out =~ \"name\":\ *\"([^\"]+)\" ]]; then
    name=${BASH_REMATCH[1]}
  fi
}

# === Checks, on the last call ===

verdict() {
  if [[ $1 == yes ]]; then
    ok=$((ok + 1))
    printf '  ok      %s\n' "$2"
  else
    failed=$((failed + 1))
    printf '  FAILED  %s (%s)\n' "$2" "$3"
  fi
}

says() {
  local answer=no
  if [[ $out =~ $2 ]]; then answer=yes; fi
  verdict "$answer" "$1" "no match for $2 in the output, exit code $status"
}

silent_on() {
  local answer=yes
  if [[ $out =~ $2 ]]; then answer=no; fi
  verdict "$answer" "$1" "unwanted match for $2"
}

succeeds() {
  local answer=no
  if [[ $status == 0 ]]; then answer=yes; fi
  verdict "$answer" "$1" "exit code $status"
}

# grpcurl ends with 64 + the gRPC code. The reason must be there exactly once.
fails_with() {
  local claim=$1 code=$2 reason=$3 infos
  says "$claim: code" "Code: $code"
  infos=$(grep -c 'type.googleapis.com/google.rpc.ErrorInfo' <<<"$out" || true)
  local answer=no
  if [[ $infos == 1 && $out =~ \"reason\":\ *\"$reason\" && $out =~ \"domain\":\ *\"longrunning.dev\" ]]; then
    answer=yes
  fi
  verdict "$answer" "$claim: one ErrorInfo, $reason of longrunning.dev" "$infos ErrorInfo in the output"
}

# grpcurl marks what it cannot resolve with @error or @value.
readable() {
  says "$1 names its type" '"@type": *"type.googleapis.com/longrunning.v1.OperationMetadata"'
  silent_on "$1 holds no raw bytes" '"@(error|value)"'
}

# === What the server offers ===

mkdir -p "$scratch/offered/small/nested" "$scratch/offered/slow"
printf 'one\n' >"$scratch/offered/small/a.txt"
printf 'two\n' >"$scratch/offered/small/nested/b.txt"
# Sparse: it takes no room, but hashing it takes far longer than this script.
truncate -s 40G "$scratch/offered/slow/sparse.bin"

start_server "$scratch/offered" "$scratch/log"

operations=google.longrunning.Operations

call "$CLIENTS" list
for service in "$operations" longrunning.v1.OperationWatch longrunning.demo.v1.Checksums grpc.health.v1.Health; do
  says "$service is listed" "(^|"$'\n'")${service//./\\.}("$'\n'"|$)"
done

call "$CLIENTS" describe "$operations"
for method in ListOperations GetOperation DeleteOperation CancelOperation WaitOperation; do
  says "$method is described" "rpc $method "
done

call "$CLIENTS" describe google.longrunning.Operation
says 'the Operation message is described' 'oneof result'

call "$CLIENTS" describe longrunning.demo.v1.Checksums
says 'the slow method returns an operation' 'rpc CreateChecksum [^)]*\) returns \( \.google\.longrunning\.Operation \)'

# grpcurl takes v1 and falls back to v1alpha, so each is asked by itself, with
# no schema but this one.
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
  says "reflection $version lists the services" "\"$operations\""
  # Descriptors are long; only whether they come matters.
  quietly -use-reflection=false -import-path "$scratch" -proto "$version.proto" \
    -d '{"file_containing_symbol": "longrunning.v1.OperationMetadata"}' \
    "$CLIENTS" "grpc.reflection.$version.ServerReflection/ServerReflectionInfo"
  says "reflection $version knows the metadata type" '"fileDescriptorProto"'
done

call -d "{\"service\": \"$operations\"}" "$CLIENTS" grpc.health.v1.Health/Check
says 'the service is healthy' '"status": *"SERVING"'

# === An operation that succeeds ===

create small
succeeds 'CreateChecksum answers at once with an operation'
says 'its name is one of the collection' '"name": *"operations/[^"]+"'
small=$name

call -d "{\"name\": \"$small\", \"timeout\": \"20s\"}" "$CLIENTS" "$operations/WaitOperation"
says 'WaitOperation returns when it is done' '"done": *true'
says 'the response is a readable Checksum' '"@type": *"type.googleapis.com/longrunning.demo.v1.Checksum"'
# The promise of the proto: the digest of what sha256sum prints.
expected=$(cd "$scratch/offered/small" && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum | sha256sum | cut -d ' ' -f 1)
says 'and holds the digest that sha256sum gives' "\"sha256\": *\"$expected\""

call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/GetOperation"
readable 'the metadata'
says 'its state is SUCCEEDED' '"state": *"SUCCEEDED"'
says 'its progress is complete' '"doneUnits": *"8"'

# === An operation that is cancelled while it is watched ===

create slow
slow=$name
until_says '"doneUnits": *"[1-9]' -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/GetOperation"

call -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/GetOperation"
readable 'the metadata of a running operation'
says 'its state is RUNNING' '"state": *"RUNNING"'
says 'its progress has something done' '"progress": *\{[^}]*"doneUnits": *"[1-9]'
says 'of a known total' '"totalUnits": *"42949672960"'
says 'counted in bytes' '"unit": *"bytes"'
silent_on 'it is not done' '"done": *true'

call -d "{\"name\": \"$slow\", \"timeout\": \"0.5s\"}" "$CLIENTS" "$operations/WaitOperation"
succeeds 'WaitOperation with a timeout of 0.5 s answers OK'
silent_on 'and says not done' '"done": *true'

# A deadline instead of a timeout: grpcurl sends it as grpc-timeout.
call -max-time 2 -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/WaitOperation"
succeeds 'WaitOperation under a deadline of 2 s answers OK before it'

call "$CLIENTS" "$operations/ListOperations"
says 'ListOperations lists the one' "\"name\": *\"$small\""
says 'and the other' "\"name\": *\"$slow\""
readable 'the metadata of a list'

call -d '{"name": "operations", "page_size": 1}' "$CLIENTS" "$operations/ListOperations"
says 'a page of one holds the newest' "\"name\": *\"$slow\""
says 'and leads to the next' '"nextPageToken": *"[A-Za-z0-9_-]+"'

call -d '{"name": "operations", "filter": "done = true"}' "$CLIENTS" "$operations/ListOperations"
says 'a filter shows what is done' "\"name\": *\"$small\""
silent_on 'and hides what is not' "\"name\": *\"$slow\""

call -d '{"name": "operations", "filter": "done = = true"}' "$CLIENTS" "$operations/ListOperations"
fails_with 'a bad filter is refused with its column' InvalidArgument INVALID_FILTER

"$GRPCURL" -plaintext -d "{\"name\": \"$slow\"}" "$CLIENTS" longrunning.v1.OperationWatch/WatchOperation \
  >"$scratch/watch" 2>&1 &
watch=$!
# The first state must be there before the cancel, or there is nothing to watch.
for _ in {1..100}; do
  if [[ -s $scratch/watch ]]; then break; fi
  sleep 0.1
done

call -d "{\"name\": \"$slow\"}" "$CLIENTS" "$operations/CancelOperation"
succeeds 'CancelOperation answers at once'
says 'and empty' '^\{[[:space:]]*\}$'

call -d "{\"name\": \"$slow\", \"timeout\": \"20s\"}" "$CLIENTS" "$operations/WaitOperation"
says 'the cancelled operation is done' '"done": *true'
says 'with the error CANCELLED' '"error": *\{[^}]*"code": *1[^0-9]'
says 'its metadata says so' '"state": *"CANCELLED"'
says 'and that somebody asked for it' '"cancelRequested": *true'

status=0
wait "$watch" || status=$?
printf '\n$ grpcurl -plaintext'
shown_as_typed -d "{\"name\": \"$slow\"}" "$CLIENTS" longrunning.v1.OperationWatch/WatchOperation
printf '    # started before the cancel; %s messages, the last:\n' "$(grep -c '^{' "$scratch/watch" || true)"
first=$(sed '/^}/q' "$scratch/watch")
out=$(awk '/^{/ { message = "" } { message = message $0 "\n" } END { printf "%s", message }' "$scratch/watch")
printf '%s\n' "$out"
succeeds 'WatchOperation streamed until the operation was done, then ended with OK'
says 'its last message shows the outcome' '"state": *"CANCELLED"'
says 'and that it is done' '"done": *true'
out=$first
says 'its first one showed the running operation' '"state": *"RUNNING"'
readable 'the metadata of the stream'

# === An operation that fails ===

create no-such-directory
call -d "{\"name\": \"$name\", \"timeout\": \"20s\"}" "$CLIENTS" "$operations/WaitOperation"
succeeds 'a failed operation is an answer, not an error of the call'
says 'its error is NOT_FOUND' '"error": *\{[^}]*"code": *5[^0-9]'
says 'with a readable reason' '"reason": *"DIRECTORY_NOT_FOUND"'
says 'of our domain' '"domain": *"longrunning.dev"'
says 'its state is FAILED' '"state": *"FAILED"'

call -d '{"directory": "../"}' "$CLIENTS" longrunning.demo.v1.Checksums/CreateChecksum
says 'a directory outside is refused by the call itself' 'Code: InvalidArgument'

# === Delete, and names that do not exist ===

call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/DeleteOperation"
succeeds 'DeleteOperation deletes'
call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/DeleteOperation"
fails_with 'a second delete' NotFound OPERATION_NOT_FOUND
call -d "{\"name\": \"$small\"}" "$CLIENTS" "$operations/GetOperation"
fails_with 'a get of the deleted one' NotFound OPERATION_NOT_FOUND
for method in GetOperation WaitOperation CancelOperation; do
  call -d '{"name": "operations/unknown"}' "$CLIENTS" "$operations/$method"
  fails_with "$method of an unknown name" NotFound OPERATION_NOT_FOUND
done
call -d '{"name": "operations/unknown"}' "$CLIENTS" longrunning.v1.OperationWatch/WatchOperation
fails_with 'WatchOperation of an unknown name' NotFound OPERATION_NOT_FOUND
call "$CLIENTS" "$operations/GetOperation"
fails_with 'a get without a name' InvalidArgument INVALID_NAME

# === The end ===

status=0
stop_server || status=$?
printf '\n# SIGTERM\n'
succeeds 'the server ends with exit code 0'

printf '\ngrpcurl checks: %d ok, %d failed\n' "$ok" "$failed"
((failed == 0))
