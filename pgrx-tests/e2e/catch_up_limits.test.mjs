// @ts-check
/**
 * Where outbox.events_since ends: it says so, and never answers with a part as if it were the whole.
 *
 *  1. complete = false, in one row with a cursor to go on from, when an event after the position was
 *     pruned, when too much would have to be looked at, and when the position is of another cluster,
 *     database or of the future. A position that sees all that was pruned is still complete.
 *  2. Its cost goes with what was written after the position, and not with what is stored.
 *  3. Arguments that are wrong get an error of their own.
 *  4. Without a membership function only the extension's owner may ask.
 *
 * What would break silently: a client that was away for long is told that it missed nothing.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { page, positionOf } from './support/catch_up.mjs';
import { column, connect, refusal, value } from './support/database.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let client;
before(async () => {
  cluster = await startCluster({ settings: { 'pg_outbox.prune_interval': 0 } });
  client = await connect(cluster);
  await client.query(`create role app login; create extension pg_outbox;
    create table job (id bigint primary key generated always as identity, org_id text);
    select outbox.attach('job')`);
});
after(async () => {
  await client?.end();
  await cluster?.stop();
});

const add = (count = 1, organisation = 'org', who = client) =>
  who.query('insert into job (org_id) select $1 from generate_series(1, $2::int)', [organisation, count]);
const prune = () => client.query("select outbox.prune('0', exact => true)");

/** @param {string} cursor */
async function assertIncomplete(cursor) {
  const rows = await page(client, cursor, 'org');
  assert.equal(rows.length, 1, `${rows.length} rows`);
  const [{ complete, cursor: next, ...event }] = rows;
  assert.equal(complete, false);
  assert.ok(Object.values(event).every((part) => part === null), 'no event');
  assert.deepEqual(await page(client, next, 'org'), [], 'from there on nothing was missed');
  await add();
  assert.equal((await page(client, next, 'org')).length, 1);
}

/** @param {string} cursor @param {number} count */
async function assertComplete(cursor, count) {
  const rows = await page(client, cursor, 'org', 10_000);
  assert.deepEqual(rows.map(({ complete }) => complete), Array(count).fill(true));
}

describe('pruning', () => {
  test('an event after the position is gone', async () => {
    const from = await positionOf(client);
    await add();
    await prune();
    await assertIncomplete(from);
  });

  test('only events before the position are gone', async () => {
    await add();
    const from = await positionOf(client);
    await prune();
    await assertComplete(from, 0);
    await add(3);
    await assertComplete(from, 3);
  });

  test('a transaction that runs at the position and outlives the pruning loses nothing', async () => {
    const late = await connect(cluster);
    await late.query('begin');
    await add(1, 'org', late);
    await add();
    const from = await positionOf(client);
    await prune();
    await assertComplete(from, 0);
    await late.query('commit');
    await assertComplete(from, 1);
    await prune();
    await assertIncomplete(from);
    await late.end();
  });

  test('a position within a window', async () => {
    const from = await positionOf(client);
    for (let turn = 0; turn < 3; turn += 1) await add();
    const [first, second, third] = await page(client, from, 'org');
    await client.query(`delete from _private.outbox where id < (select max(id) from _private.outbox)`);
    await client.query(`select _private.mark_pruned(max(xid), (select max(id) - 1 from _private.outbox))
      from _private.outbox where id = (select max(id) from _private.outbox)`);
    await assertIncomplete(first.cursor);
    await assertComplete(second.cursor, 2);
    await assertComplete(third.cursor, 1);
  });

  test('a segment that is emptied as a whole', async () => {
    const holder = await connect(cluster);
    await holder.query(`begin; do $$ begin
      execute format('lock table _private.outbox_%s in access exclusive mode', _private.current_segment());
      execute format('lock table _private.outbox_%s in access exclusive mode', (_private.current_segment() + 1) % 16);
      end $$`);
    const before = await value(holder, 'select outbox.cursor()');
    await client.query("set lock_timeout = '1s'");
    await add(5);
    await client.query('reset lock_timeout');
    await holder.query('rollback');
    await holder.end();
    const behind = await positionOf(client);
    const pruned = Number(await value(client, "select outbox.prune('0')"));
    assert.ok(pruned >= 5, `${pruned} pruned`);
    await assertComplete(behind, 0);
    await assertIncomplete(before);
  });

  test('in a snapshot that is kept, which could not see what is new', async () => {
    await client.query('begin isolation level repeatable read');
    assert.equal((await refusal(client, "select outbox.prune('0')")).code, '25000');
    await client.query('rollback');
  });

  test('the extension was dropped and made again', async () => {
    const database = 'again';
    await client.query(`create database ${database}`);
    const other = await connect(cluster, { database });
    await other.query('create extension pg_outbox');
    const before = await positionOf(other);
    await other.query('drop extension pg_outbox; create extension pg_outbox');
    assert.deepEqual((await page(other, before, 'org')).map(({ complete }) => complete), [false]);
    assert.deepEqual(await page(other, await positionOf(other), 'org'), []);
    await other.end();
    await client.query(`drop database ${database} with (force)`);
  });
});

