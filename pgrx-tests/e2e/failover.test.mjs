// @ts-check
/**
 * What takes the place of a cluster goes on where that had stopped.
 *
 * 1. A standby sends nothing while it follows, and everything unsent once it is promoted, by itself.
 * 2. So does a base backup, and one that is restored to a point in time: what was unsent then.
 * 3. At most what the last moments sent is sent again, under the same event_id.
 *
 * Broken silently, events that were committed before a failover are lost with the old server.
 */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { connect, value, waitForValue } from './support/database.mjs';
import { delivered } from './support/delivery.mjs';
import { SENT_TO_FIRST, UNSENT, addJobs, furnish, jobsOf } from './support/house.mjs';
import { startSink } from './support/sink.mjs';

/** @typedef {import('../harness/cluster.mjs').Cluster} Cluster */

/** @type {import('./support/house.mjs').Sinks} */
let sinks;
/** @type {Cluster[]} */
const clusters = [];

before(async () => {
  sinks = { first: await startSink(), second: await startSink() };
});
after(async () => {
  await sinks?.first.stop();
  await sinks?.second.stop();
});
afterEach(async () => {
  await Promise.all(clusters.splice(0).map((cluster) => cluster.stop()));
  sinks.first.clear();
  sinks.second.clear();
});

/** A cluster with a house in it. @param {import('../harness/cluster.mjs').Settings} [settings] */
async function aHouse(settings = {}) {
  const cluster = await startCluster({ settings: { wal_level: 'replica', ...settings } });
  clusters.push(cluster);
  await furnish(cluster, 'house', sinks);
  return cluster;
}

/**
 * A cluster made of a base backup of another one.
 *
 * @param {Cluster} from
 * @param {{ options?: string[], complete?: (cluster: Cluster) => Promise<unknown> }} [how]
 */
async function backupOf(from, { options = [], complete } = {}) {
  const cluster = await startCluster({
    fill: async (made) => {
      await made.program('pg_basebackup',
        ['-D', made.dataDirectory, '-d', from.url(), '-X', 'stream', '-c', 'fast', ...options]);
      await complete?.(made);
    },
  });
  clusters.push(cluster);
  return cluster;
}

/** Lets both sinks run, and waits until they have been sent everything. @param {Cluster} cluster */
async function resumed(cluster) {
  const client = await connect(cluster, { database: 'house' });
  await client.query('update _private.sinks set paused = false');
  await delivered(client);
  return client;
}

const EVERYTHING = [UNSENT, [...SENT_TO_FIRST, ...UNSENT]];
const sent = () => [jobsOf(sinks.first), jobsOf(sinks.second)];

test('a standby sends once it is promoted, and nothing before', async () => {
  const primary = await aHouse();
  const standby = await backupOf(primary, { options: ['-R'] });
  const writer = await connect(primary, { database: 'house' });
  await addJobs(writer, [11]);
  await writer.query('update _private.sinks set paused = false');
  await delivered(writer);
  const seen = sent();
  assert.deepEqual(seen, EVERYTHING.map((jobs) => [...jobs, 11]));
  await writer.query('select outbox.pause()');
  await addJobs(writer, [12, 13]);
  const written = await value(writer, 'select pg_current_wal_lsn()');
  const follower = await connect(standby, { database: 'house' });
  await waitForValue(follower, `select pg_last_wal_replay_lsn() >= '${written}'`, 'the standby to have it all');
  assert.equal(await value(follower, "select count(*)::int from pg_stat_activity where backend_type like 'pg_outbox%'"), 0);
  assert.equal(await value(follower, "select outbox.wait_until_delivered('0')"), false, 'a standby can be asked');
  await writer.end();
  await primary.stop({ mode: 'immediate' });
  await follower.query('select pg_promote()');
  await waitForValue(follower, 'select not pg_is_in_recovery()', 'the promotion');
  sinks.first.clear();
  sinks.second.clear();
  await follower.query('select outbox.resume()');
  await addJobs(follower, [14]);
  await delivered(follower);
  assert.deepEqual(sent(), [[12, 13, 14], [12, 13, 14]]);
  await follower.end();
});

