// Google's client library for Node, google-gax in fallback mode, follows
// operations of a server at ENDPOINT; rest.sh has made them. In that mode it
// speaks HTTP/JSON. One line for each check; exit code 1 if one failed.
'use strict';

const assert = require('node:assert');
const gax = require('google-gax');

const endpoint = new URL(process.env.ENDPOINT);

// No account is needed, and none is looked for.
const auth = {
  getRequestHeaders: async () => new Headers(),
  getClient: async () => ({getRequestHeaders: async () => new Headers()}),
  fetch: async (url, options) => {
    const response = await fetch(url, options);
    const data = await response.text();
    return {ok: response.ok, status: response.status, headers: response.headers, data,
      arrayBuffer: async () => Buffer.from(data), text: async () => data};
  },
};

function connect() {
  const grpc = new gax.fallback.GrpcClient({fallback: true, auth});
  return new gax.fallback.lro({auth, fallback: true}).operationsClient
    ? new gax.OperationsClient(grpc, options())
    : new gax.OperationsClient(grpc, options());
}

function options() {
  return {
    servicePath: endpoint.hostname,
    port: Number(endpoint.port),
    protocol: 'http',
    fallback: true,
    auth,
  };
}

const checks = [];
const check = (claim, run) => checks.push([claim, run]);

async function main() {
  const client = connect();

  check('getOperation asks for the name in one segment and gets it', async () => {
    const [operation] = await client.getOperation({name: 'operations/done'});
    assert.equal(operation.name, 'operations/done');
    assert.equal(operation.done, true);
    assert.match(operation.response.type_url, /StringValue$/);
  });
  check('listOperations goes from page to page', async () => {
    const [all] = await client.listOperations({name: 'operations', pageSize: 1});
    const names = all.map(operation => operation.name);
    assert.deepEqual(names, ['operations/other', 'operations/waiting', 'operations/done']);
    return names.join(' ');
  });
  check('cancelOperation ends a waiting one with code 1', async () => {
    await client.cancelOperation({name: 'operations/waiting'});
    const [operation] = await client.getOperation({name: 'operations/waiting'});
    assert.equal(operation.done, true);
    assert.equal(operation.error.code, 1);
  });
  check('deleteOperation makes it not found', async () => {
    await client.deleteOperation({name: 'operations/other'});
    await assert.rejects(client.getOperation({name: 'operations/other'}), error => {
      assert.equal(error.code, 5, error.stack);
      assert.equal(error.reason, 'OPERATION_NOT_FOUND');
      assert.equal(error.domain, 'longrunning.v1');
      return true;
    });
  });

  let failed = 0;
  for (const [claim, run] of checks) {
    try {
      const detail = await run();
      console.log(`  ok      ${claim}${detail ? `: ${detail}` : ''}`);
    } catch (error) {
      failed++;
      console.log(`  FAILED  ${claim}\n${error.stack}`);
    }
  }
  console.log(`\ngoogle-gax checks: ${checks.length - failed} ok, ${failed} failed`);
  process.exit(failed ? 1 : 0);
}

main();
