// @ts-check
/** What it takes to have events delivered: a database with the extension, a sink, a token. */
import { column, value } from './database.mjs';

/** A token is only passed on by the relay; what it says is the receiver's business. */
export const SECRET = 'a-secret-of-the-tests-that-is-long-enough-for-hs256';

/**
 * Names a sink of kind `realtime`. The relay signs its own tokens with the secret.
 *
 * @param {import('pg').Client} client
 * @param {string} url
 * @param {Record<string, unknown>} [options] more options of the sink
 */
export async function setSink(client, url, options = {}) {
  await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
  await client.query("select outbox.set_sink('realtime', 'realtime', $1)",
    [JSON.stringify({ url, jwt_secret: 'realtime', ...options })]);
}

/**
 * Waits until everything that is committed has an outcome.
 *
 * @param {import('pg').Client} client
 * @param {number} [seconds]
 */
export async function delivered(client, seconds = 30) {
  if (await value(client, 'select outbox.wait_until_delivered($1)', [`${seconds} s`])) return;
  const { rows } = await client.query('select * from outbox.status');
  const checks = await column(client, 'select name, detail from outbox.check() where not ok');
  throw new Error(`not delivered in ${seconds} s: ${JSON.stringify({ rows, checks })}`);
}

/**
 * The relay's row of pg_stat_activity in a database; undefined while there is none.
 *
 * @param {import('pg').Client} client
 * @param {string} database
 */
export async function relayOf(client, database) {
  const { rows } = await client.query(`select pid, application_name, backend_type, state, query
    from pg_stat_activity
    where datname = $1 and backend_type like 'pg_outbox%'`, [database]);
  return rows[0];
}
