// Node's @grpc/grpc-js against a running agent: nothing but `unix:///path`, no channel option.
import assert from 'node:assert/strict';
import path from 'node:path';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const modules = path.resolve('node_modules');
const definition = loader.loadSync(
  [
    'bloom/agent/v1/token.proto',
    'google/rpc/status.proto',
    'google/rpc/error_details.proto',
    'grpc-health-check/proto/health/v1/health.proto',
    '@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto',
    '@grpc/reflection/build/proto/grpc/reflection/v1alpha/reflection.proto',
  ],
  { includeDirs: [process.env.PROTO, path.resolve('.'), modules], keepCase: true, longs: String, enums: String, defaults: true },
);
const api = grpc.loadPackageDefinition(definition);
const target = 'unix://' + process.env.BLOOM_AGENT_SOCK;
const credentials = grpc.credentials.createInsecure();
const tokens = new api.bloom.agent.v1.TokenService(target, credentials);
const health = new api.grpc.health.v1.Health(target, credentials);

// Many times the life of the tokens that the harness asks for: reached only when something hangs.
const deadline = () => ({ deadline: Date.now() + 30_000 });

const call = (client, method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, deadline(), (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const failure = (promise) =>
  promise.then(
    () => assert.fail('the call was to fail'),
    (error) => error,
  );

function errorInfo(error) {
  const [bytes] = error.metadata.get('grpc-status-details-bin');
  const status = definition['google.rpc.Status'].deserialize(bytes);
  const any = status.details.find((detail) => detail.type_url === 'type.googleapis.com/google.rpc.ErrorInfo');
  return definition['google.rpc.ErrorInfo'].deserialize(any.value);
}

function listServices(version) {
  const client = new api.grpc.reflection[version].ServerReflection(target, credentials);
  return new Promise((resolve, reject) => {
    const stream = client.ServerReflectionInfo(deadline());
    stream.on('error', reject);
    stream.on('data', (answer) => {
      resolve(answer.list_services_response.service.map((service) => service.name));
      stream.end();
    });
    stream.write({ list_services: '' });
  }).finally(() => client.close());
}

const cases = {
  async GetToken() {
    for (const request of [{ name: 'bloom' }, {}]) {
      const { token } = await call(tokens, 'GetToken', request);
      assert.equal(token.name, 'bloom');
      assert.equal(token.token_type, 'Bearer');
      assert.ok(token.access_token);
      assert.ok(BigInt(token.expires_at.seconds) > 0n);
    }
  },
  async 'WatchToken over a rotation'() {
    const stream = tokens.WatchToken({ name: 'bloom' }, deadline());
    const seen = [];
    for await (const { token } of stream) {
      seen.push(token);
      if (seen.length === 2) break;
    }
    stream.cancel();
    assert.notEqual(seen[0].generation, seen[1].generation);
    assert.notEqual(seen[0].access_token, seen[1].access_token);
    const { token } = await call(tokens, 'GetToken', { name: 'bloom' });
    assert.ok(BigInt(token.generation) >= BigInt(seen[1].generation));
  },
  async "an error's details"() {
    const error = await failure(call(tokens, 'GetToken', { name: 'no-such-profile' }));
    assert.equal(error.code, grpc.status.NOT_FOUND);
    const { domain, reason } = errorInfo(error);
    assert.deepEqual([domain, reason], ['bloom.agent', 'UNKNOWN_PROFILE']);
  },
  async health() {
    for (const service of ['', 'bloom']) {
      assert.equal((await call(health, 'Check', { service })).status, 'SERVING');
    }
    assert.equal((await failure(call(health, 'Check', { service: 'no-such-profile' }))).code, grpc.status.NOT_FOUND);
  },
  async 'reflection v1 and v1alpha'() {
    for (const version of ['v1', 'v1alpha']) {
      const services = await listServices(version);
      for (const name of ['bloom.agent.v1.TokenService', 'bloom.agent.v1.AdminService', 'grpc.health.v1.Health']) {
        assert.ok(services.includes(name), `${version}: ${services}`);
      }
    }
  },
};

for (const [name, run] of Object.entries(cases)) {
  await run();
  console.log(`  ok  ${name}`);
}
tokens.close();
health.close();
