// @ts-check
/**
 * A database whose two sinks are at different places, to be copied: what each of them lacks is
 * known to the event, so that a copy can be held to it.
 */
import { column, connect, value } from './database.mjs';
import { SECRET, delivered } from './delivery.mjs';

/** @typedef {import('../../harness/cluster.mjs').Cluster} Cluster */
/** @typedef {Awaited<ReturnType<typeof import('./sink.mjs').startSink>>} SinkServer */
/** @typedef {{ first: SinkServer, second: SinkServer }} Sinks */

/** What the original had sent to neither sink, in the order of the commits. */
export const UNSENT = [7, 8, 9, 10];
/** What it had sent to the first alone. */
export const SENT_TO_FIRST = [4, 5, 6];

/** Adds jobs, a transaction each. @param {import('pg').Client} client @param {number[]} ids */
export async function addJobs(client, ids) {
  for (const id of ids) await client.query("insert into job values ($1, 'org')", [id]);
}

/** @param {SinkServer} sink the jobs whose events it took, in order of arrival */
export const jobsOf = (sink) => sink.events().map(({ ids }) => ids.job_id);

/**
 * Makes the database. Jobs 1 to 3 were sent to both sinks, 4 to 6 to the first; 7 to 9 and 10, whose
 * transaction began before all of those, to none. Both sinks are paused.
 *
 * @param {Cluster} cluster
 * @param {string} database
 * @param {Sinks} sinks
 */
export async function furnish(cluster, database, { first, second }) {
  await cluster.psql(`create database ${database}`);
  const client = await connect(cluster, { database });
  await client.query(`create extension pg_outbox;
    create table job (id int primary key, org_id text);
    select outbox.attach('job')`);
  await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
  for (const [name, sink] of Object.entries({ first, second })) {
    const options = { url: sink.url, jwt_secret: 'realtime', events_per_second: 0 };
    await client.query("select outbox.set_sink($1, 'realtime', $2)", [name, JSON.stringify(options)]);
  }
  await addJobs(client, [1, 2, 3]);
  await delivered(client);
  const late = await connect(cluster, { database });
  await late.query("begin; insert into job values (10, 'org')");
  await pause(client, 'second');
  await addJobs(client, SENT_TO_FIRST);
  await deliveredBy(client, 'first');
  await pause(client, 'first');
  await addJobs(client, [7, 8, 9]);
  await late.query('commit');
  await late.end();
  await client.end();
  first.clear();
  second.clear();
}

/** Returns when the sink has nothing on its way. @param {import('pg').Client} client @param {string} sink */
async function pause(client, sink) {
  await client.query('select outbox.pause($1)', [sink]);
  await deliveredBy(client, null);
}

/**
 * Waits until one sink, or each that is not paused, has been sent everything.
 *
 * @param {import('pg').Client} client
 * @param {string | null} sink
 */
async function deliveredBy(client, sink) {
  const { waitForValue } = await import('./database.mjs');
  await waitForValue(client, `select not exists (select from outbox.status
    where state <> 'paused' and (lag_events > 0 or in_flight > 0)
      and sink = coalesce(${sink ? `'${sink}'` : 'null'}, sink))`, 'delivery to the running sinks');
}

/**
 * What the database says of its sinks: each one's state, lag and complaint.
 *
 * @param {import('pg').Client} client
 */
export async function sinksOf(client) {
  const rows = await column(client, 'select sink, state, lag_events::int, last_error from outbox.status order by sink');
  return rows.map(([sink, state, lag, error]) => ({ sink, state, lag, error: error ?? '' }));
}

/** Spends transactions, so that numbers lie higher than in another cluster. @param {Cluster} cluster */
export async function spendTransactions(cluster, count = 20_000) {
  const client = await connect(cluster);
  await client.query(`do $$ begin
    for i in 1..${count} loop perform pg_current_xact_id(); commit; end loop; end $$`);
  const next = await value(client, 'select pg_current_xact_id()::text::int');
  await client.end();
  return next;
}
