// @ts-check
/**
 * Moving house: what a database does that is a copy of another one, or goes on elsewhere.
 *
 * 1. A copy sends nothing, prunes nothing and says so, until outbox.resume() is called in it.
 * 2. Then each sink is sent exactly what it had not been sent when the copy was made, and all that
 *    was captured in the copy since; in the order of the commits; with nothing twice.
 * 3. The numbers of transactions of the other place decide nothing, be they lower or higher.
 * 4. What goes on in the same place goes on by itself: failover, a backup, another name.
 *
 * Broken silently, a test copy would notify the users of production, or a move would lose what was
 * unsent while the sink looks well.
 */
import assert from 'node:assert/strict';
import { after, afterEach, before, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect, refusal, value, waitForValue } from './support/database.mjs';
import { SECRET, delivered } from './support/delivery.mjs';
import {
  SENT_TO_FIRST, UNSENT, addJobs, furnish, jobsOf, sinksOf, spendTransactions,
} from './support/house.mjs';
import { startSink } from './support/sink.mjs';

/** @typedef {import('../harness/cluster.mjs').Cluster} Cluster */
/** @typedef {{ cluster: Cluster, database: string }} Place */

/** @type {Cluster} */
let original;
/** A cluster whose transactions have lower numbers. @type {Cluster} */
let young;
/** And one where they have higher ones. @type {Cluster} */
let old;
/** @type {import('./support/house.mjs').Sinks} */
let sinks;
/** @type {import('pg').Client[]} */
const clients = [];

before(async () => {
  sinks = { first: await startSink(), second: await startSink() };
  // A relay for each copy.
  const settings = { max_worker_processes: 40 };
  [original, young, old] = await Promise.all([1, 2, 3].map(() => startCluster({ settings })));
  const [middle, high] = [await spendTransactions(original, 5_000), await spendTransactions(old)];
  assert.ok(middle < high);
  await furnish(original, 'house', sinks);
});
after(async () => {
  await Promise.all([original, young, old].map((cluster) => cluster?.stop()));
  await sinks?.first.stop();
  await sinks?.second.stop();
});
afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.end()));
  sinks.first.clear();
  sinks.second.clear();
});

/** A connection that ends with the test. @param {Place} place */
async function visit({ cluster, database }) {
  const client = await connect(cluster, { database });
  clients.push(client);
  return client;
}

let copies = 0;
const aName = () => `copy_${(copies += 1)}`;

/** @param {Place} from @param {Cluster} cluster @returns {Promise<Place>} */
async function dumpInto(from, cluster) {
  const dump = await from.cluster.program('pg_dump', [from.cluster.url(from.database)]);
  assert.ok(!dump.includes(SECRET), 'a secret is in the dump');
  const database = aName();
  await cluster.psql(`create database ${database}`);
  await cluster.psql(dump, { database });
  return { cluster, database };
}

/** @param {Place} from @returns {Promise<Place>} */
async function copyAsTemplate({ cluster, database: from }) {
  const database = aName();
  await cluster.psql(`create database ${database} template ${from}`);
  return { cluster, database };
}

const house = () => ({ cluster: original, database: 'house' });

/** @type {Record<string, { copy: () => Promise<Place>, keepsSecrets?: boolean }>} */
const WAYS = {
  'a dump, in a cluster with lower transaction numbers': { copy: () => dumpInto(house(), young) },
  'a dump, in a cluster with higher ones': { copy: () => dumpInto(house(), old) },
  'a dump, in the same cluster': { copy: () => dumpInto(house(), original) },
  'CREATE DATABASE … TEMPLATE': { copy: () => copyAsTemplate(house()), keepsSecrets: true },
};

/** Waits until the relay has looked at the copy. @param {import('pg').Client} client */
async function waitUntilRefused(client) {
  await client.query('select outbox.wake()');
  await waitForValue(client, "select count(*) filter (where last_error like '%is a copy%') = count(*) from outbox.status",
    'the relay to say that the database is a copy');
}

const EVERYTHING = { first: UNSENT, second: [...SENT_TO_FIRST, ...UNSENT] };

