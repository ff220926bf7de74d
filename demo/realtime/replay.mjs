// @ts-check
/**
 * Replay on join: the newest stored messages of a private topic since a moment, oldest first.
 *
 * Only rows of `realtime.messages` can be replayed; what came by HTTP or socket was never stored.
 */

const LIMIT_MAX = 25;

/** The message is what the client reads. */
export class ReplayError extends Error {}

/** @typedef {{ id: string, content: import('./frames.mjs').Content }} Replayed */

/**
 * @param {import('./database.mjs').Database | null} database
 * @param {object} request
 * @param {string} request.topic
 * @param {import('./join.mjs').Config} request.config
 * @param {any} request.replay as the client sent it: since in Unix milliseconds, limit
 * @returns {Promise<Replayed[]>}
 */
export async function replayMessages(database, { topic, config, replay }) {
  if (!config.isPrivate) throw new ReplayError('Replay is not allowed for public channels');
  const { since = 0, limit = LIMIT_MAX } = typeof replay === 'object' ? replay : {};
  if (typeof replay !== 'object' || !Number.isInteger(since) || !Number.isInteger(limit)) {
    throw new ReplayError('Replay params are not valid');
  }
  if (!database) throw new ReplayError('Realtime was unable to replay messages');
  const count = Math.min(Math.max(limit, 1), LIMIT_MAX);
  const rows = await database.rolledBack(async (client) => {
    const newest = await client.query(
      `select id, event, payload, binary_payload
       from realtime.messages
       where topic = $1 and extension = 'broadcast' and private
         and inserted_at >= to_timestamp($2 / 1000.0) at time zone 'utc'
       order by inserted_at desc
       limit $3`,
      [topic, since, count],
    );
    return newest.rows;
  });
  return rows.reverse().map(toReplayed);
}

/**
 * @param {{ id: string, event: string, payload: any, binary_payload: Buffer | null }} row
 * @returns {Replayed}
 */
function toReplayed({ id, event, payload, binary_payload: bytes }) {
  const meta = { replayed: true, id };
  if (bytes) return { id, content: { form: 'user', event, isBinary: true, bytes, meta } };
  return { id, content: { form: 'text', payload: { type: 'broadcast', event, payload, meta } } };
}
