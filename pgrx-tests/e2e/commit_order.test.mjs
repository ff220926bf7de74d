// @ts-check
/**
 * What reaches the sink while many sessions write at once.
 *
 *  1. Every event of a committed transaction reaches the sink once, and none of any other does.
 *  2. Events of one organisation arrive in the order in which its rows changed.
 *  3. A transaction that is held open stalls nobody, and its events arrive when it commits.
 *
 * Each transaction draws numbers from its organisation's counter, under the counter's row lock, and
 * inserts a job with each number: what was committed is in the table, and its order is the number.
 *
 * What would break silently: a cursor that passes a transaction that has begun but not committed
 * loses its events for ever, and nothing says so. SEED= replays the choices, not their timing.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { column, connect } from './support/database.mjs';
import { delivered, setSink } from './support/delivery.mjs';
import { randomFrom, seedOfThisRun } from './support/random.mjs';
import { startSink } from './support/sink.mjs';

const WRITERS = 12;
const TRANSACTIONS_EACH = Number(process.env.TRANSACTIONS ?? 150);
const ORGANISATIONS = 6;

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {Awaited<ReturnType<typeof startSink>>} */
let sink;
before(async () => {
  sink = await startSink();
  cluster = await startCluster({ settings: { max_prepared_transactions: 30 } });
  await cluster.psql(`create extension pg_outbox;
    create table counter (org_id text primary key, n int not null default 0);
    insert into counter select 'org-' || i from generate_series(0, ${ORGANISATIONS - 1}) i;
    create table job (org_id text, n int, writer int, primary key (org_id, n));
    select outbox.attach('job');`);
  const client = await connect(cluster);
  await setSink(client, sink.url, { events_per_second: 0, window_ms: 20, message_events_max: 10_000 });
  await client.end();
});
after(async () => {
  await cluster.stop();
  await sink.stop();
});

/** @typedef {import('./support/random.mjs').Random} Random */

/** The next numbers of an organisation, each a job. */
const draw = (/** @type {number} */ writer, /** @type {number} */ organisation, /** @type {number} */ count) => `
  with next as (update counter set n = n + ${count} where org_id = 'org-${organisation}' returning n)
  insert into job select 'org-${organisation}', n - ${count} + i, ${writer}
  from next, generate_series(1, ${count}) i`;

/**
 * One writer: the organisations of a transaction are taken in ascending order, so that writers wait
 * for each other but never in a circle.
 *
 * @param {number} writer
 * @param {Random} random
 */
async function write(writer, random) {
  const client = await connect(cluster);
  for (let turn = 0; turn < TRANSACTIONS_EACH; turn += 1) {
    const name = `w${writer}_${turn}`;
    await client.query('begin');
    let organisation = random.below(ORGANISATIONS);
    for (; organisation < ORGANISATIONS; organisation += 1 + random.below(4)) {
      if (random.chance(40)) {
        await client.query('savepoint s');
        await client.query(draw(writer, organisation, 1 + random.below(3)));
        await client.query(random.chance(50) ? 'rollback to s' : 'release s');
      }
      await client.query(draw(writer, organisation, 1 + random.below(3)));
    }
    await end(client, random, name);
  }
  await client.end();
}

/** @param {import('pg').Client} client @param {Random} random @param {string} name */
async function end(client, random, name) {
  const ending = random.pick(['commit', 'commit', 'commit', 'commit', 'rollback', 'prepared', 'lost']);
  if (ending === 'commit' || ending === 'rollback') {
    await client.query(ending);
    return;
  }
  await client.query(`prepare transaction '${name}'`);
  await client.query('select pg_sleep(random() * 0.02)');
  await client.query(`${ending === 'prepared' ? 'commit' : 'rollback'} prepared '${name}'`);
}

test('12 writers: nothing missed, nothing twice, in order', { timeout: 180_000 }, async () => {
  const random = randomFrom(seedOfThisRun());
  const held = await connect(cluster);
  await held.query("begin; insert into job values ('org-held', 1, -1)");

  const forks = Array.from({ length: WRITERS }, () => random.fork());
  await Promise.all(forks.map((fork, writer) => write(writer, fork)));
  await held.query("savepoint s; insert into job values ('org-held', 2, -1); rollback to s");
  const watching = await connect(cluster);
  await delivered(watching, 60);
  assert.ok(!sink.events().some(({ org_id }) => org_id === 'org-held'), 'not before its commit');
  await held.query("insert into job values ('org-held', 3, -1); commit");
  await delivered(watching, 60);

  const committed = await column(watching, 'select org_id, n from job order by org_id, n');
  const sent = sink.events();
  assert.deepEqual(new Set(sent.map((event) => event.event_type)), new Set(['job.created']));
  for (const organisation of new Set(committed.map(([org]) => org))) {
    const expected = committed.filter(([org]) => org === organisation).map(([, n]) => n);
    const arrived = sent.filter(({ org_id }) => org_id === organisation).map(({ ids }) => ids.n);
    assert.deepEqual(arrived, expected, organisation);
  }
  assert.equal(sent.length, committed.length);
  assert.equal(new Set(sent.map((event) => event.event_id)).size, sent.length, 'each id once');
  console.log(`${sent.length} events in ${sink.messages().length} messages`);
  assert.ok(sent.length > WRITERS * TRANSACTIONS_EACH, `only ${sent.length} events were compared`);
  await Promise.all([held.end(), watching.end()]);
});
