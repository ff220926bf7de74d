// @ts-check
/**
 * The relay as a process among the server's.
 *
 *  1. It is there within a second of CREATE EXTENSION, in any database, and gone after DROP EXTENSION.
 *  2. It stands in nobody's way: DROP DATABASE, DROP EXTENSION, a fast stop with a request in flight.
 *  3. It comes back when it is terminated, and delivers what was committed meanwhile.
 *  4. A reload is enough for its settings.
 *  5. Idle, it runs no statement beyond the poll. NOTIFY pg_outbox wakes it.
 *  6. Without preload writers write, capture captures, and check() says why nothing is sent.
 *
 * What would break silently: a relay that does not come back delivers nothing, and nobody notices
 * until somebody misses an event.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { column, connect, storedEvents, value, waitForValue } from './support/database.mjs';
import { delivered, relayOf, setSink } from './support/delivery.mjs';
import { startSink } from './support/sink.mjs';

const IDLE_MS = 20_000;
const POLL_MS = 5_000;

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let admin;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
before(async () => {
  sink = await startSink();
  cluster = await startCluster({
    settings: {
      shared_preload_libraries: 'pg_outbox, pg_stat_statements',
      'pg_stat_statements.track': 'all',
      max_prepared_transactions: 5,
      // Its transactions would be counted as the relay's.
      autovacuum: 'off',
      // A relay for each database that the tests make, and the launcher.
      max_worker_processes: 32,
    },
  });
  admin = await connect(cluster);
  await admin.query('create extension pg_stat_statements');
});
after(async () => {
  await admin?.end();
  await cluster?.stop();
  await sink.stop();
});

let databases = 0;

/** A database with the extension, its relay running, and a table attached. @param {{ sinkUrl?: string }} [options] */
async function openDatabase({ sinkUrl } = {}) {
  const name = `app_${(databases += 1)}`;
  await admin.query(`create database ${name}`);
  const client = await connect(cluster, { database: name });
  await client.query('create extension pg_outbox');
  await relayRuns(name);
  await client.query("create table job (id serial primary key, org_id text); select outbox.attach('job')");
  if (sinkUrl) await setSink(client, sinkUrl);
  return { name, client };
}

/** @param {string} database */
const relayRuns = (database, timeoutMs = 5000) =>
  waitUntil(() => relayOf(admin, database), `the relay of ${database}`, { timeoutMs });

/** @param {string} database */
const relayIsGone = (database) =>
  waitUntil(async () => !(await relayOf(admin, database)), `the relay of ${database} to be gone`);

describe('where it runs', () => {
  test('in each database within a second of CREATE EXTENSION, and no longer than DROP EXTENSION', async () => {
    for (const name of ['one', 'two']) {
      await admin.query(`create database ${name}`);
      const client = await connect(cluster, { database: name });
      assert.equal(await relayOf(admin, name), undefined);
      await client.query('create extension pg_outbox');
      await relayRuns(name, 1000);
      await client.end();
    }
    const client = await connect(cluster, { database: 'one' });
    await client.query('drop extension pg_outbox cascade');
    await relayIsGone('one');
    assert.ok(await relayOf(admin, 'two'), 'the other one stays');
    await client.query('create extension pg_outbox');
    await relayRuns('one', 1000);
    await client.end();
  });

  test('a CREATE EXTENSION that is rolled back starts none', async () => {
    await admin.query('create database rolled_back');
    const client = await connect(cluster, { database: 'rolled_back' });
    await client.query('begin; create extension pg_outbox; rollback');
    const { client: other } = await openDatabase();
    assert.equal(await relayOf(admin, 'rolled_back'), undefined);
    await client.end();
    await other.end();
  });

  test('it says in pg_stat_activity what it is', async () => {
    const { name, client } = await openDatabase();
    const { backend_type, application_name } = await relayOf(admin, name);
    assert.match(`${backend_type} ${application_name}`, /pg_outbox relay/);
    await client.end();
  });

  test('after a restart of the server it is there again, in every database', async () => {
    const { name, client } = await openDatabase({ sinkUrl: sink.url });
    await client.end();
    await admin.end();
    await cluster.restart();
    admin = await connect(cluster);
    await relayRuns(name);
    await relayRuns('two');
    const again = await connect(cluster, { database: name });
    await again.query("insert into job (org_id) values ('restarted')");
    await delivered(again);
    await again.end();
  });
});

