// @ts-check
/** A client that was away: what it asks for, and how it goes on from page to page. */

/** @typedef {{ event_id: string, event_type: string, topic: string, ids: any, data: any,
 *   origin: string | null, version: number, at: Date, cursor: string, complete: boolean }} Row */

/**
 * One page.
 *
 * @param {import('pg').Client} client
 * @param {string} cursor
 * @param {string} organisation
 * @param {number} [maxEvents]
 * @returns {Promise<Row[]>}
 */
export async function page(client, cursor, organisation, maxEvents = 500) {
  const { rows } = await client.query(
    'select * from outbox.events_since(cursor => $1, org_id => $2, max_events => $3)',
    [cursor, organisation, maxEvents]);
  return rows;
}

/**
 * Page by page until none comes. Throws when what was missed cannot be told.
 *
 * @param {import('pg').Client} client
 * @param {string} from
 * @param {string} organisation
 * @param {() => number} [pageSize]
 */
export async function follow(client, from, organisation, pageSize = () => 500) {
  const events = [];
  let cursor = from;
  for (;;) {
    const rows = await page(client, cursor, organisation, pageSize());
    if (rows.length === 0) return { events, cursor };
    if (rows.some(({ complete }) => !complete)) throw new Error(`incomplete after ${events.length} events`);
    events.push(...rows);
    cursor = /** @type {Row} */ (rows.at(-1)).cursor;
  }
}

/** Where the state that is read now ends. @param {import('pg').Client} client */
export async function positionOf(client) {
  const { rows } = await client.query('select outbox.cursor() as cursor');
  return rows[0].cursor;
}
