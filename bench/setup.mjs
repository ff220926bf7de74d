// @ts-check
/** A database whose events go to a sink of the bench. */

/**
 * @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster
 * @param {string} database
 * @param {string} url of the sink
 */
export async function openDatabase(cluster, database, url) {
  await cluster.psql(`create database ${database}`);
  const options = JSON.stringify({ url, jwt_secret: 'bench', events_per_second: 0 });
  await cluster.psql(`
    create extension pg_outbox;
    create table job (id bigint generated always as identity primary key, org_id text not null);
    select outbox.attach('job');
    select outbox.set_secret('bench', 'a-secret-of-the-bench-that-is-long-enough-for-hs256');
    select outbox.set_sink('bench', 'realtime', '${options}');`, { database });
  return database;
}

/**
 * Process id of the relay of a database.
 *
 * @param {import('../pgrx-tests/harness/cluster.mjs').Cluster} cluster
 * @param {string} database
 */
export async function relayPid(cluster, database) {
  const pid = Number(await cluster.psql(`select pid from pg_stat_activity
    where datname = '${database}' and backend_type like 'pg_outbox%'`));
  if (!pid) throw new Error(`no relay runs in ${database}`);
  return pid;
}