test('a failover under load loses nothing, and repeats only event_ids', async () => {
  const primary = await aHouse({ synchronous_standby_names: '*', synchronous_commit: 'local' });
  const standby = await backupOf(primary, { options: ['-R'] });
  const writer = await connect(primary, { database: 'house' });
  await writer.query('update _private.sinks set paused = false');
  await waitForValue(writer, "select count(*)::int from pg_stat_replication where sync_state = 'sync'", 'the standby to follow');
  await writer.query("set synchronous_commit = 'remote_apply'");
  /** @type {number[]} */
  const committed = [];
  let last = 100;
  const writing = (async () => {
    for (;;) {
      last += 1;
      await writer.query("insert into job values ($1, 'org')", [last]);
      committed.push(last);
    }
  })().catch(() => {});
  await waitUntil(() => sinks.first.events().length > 200, 'a stream of events');
  await primary.stop({ mode: 'immediate' });
  await writing;
  await writer.end().catch(() => {});
  const follower = await connect(standby, { database: 'house' });
  await follower.query('select pg_promote()');
  await waitForValue(follower, 'select not pg_is_in_recovery()', 'the promotion');
  await delivered(follower);
  for (const sink of [sinks.first, sinks.second]) {
    const got = new Set(jobsOf(sink));
    assert.deepEqual(committed.filter((job) => !got.has(job)), [], 'missing');
    const idOf = new Map();
    for (const { event_id, ids } of sink.events()) {
      assert.equal(idOf.get(ids.job_id) ?? event_id, event_id, 'the same event under another id');
      idOf.set(ids.job_id, event_id);
    }
  }
  await follower.end();
});

test('a base backup goes on by itself', async () => {
  const cluster = await aHouse();
  const copy = await backupOf(cluster);
  await cluster.stop();
  const client = await resumed(copy);
  assert.deepEqual(sent(), EVERYTHING);
  await addJobs(client, [11]);
  await delivered(client);
  assert.deepEqual(sent(), EVERYTHING.map((jobs) => [...jobs, 11]));
  await client.end();
});

test('restored to a point in time, it sends what was unsent then', async () => {
  const cluster = await aHouse({
    archive_mode: 'on', archive_command: 'mkdir -p ../archive && cp %p ../archive/%f',
  });
  const copy = await backupOf(cluster, {
    complete: async ({ dataDirectory }) => {
      await liveOn(cluster);
      await writeFile(join(dataDirectory, 'postgresql.auto.conf'), [
        `restore_command = 'cp ${cluster.directory}/archive/%f %p'`,
        "recovery_target_name = 'here'",
        "recovery_target_action = 'promote'", ''].join('\n'));
      await writeFile(join(dataDirectory, 'recovery.signal'), '');
    },
  });
  const look = await connect(copy);
  await waitForValue(look, 'select not pg_is_in_recovery()', 'the end of the recovery');
  await look.end();
  const client = await resumed(copy);
  assert.deepEqual(sent(), EVERYTHING.map((jobs) => [...jobs, 11]), 'and nothing of what came later');
  await client.end();
});

/** Job 11 is the last before the point in time; later everything is sent. @param {Cluster} cluster */
async function liveOn(cluster) {
  const writer = await connect(cluster, { database: 'house' });
  await addJobs(writer, [11]);
  await writer.query("select pg_create_restore_point('here')");
  await writer.query('update _private.sinks set paused = false');
  await addJobs(writer, [12]);
  await delivered(writer);
  const segment = await value(writer, 'select pg_walfile_name(pg_switch_wal())');
  await waitForValue(writer, `select last_archived_wal >= '${segment}' from pg_stat_archiver`, 'the archive');
  await writer.end();
  sinks.first.clear();
  sinks.second.clear();
}
