// @ts-check
/**
 * The project's database: a pool of connections, the schema that Realtime needs in it, and the
 * daily partitions of its message table.
 *
 * An existing `realtime.messages` is somebody's own and is used as it is found.
 */
import { readFile } from 'node:fs/promises';
import pg from 'pg';

const SCHEMA = new URL('schema.sql', import.meta.url);
/** Two servers that start at once on one database must not both install the schema. */
const INSTALL_LOCK = 0x7265616c;
const PARTITION_DAYS = [-1, 0, 1, 2, 3];
const PARTITION_CHECK_MS = 60 * 60_000;

/**
 * @typedef {'MissingPartition' | 'QueryCanceled' | 'RlsPolicyError' | 'UnableToConnectToProject'
 *   | 'DatabaseLackOfConnections' | 'IncreaseConnectionPool'} Trouble
 */

/** The database could not answer; `trouble` says in Realtime's words why. */
export class DatabaseError extends Error {
  /**
   * @param {Trouble} trouble
   * @param {unknown} [cause]
   */
  constructor(trouble, cause) {
    super(cause instanceof Error ? `${trouble}: ${cause.message}` : trouble, { cause });
    this.trouble = trouble;
  }
}

export class Database {
  #pool;
  #log;
  /** @type {NodeJS.Timeout | undefined} */
  #janitor;

  /** @param {import('./options.mjs').Options & { databaseUrl: string }} options */
  constructor({ databaseUrl, databaseConnections, databaseConnectTimeoutMs, log }) {
    this.url = databaseUrl;
    this.#log = log;
    this.#pool = new pg.Pool({
      connectionString: databaseUrl,
      max: databaseConnections,
      connectionTimeoutMillis: databaseConnectTimeoutMs,
      application_name: 'realtime',
      allowExitOnIdle: true,
    });
    // An idle connection that broke; the next query says more.
    this.#pool.on('error', ({ message }) => log(`lost a database connection: ${message}`));
  }

  /** Makes what is missing, now and, for the partitions, from time to time. */
  async prepare() {
    await this.#install();
    await this.#makePartitions();
    const makePartitions = () =>
      this.#makePartitions().catch((error) => this.#log(`no partitions made: ${error.message}`));
    this.#janitor = setInterval(makePartitions, PARTITION_CHECK_MS).unref();
  }

  async close() {
    clearInterval(this.#janitor);
    await this.#pool.end();
  }

  /** @throws {DatabaseError} when no connection is to be had */
  async ping() {
    const client = await this.#connect();
    client.release();
  }

  /**
   * Runs `work` in a transaction that is rolled back, whatever happens.
   *
   * @template T
   * @param {(client: pg.PoolClient) => Promise<T>} work
   * @throws {DatabaseError}
   */
  async rolledBack(work) {
    const client = await this.#connect();
    let failure;
    try {
      await client.query('begin');
      return await work(client);
    } catch (error) {
      throw new DatabaseError(troubleOf(error), error);
    } finally {
      await client.query('rollback').catch((error) => (failure = error));
      client.release(failure);
    }
  }

  async #connect() {
    try {
      return await this.#pool.connect();
    } catch (error) {
      const { totalCount, options } = this.#pool;
      const isExhausted = totalCount >= options.max && !hasSqlState(error);
      throw new DatabaseError(isExhausted ? 'IncreaseConnectionPool' : troubleOf(error), error);
    }
  }

  async #install() {
    const client = await this.#connect();
    try {
      await client.query('begin');
      await client.query('select pg_advisory_xact_lock($1)', [INSTALL_LOCK]);
      const { rows } = await client.query(`select to_regclass('realtime.messages') as found`);
      if (rows[0].found === null) await client.query(await readFile(SCHEMA, 'utf8'));
      await client.query('commit');
    } catch (error) {
      client.release(true);
      throw error;
    }
    client.release();
  }

  /** One partition for each UTC day from yesterday to three days ahead. */
  async #makePartitions() {
    const { rows } = await this.#pool.query(
      `select relkind from pg_class where oid = to_regclass('realtime.messages')`,
    );
    if (rows[0]?.relkind !== 'p') return;
    for (const day of PARTITION_DAYS) {
      const from = dayFromToday(day);
      const name = `messages_${from.replaceAll('-', '_')}`;
      await this.#pool
        .query(`
          create table if not exists realtime.${name} partition of realtime.messages
            for values from ('${from}') to ('${dayFromToday(day + 1)}');
          alter table realtime.${name} enable row level security;`)
        // Another server made it between the look and the deed.
        .catch((error) => (error.code === '42P07' || error.code === '23505' ? null : raise(error)));
    }
  }
}

/** @param {number} days */
function dayFromToday(days) {
  return new Date(Date.now() + days * 86_400_000).toISOString().slice(0, 10);
}

/** @returns {never} */
function raise(/** @type {unknown} */ error) {
  throw error;
}

/** @param {unknown} error */
const hasSqlState = (error) => error instanceof pg.DatabaseError;

/**
 * @param {unknown} error
 * @returns {Trouble}
 */
function troubleOf(error) {
  if (!(error instanceof pg.DatabaseError) || !error.code) return 'UnableToConnectToProject';
  const { code } = error;
  if (code === '23514') return 'MissingPartition';
  if (code === '57014') return 'QueryCanceled';
  if (code === '53300') return 'DatabaseLackOfConnections';
  const isOutage = /^(08|57P|53)/.test(code);
  return isOutage ? 'UnableToConnectToProject' : 'RlsPolicyError';
}