describe('a paused sink', () => {
  /** A database whose sink is paused with one event unsent. */
  async function openPaused() {
    const receiver = await startSink();
    const { name, client } = await openDatabase({ sinkUrl: receiver.url });
    await client.query('select outbox.pause()');
    await takenUp(client);
    await client.query("select outbox.drop_sink('other'); insert into job (org_id) values ('paused')");
    return { name, client, receiver };
  }

  /** The relay has taken up the sinks as they are once it runs another one. @param {import('pg').Client} client */
  async function takenUp(client) {
    await client.query("select outbox.set_sink('other', 'realtime', $1)",
      [JSON.stringify({ url: sink.url, jwt_secret: 'realtime' })]);
    await waitForValue(client, "select state = 'running' from outbox.status where sink = 'other'", 'the other sink');
    await client.query("insert into job (org_id) values ('other')");
    await waitForValue(client, "select lag_events = 0 from outbox.status where sink = 'other'", 'its event');
  }

  test('sends nothing when its options change, nor when the relay starts, until it is resumed', async () => {
    const { name, client, receiver } = await openPaused();
    await client.query("select outbox.set_sink('realtime', 'realtime', $1)",
      [JSON.stringify({ url: receiver.url, jwt_secret: 'realtime', window_ms: 300 })]);
    await takenUp(client);
    assert.deepEqual(receiver.requests, [], 'after its options changed');
    await client.query("select outbox.drop_sink('other')");
    const { pid } = await relayOf(admin, name);
    await admin.query('select pg_terminate_backend($1)', [pid]);
    await waitUntil(async () => ((await relayOf(admin, name))?.pid ?? pid) !== pid, 'another relay');
    await takenUp(client);
    assert.deepEqual(receiver.requests, [], 'after the start of the relay');
    await client.query("select outbox.resume('realtime')");
    await delivered(client);
    assert.deepEqual(receiver.events().map(({ org_id }) => org_id).sort(), ['other', 'other', 'other', 'paused']);
    await client.end();
    await receiver.stop();
  });
});

describe('in nobody\'s way', () => {
  test('DROP DATABASE', async () => {
    const { name, client } = await openDatabase({ sinkUrl: sink.url });
    await client.query("insert into job (org_id) values ('dropped')");
    await delivered(client);
    await client.end();
    await admin.query(`drop database ${name}`);
    await relayIsGone(name);
  });

  test('DROP EXTENSION while it is delivering', async () => {
    const { name, client } = await openDatabase({ sinkUrl: sink.url });
    await client.query("insert into job (org_id) select 'org-' || i % 500 from generate_series(1, 20000) i");
    await client.query("set lock_timeout = '5s'; drop extension pg_outbox cascade");
    await relayIsGone(name);
    await client.query("insert into job (org_id) values ('writers go on')");
    await client.end();
  });

  test('a fast stop with a request in flight takes less than a second', async () => {
    const silent = await startSink({ answer: () => new Promise(() => {}) });
    const { name, client } = await openDatabase({ sinkUrl: silent.url });
    await client.query("insert into job (org_id) values ('in flight')");
    await waitUntil(() => silent.requests.length, 'a request in flight');
    await client.end();
    await admin.end();
    const began = performance.now();
    await cluster.halt({ mode: 'fast' });
    const took = performance.now() - began;
    await cluster.start();
    admin = await connect(cluster);
    assert.ok(took < 1000, `the stop took ${took.toFixed()} ms`);

    const again = await connect(cluster, { database: name });
    silent.answerWith(() => 202);
    await delivered(again);
    assert.deepEqual(silent.events().map(({ org_id }) => org_id), ['in flight']);
    await again.end();
    await admin.query(`drop database ${name}`);
    await silent.stop();
  });
});

test('pg_terminate_backend: it comes back and delivers what was committed meanwhile', async () => {
  const { name, client } = await openDatabase({ sinkUrl: sink.url });
  const { pid } = await relayOf(admin, name);
  await admin.query('select pg_terminate_backend($1)', [pid]);
  await client.query("insert into job (org_id) values ('terminated')");
  const next = await waitUntil(() => relayOf(admin, name), 'another relay', {
    accept: (relay) => relay && relay.pid !== pid,
  });
  assert.notEqual(next.pid, pid);
  await delivered(client);
  assert.equal(sink.events().filter(({ org_id }) => org_id === 'terminated').length, 1);
  await client.end();
});

test('a launcher that is terminated comes back, and no relay is doubled', async () => {
  const { name, client } = await openDatabase({ sinkUrl: sink.url });
  const { pid } = await relayOf(admin, name);
  const launcher = () => value(admin,
    "select pid from pg_stat_activity where backend_type = 'pg_outbox launcher'");
  const before = await launcher();
  await admin.query('select pg_terminate_backend($1)', [before]);
  const next = await waitUntil(launcher, 'another launcher', { accept: (seen) => seen && seen !== before });
  // It has looked at every database once it has started a relay in a new one.
  const { client: other } = await openDatabase();
  const relays = await column(admin, `select datname from pg_stat_activity
    where backend_type = 'pg_outbox relay' group by datname having count(*) > 1`);
  assert.deepEqual(relays, []);
  assert.equal((await relayOf(admin, name)).pid, pid, 'it went on');
  await admin.query('select pg_terminate_backend($1)', [pid]);
  await waitUntil(() => relayOf(admin, name), 'the new launcher to start a relay in its place', {
    accept: (relay) => relay && relay.pid !== pid,
  });
  assert.equal(await launcher(), next);
  await client.query("insert into job (org_id) values ('relaunched')");
  await delivered(client);
  assert.equal(sink.events().filter(({ org_id }) => org_id === 'relaunched').length, 1);
  await client.end();
  await other.end();
});

