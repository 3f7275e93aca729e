// A real OpenID provider (npm's oidc-provider) for the tests: one client, JWT access tokens for the audience it asks for.
import { readFileSync } from 'node:fs';
import { Provider } from 'oidc-provider';

const { port, jwks } = JSON.parse(readFileSync(0, 'utf8'));
const issuer = `http://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  jwks,
  clients: [{ client_id: 'ci', client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] }],
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({
        scope: 'draw', audience: resource, accessTokenTTL: 300, accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  extraTokenClaims: () => ({ realm: { roles: ['painters', 'others'] } }),
});
provider.listen(port, '127.0.0.1', () => console.log('listening'));