describe('positions of elsewhere', () => {
  test('another database', async () => {
    await client.query('create database elsewhere');
    const other = await connect(cluster, { database: 'elsewhere' });
    await other.query('create extension pg_outbox');
    await assertIncomplete(await positionOf(other));
    await other.end();
    await client.query('drop database elsewhere with (force)');
  });

  test('another cluster, although its transactions have the same numbers', async () => {
    const twin = await startCluster();
    const other = await connect(twin);
    await other.query('create extension pg_outbox');
    await other.query('do $$ begin while txid_current() < 2000 loop commit; end loop; end $$');
    const cursor = await positionOf(other);
    await other.end();
    await twin.stop();
    await client.query('do $$ begin while txid_current() < 3000 loop commit; end loop; end $$');
    await assertIncomplete(cursor);
  });

  test('the future: a snapshot that is older than the position', async () => {
    const reader = await connect(cluster);
    await reader.query('begin isolation level repeatable read; select 1');
    await add();
    const cursor = await positionOf(client);
    assert.deepEqual((await page(reader, cursor, 'org')).map(({ complete }) => complete), [false]);
    await reader.query('commit');
    await assertComplete(cursor, 0);
    await reader.end();
  });
});

/** Buffers that one call touches. @param {string} cursor @param {string} organisation */
async function buffersOf(cursor, organisation) {
  const [plan] = await column(client,
    'explain (analyze, buffers, format json) select * from outbox.events_since($1, $2)', [cursor, organisation]);
  return plan[0].Plan['Shared Hit Blocks'] + plan[0].Plan['Shared Read Blocks'];
}

describe('cost', () => {
  test('goes with what was written after, by the index, and not with what is stored', async () => {
    await prune();
    const early = await positionOf(client);
    await add(10, 'org');
    const few = await page(client, early, 'org');
    assert.equal(few.length, 10);
    const fewStored = await buffersOf(await positionOf(client), 'org');
    await client.query("insert into job (org_id) select 'o' || i from generate_series(1, 40000) i");
    const late = await positionOf(client);
    await add(10, 'org');
    assert.equal((await page(client, late, 'org')).length, 10);
    const manyStored = await buffersOf(late, 'org');
    const pages = await value(client, `select sum(pg_relation_size(oid)) / 8192 from pg_class
      where oid in (select inhrelid from pg_inherits where inhparent = '_private.outbox'::regclass)`);
    assert.ok(Number(pages) > 500, `${pages} pages are stored`);
    assert.ok(manyStored < fewStored + 60, `${manyStored} buffers, ${fewStored} when little was stored`);
    assert.ok(await buffersOf(early, 'org') > 300, 'and from long ago it costs more');
  });

  test('the plans have no sequential scan of a segment', async () => {
    await client.query(`load 'auto_explain'; set auto_explain.log_min_duration = 0;
      set auto_explain.log_nested_statements = on; set client_min_messages = log;
      set auto_explain.log_level = log`);
    const plans = /** @type {string[]} */ ([]);
    const listen = (/** @type {any} */ { message }) => plans.push(message);
    client.on('notice', listen);
    const cursor = await positionOf(client);
    // A plan becomes generic with the sixth call.
    for (let call = 0; call < 8; call += 1) await page(client, cursor, 'org');
    client.off('notice', listen);
    await client.query('set auto_explain.log_min_duration = -1; reset client_min_messages');
    const all = plans.join('\n');
    assert.match(all, /Index.* Scan using outbox_\d+_xid_id on outbox_\d+/);
    assert.doesNotMatch(all, /(Seq|Bitmap \w+) Scan on outbox_\d/);
  });

  test('is bounded', async () => {
    const from = await positionOf(client);
    await client.query("insert into job (org_id) select 'o' || i from generate_series(1, 99999) i");
    await add(1);
    await assertComplete(from, 1);
    await client.query("insert into job (org_id) values ('one more')");
    await assertIncomplete(from);
  });
});

describe('wrong arguments', () => {
  const CURSOR = () => positionOf(client);
  /** @type {[name: string, args: () => Promise<unknown[]>, code: string][]} */
  const CALLS = [
    ['no cursor', async () => [null, 'org', 1], '22004'],
    ['no organisation', async () => [await CURSOR(), null, 1], '22004'],
    ['no page', async () => [await CURSOR(), 'org', null], '22004'],
    ['a page of nothing', async () => [await CURSOR(), 'org', 0], '22023'],
    ['a page of too much', async () => [await CURSOR(), 'org', 10_001], '22023'],
    ['an empty cursor', async () => ['', 'org', 1], '22P02'],
    ['a cursor of garbage', async () => ["'; drop table job; --", 'org', 1], '22P02'],
    ['a cursor that was cut', async () => [(await CURSOR()).slice(0, -2), 'org', 1], '22P02'],
    ['a snapshot', async () => ['100:100:', 'org', 1], '22P02'],
    ['a cursor of transaction 0', async () => ['AQAAAAAAAAAA', 'org', 1], '22P02'],
    ['a cursor of a megabyte', async () => ['A'.repeat(1 << 20), 'org', 1], '22P02'],
  ];
  for (const [name, parameters, code] of CALLS) {
    test(name, async () => {
      const error = await client.query('select * from outbox.events_since($1, $2, $3)', await parameters()).then(
        () => assert.fail('it was accepted'), (/** @type {any} */ refused) => refused);
      assert.equal(error.code, code, error.message);
      assert.ok(error.detail && error.hint, `${error.message}: ${error.detail}, ${error.hint}`);
    });
  }

  test('a cursor of another era is answered', async () => {
    await assertIncomplete(Buffer.from([1, 0, 0, 0, 0, 3, 9, 0, 0]).toString('base64url'));
  });
});

test('without a membership function, the owner alone may ask', async () => {
  await client.query(`grant usage on schema outbox to app;
    grant execute on function outbox.events_since, outbox.cursor to app`);
  const app = await connect(cluster, { user: 'app' });
  const call = `select * from outbox.events_since('${await positionOf(app)}', 'org')`;
  const error = await refusal(app, call);
  assert.equal(error.code, '42501');
  assert.match(error.hint ?? '', /setup_realtime/);
  await client.query('grant postgres to app');
  await app.query(call);
  await app.end();
});