describe('a reload is enough', () => {
  test('enabled: off, capture goes on and nothing is sent; on, all of it is', async (t) => {
    t.after(() => cluster.reload({ 'pg_outbox.enabled': null }));
    const { client } = await openDatabase({ sinkUrl: sink.url });
    await cluster.reload({ 'pg_outbox.enabled': 'off' });
    await waitForValue(client, "select not ok from outbox.check() where name = 'enabled'",
      'check() to say that delivery is switched off');
    await client.query("insert into job (org_id) values ('disabled')");
    assert.equal(await value(client, "select outbox.wait_until_delivered('500 ms')"), false);
    assert.ok(!sink.events().some(({ org_id }) => org_id === 'disabled'));
    await cluster.reload({ 'pg_outbox.enabled': null });
    await delivered(client);
    assert.ok(sink.events().some(({ org_id }) => org_id === 'disabled'));
    await client.end();
  });

  test('databases: a relay leaves a database that is no longer listed', async (t) => {
    t.after(() => cluster.reload({ 'pg_outbox.databases': null }));
    const { name, client } = await openDatabase();
    await cluster.reload({ 'pg_outbox.databases': 'two' });
    await relayIsGone(name);
    assert.ok(await relayOf(admin, 'two'));
    await cluster.reload({ 'pg_outbox.databases': null });
    await relayRuns(name);
    await client.end();
  });
});

describe('quiet', () => {
  test('NOTIFY pg_outbox wakes it for what no commit has announced', async (t) => {
    t.after(() => cluster.reload({ 'pg_outbox.poll_interval': null }));
    const { client } = await openDatabase({ sinkUrl: sink.url });
    await cluster.reload({ 'pg_outbox.poll_interval': '1h' });
    await client.query("begin; insert into job (org_id) values ('rung'); prepare transaction 'rung'");
    await client.query("commit prepared 'rung'");
    assert.equal(await value(client, "select state from outbox.events where org_id = 'rung'"), 'pending');
    await client.query('notify pg_outbox');
    await delivered(client);
    await client.end();
  });

  test('the poll finds a prepared transaction that commits', async () => {
    const { client } = await openDatabase({ sinkUrl: sink.url });
    await client.query("begin; insert into job (org_id) values ('polled'); prepare transaction 'polled'");
    await client.query("commit prepared 'polled'");
    await delivered(client, 2 * POLL_MS / 1000);
    await client.end();
  });

  test('idle for 20 seconds it runs nothing but the poll', { timeout: 60_000 }, async () => {
    const { name, client } = await openDatabase({ sinkUrl: sink.url });
    await client.query("insert into job (org_id) values ('before')");
    await delivered(client);
    await client.end();
    const counts = async () => (await admin.query(`
      select (select xact_commit + xact_rollback from pg_stat_database where datname = $1)::int as transactions,
             (select coalesce(sum(calls), 0) from pg_stat_statements s join pg_database d on d.oid = dbid
              where datname = $1)::int as statements`, [name])).rows[0];
    // What was counted before the idling began reaches the statistics within a second or so.
    await pause(2 * POLL_MS);
    const first = await counts();
    await pause(IDLE_MS);
    const last = await counts();
    const polls = IDLE_MS / POLL_MS + 1;
    const transactions = last.transactions - first.transactions;
    const statements = last.statements - first.statements;
    console.log(`${transactions} transactions, ${statements} statements in ${IDLE_MS} ms`);
    assert.ok(transactions <= polls, `${transactions} transactions for ${polls} polls`);
    assert.ok(statements <= 2 * polls, `${statements} statements for ${polls} polls`);
  });
});

describe('without preload', () => {
  /** @type {import('../harness/cluster.mjs').Cluster} */
  let bare;
  before(async () => {
    bare = await startCluster({ preload: false });
  });
  after(() => bare.stop());

  test('writers write, capture captures, check() says why nothing is sent', async () => {
    const client = await connect(bare);
    /** @type {string[]} */
    const notices = [];
    client.on('notice', ({ message = '', hint = '' }) => notices.push(`${message} ${hint}`));
    await client.query('create extension pg_outbox');
    assert.match(notices.join('\n'), /shared_preload_libraries/);
    await client.query("create table job (id int primary key, org_id text); select outbox.attach('job')");
    await setSink(client, sink.url);
    await client.query("insert into job values (1, 'bare'), (2, 'bare')");
    await client.query("update job set id = 3 where id = 2");
    assert.equal((await storedEvents(client, ['bare'])).length, 4);
    const { rows } = await client.query('select * from outbox.check() where not ok');
    assert.ok(rows.some((row) => /shared_preload_libraries/.test(`${row.detail} ${row.hint}`)),
      JSON.stringify(rows));
    assert.equal(await value(client, 'select state from outbox.status'), 'not running');
    await client.end();

    await bare.configure({ shared_preload_libraries: 'pg_outbox' });
    await bare.restart();
    const mended = await connect(bare);
    await delivered(mended);
    assert.equal(sink.events().filter(({ org_id }) => org_id === 'bare').length, 4);
    await mended.end();
  });
});