for (const [way, { copy, keepsSecrets }] of Object.entries(WAYS)) {
  test(way, async () => {
    const place = await copy();
    const client = await visit(place);
    await client.query("update _private.sinks set paused = false");
    await waitUntilRefused(client);
    await addJobs(client, [11]);
    if (!keepsSecrets) await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
    await addJobs(client, [12]);

    const waiting = await sinksOf(client);
    assert.deepEqual(waiting.map(({ sink, state, lag }) => [sink, state, lag]),
      [['first', 'waiting', UNSENT.length + 2], ['second', 'waiting', UNSENT.length + SENT_TO_FIRST.length + 2]]);
    assert.match(waiting[0]?.error ?? '', /outbox\.resume\(\)/);
    assert.equal(await value(client, "select outbox.wait_until_delivered('0')"), false);
    assert.equal(Number(await value(client, "select outbox.prune('0', exact => true)")), 0);
    const [ok, hint] = await value(client, "select ok, hint from outbox.check() where name = 'home'");
    assert.ok(!ok);
    assert.match(hint, /outbox\.resume\(\)/);
    assert.deepEqual([sinks.first.requests, sinks.second.requests].flatMap(refuseProbes), [], 'nothing left');
    const states = await column(client, `select (ids ->> 'job_id')::int, state from outbox.events order by entry_id`);
    assert.deepEqual(states.filter(([, state]) => state === 'delivered').map(([id]) => id), [1, 2, 3]);

    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual(jobsOf(sinks.first), [...EVERYTHING.first, 11, 12]);
    assert.deepEqual(jobsOf(sinks.second), [...EVERYTHING.second, 11, 12]);

    await addJobs(client, [13]);
    await delivered(client);
    assert.equal(jobsOf(sinks.first).at(-1), 13);
    await client.query('select outbox.resume()');
    assert.equal(await value(client, "select outbox.wait_until_delivered('0')"), true, 'once is enough');
    const complaints = await column(client, 'select name, detail, hint from outbox.check() where not ok');
    assert.deepEqual(complaints, []);
    await client.query("select outbox.prune('0', exact => true)");
    assert.equal(await value(client, 'select count(*)::int from _private.outbox'), 0, 'all is done, wherever it came from');
  });
}

/** The check asks each sink over the network; that is no message. @param {SinkRequest[]} requests */
const refuseProbes = (requests) => requests.filter(({ messages }) => messages.length > 0);
/** @typedef {{ messages: any[] }} SinkRequest */

test('secrets do not travel with a dump, and the copy says which is missing', async () => {
  const client = await visit(await dumpInto(house(), young));
  const [detail, hint] = await value(client, "select detail, hint from outbox.check() where name = 'sink first: secret'");
  assert.match(detail, /secret "realtime" does not exist/);
  assert.match(hint, /outbox\.set_secret/);
  await client.query('select outbox.resume()');
  await waitForValue(client, "select last_error from outbox.status where sink = 'first'", 'the relay to miss its secret',
    { accept: (error) => /secret "realtime" does not exist/.test(error) });
  await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
  await delivered(client);
  assert.deepEqual(jobsOf(sinks.first), EVERYTHING.first);
});

describe('steering in a copy', () => {
  test('a sink that is not resumed stays where it is, and loses nothing', async () => {
    const client = await visit(await copyAsTemplate(house()));
    await client.query("select outbox.resume('first')");
    await addJobs(client, [11]);
    await waitForValue(client, "select lag_events = 0 from outbox.status where sink = 'first'", 'the first sink');
    assert.deepEqual(jobsOf(sinks.first), [...EVERYTHING.first, 11]);
    assert.deepEqual((await sinksOf(client))[1], { sink: 'second', state: 'paused', lag: 8, error: '' });
    assert.deepEqual(sinks.second.requests, []);
    await client.query("select outbox.resume('second')");
    await delivered(client);
    assert.deepEqual(jobsOf(sinks.second), [...EVERYTHING.second, 11]);
    assert.deepEqual(jobsOf(sinks.first), [...EVERYTHING.first, 11], 'and the first is not sent anything again');
  });

  test('a sink set anew begins with what comes', async () => {
    const client = await visit(await dumpInto(house(), young));
    await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
    await addJobs(client, [11]);
    await client.query("select outbox.drop_sink('first'); select outbox.drop_sink('second')");
    await client.query("select outbox.set_sink('third', 'realtime', $1)",
      [JSON.stringify({ url: sinks.first.url, jwt_secret: 'realtime' })]);
    await addJobs(client, [12]);
    await delivered(client);
    await addJobs(client, [13]);
    await delivered(client);
    assert.deepEqual(jobsOf(sinks.first), [12, 13]);
  });

  test('and beside one that waits', async () => {
    const client = await visit(await dumpInto(house(), young));
    await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
    await client.query("select outbox.drop_sink('second')");
    await client.query("select outbox.set_sink('third', 'realtime', $1)",
      [JSON.stringify({ url: sinks.second.url, jwt_secret: 'realtime' })]);
    await addJobs(client, [11]);
    await waitForValue(client, "select lag_events = 0 from outbox.status where sink = 'third'", 'the third sink');
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [[], [11]]);
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [[...UNSENT, 11], [11]]);
  });

  test('two who resume at once move it once', async () => {
    const place = await dumpInto(house(), old);
    const [one, other] = [await visit(place), await visit(place)];
    await one.query("select outbox.set_secret('realtime', $1)", [SECRET]);
    await one.query('begin; select outbox.resume()');
    const second = other.query('select outbox.resume()');
    await waitForValue(one, "select count(*)::int from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()", 'the second to wait');
    await addJobs(one, [11]);
    await one.query('commit');
    await second;
    await delivered(one);
    assert.deepEqual(jobsOf(sinks.first), [...UNSENT, 11]);
  });

  test('marks that are equal by chance lose nothing and repeat nothing', async () => {
    const client = await visit(await dumpInto(house(), original));
    await client.query("select outbox.set_secret('realtime', $1)", [SECRET]);
    await client.query(`with twin as (
        select d::oid as database from generate_series(1, 2000000) d, _private.current_home() h
        where _private.home_mark(h.system_identifier, d::oid, h.outbox) = _private.home_mark() and d::oid <> h.database limit 1),
      cursors as (update _private.cursors c set database = twin.database, outbox = h.outbox from twin, _private.current_home() h)
      update _private.outbox set home = _private.home_mark()`);
    await addJobs(client, [11]);
    assert.deepEqual((await sinksOf(client)).map(({ lag }) => lag), [5, 8]);
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual(jobsOf(sinks.first), [...EVERYTHING.first, 11]);
    assert.deepEqual(jobsOf(sinks.second), [...EVERYTHING.second, 11]);
  });
});

