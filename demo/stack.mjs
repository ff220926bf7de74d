// @ts-check
/**
 * All the servers of the demo as one thing that starts and stops: Postgres with the extension,
 * Realtime, the application's tables, and the web server.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import pg from 'pg';
import { startCluster } from '../pgrx-tests/harness/cluster.mjs';
import { sinkUrl, startStandIn, useRealtime } from './broadcast.mjs';
import { DemoError, prepareOwnDatabase } from './own_database.mjs';
import { signToken } from './realtime/tokens.mjs';
import { startWeb } from './web.mjs';

/** The relay's token. A demo is not left running for longer. */
const RELAY_TOKEN_DAYS = 30;

/**
 * @typedef {object} Options
 * @property {string} [databaseUrl] a database with pg_outbox; a throwaway cluster by default
 * @property {string} [realtimeUrl] what supabase-js takes; the stand-in by default
 * @property {string} [jwtSecret] the secret that this Realtime checks tokens with
 * @property {number} [port] of the page; a free one by default
 * @property {(step: string, seconds: number) => void} [report] called as each step is done
 */

/** @typedef {Awaited<ReturnType<typeof startDemo>>} Demo */

/** @param {Options} [options] */
export async function startDemo(options = {}) {
  const { port = 0, report = () => {} } = options;
  checkOptions(options);
  const jwtSecret = options.jwtSecret ?? randomBytes(32).toString('hex');
  /** @type {(() => Promise<unknown>)[]} */
  const undo = [];
  const stop = async () => {
    for (let last; (last = undo.pop());) await last();
  };
  /**
   * @template T
   * @param {() => Promise<T>} work
   * @param {(result: T) => string} describe
   */
  const step = async (work, describe) => {
    const startedAt = performance.now();
    const result = await work();
    report(describe(result), (performance.now() - startedAt) / 1000);
    return result;
  };

  try {
    const databaseUrl = await step(
      () => openDatabase(options.databaseUrl, undo),
      (url) => `Postgres with pg_outbox      ${withoutPassword(url)}`,
    );
    const realtime = await step(
      () => openRealtime(options.realtimeUrl, { databaseUrl, jwtSecret }, undo),
      ({ url }) => `Realtime                     ${url}`,
    );
    const pool = new pg.Pool({ connectionString: databaseUrl, max: 10 });
    pool.on('error', () => {}); // An idle connection that broke; the next query says more.
    undo.push(() => pool.end());
    await step(
      () => buildApplication(pool, options.databaseUrl !== undefined, undo),
      (jobs) => `Cataloguing application      ${jobs.toLocaleString('en')} jobs, 2 organisations`,
    );
    await step(
      () => attachOutbox(pool, sinkUrl(realtime.url), jwtSecret),
      (sources) => `Attached to the outbox       ${sources.join(', ')}`,
    );
    const web = await step(
      () => startWeb({ port, pool, jwtSecret, realtime }),
      ({ url }) => `Web server                   ${url}`,
    );
    undo.push(web.stop);
    return { url: web.url, databaseUrl, pool, realtime, jwtSecret, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** @param {Options} options */
function checkOptions({ databaseUrl, realtimeUrl, jwtSecret }) {
  if (realtimeUrl && !databaseUrl) {
    throw new DemoError(
      'REALTIME_URL needs DATABASE_URL too: Realtime asks its own database who may join a ' +
        'channel, so the tables must be there.',
    );
  }
  if (realtimeUrl && !jwtSecret) {
    throw new DemoError(
      'REALTIME_URL needs JWT_SECRET too: the demo signs the tokens of its people and of the ' +
        'relay with the secret that this Realtime checks them with.',
    );
  }
}

/**
 * @param {string | undefined} own
 * @param {(() => Promise<unknown>)[]} undo
 */
async function openDatabase(own, undo) {
  if (own) {
    await prepareOwnDatabase(own);
    return own;
  }
  // Durable as a real server is, so that the latencies on the page are honest ones.
  const settings = { fsync: 'on', full_page_writes: 'on', wal_level: 'logical' };
  const cluster = await startCluster({ settings });
  undo.push(() => cluster.stop());
  await cluster.psql('create database demo');
  return cluster.url('demo');
}

/**
 * @param {string | undefined} own
 * @param {{ databaseUrl: string, jwtSecret: string }} options
 * @param {(() => Promise<unknown>)[]} undo
 */
async function openRealtime(own, options, undo) {
  if (own) return useRealtime(own);
  const realtime = await startStandIn(options);
  undo.push(realtime.stop);
  return realtime;
}

/**
 * @param {pg.Pool} pool
 * @param {boolean} isOwnDatabase whether the tables must go again when the demo ends
 * @param {(() => Promise<unknown>)[]} undo
 * @returns {Promise<number>} the number of jobs
 */
async function buildApplication(pool, isOwnDatabase, undo) {
  if (isOwnDatabase) undo.push(async () => pool.query(await readSql('teardown.sql')));
  await pool.query(await readSql('schema.sql'));
  await pool.query(await readSql('seed.sql'));
  const { rows } = await pool.query('select count(*)::int as jobs from public.cataloging_jobs');
  return rows[0].jobs;
}

/**
 * @param {pg.Pool} pool
 * @param {string} url
 * @param {string} jwtSecret
 * @returns {Promise<string[]>} the attached tables
 */
async function attachOutbox(pool, url, jwtSecret) {
  const exp = Math.floor(Date.now() / 1000) + RELAY_TOKEN_DAYS * 24 * 3600;
  const token = signToken({ role: 'service_role', exp }, jwtSecret);
  const connection = await pool.connect();
  try {
    // As parameters and not in the text of a statement, where a log could show the token.
    await connection.query(
      `select set_config('demo.realtime_url', $1, false),
              set_config('demo.realtime_token', $2, false)`,
      [url, token],
    );
    await connection.query(await readSql('outbox.sql'));
    const { rows } = await connection.query('select source::text from outbox.sources order by 1');
    return rows.map(({ source }) => source);
  } finally {
    connection.release(true); // With its settings.
  }
}

/** An address as it may stand on a screen. */
export function withoutPassword(/** @type {string} */ url) {
  const address = new URL(url);
  if (address.password) address.password = '***';
  return address.href;
}

const readSql = (/** @type {string} */ name) => readFile(new URL(name, import.meta.url), 'utf8');
