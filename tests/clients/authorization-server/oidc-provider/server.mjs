// oidc-provider (npm) as an authorization server over HTTPS on a port of the kernel's choice: strict
// about the client's method of authentication and about resource indicators (RFC 8707).
//
// It prints "port N"; every answered token request is a line in the file of requests:
// "token CONTENT-TYPE AUTHORIZATION-SCHEME STATUS".
import { generateKeyPairSync } from 'node:crypto';
import { appendFileSync, readFileSync } from 'node:fs';
import https from 'node:https';

import Provider from 'oidc-provider';

const [certificate, key, clientId, secretFile, requests] = process.argv.slice(2);
const resource = 'https://api.example.test/v2';
const client = (method) => ({
  client_id: `${clientId}-${method}`,
  client_secret: readFileSync(secretFile, 'utf8'),
  grant_types: ['client_credentials'],
  id_token_signed_response_alg: 'ES256',
  redirect_uris: [],
  response_types: [],
  scope: 'ledger:read ledger:write',
  token_endpoint_auth_method: `client_secret_${method}`,
});
const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });

const server = https.createServer({ cert: readFileSync(certificate), key: readFileSync(key) });
server.listen(0, 'localhost', () => {
  const { port } = server.address();
  const provider = new Provider(`https://localhost:${port}`, {
    clients: [client('post'), client('basic')],
    cookies: { keys: ['of no use here'] },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({ scope: 'ledger:read ledger:write', accessTokenTTL: 3600 }),
      },
    },
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), use: 'sig' }] },
    scopes: ['ledger:read', 'ledger:write'],
  });

  // An API that asks the provider whose token it was shown.
  async function api(request, response) {
    const value = request.headers.authorization?.match(/^Bearer (\S+)$/)?.[1];
    const token = value && (await provider.ClientCredentials.find(value));
    response.statusCode = token?.isValid ? 200 : 401;
    response.end(token ? `${token.clientId} ${token.scope} ${token.aud}\n` : '');
  }

  const answer = provider.callback();
  server.on('request', (request, response) => {
    if (request.url === '/api') {
      api(request, response);
      return;
    }
    response.on('finish', () => {
      const type = request.headers['content-type']?.split(';')[0];
      const scheme = request.headers.authorization?.split(' ')[0];
      appendFileSync(requests, `token ${type ?? 'none'} ${scheme ?? 'none'} ${response.statusCode}\n`);
    });
    answer(request, response);
  });
  console.log(`port ${port}`);
});
