// @ts-check
/**
 * The web server of the demo: the page, its JSON interface, and the switches that a real
 * application would not have (signing in by a click, stopping Realtime). Loopback only.
 */
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  STATUSES,
  advanceJobs,
  asPerson,
  listFlags,
  listJobs,
  listPeople,
  raiseFlag,
  setFlagResolved,
  setJobStatus,
} from './application.mjs';
import { signToken, verifyToken } from './realtime/tokens.mjs';

const PAGE = fileURLToPath(new URL('page/', import.meta.url));
const SESSION_HOURS = 12;
const BODY_BYTES_MAX = 64 * 1024;
/** @type {Record<string, string>} */
const CONTENT_TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.mjs': 'text/javascript; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/**
 * @typedef {import('./application.mjs').Transaction} Transaction
 *
 * @typedef {object} Backstage what the server stands on
 * @property {import('pg').Pool} pool
 * @property {string} jwtSecret
 * @property {import('./broadcast.mjs').Realtime} realtime
 *
 * @typedef {object} Call one request to the JSON interface
 * @property {URLSearchParams} query
 * @property {any} body
 * @property {string[]} parts what the groups of the route's pattern matched
 * @property {<T>(work: (transaction: Transaction) => Promise<T>) => Promise<T>} asCaller
 */

class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * @param {Backstage & { port: number }} options `port` 0 takes a free one
 */
export async function startWeb({ port, ...backstage }) {
  const files = listFiles();
  const server = createServer((request, response) => {
    answer(backstage, files, request).then(
      ({ status = 200, type = 'application/json', body }) => {
        response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' }).end(body);
      },
      (error) => {
        const { status, message } = explain(error);
        response.writeHead(status, { 'content-type': 'application/json' });
        response.end(JSON.stringify({ message }));
      },
    );
  });
  server.listen(port, '127.0.0.1');
  await once(server, 'listening');
  const address = /** @type {import('node:net').AddressInfo} */ (server.address());
  return {
    url: `http://127.0.0.1:${address.port}`,
    stop: async () => {
      server.close();
      server.closeAllConnections();
      await once(server, 'close');
    },
  };
}

/** The files that may be asked for, by path: the page's own and the published supabase-js. */
function listFiles() {
  const files = new Map(readdirSync(PAGE).map((name) => [`/${name}`, `${PAGE}${name}`]));
  files.set('/', `${PAGE}index.html`);
  const supabase = '@supabase/supabase-js/dist/umd/supabase.js';
  files.set('/vendor/supabase.js', createRequire(import.meta.url).resolve(supabase));
  return files;
}

/**
 * @param {Backstage} backstage
 * @param {Map<string, string>} files
 * @param {import('node:http').IncomingMessage} request
 * @returns {Promise<{ status?: number, type?: string, body: string | Buffer }>}
 */
async function answer(backstage, files, request) {
  const { pathname, searchParams: query } = new URL(request.url ?? '/', 'http://127.0.0.1');
  const file = files.get(pathname);
  if (file && request.method === 'GET') {
    return { type: CONTENT_TYPES[extname(file)], body: await readFile(file) };
  }
  for (const [method, pattern, handle] of routes) {
    const match = request.method === method && pattern.exec(pathname);
    if (!match) continue;
    const body = method === 'GET' ? null : await readBody(request);
    const asCaller = (/** @type {any} */ work) =>
      asPerson(backstage.pool, identify(backstage, request), work);
    const result = await handle({ query, body, parts: match.slice(1), asCaller }, backstage);
    if (result === null) throw new Refusal(404, 'there is no such row, or it is not yours');
    return { body: JSON.stringify(result) };
  }
  throw new Refusal(404, 'not found');
}

/** @typedef {(call: Call, backstage: Backstage) => Promise<unknown>} Handler */

