// @ts-check
/** Connections to the databases of a throwaway cluster, closed with the test file. */
import pg from 'pg';
import { waitUntil } from '../../harness/wait.mjs';

/** @typedef {import('../../harness/cluster.mjs').Cluster} Cluster */

/**
 * A connection that fails loudly: an error nobody waits for ends the test, and bigints stay exact.
 *
 * @param {Cluster} cluster
 * @param {{ database?: string, user?: string, options?: string }} [where]
 */
export async function connect(cluster, { database = 'postgres', user = 'postgres', options } = {}) {
  const client = new pg.Client({
    host: '127.0.0.1', port: cluster.port, database, user, options, application_name: 'test',
  });
  // A server that stops while a connection is idle ends it; whoever uses it next is told. It may
  // stop in the moment that it has let us in.
  client.on('error', () => {});
  await client.connect();
  return client;
}

/**
 * The rows of a query, each as an array when it has several columns and bare when it has one.
 *
 * @param {pg.Client} client
 * @param {string} sql
 * @param {unknown[]} [parameters]
 * @returns {Promise<any[]>}
 */
export async function column(client, sql, parameters = []) {
  const { rows } = await client.query({ text: sql, values: parameters, rowMode: 'array' });
  return rows.map((row) => (row.length === 1 ? row[0] : row));
}

/**
 * The one value of a query.
 *
 * @param {pg.Client} client
 * @param {string} sql
 * @param {unknown[]} [parameters]
 * @returns {Promise<any>}
 */
export async function value(client, sql, parameters = []) {
  return (await column(client, sql, parameters))[0];
}

/**
 * The committed events, oldest first, with their names, as the view shows them.
 *
 * @typedef {{ event_id: string, event_type: string, topic: string, org_id: string, ids: any,
 *   origin: string | null, data: any, created_at: Date }} StoredEvent
 * @param {pg.Client} client
 * @param {string[] | null} [organisations] only theirs
 * @returns {Promise<StoredEvent[]>}
 */
export async function storedEvents(client, organisations = null) {
  const { rows } = await client.query(
    `select event_id, event_type, topic, org_id, ids, origin, data, created_at
     from outbox.events where $1::text[] is null or org_id = any ($1)
     order by entry_id, place`, [organisations]);
  return rows;
}

/**
 * The error of a statement that must fail.
 *
 * @param {pg.Client} client
 * @param {string} sql
 * @returns {Promise<pg.DatabaseError>}
 */
export async function refusal(client, sql) {
  try {
    await client.query(sql);
  } catch (error) {
    return /** @type {pg.DatabaseError} */ (error);
  }
  throw new Error(`it was accepted: ${sql}`);
}

/**
 * Waits until a query gives a value that is accepted (a truthy one unless `accept` decides).
 *
 * @param {pg.Client} client
 * @param {string} sql
 * @param {string} description
 * @param {{ timeoutMs?: number, accept?: (value: any) => unknown }} [options]
 */
export function waitForValue(client, sql, description, options = {}) {
  return waitUntil(() => value(client, sql), description, options);
}
