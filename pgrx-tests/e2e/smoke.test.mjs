// @ts-check
/**
 * The shortest thread: create extension, attach, change a row, and the change arrives at the sink.
 * It runs on every supported major; what each part promises is pinned by the other suites.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect, value } from './support/database.mjs';
import { delivered, setSink } from './support/delivery.mjs';
import { startSink } from './support/sink.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
before(async () => {
  sink = await startSink();
  cluster = await startCluster();
});
after(async () => {
  await cluster?.stop();
  await sink.stop();
});

test('from a commit to the sink', async () => {
  const client = await connect(cluster);
  console.log(await value(client, 'show server_version'));
  await client.query(`create extension pg_outbox;
    create table cataloging_jobs (id int primary key, org_id bigint, status text, title text);
    create table flags (id bigint primary key, org_id bigint)`);
  await setSink(client, sink.url);
  await client.query(`select outbox.attach('cataloging_jobs', entity => 'job', topic => 'cataloging', watch => '{status}');
    select outbox.attach('flags', entity => 'flag', topic => 'cataloging')`);

  await client.query("insert into cataloging_jobs values (1, 42, 'new', 'hidden')");
  await client.query("begin; set local pg_outbox.origin = 'tab-1'; update cataloging_jobs set status = 'done'; commit");
  await client.query("update cataloging_jobs set title = 'nobody watches'");
  await client.query('begin; insert into flags values (1, 42); rollback');
  await client.query('insert into flags values (2, 7)');
  await delivered(client);

  const events = sink.events().map(({ org_id, event_type, topic, ids, origin }) =>
    ({ org_id, event_type, topic, ids, ...(origin && { origin }) }));
  const of = (/** @type {string} */ org) => events.filter(({ org_id }) => org_id === org);
  assert.deepEqual(of('42'), [
    { org_id: '42', event_type: 'job.created', topic: 'cataloging', ids: { job_id: 1 } },
    { org_id: '42', event_type: 'job.status_changed', topic: 'cataloging', ids: { job_id: 1 }, origin: 'tab-1' },
  ]);
  assert.deepEqual(of('7'), [
    { org_id: '7', event_type: 'flag.created', topic: 'cataloging', ids: { flag_id: 2 } },
  ]);
  assert.equal(events.length, 3);
  for (const { topic, event, private: isPrivate, payload } of sink.messages()) {
    assert.deepEqual([topic, event, isPrivate, payload.v],
      [`notifications:org_${payload.org_id}`, 'events', true, 1]);
    assert.ok(payload.cursor);
  }
  assert.ok(!JSON.stringify(sink.requests).includes('hidden'), 'nothing leaves but ids');

  assert.deepEqual(await column(client, 'select state, lag_events::int from outbox.status'), [['running', 0]]);
  await client.query('drop extension pg_outbox cascade');
  await client.query("update cataloging_jobs set status = 'after'");
  await client.end();
});
