// @ts-check
/** Where the blocks of a document run: what each takes for granted, and what it must leave. */
import assert from 'node:assert/strict';
import { basename } from 'node:path';
import { startRealtime } from '../../../demo/realtime/server.mjs';
import { signToken } from '../../../demo/realtime/tokens.mjs';
import { startCluster } from '../../harness/cluster.mjs';
import { waitUntil } from '../../harness/wait.mjs';
import { column, connect, value } from './database.mjs';
import { SECRET, delivered, relayOf } from './delivery.mjs';

/** The application that the documents speak of. */
const APPLICATION = `
create table memberships (person_id uuid, org_id text, primary key (person_id, org_id));
create table cataloging_jobs (id bigint primary key, org_id text not null,
  status text not null default 'new', title text);
create table flags (id bigint primary key, org_id text not null, reason text);
`;

/** What docs/ takes for granted; the README does it itself. */
export const INSTALLED = `
create extension pg_outbox;
select outbox.set_secret('realtime', 'eyJ…');
select outbox.set_sink('realtime', 'realtime', '{"secret": "realtime", "events_per_second": 0,
  "url": "https://PROJECT.supabase.co/realtime/v1"}');
select outbox.attach('cataloging_jobs', entity => 'job', topic => 'cataloging',
  watch => '{status}');
`;

/** One event that the sink refuses, since it is larger than the tenant may send. */
const REFUSED = `
select outbox.create_event_type('export.finished');
select outbox.emit('export.finished', '42', jsonb_build_object('files', repeat('x', 6000)));
insert into cataloging_jobs (id, org_id) values (1, '42');
`;

/** What a document needs beside what is installed. @type {Record<string, Surroundings>} */
const SURROUNDINGS = {
  'docs/configuration.md': {
    limits: { eventsPerSecond: null, payloadKb: 5 },
    and: relayNeedsNoMoreRights,
  },
  'docs/failures.md': {
    setup: `${REFUSED} select outbox.wait_until_delivered('30 s');`,
    limits: { eventsPerSecond: null, payloadKb: 5 },
    settings: {
      shared_preload_libraries: 'pg_outbox, pg_cron',
      'cron.database_name': 'docs_failures',
      'cron.use_background_workers': 'on',
    },
    and: scheduledJobsRun,
  },
  'docs/messages.md': {
    setup: `insert into memberships values ('5f0c1a52-3d0e-4a52-9f7e-1b2c3d4e5f60', '43');`,
  },
  'docs/moving.md': {
    copyOf: `
      select outbox.pause();
      insert into cataloging_jobs (id, org_id) values (1, '42');
    `,
  },
};

/**
 * @typedef {object} Surroundings
 * @property {string} [setup] more SQL
 * @property {string} [copyOf] more SQL in a database of which this one is a copy
 * @property {Partial<import('../../../demo/realtime/options.mjs').Limits>} [limits] of the tenant
 * @property {import('../../harness/cluster.mjs').Settings} [settings] of a server of its own
 * @property {(client: import('pg').Client) => Promise<void>} [and] what must be true at the end
 */

/** The project that the documents name does not exist; the stand-in takes its place. */
const PLACEHOLDERS = (/** @type {string} */ sql, /** @type {string} */ url) => sql
  .replaceAll('https://PROJECT.supabase.co/realtime/v1', url)
  .replaceAll('eyJ…', signToken({ role: 'service_role', exp: inAYear() }, SECRET));

const inAYear = () => Math.floor(Date.now() / 1000) + 365 * 86_400;

/**
 * A database with the application, and a Realtime on it.
 *
 * @param {import('node:test').TestContext} t
 * @param {import('../../harness/cluster.mjs').Cluster} cluster for documents without their own
 * @param {string} path of the document
 * @param {string} installed SQL that the document takes for granted
 */
export async function openDatabase(t, cluster, path, installed) {
  const { setup = '', copyOf, limits, settings } = SURROUNDINGS[path] ?? {};
  const server = settings ? await startCluster({ settings }) : cluster;
  const database = `docs_${basename(path, '.md').toLowerCase()}`;
  await server.psql(`drop database if exists ${database}`);
  const original = copyOf ? `${database}_original` : database;
  await server.psql(`create database ${original}`);
  const realtime = await startRealtime({
    // It stays connected to its database, which could then be no template.
    ...(!copyOf && { databaseUrl: server.url(database) }),
    jwtSecret: SECRET, limits: limits ?? false,
  });
  const runIn = (/** @type {string} */ name, /** @type {string} */ sql) => server.psql(
    `\\set VERBOSITY sqlstate\n${PLACEHOLDERS(sql, realtime.url)}`, { database: name });
  const run = (/** @type {string} */ sql) => runIn(database, sql);
  /** @type {import('pg').Client | undefined} */
  let client;
  t.after(async () => {
    await client?.end();
    await realtime.stop();
    if (settings) await server.stop();
    else await server.psql('alter system reset all; select pg_reload_conf()');
  });
  await runIn(original, APPLICATION + installed + (copyOf ?? setup));
  if (copyOf) await server.psql(`create database ${database} template ${original}`);
  client = await connect(server, { database });
  return { run, client, realtime };
}

/**
 * Checks what must be true once the blocks of a document have run.
 *
 * @param {string} path of the document
 * @param {import('pg').Client} client
 */
export async function mustHold(path, client) {
  await SURROUNDINGS[path]?.and?.(client);
}

/** A relay in the name of the role that the document makes. @param {import('pg').Client} client */
async function relayNeedsNoMoreRights(client) {
  const { pid } = await relayOf(client, 'docs_configuration');
  await client.query("alter system set pg_outbox.role = 'outbox_relay'");
  await client.query('select pg_reload_conf()');
  await client.query('select pg_terminate_backend($1)', [pid]);
  await waitUntil(() => relayOf(client, 'docs_configuration'), 'another relay', {
    accept: (relay) => relay && relay.pid !== pid,
  });
  await client.query(REFUSED);
  await delivered(client);
  assert.equal(await value(client, 'select count(*)::int from outbox.dead_letters'), 1);
  await client.query("select outbox.replay(now() - interval '1 hour')");
  await waitUntil(() => column(client, 'select from outbox.replays where done_at is not null'),
    'the replay', { accept: (rows) => rows.length === 1 });
  await delivered(client);
  await client.query('set role outbox_relay; select outbox.prune(); reset role');
}

/** Every job of pg_cron, as it stands there. @param {import('pg').Client} client */
async function scheduledJobsRun(client) {
  const jobs = await column(client,
    "select jobname, cron.alter_job(jobid, schedule => '* * * * *') is null from cron.job");
  assert.ok(jobs.length > 0, 'jobs are scheduled');
  const runs = () => column(client, `
    select j.jobname, array_agg(distinct r.status || coalesce(': ' || r.return_message, ''))
    from cron.job j left join cron.job_run_details r using (jobid)
    where r.end_time is not null group by 1 order by 1`);
  const found = await waitUntil(runs, 'each job to have run', {
    timeoutMs: 100_000, accept: (rows) => rows.length === jobs.length,
  });
  for (const [job, results] of found) assert.match(String(results), /^succeeded/, job);
}
