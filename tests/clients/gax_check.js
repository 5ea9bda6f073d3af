// Checks google-gax, Google's client library for Node, in fallback mode, which uses
// HTTP/JSON, against the server at ENDPOINT. rest.sh creates the operations. Prints one
// line for each check and exits with 1 if one failed.
//
// Requires google-gax in NODE_PATH; tests/clients/run installs it.
'use strict';

const assert = require('node:assert');
const path = require('node:path');
const gax = require('google-gax');
const {GoogleAuth, PassThroughClient} = require('google-auth-library');

const PROTO = path.resolve(__dirname, '../../proto');
const Code = {CANCELLED: 1, NOT_FOUND: 5};
const endpoint = new URL(process.env.ENDPOINT);

// gax cannot parse the JSON of an Any of an unknown type and then retries for a minute.
// Add the types of our operations to its own protos, which keep the built-in bindings.
function loadTypes() {
  const own = path.resolve(require.resolve('google-gax'), '../../protos/operations.json');
  const root = gax.fallback.protobufFromJSON(require(own), true);
  // gax has these already; a second copy would clash.
  root.files.push(...['any', 'duration', 'empty'].map(name => `google/protobuf/${name}.proto`));
  root.files.push(path.join(PROTO, 'google/rpc/status.proto'));
  root.resolvePath = (_, target) =>
    /^(longrunning|google\/rpc)\//.test(target) ? path.join(PROTO, target) : target;
  root.loadSync([
    'google/protobuf/struct.proto',
    'google/rpc/error_details.proto',
    'longrunning/v1/metadata.proto',
  ]);
  return root;
}

const auth = new GoogleAuth({authClient: new PassThroughClient()});
const client = gax.fallback.lro({auth, fallback: true, protoJson: loadTypes()}).operationsClient({
  servicePath: endpoint.hostname,
  port: Number(endpoint.port),
  protocol: endpoint.protocol.replace(':', ''),
  auth,
});

const checks = {
  'getOperation, which escapes the name into one segment, returns the operation': async () => {
    const [operation] = await client.getOperation({name: 'operations/done'});
    assert.equal(operation.name, 'operations/done');
    assert.equal(operation.done, true);
    assert.match(operation.response.type_url, /google.protobuf.Struct$/);
    return operation.response.type_url;
  },
  'listOperationsAsync follows page tokens': async () => {
    const names = [];
    for await (const operation of client.listOperationsAsync({name: 'operations', pageSize: 1})) {
      names.push(operation.name);
    }
    assert.deepEqual(names, ['operations/other', 'operations/waiting', 'operations/done']);
    return names.join(' ');
  },
  'cancelOperation completes a pending operation with CANCELLED': async () => {
    await client.cancelOperation({name: 'operations/waiting'});
    const [operation] = await client.getOperation({name: 'operations/waiting'});
    assert.equal(operation.done, true);
    assert.equal(operation.error.code, Code.CANCELLED);
    return operation.error.message;
  },
  'getOperation after deleteOperation is NOT_FOUND with a reason': async () => {
    await client.deleteOperation({name: 'operations/other'});
    await assert.rejects(client.getOperation({name: 'operations/other'}), error => {
      assert.equal(error.code, Code.NOT_FOUND, error.stack);
      assert.equal(error.reason, 'OPERATION_NOT_FOUND');
      assert.equal(error.domain, 'longrunning.dev');
      return true;
    });
  },
};

async function main() {
  let failed = 0;
  for (const [claim, run] of Object.entries(checks)) {
    try {
      const detail = await run();
      console.log(`  ok      ${claim}${detail ? `: ${detail}` : ''}`);
    } catch (error) {
      failed++;
      console.log(`  FAILED  ${claim}\n${error.stack}`);
    }
  }
  const ok = Object.keys(checks).length - failed;
  console.log(`\ngoogle-gax checks: ${ok} ok, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}

main();