/** @type {[method: string, path: RegExp, handle: Handler][]} */
const routes = [
  ['GET', /^\/api\/people$/, async (_, { pool }) => listPeople(pool)],
  ['POST', /^\/api\/session$/, ({ body }, backstage) => signIn(backstage, body.person_id)],

  [
    'GET',
    /^\/api\/jobs$/,
    ({ query, asCaller }) => asCaller((tx) => listJobs(tx, Object.fromEntries(query))),
  ],
  [
    'PATCH',
    /^\/api\/jobs\/([\w-]+)$/,
    ({ parts: [id], body, asCaller }) =>
      asCaller((tx) => setJobStatus(tx, id, oneOf(STATUSES, body.status))),
  ],
  ['POST', /^\/api\/jobs\/advance$/, ({ asCaller }) => asCaller(advanceJobs)],

  [
    'GET',
    /^\/api\/flags$/,
    ({ query, asCaller }) => asCaller((tx) => listFlags(tx, Object.fromEntries(query))),
  ],
  [
    'POST',
    /^\/api\/flags$/,
    ({ body, asCaller }) => asCaller((tx) => raiseFlag(tx, body.job_id, body.reason)),
  ],
  [
    'PATCH',
    /^\/api\/flags\/(\d+)$/,
    ({ parts: [id], body, asCaller }) =>
      asCaller((tx) => setFlagResolved(tx, id, body.resolved === true)),
  ],

  ['GET', /^\/api\/delivery$/, (_, backstage) => describeDelivery(backstage)],
  [
    'POST',
    /^\/api\/realtime$/,
    async ({ body }, { realtime, ...backstage }) => {
      if (!realtime.switchable) throw new Refusal(409, 'this Realtime is not ours to stop');
      await (body.running ? realtime.start() : realtime.stop());
      return describeDelivery({ realtime, ...backstage });
    },
  ],
];

/**
 * @param {Backstage} backstage
 * @param {string} personId
 */
async function signIn({ pool, jwtSecret, realtime }, personId) {
  const person = (await listPeople(pool)).find(({ id }) => id === personId);
  if (!person) throw new Refusal(404, 'there is no such person');
  const lifetime = { exp: Math.floor(Date.now() / 1000) + SESSION_HOURS * 3600 };
  const audience = { aud: 'authenticated', role: 'authenticated' };
  return {
    person,
    token: signToken({ sub: person.id, ...audience, ...lifetime }, jwtSecret),
    realtime: { url: realtime.url, key: signToken({ role: 'anon', ...lifetime }, jwtSecret) },
  };
}

/** @param {Backstage} backstage */
async function describeDelivery({ pool, realtime }) {
  const { rows: sinks } = await pool.query(
    `select sink, state, lag_events::float8 as lag_events, lag_ms, in_flight, rate, last_error,
            extract(epoch from retry_at - clock_timestamp()) * 1000 as retry_in_ms, attempts
     from outbox.status order by sink, shard`,
  );
  return { sinks, realtime: { running: realtime.running, switchable: realtime.switchable } };
}

/**
 * @param {Backstage} backstage
 * @param {import('node:http').IncomingMessage} request
 */
function identify({ jwtSecret }, request) {
  const [scheme, token] = (request.headers.authorization ?? '').split(' ');
  const claims = scheme === 'Bearer' && verifyToken(token, jwtSecret);
  if (!claims) throw new Refusal(401, 'sign in first');
  return { claims, headers: request.headers };
}

/** @param {import('node:http').IncomingMessage} request */
async function readBody(request) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > BODY_BYTES_MAX) throw new Refusal(413, 'that is too much');
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString() || '{}');
  } catch {
    throw new Refusal(400, 'that is not JSON');
  }
}

/**
 * @param {string[]} known
 * @param {string} value
 */
function oneOf(known, value) {
  if (!known.includes(value)) throw new Refusal(400, `use one of ${known.join(', ')}`);
  return value;
}

/** What Postgres says of bad input (classes 22 and 23) is the caller's mistake and not ours. */
function explain(/** @type {any} */ error) {
  if (error instanceof Refusal) return error;
  if (/^2[23]/.test(error.code)) return { status: 400, message: error.message };
  return { status: 500, message: error.message };
}
