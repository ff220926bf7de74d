// @ts-check
/** What the tests stand on: a server, tokens, requests, and the people of two organisations. */
import { createClient } from '@supabase/supabase-js';
import WebSocket from 'ws';
import { startCluster } from '../../../../pgrx-tests/harness/cluster.mjs';
import { startRealtime } from '../../server.mjs';
import { signToken } from '../../tokens.mjs';

export { waitUntil } from '../../../../pgrx-tests/harness/wait.mjs';

export const SECRET = 'a secret that is only for the tests of the stand-in';

/** Nobody waits for the delays of a refusal, except the test that is about them. */
const IMPATIENT = { joinErrorDelayMs: 0, handshakeErrorDelayMs: 0, presenceDiffMs: 20 };

/** @typedef {Awaited<ReturnType<typeof startRealtime>>} Realtime */

/**
 * @param {Partial<Parameters<typeof startRealtime>[0]>} [options]
 * @returns {Promise<Realtime>}
 */
export const start = (options = {}) =>
  startRealtime({ jwtSecret: SECRET, ...IMPATIENT, ...options });

/** Members read their organisation's channel; who may send has `sends` in the token. */
const POLICIES = `
  create table memberships (person uuid, org text);
  insert into memberships values
    ('00000000-0000-4000-8000-00000000000a', 'a'), ('00000000-0000-4000-8000-00000000000b', 'b');
  create function is_member() returns boolean language sql stable security definer as $$
    select exists (
      select from public.memberships m
      where m.person = auth.uid() and realtime.topic() = 'notifications:org_' || m.org);
  $$;
  create policy members_read on realtime.messages for select to authenticated
    using (extension = 'broadcast' and is_member());
  create policy presence_reads on realtime.messages for select to authenticated
    using (extension = 'presence' and is_member() and auth.jwt() ? 'present');
  create policy members_write on realtime.messages for insert to authenticated
    with check (is_member() and (auth.jwt() ? 'sends' or extension = 'presence'));
  create policy broken on realtime.messages for select to authenticated
    using (case when realtime.topic() = 'broken' then 1 / (length(topic) - 6) = 1 else false end);`;

export const ALICE = '00000000-0000-4000-8000-00000000000a';
export const BOB = '00000000-0000-4000-8000-00000000000b';

/**
 * A cluster and a server on it, with policies for the organisations `a` of Alice and `b` of Bob.
 *
 * @param {Partial<Parameters<typeof startRealtime>[0]>} [options]
 * @param {Record<string, string | number>} [settings]
 */
export async function startWithDatabase(options = {}, settings = { wal_level: 'logical' }) {
  const cluster = await startCluster({ preload: false, settings });
  try {
    const realtime = await start({ databaseUrl: cluster.url(), ...options });
    await cluster.psql(POLICIES);
    return { cluster, realtime };
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

export const nowS = () => Math.floor(Date.now() / 1000);

export const ANON = signToken({ role: 'anon' }, SECRET);
export const SERVICE = signToken({ role: 'service_role' }, SECRET);

/**
 * @param {string} person
 * @param {Record<string, unknown>} [claims]
 */
export const tokenOf = (person, claims = {}) =>
  signToken({ role: 'authenticated', sub: person, ...claims }, SECRET);

/**
 * @param {Realtime} realtime
 * @param {unknown} body sent as JSON unless it is a string or bytes
 * @param {object} [options]
 * @param {string} [options.path]
 * @param {string} [options.token]
 * @param {string} [options.method]
 * @param {Record<string, string | undefined>} [options.headers] undefined leaves one out
 */
export async function post(realtime, body, options = {}) {
  const { path = '/api/broadcast', token = SERVICE, method = 'POST', headers = {} } = options;
  const all = { 'content-type': 'application/json', authorization: `Bearer ${token}`, ...headers };
  const given = Object.entries(all).filter(([, value]) => value !== undefined);
  const isRaw = typeof body === 'string' || body instanceof Uint8Array || body === undefined;
  const response = await fetch(realtime.url + path, {
    method,
    headers: Object.fromEntries(/** @type {[string, string][]} */ (given)),
    body: /** @type {any} */ (isRaw ? body : JSON.stringify(body)),
  });
  const text = await response.text();
  const type = response.headers.get('content-type') ?? '';
  const answer = type.startsWith('application/json') ? JSON.parse(text) : text;
  return { status: response.status, body: answer, headers: response.headers, type };
}

/**
 * One message of a batch.
 *
 * @param {string} topic
 * @param {Record<string, unknown>} [fields]
 */
export const message = (topic, fields = {}) =>
  ({ topic, event: 'ev', payload: { n: 1 }, ...fields });

/**
 * The unmodified client, as an application makes it.
 *
 * @param {string} url
 * @param {string} token
 * @param {import('@supabase/supabase-js').RealtimeClientOptions} [options]
 */
export function connectClient(url, token, options = {}) {
  const client = createClient(url, token, {
    accessToken: async () => token,
    realtime: { transport: /** @type {any} */ (WebSocket), ...options },
  });
  return client;
}

/**
 * @param {import('@supabase/supabase-js').SupabaseClient} client
 * @param {string} topic
 * @param {import('@supabase/supabase-js').RealtimeChannelOptions['config']} [config]
 */
export async function joinWithClient(client, topic, config = {}) {
  const channel = client.channel(topic, { config });
  /** @type {any[]} */
  const received = [];
  /** @type {any[]} */
  const system = [];
  /** @type {string[]} */
  const statuses = [];
  channel.on('broadcast', { event: '*' }, (content) => received.push(content));
  channel.on('system', {}, (content) => system.push(content));
  await new Promise((resolve) =>
    channel.subscribe((status, error) => {
      statuses.push(error ? `${status}: ${error.message}` : status);
      resolve(undefined);
    }),
  );
  return { channel, received, system, statuses };
}
