// @ts-check
/**
 * Who may listen to and send on a private channel: Postgres says, by the policies on
 * `realtime.messages`, about rows that never come to be.
 *
 * Reading is asked with probe rows that the server inserts itself and then looks for in the
 * caller's role; writing by inserting as the caller. Both in a transaction that is rolled back.
 */
import { DatabaseError } from './database.mjs';

/**
 * @typedef {'broadcast' | 'presence'} Extension
 *
 * @typedef {object} Caller
 * @property {string} topic
 * @property {import('./tokens.mjs').Claims} claims
 * @property {Record<string, unknown>} headers
 */

const INSUFFICIENT_PRIVILEGE = '42501';
/** Without a database there is nobody to ask, and only the server's own key is let through. */
const SERVICE_ROLE = 'service_role';

export class Authorization {
  #database;

  /** @param {import('./database.mjs').Database | null} database */
  constructor(database) {
    this.#database = database;
  }

  /**
   * Which of the extensions the caller may read on the topic.
   *
   * @param {Caller} caller
   * @param {Extension[]} extensions
   * @returns {Promise<Set<Extension>>}
   * @throws {DatabaseError}
   */
  async readable(caller, extensions) {
    if (!this.#database) return allowServiceRole(caller, extensions);
    return this.#database.rolledBack(async (client) => {
      const { rows: probes } = await client.query(
        `insert into realtime.messages (topic, extension)
         select $1, unnest($2::text[]) returning id, extension`,
        [caller.topic, extensions],
      );
      await impersonate(client, caller);
      const { rows: visible } = await client.query(
        'select id from realtime.messages where topic = $1 and id = any ($2)',
        [caller.topic, probes.map(({ id }) => id)],
      );
      const ids = new Set(visible.map(({ id }) => id));
      return new Set(probes.filter(({ id }) => ids.has(id)).map(({ extension }) => extension));
    });
  }

  /**
   * @param {Caller} caller
   * @param {Extension} extension
   * @returns {Promise<boolean>}
   * @throws {DatabaseError}
   */
  async mayWrite(caller, extension) {
    if (!this.#database) return allowServiceRole(caller, [extension]).size > 0;
    return this.#database.rolledBack(async (client) => {
      await impersonate(client, caller);
      try {
        await client.query('insert into realtime.messages (topic, extension) values ($1, $2)', [
          caller.topic,
          extension,
        ]);
        return true;
      } catch (error) {
        if (/** @type {any} */ (error).code === INSUFFICIENT_PRIVILEGE) return false;
        throw error;
      }
    });
  }
}

/**
 * @param {Caller} caller
 * @param {Extension[]} extensions
 */
function allowServiceRole({ claims }, extensions) {
  if (claims.role !== SERVICE_ROLE) throw new DatabaseError('UnableToConnectToProject');
  return new Set(extensions);
}

/**
 * @param {import('pg').PoolClient} client
 * @param {Caller} caller
 */
async function impersonate(client, { topic, claims, headers }) {
  await client.query(
    `select set_config('role', $1, true),
            set_config('realtime.topic', $2, true),
            set_config('request.jwt.claims', $3, true),
            set_config('request.jwt.claim.sub', $4, true),
            set_config('request.jwt.claim.role', $1, true),
            set_config('request.headers', $5, true)`,
    [claims.role, topic, JSON.stringify(claims), claims.sub ?? '', JSON.stringify(headers)],
  );
}
