// @ts-check
/**
 * outbox.events_since(cursor, org_id): what a client missed.
 *
 *  1. Exactly the committed events of the organisation after the position: none is skipped although
 *     its transaction commits late, and none comes twice, page after page.
 *  2. In the order of the entries; a page ends with a whole entry.
 *  3. The cursor of each row, and of each message that was sent, is a position to go on from.
 *  4. A state and outbox.cursor() that are read in one snapshot fit together.
 *
 * What would break silently: a client that came back shows a state that is missing one change, and
 * nobody knows. SEED= replays the choices, not their timing.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { follow, page, positionOf } from './support/catch_up.mjs';
import { column, connect, value } from './support/database.mjs';
import { delivered, setSink } from './support/delivery.mjs';
import { randomFrom, seedOfThisRun } from './support/random.mjs';
import { startSink } from './support/sink.mjs';

const WRITERS = 8;
const TRANSACTIONS_EACH = Number(process.env.TRANSACTIONS ?? 120);
const ORGANISATIONS = ['a', 'b', 'c'];

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
/** @type {import('pg').Client} */
let client;
before(async () => {
  sink = await startSink();
  cluster = await startCluster({ settings: { max_prepared_transactions: 20 } });
  client = await connect(cluster);
  await client.query(`create extension pg_outbox;
    create table job (id bigint primary key generated always as identity, org_id text, status text);
    select outbox.attach('job', include => '{status}')`);
});
after(async () => {
  await client?.end();
  await cluster?.stop();
  await sink?.stop();
});

const add = (/** @type {string} */ organisation, count = 1) =>
  `insert into job (org_id, status) select '${organisation}', 's' || i from generate_series(1, ${count}) i`;

/** Ids of the rows that the events are about. @param {{ ids: any }[]} events */
const jobs = (events) => events.map(({ ids }) => Number(ids.job_id));

/** What is stored of an organisation, in the order of entries. @param {string} organisation */
const stored = (organisation) => column(client,
  'select event_id from outbox.events where org_id = $1 order by entry_id, place', [organisation]);

describe('one transaction after the other', () => {
  test('nothing was missed', async () => {
    await client.query(add('quiet'));
    assert.deepEqual(await page(client, await positionOf(client), 'quiet'), []);
    assert.deepEqual(await page(client, await positionOf(client), 'nobody'), []);
  });

  test('an event has all that a message says of it, and the included data', async () => {
    const from = await positionOf(client);
    await client.query("begin; set local pg_outbox.origin = 'tab-1'");
    await client.query(add('full'));
    await client.query('commit');
    const [row, ...others] = await page(client, from, 'full');
    assert.equal(others.length, 0);
    const [[event_id, at]] = await column(client, "select event_id, created_at from outbox.events where org_id = 'full'");
    const { ids, cursor, ...rest } = row;
    assert.deepEqual(rest, {
      event_id, at, event_type: 'job.created', topic: 'job', data: { status: 's1' }, origin: 'tab-1',
      version: 1, complete: true,
    });
    assert.equal(typeof ids.job_id, 'number');
    assert.deepEqual(await page(client, cursor, 'full'), []);
  });

  test('an emitted event has its own topic, version and ids, to the last digit', async () => {
    const from = await positionOf(client);
    await client.query(`select outbox.create_event_type('report.ready');
      select outbox.emit('report.ready', 'full', '{"n": 12345678901234567890.5}', 'reports', 3)`);
    const ids = await value(client, "select ids::text from outbox.events_since($1, 'full')", [from]);
    assert.equal(ids, '{"n": 12345678901234567890.5}');
    const [row] = await page(client, from, 'full');
    assert.deepEqual([row.topic, row.version, row.data], ['reports', 3, null]);
  });

  test('pages end with a whole entry and share its cursor', async () => {
    const from = await positionOf(client);
    await client.query(add('bulk', 3000));
    const first = await page(client, from, 'bulk', 10);
    assert.ok(first.length >= 10 && first.length < 10 + 1000, `${first.length} events`);
    assert.equal(new Set(first.map(({ cursor }) => cursor)).size, 1, 'one entry, one cursor');
    const { events } = await follow(client, from, 'bulk', () => 1);
    assert.deepEqual(events.map(({ event_id }) => event_id), await stored('bulk'));
    assert.equal(events.length, 3000);
    const whole = await page(client, from, 'bulk', 10_000);
    assert.deepEqual(whole.map(({ event_id }) => event_id), await stored('bulk'));
  });

  test('what the caller has not committed is not missed, and is after the cursor', async () => {
    const writer = await connect(cluster);
    await writer.query('begin');
    await writer.query(add('own'));
    const from = await positionOf(writer);
    assert.deepEqual(await page(writer, from, 'own'), []);
    await writer.query(add('own'));
    await writer.query('commit');
    assert.equal((await page(writer, from, 'own')).length, 2);
    await writer.end();
  });

  test('a transaction that commits late is not skipped, from wherever one goes on', async () => {
    const late = await connect(cluster);
    await late.query('begin');
    await late.query(add('late'));
    const from = await positionOf(client);
    const cursors = [from];
    for (let turn = 0; turn < 4; turn += 1) {
      await client.query(add('late'));
      cursors.push(...(await follow(client, from, 'late', () => 1)).events.map(({ cursor }) => cursor));
    }
    await late.query('commit');
    const [lateId] = await column(client, "select min(id)::int from job where org_id = 'late'");
    for (const cursor of new Set(cursors)) {
      const { events } = await follow(client, cursor, 'late', () => 1);
      assert.equal(jobs(events).filter((id) => id === lateId).length, 1, cursor);
      assert.equal(new Set(jobs(events)).size, events.length, 'none twice');
    }
    await late.end();
  });

  test('a prepared transaction is missed once it is committed', async () => {
    await client.query('begin');
    await client.query(add('prepared'));
    await client.query("prepare transaction 'p'");
    const from = await positionOf(client);
    assert.deepEqual(await page(client, from, 'prepared'), []);
    await client.query("commit prepared 'p'");
    assert.equal((await page(client, from, 'prepared')).length, 1);
  });
});

