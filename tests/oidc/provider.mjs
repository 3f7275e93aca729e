// A real OpenID provider (npm's oidc-provider) for the tests: JWT access tokens for the audience that is asked for, and a
// page where whoever signs in is who they say they are.
import { readFileSync } from 'node:fs';
import { Provider } from 'oidc-provider';

const { port, jwks, redirect_uris = [], post_logout_redirect_uris = [] } = JSON.parse(readFileSync(0, 'utf8'));
const issuer = `http://127.0.0.1:${port}`;
const page = {
  client_id: 'page', client_secret: 'a secret: of/the page', grant_types: ['authorization_code'], response_types: ['code'],
  redirect_uris, post_logout_redirect_uris,
};
const provider = new Provider(issuer, {
  jwks,
  clients: [
    { client_id: 'ci', client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [] },
    page,
    { ...page, client_id: 'public', client_secret: undefined, token_endpoint_auth_method: 'none' },
  ],
  pkce: { required: () => true },
  claims: { profile: ['name', 'realm'] },
  conformIdTokenClaims: true, // what `profile` stands for is told by userinfo alone
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: `${id} of the studio`, realm: { roles: id === 'mallory' ? [] : ['painters'] } }),
  }),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    rpInitiatedLogout: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: (_, resource) => ({
        scope: 'draw', audience: resource, accessTokenTTL: 300, accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  extraTokenClaims: () => ({ realm: { roles: ['painters', 'others'] } }),
});
provider.listen(port, '127.0.0.1', () => console.log('listening'));
