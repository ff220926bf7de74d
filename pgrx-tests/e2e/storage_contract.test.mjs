// @ts-check
/**
 * What is kept, and for how long.
 *
 *  1. Pruning removes what is older than it is told and delivered, and nothing that is unsent.
 *  2. A writer never waits for pruning, nor for anybody who holds a segment of the ring.
 *  3. The relay prunes by itself.
 *  4. A crash loses no committed event.
 *
 * What would break silently: an event that was pruned before it was sent is missed by everybody.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { connect, refusal, value } from './support/database.mjs';
import { delivered, setSink } from './support/delivery.mjs';
import { startSink } from './support/sink.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
/** @type {import('pg').Client} */
let client;
before(async () => {
  sink = await startSink();
  cluster = await startCluster({
    settings: { 'pg_outbox.prune_interval': 0, fsync: 'on', full_page_writes: 'on' },
  });
  client = await connect(cluster);
  await client.query("create extension pg_outbox; create table job (id int primary key, org_id text); select outbox.attach('job')");
  await setSink(client, sink.url, { events_per_second: 0, message_events_max: 10_000 });
});
after(async () => {
  await client?.end();
  await cluster?.stop();
  await sink?.stop();
});

let lastJob = 0;

/** Adds jobs, each an event, and returns how many. @param {number} count */
async function addJobs(count) {
  await client.query("insert into job select $1::int + i, 'org' from generate_series(1, $2::int) i", [lastJob, count]);
  lastJob += count;
  return count;
}

/**
 * Holds the segment that is being filled and the next one, so that a writer takes a third, and that
 * this stays so when the clock turns the ring.
 */
async function holdSegments() {
  const holder = await connect(cluster);
  await holder.query(`begin; do $$ begin
    for i in 0..1 loop
      execute format('lock table _private.outbox_%s in access exclusive mode', (_private.current_segment() + i) % 16);
    end loop; end $$`);
  return async () => {
    await holder.query('rollback');
    await holder.end();
  };
}

/** Adds jobs whose events lie in a segment that is no longer filled. @param {number} count */
async function addJobsToFullSegment(count) {
  const letGo = await holdSegments();
  await client.query("set lock_timeout = '1s'");
  await addJobs(count);
  await client.query('reset lock_timeout');
  await letGo();
  return count;
}

const stored = () => value(client, 'select coalesce(sum(event_count), 0)::int from _private.outbox');
const prune = async (/** @type {string} */ call) => Number(await value(client, `select outbox.prune(${call})`));

describe('pruning', () => {
  test('whole segments, once they are no longer filled', async () => {
    const count = await addJobsToFullSegment(100);
    const filling = await addJobs(10);
    await delivered(client);
    assert.equal(await prune("'1 hour'"), 0, 'younger than it was told');
    assert.equal(await prune("'0'"), count);
    assert.equal(await stored(), filling);
  });

  test('exactly, in the segment that is being filled', async () => {
    assert.equal(await prune("'0', exact => true"), 10);
    assert.equal(await stored(), 0);
  });

  test('nothing that is unsent', async () => {
    await client.query('select outbox.pause()');
    const count = await addJobsToFullSegment(70);
    assert.equal(await prune("'0', exact => true"), 0);
    assert.equal(await stored(), count);
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.equal(await prune("'0', exact => true"), count);
    assert.equal(sink.events().length, lastJob, 'and it was sent first');
  });

  test('nothing in a transaction that sees less than there is', async () => {
    const pruner = await connect(cluster);
    for (const level of ['repeatable read', 'serializable']) {
      await pruner.query(`begin isolation level ${level}`);
      const error = await refusal(pruner, "select outbox.prune('0')");
      assert.equal(error.code, '25000', error.message);
      assert.match(`${error.hint}`, /transaction of its own/);
      await pruner.query('rollback');
    }
    await pruner.end();
  });

  test('by itself, what is older than the retention', async () => {
    const old = await addJobsToFullSegment(30);
    await delivered(client);
    await client.query("update _private.outbox set created_at = created_at - interval '73 hours'");
    const young = await addJobs(5);
    await delivered(client);
    await cluster.reload({ 'pg_outbox.prune_interval': '1s' });
    await waitUntil(stored, `the relay to prune ${old} events`, { accept: (seen) => seen < old + young });
    assert.equal(await stored(), young);
    await cluster.reload({ 'pg_outbox.prune_interval': 0 });
    await prune("'0', exact => true");
  });
});

describe('a writer waits for nobody', () => {
  test('when somebody holds the segment that is being filled', async () => {
    const count = await addJobsToFullSegment(5);
    assert.equal(await stored(), count);
    await delivered(client);
    assert.equal(await prune("'0'"), count, 'it was another segment');
  });

  test('and pruning gives way to whoever reads', async () => {
    const count = await addJobsToFullSegment(5);
    await delivered(client);
    const reader = await connect(cluster);
    await reader.query('begin; select count(*) from _private.outbox');
    const began = performance.now();
    assert.equal(await prune("'0'"), 0);
    assert.ok(performance.now() - began < 5_000);
    await reader.query('commit');
    assert.equal(await prune("'0'"), count);
    await reader.end();
  });
});

test('a crash loses no committed event, and keeps none that was not', async () => {
  await delivered(client);
  const before = sink.events().length;
  const writer = await connect(cluster);
  await writer.query('begin');
  await writer.query("insert into job values (-1, 'org')");
  const count = await addJobs(1000);
  await cluster.kill9();
  await cluster.start();
  client = await connect(cluster);
  await delivered(client);
  const ids = new Set(sink.events().slice(before).map(({ ids: { job_id } }) => job_id));
  assert.equal(ids.size, count);
  assert.ok(!ids.has(-1));
  const numbers = new Set(sink.events().slice(before).map(({ event_id }) => event_id));
  assert.equal(numbers.size, count, 'what is sent again keeps its event_id');
});