/** @typedef {import('./support/random.mjs').Random} Random */

/** @param {Random} random */
async function write(random) {
  const writer = await connect(cluster);
  for (let turn = 0; turn < TRANSACTIONS_EACH; turn += 1) {
    await writer.query('begin');
    for (let statement = 1 + random.below(3); statement > 0; statement -= 1) {
      await writer.query('savepoint s');
      await writer.query(add(random.pick(ORGANISATIONS), 1 + random.below(random.chance(5) ? 300 : 3)));
      await writer.query(random.chance(20) ? 'rollback to s' : 'release s');
    }
    if (random.chance(20)) await writer.query('select pg_sleep(random() * 0.01)');
    await writer.query(random.chance(10) ? 'rollback' : 'commit');
  }
  await writer.end();
}

/**
 * A client that reads the state, then follows until everything is written, and must have the state.
 *
 * @param {string} organisation
 * @param {Random} random
 * @param {Promise<unknown>} written
 */
async function keepUp(organisation, random, written) {
  let isOver = false;
  written.then(() => (isOver = true));
  const reader = await connect(cluster);
  await reader.query('begin isolation level repeatable read');
  let cursor = await positionOf(reader);
  const state = await column(reader, 'select id::int from job where org_id = $1', [organisation]);
  await reader.query('commit');
  const heard = [];
  const cursors = [cursor];
  for (let last = false; !last;) {
    last = isOver;
    const caughtUp = await follow(reader, cursor, organisation, () => 1 + random.below(random.chance(50) ? 5 : 400));
    heard.push(...caughtUp.events);
    cursor = caughtUp.cursor;
    cursors.push(...caughtUp.events.map((event) => event.cursor));
  }
  await reader.end();
  return { organisation, state, heard, cursors };
}

test('clients that keep up with many writers', { timeout: 180_000 }, async () => {
  const random = randomFrom(seedOfThisRun());
  const written = Promise.all(Array.from({ length: WRITERS }, () => write(random.fork())));
  const readers = await Promise.all([...ORGANISATIONS, ...ORGANISATIONS].map((organisation) =>
    keepUp(organisation, random.fork(), written)));
  for (const { organisation, state, heard, cursors } of readers) {
    const all = await column(client, 'select id::int from job where org_id = $1 order by 1', [organisation]);
    const seen = [...state, ...jobs(heard)].sort((a, b) => a - b);
    assert.deepEqual(seen, all, `${organisation}: the state and what came after make the state`);
    const order = await stored(organisation);
    // From any cursor on the way: exactly what was heard after it.
    for (let check = 0; check < 20; check += 1) {
      const place = random.below(cursors.length);
      const { events } = await follow(client, cursors[place], organisation, () => 1 + random.below(1000));
      const lastOfEntry = heard.findLastIndex(({ cursor }) => cursor === cursors[place]);
      const expected = heard.slice(lastOfEntry + 1).map(({ event_id }) => event_id);
      assert.deepEqual(new Set(events.map(({ event_id }) => event_id)), new Set(expected));
      assert.equal(events.length, expected.length, 'none twice');
    }
    const whole = await page(client, cursors[0], organisation, 10_000);
    const places = whole.map(({ event_id }) => order.indexOf(event_id));
    assert.deepEqual(places, places.toSorted((a, b) => a - b), 'in the order of entries');
  }
  const count = readers.reduce((sum, { heard }) => sum + heard.length, 0);
  console.log(`${count} events heard by ${readers.length} clients`);
  assert.ok(count > WRITERS * TRANSACTIONS_EACH, `only ${count} events were compared`);
});

test('the cursor of each message that was sent', { timeout: 120_000 }, async () => {
  const random = randomFrom(seedOfThisRun());
  await setSink(client, sink.url, { events_per_second: 0, window_ms: 5, message_events_max: 10_000 });
  await Promise.all(Array.from({ length: 4 }, () => write(random.fork())));
  await delivered(client);
  const messages = sink.messages().map(({ payload }) => payload);
  for (const organisation of ORGANISATIONS) {
    const own = messages.filter(({ org_id }) => org_id === organisation);
    assert.ok(own.length > 5, `${own.length} messages`);
    const ids = own.map(({ events }) => events.map((/** @type {any} */ { event_id }) => event_id));
    for (const [place, { cursor }] of own.entries()) {
      const { events } = await follow(client, cursor, organisation);
      const expected = ids.slice(place + 1).flat();
      assert.deepEqual(new Set(events.map(({ event_id }) => event_id)), new Set(expected), `message ${place}`);
      assert.equal(events.length, expected.length);
    }
  }
});

test('a cursor is on disk before it is told', async () => {
  await client.query('set synchronous_commit = off');
  for (let turn = 0; turn < 20; turn += 1) {
    await client.query(add('durable'));
    const written = await value(client, 'select pg_current_wal_insert_lsn()');
    await positionOf(client);
    assert.ok(await value(client, 'select pg_current_wal_flush_lsn() >= $1::pg_lsn', [written]));
  }
  await client.query('reset synchronous_commit');
});
