// @ts-check
/**
 * Capture beside what else happens to a table and a transaction.
 *
 *  1. Triggers of users are theirs: whatever columns and arguments they have, a key stays a key.
 *  2. A row that was turned away while it moved is a deletion, whatever savepoints come after.
 *  3. An error while the buffer is written costs what its savepoint covers, and nothing else.
 *
 *  4. An index that somebody puts on a segment is filled, or refused with a hint: no writer crashes
 *     the server.
 *
 * What would break silently: a column that nobody named leaves as a key.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { runCase } from './support/capture_case.mjs';
import { connect, refusal, value } from './support/database.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
before(async () => {
  cluster = await startCluster();
  const client = await connect(cluster);
  await client.query('create extension pg_outbox');
  await client.end();
});
after(() => cluster?.stop());

/** @param {string} name @param {import('./support/capture_case.mjs').Case} spec */
const captures = (name, spec) => test(name, () => runCase(cluster, spec));

captures('a trigger with columns and the argument of ours', {
  run: [
    `create function audit() returns trigger language plpgsql as 'begin return null; end'`,
    `do $$ begin execute format(
       'create trigger a_audit after update of note, org_id, status on job
        for each row execute function audit(%L)',
       (select source_id from outbox.sources where source = 'job'::regclass)); end $$`,
    `insert into job values (1, :a, 'new', 'nobody named this column')`,
    `update job set status = 'done'`,
    'delete from job',
  ],
  expect: { a: ['created 1', 'updated 1', 'deleted 1'] },
});

captures('a move that is turned away in a savepoint that is released', {
  table: `create table job (id int, org_id uuid, status text, primary key (id, status))
      partition by list (status);
    create table job_new partition of job for values in ('new');
    create table job_done partition of job for values in ('done');
    create function turn_away() returns trigger language plpgsql as 'begin return null; end';
    create trigger turn_away before insert on job_done for each row execute function turn_away()`,
  attach: "select outbox.attach('job', key_columns => '{id}')",
  given: `insert into job values (1, null, 'new'); update job set org_id = :a`,
  run: `begin; savepoint moved; update job set status = 'done'; release moved;
    savepoint other; rollback to other; commit`,
  expect: { a: ['deleted 1'] },
});

captures('a spill that fails inside a savepoint', {
  table: `create table job (id text primary key, org_id uuid)`,
  run: `begin;
    insert into job select repeat(i::text, 500), :a from generate_series(1, 9) i;
    insert into job select repeat('x', 2000) || i, :b from generate_series(1, 3000) i;
    do $$ begin
      execute format('alter sequence _private.entry_ids maxvalue %s',
                     (select last_value + 3 from _private.entry_ids));
      insert into job select repeat('y', 2000) || i, :c from generate_series(1, 3000) i;
      raise 'the ids must run out first';
    exception when sequence_generator_limit_exceeded then end $$;
    delete from job where org_id = :b;
    insert into job values ('last', :a);
    commit`,
  act: async ({ query }) => {
    const { rows: [counted] } = await query(`select
      (count(*) filter (where event_type = 'job.created'))::int as created,
      (count(*) filter (where event_type = 'job.deleted'))::int as deleted
      from outbox.events where org_id = :b`);
    if (counted.created !== 3000 || counted.deleted !== 3000) throw new Error(JSON.stringify(counted));
    await query('delete from _private.outbox where org_id = :b');
  },
  expect: { a: [...Array.from({ length: 9 }, (_, i) => `created ${String(i + 1).repeat(500)}`), 'created last'] },
});

test('indexes that others put on the segments', async () => {
  const client = await connect(cluster);
  const onSegments = (/** @type {string} */ sql) => client.query(`do $$ begin
    for segment in 0..15 loop execute replace('${sql.replaceAll("'", "''")}', 'N', segment::text);
    end loop; end $$`);
  await client.query(`create table indexed (id int primary key, org_id text);
    select outbox.attach('indexed')`);
  await onSegments('create index other_N on _private.outbox_N (org_id)');
  await client.query("insert into indexed values (1, 'indexed')");
  await client.query('set enable_seqscan = off');
  assert.equal(await value(client, "select count(*)::int from _private.outbox where org_id = 'indexed'"), 1);
  for (const index of ['((id + 1))', "(id) where org_id = 'x'"]) {
    await onSegments('drop index if exists _private.other_N');
    await onSegments(`create index other_N on _private.outbox_N ${index}`);
    const error = await refusal(client, "insert into indexed values (2, 'indexed')");
    assert.equal(error.code, '55000', error.message);
    assert.match(`${error.hint}`, /Drop it/);
  }
  await onSegments('drop index _private.other_N');
  await client.query("insert into indexed values (2, 'indexed')");
  await client.end();
});
