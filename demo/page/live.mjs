// @ts-check
/**
 * The subscription: one private channel of Realtime for the person's organisation.
 *
 * It hands on each event once, whatever is sent twice, and says when the channel was away, because
 * what was broadcast meanwhile is not sent again: the page then reads everything anew.
 */

/**
 * @typedef {object} Event
 * @property {string} [event_id]
 * @property {string} event_type
 * @property {string} topic
 * @property {Record<string, string | number>} [ids]
 * @property {string} [at] when it was committed
 * @property {string} [origin] who caused it
 * @property {string} [entity] of a refresh
 * @property {number} [count] how many events a refresh stands for
 * @property {string} [last_event_id] of a refresh
 *
 * @typedef {'connecting' | 'live' | 'away' | 'refused'} ConnectionState
 */

/** A message that this page does not understand says so by a higher version. */
const VERSION = 1;
const REMEMBERED_MAX = 20_000;
const RETRY_MS_MAX = 2_000;

/**
 * @param {object} options
 * @param {{ url: string, key: string }} options.realtime
 * @param {string} options.token
 * @param {string} options.orgId
 * @param {(events: Event[], receivedAt: number) => void} options.onEvents
 * @param {(state: ConnectionState, detail?: string) => void} options.onState
 */
export async function follow({ realtime, token, orgId, onEvents, onState }) {
  const { createClient } = /** @type {any} */ (globalThis).supabase;
  const client = createClient(realtime.url, realtime.key, {
    accessToken: async () => token,
    realtime: {
      heartbeatIntervalMs: 10_000,
      reconnectAfterMs: (/** @type {number} */ tries) =>
        Math.min(250 * 2 ** (tries - 1), RETRY_MS_MAX),
    },
  });
  const isNew = createMemory();
  // The channel is joined with the token that is set by then, and a private one needs it.
  await client.realtime.setAuth(token);

  const join = () => {
    let closed = false;
    const channel = client.channel(`notifications:org_${orgId}`, { config: { private: true } });
    channel.on('broadcast', { event: 'events' }, (/** @type {any} */ { payload }) => {
      const receivedAt = Date.now();
      if (payload.v > VERSION) return;
      const events = payload.events.filter(isNew);
      if (events.length > 0) onEvents(events, receivedAt);
    });
    channel.subscribe(async (/** @type {string} */ status, /** @type {Error} */ error) => {
      if (status === 'SUBSCRIBED') return onState('live');
      if (/Unauthorized/.test(error?.message ?? '')) return onState('refused', error.message);
      onState('away', error?.message);
      // Of all others supabase-js recovers by itself. Removing the channel says CLOSED once more.
      if (status !== 'CLOSED' || closed) return;
      closed = true;
      await client.removeChannel(channel);
      setTimeout(join, RETRY_MS_MAX);
    });
  };
  onState('connecting');
  join();
}

/** Says of each event whether it comes for the first time; forgets the oldest. */
function createMemory() {
  const seen = new Set();
  return (/** @type {Event} */ event) => {
    const id = event.event_id ?? `${event.entity} ${event.last_event_id}`;
    if (seen.has(id)) return false;
    seen.add(id);
    if (seen.size > REMEMBERED_MAX) seen.delete(seen.values().next().value);
    return true;
  };
}

/**
 * When an event was committed, in milliseconds. A refresh says it by the id of its last event: the
 * first 48 bits of a UUIDv7 are its time.
 *
 * @param {Event} event
 */
export function committedAt({ at, last_event_id: id }) {
  if (at) return Date.parse(at);
  return parseInt(String(id).replaceAll('-', '').slice(0, 12), 16);
}
