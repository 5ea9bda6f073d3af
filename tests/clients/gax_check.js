// Google's client library for Node, google-gax in fallback mode, follows
// operations of a server at ENDPOINT; rest.sh has made them. In that mode it
// speaks HTTP/JSON. One line for each check; exit code 1 if one failed.
//
// Wants NODE_PATH to have google-gax; tests/clients/run installs it.
'use strict';

const assert = require('node:assert');
const path = require('node:path');
const gax = require('google-gax');
const {GoogleAuth, PassThroughClient} = require('google-auth-library');

const PROTO = path.resolve(__dirname, '../../proto');
const endpoint = new URL(process.env.ENDPOINT);

// gax reads the JSON of an Any only if it knows the type; if not, it asks again
// and again for a minute. So what is in our operations joins its own protos,
// which keep the bindings that gax has built in.
function types() {
  const own = path.resolve(require.resolve('google-gax'), '../../protos/operations.json');
  const root = gax.fallback.protobufFromJSON(require(own), true);
  // Those it has already; a second copy would clash.
  root.files.push(...['any', 'duration', 'empty'].map(name => `google/protobuf/${name}.proto`));
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
const client = gax.fallback.lro({auth, fallback: true, protoJson: types()}).operationsClient({
  servicePath: endpoint.hostname,
  port: Number(endpoint.port),
  protocol: endpoint.protocol.replace(':', ''),
  auth,
});

const checks = {
  'getOperation, which sends the whole name in one segment, gets it': async () => {
    const [operation] = await client.getOperation({name: 'operations/done'});
    assert.equal(operation.name, 'operations/done');
    assert.equal(operation.done, true);
    assert.match(operation.response.type_url, /google.protobuf.Struct$/);
    return operation.response.type_url;
  },
  'listOperationsAsync goes from page to page': async () => {
    const names = [];
    for await (const operation of client.listOperationsAsync({name: 'operations', pageSize: 1})) {
      names.push(operation.name);
    }
    assert.deepEqual(names, ['operations/other', 'operations/waiting', 'operations/done']);
    return names.join(' ');
  },
  'cancelOperation ends a waiting one with code 1': async () => {
    await client.cancelOperation({name: 'operations/waiting'});
    const [operation] = await client.getOperation({name: 'operations/waiting'});
    assert.equal(operation.done, true);
    assert.equal(operation.error.code, 1);
    return operation.error.message;
  },
  'deleteOperation makes it not found, with the reason': async () => {
    await client.deleteOperation({name: 'operations/other'});
    await assert.rejects(client.getOperation({name: 'operations/other'}), error => {
      assert.equal(error.code, 5, error.stack);
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
