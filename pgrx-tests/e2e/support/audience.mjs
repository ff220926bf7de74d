// @ts-check
/** People who listen: the unmodified supabase-js, each with a token and a connection of their own. */
import { createClient } from '@supabase/supabase-js';
import WebSocket from 'ws';
import { signToken } from '../../../demo/realtime/tokens.mjs';
import { SECRET } from './delivery.mjs';

/** @typedef {{ payload: any, at: number }} Received a message and the clock when it arrived */

const tokenOf = (/** @type {string} */ person) =>
  signToken({ role: 'authenticated', sub: person, exp: Math.floor(Date.now() / 1000) + 3600 }, SECRET);

/**
 * Joins the private channel of each organisation, and keeps what arrives.
 *
 * @param {string} url of the Realtime server
 * @param {string} person whose id the token carries
 * @param {string[]} organisations
 */
export async function listen(url, person, organisations) {
  const token = tokenOf(person);
  const client = createClient(url, token, {
    accessToken: async () => token,
    realtime: { transport: /** @type {any} */ (WebSocket) },
  });
  /** @type {Received[]} */
  const received = [];
  const statuses = organisations.map((organisation) => join(client, organisation, received));
  return {
    received,
    /** The status that each join ended with: SUBSCRIBED, or why not. */
    statuses: await Promise.all(statuses),
    /** The listed events, in order of arrival. */
    events: () => received.flatMap(({ payload, at }) =>
      payload.events.map((/** @type {any} */ event) => ({ ...event, org_id: payload.org_id, arrived_at: at }))),
    close: async () => {
      await client.removeAllChannels();
      client.realtime.disconnect();
    },
  };
}

/**
 * @param {import('@supabase/supabase-js').SupabaseClient} client
 * @param {string} organisation
 * @param {Received[]} received
 * @returns {Promise<string>}
 */
function join(client, organisation, received) {
  const channel = client.channel(`notifications:org_${organisation}`, { config: { private: true } });
  channel.on('broadcast', { event: 'events' }, ({ payload }) =>
    received.push({ payload, at: Date.now() }));
  return new Promise((resolve) => {
    channel.subscribe((status, error) => resolve(error ? `${status}: ${error.message}` : status));
  });
}
