// @ts-check
/**
 * pg_upgrade from Postgres 15 to the server of PG_CONFIG.
 *
 * 1. Neither of the servers that pg_upgrade starts sends anything.
 * 2. The upgraded database waits, because a copy of production that was upgraded looks the same.
 * 3. After outbox.resume() each sink is sent exactly what it had not been sent, and all since.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { after, before, test } from 'node:test';
import { initialise, startCluster } from '../harness/cluster.mjs';
import { column, connect, value, waitForValue } from '../e2e/support/database.mjs';
import { delivered } from '../e2e/support/delivery.mjs';
import { SENT_TO_FIRST, UNSENT, addJobs, furnish, jobsOf } from '../e2e/support/house.mjs';
import { startSink } from '../e2e/support/sink.mjs';

const UPGRADE_FROM = fileURLToPath(new URL('../bin/upgrade_from', import.meta.url));

/** @type {import('../e2e/support/house.mjs').Sinks} */
let sinks;
/** @type {import('../harness/cluster.mjs').Cluster} */
let old;
before(async () => {
  sinks = { first: await startSink(), second: await startSink() };
  const { PG_CONFIG: _, ...env } = process.env;
  const pgConfig = execFileSync(UPGRADE_FROM, { encoding: 'utf8', env }).trim();
  const pgBin = execFileSync(pgConfig, ['--bindir'], { encoding: 'utf8' }).trim();
  old = await startCluster({ pgBin, fill: withChecksums });
});
after(async () => {
  await old?.stop();
  await sinks?.first.stop();
  await sinks?.second.stop();
});

test('an upgraded database sends what was unsent once it is told to', async (t) => {
  await furnish(old, 'house', sinks);
  await refuseEverything(old);
  await old.halt();
  for (const sink of [sinks.first, sinks.second]) {
    sink.answerWith(() => 202);
    sink.clear();
  }

  const upgraded = await startCluster({ fill: upgrade });
  t.after(() => upgraded.stop());
  const client = await connect(upgraded, { database: 'house' });
  t.after(() => client.end());
  await waitForValue(client, "select count(*) filter (where last_error like '%is a copy%')::int = 2 from outbox.status",
    'the relay to say that it waits');
  await addJobs(client, [11]);
  assert.equal(await value(client, "select outbox.wait_until_delivered('0')"), false);
  assert.deepEqual([sinks.first.requests, sinks.second.requests], [[], []], 'nobody sent anything');

  await client.query('select outbox.resume()');
  await delivered(client);
  assert.deepEqual(jobsOf(sinks.first), [...UNSENT, 11]);
  assert.deepEqual(jobsOf(sinks.second), [...SENT_TO_FIRST, ...UNSENT, 11]);
  assert.deepEqual(await column(client, 'select name, detail from outbox.check() where not ok'), []);
});

/** Both sinks run and are answered 503, so that a relay of any server would have something to do.
 * @param {import('../harness/cluster.mjs').Cluster} cluster */
async function refuseEverything(cluster) {
  for (const sink of [sinks.first, sinks.second]) sink.answerWith(() => 503);
  const client = await connect(cluster, { database: 'house' });
  await client.query('select outbox.resume()');
  await waitForValue(client, "select count(*) filter (where attempts > 0)::int = 2 from outbox.status", 'both to be refused');
  await client.end();
}

/** Both must have them or not, and the default is another one since 18.
 * @param {import('../harness/cluster.mjs').Cluster} cluster */
const withChecksums = (cluster) => initialise(cluster, ['--data-checksums']);

/** @param {import('../harness/cluster.mjs').Cluster} cluster */
async function upgrade(cluster) {
  await withChecksums(cluster);
  await cluster.configure({});
  const upgrading = cluster.program('pg_upgrade', [
    '-b', old.pgBin, '-B', cluster.pgBin, '-d', old.dataDirectory, '-D', cluster.dataDirectory,
    '-U', 'postgres', '-p', String(old.port), '-P', String(old.port), '-s', cluster.directory,
  ]);
  await upgrading.catch(async (error) => {
    throw new Error(`pg_upgrade failed: ${await complaints(cluster.dataDirectory)}`, { cause: error });
  });
}

/** The errors in what pg_upgrade keeps of a failure. @param {string} directory */
async function complaints(directory) {
  const output = join(directory, 'pg_upgrade_output.d');
  const files = await readdir(output, { recursive: true, withFileTypes: true });
  const logs = files.filter((file) => file.isFile() && file.name.endsWith('.log'));
  const texts = await Promise.all(logs.map((file) => readFile(join(file.parentPath, file.name), 'utf8')));
  return texts.flatMap((text) => text.split('\n').filter((line) => /error|fatal/i.test(line))).join('\n');
}