describe('copies of copies', () => {
  test('what was captured on the way arrives too', async () => {
    const between = await dumpInto(house(), young);
    await addJobs(await visit(between), [11]);
    const place = await dumpInto(between, old);
    const client = await visit(place);
    await addJobs(client, [12]);
    await client.query("select outbox.set_secret('realtime', $1); ".replace('$1', `'${SECRET}'`));
    assert.deepEqual((await sinksOf(client)).map(({ lag }) => lag), [6, 9]);
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual(jobsOf(sinks.first), [...EVERYTHING.first, 11, 12]);
    assert.deepEqual(jobsOf(sinks.second), [...EVERYTHING.second, 11, 12]);
  });

  test('what had been moved and sent is not sent by the next', async () => {
    const between = await dumpInto(house(), old);
    const moved = await visit(between);
    await moved.query(`select outbox.set_secret('realtime', '${SECRET}')`);
    await moved.query('select outbox.resume()');
    await delivered(moved);
    await moved.query('select outbox.pause()');
    await addJobs(moved, [20]);
    sinks.first.clear();
    const client = await visit(await dumpInto(between, young));
    await client.query(`select outbox.set_secret('realtime', '${SECRET}')`);
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual(jobsOf(sinks.first), [20]);
  });
});

describe('in the same place', () => {
  /** A house of its own, running, with job 20 to 22 unsent. */
  async function aHouse() {
    const database = aName();
    await furnish(original, database, sinks);
    return visit({ cluster: original, database });
  }

  test('ALTER DATABASE … RENAME goes on by itself', async () => {
    const client = await aHouse();
    const name = await value(client, 'select current_database()');
    await client.end();
    await original.psql(`alter database ${name} rename to ${name}_renamed`);
    const again = await visit({ cluster: original, database: `${name}_renamed` });
    await again.query('update _private.sinks set paused = false');
    await delivered(again);
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [EVERYTHING.first, EVERYTHING.second]);
  });

  test('a dump restored over the database waits, as any copy', async () => {
    const client = await aHouse();
    const name = await value(client, 'select current_database()');
    const dump = await original.program('pg_dump', ['--clean', '--if-exists', original.url(name)]);
    await client.query('select outbox.resume()');
    await delivered(client);
    sinks.first.clear();
    sinks.second.clear();
    await original.psql(dump, { database: name });
    await client.query('update _private.sinks set paused = false');
    await waitUntilRefused(client);
    await client.query(`select outbox.set_secret('realtime', '${SECRET}')`);
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [[], []]);
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [EVERYTHING.first, EVERYTHING.second], 'as it was when dumped');
  });

  test('the extension created anew begins anew', async () => {
    const client = await aHouse();
    await client.query('drop extension pg_outbox cascade');
    await client.query("create extension pg_outbox; select outbox.attach('job')");
    await addJobs(client, [20]);
    await client.query(`select outbox.set_secret('realtime', '${SECRET}')`);
    await client.query("select outbox.set_sink('first', 'realtime', $1)",
      [JSON.stringify({ url: sinks.first.url, jwt_secret: 'realtime' })]);
    await addJobs(client, [21]);
    await delivered(client);
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [[21], []]);
  });

  test('ALTER EXTENSION … UPDATE to the version that is there changes nothing', async () => {
    const client = await aHouse();
    await client.query('alter extension pg_outbox update');
    await client.query('select outbox.resume()');
    await delivered(client);
    assert.deepEqual([jobsOf(sinks.first), jobsOf(sinks.second)], [EVERYTHING.first, EVERYTHING.second]);
    const error = await refusal(client, "alter extension pg_outbox update to '99.0'");
    assert.equal(error.code, '22023');
  });
});

test('cursors restored by COPY are noticed', async () => {
  const database = aName();
  await furnish(original, database, sinks);
  const client = await visit({ cluster: original, database });
  await client.query('update _private.sinks set paused = false');
  await delivered(client);
  const name = 'first';
  await client.query('delete from _private.cursors where sink = $1', [name]);
  await waitForValue(client, "select not exists (select from _private.relay_status() where sink = 'first')", 'the relay to drop the sink');
  await client.query(`insert into _private.cursors (sink, position, system_identifier, database, outbox)
    select $1, '1:1:', h.* from _private.current_home() h`, [name]);
  await waitForValue(client, "select state = 'running' from outbox.status where sink = 'first'", 'the sink to run again');
});
