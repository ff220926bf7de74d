// @ts-check
/**
 * What reaches the sink when processes are killed while many sessions write, and one in fifty of
 * the answers is lost on its way although the sink has taken the request.
 *
 *  1. Every event of a committed transaction reaches the sink, and none of any other does.
 *  2. An event that comes more than once comes under one `event_id`.
 *  3. What is new of an organisation comes in the order in which it happened, and what comes again
 *     leaves nothing out.
 *  4. An event that the sink refuses is in the end exactly one dead letter, and is delivered once
 *     it is cured and redriven; also when the crash comes between its retries.
 *  5. Pruning everything that may go, all the while, takes nothing that is unsent.
 *
 * What would break silently: a cursor that is on disk before the events that it passes have an
 * outcome, or a fate that is written after it, loses events in a crash and at no other time.
 *
 * SEED= replays the choices, not their timing. CRASH_MINUTES= goes on for so long.
 */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { ACCEPTED, cut, eventsOf, refusing } from './support/answers.mjs';
import { column, value } from './support/database.mjs';
import { delivered, relayOf, setSink } from './support/delivery.mjs';
import { SCHEMA, audit, connectSoon, readLedger, startWriters } from './support/ledger.mjs';
import { randomFrom, seedOfThisRun } from './support/random.mjs';
import { startSink } from './support/sink.mjs';

const WRITERS = 6;
const MINUTES = Number(process.env.CRASH_MINUTES ?? 0);
/** Beyond the crashes of a deep run: the start, the drain and the audit. */
const TIMEOUT_MS = MINUTES * 60_000 + 240_000;
const RECOVERY = { timeoutMs: 60_000 };
/** How many events come between two crashes, at least and at most. */
const [CALM_MIN, CALM_MAX] = [150, 600];
/** How often each kind of crash comes at least. */
const ROUNDS = 2;
const LOST_PERCENT = 2;
const POISON_EVERY = 53;

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('./support/sink.mjs').Sink} */
let sink;
/** @type {import('./support/random.mjs').Random} */
let random;
/** @type {ReturnType<typeof startWriters>} */
let writers;
let lost = 0;
const seed = seedOfThisRun();

beforeEach(async () => {
  random = randomFrom(seed);
  lost = 0;
  sink = await startSink();
  cluster = await startCluster({
    settings: {
      fsync: 'on', full_page_writes: 'on', max_prepared_transactions: 20,
      'pg_outbox.prune_interval': '0',
    },
  });
  const client = await connectSoon(cluster);
  await client.query(SCHEMA);
  await setSink(client, sink.url, {
    events_per_second: 0, window_ms: 20, message_events_max: 10_000, retries: 2,
  });
  await client.end();
});
afterEach(async () => {
  await writers?.stop().catch(() => {});
  await cluster.stop({ mode: 'immediate' });
  await sink.stop();
});

/** @typedef {import('./support/answers.mjs').Answerer} Answerer */

/**
 * Takes a request and, now and then, is not heard.
 *
 * @param {Answerer} answer
 * @returns {Answerer}
 */
function losing(answer) {
  const choices = random.fork();
  return async (request) => {
    const given = await answer(request);
    if (given !== ACCEPTED || request.messages.length === 0 || !choices.chance(LOST_PERCENT)) {
      return given;
    }
    lost += 1;
    return cut(choices.pick(['silence', 'head']), { takes: true });
  };
}

/** @param {(client: import('pg').Client) => Promise<any>} ask */
async function asking(ask) {
  const client = await connectSoon(cluster);
  try {
    return await ask(client);
  } finally {
    await client.end().catch(() => {});
  }
}

const committed = () => asking((client) => value(client, 'select count(*)::int from ledger'));

/** @param {string} what @param {() => number | Promise<number>} count */
async function growth(what, count) {
  const enough = (await count()) + CALM_MIN + random.below(CALM_MAX - CALM_MIN);
  await waitUntil(count, `${what} after the last crash`, {
    accept: (seen) => seen >= enough, ...RECOVERY,
  });
}

/** The ways in which something ends at once, each until it is there again. */
const CRASHES = {
  relay: () => killProcess(relayPid),
  writer: async () => process.kill(writers.pid(random), 'SIGKILL'),
  launcher: () => killProcess(() => asking((client) => value(client, `select pid
    from pg_stat_activity where backend_type like 'pg_outbox%' and datname is null`))),
  async postmaster() {
    await cluster.kill9();
    await cluster.start();
  },
  async immediateStop() {
    await cluster.halt({ mode: 'immediate' });
    await cluster.start();
  },
  async sink() {
    await sink.stop();
    await growth('commits without a sink', committed);
    await sink.start();
  },
  async all() {
    await sink.stop();
    await cluster.kill9();
    await cluster.start();
    await growth('commits without a sink', committed);
    await sink.start();
  },
};

const relayPid = async () =>
  (await asking((client) => relayOf(client, 'postgres')))?.pid;

/** @param {() => Promise<number | undefined>} find */
async function killProcess(find) {
  const pid = await waitUntil(find, 'the process that is to be killed', RECOVERY);
  process.kill(/** @type {number} */ (pid), 'SIGKILL');
}

/** Prunes what may go; the crash may come first. */
function pruneMeanwhile() {
  const pruning = asking((client) =>
    client.query("select outbox.prune('0 seconds', exact => true)"));
  return pruning.catch(() => {});
}

/**
 * Crashes in a chosen order, each kind in each round, until the time is over.
 *
 * @param {() => Promise<unknown>} [beforeEachCrash]
 */
async function crashAll(beforeEachCrash = async () => {}) {
  const until = Date.now() + MINUTES * 60_000;
  const tale = [];
  for (let round = 1; round <= ROUNDS || Date.now() < until; round += 1) {
    const left = Object.entries(CRASHES);
    while (left.length > 0) {
      const [[name, crash]] = left.splice(random.below(left.length), 1);
      await growth('events', () => sink.events().length);
      await beforeEachCrash();
      const pruning = pruneMeanwhile();
      await crash();
      await pruning;
      tale.push(name);
    }
  }
  await growth('events', () => sink.events().length);
  return tale;
}

/** Waits until everything has an outcome, and reads what should have come. */
async function settle() {
  await writers.stop();
  return asking(async (client) => {
    await delivered(client, 60);
    return readLedger(client);
  });
}

test('kill -9 of everything in turn: nothing missing, nothing invented, in order', {
  timeout: TIMEOUT_MS,
}, async () => {
  sink.answerWith(losing(() => ACCEPTED));
  writers = startWriters(cluster, random, WRITERS);
  const tale = await crashAll();
  const ledger = await settle();
  const { events, repeated } = audit(ledger, sink.events());
  console.log(`${tale.join(', ')}: ${events} events, ${repeated} sent again, ${lost} answers lost`);
  assert.ok(events >= tale.length * CALM_MIN, `only ${events} events were compared`);
  assert.ok(lost > 0 && repeated > 0, 'no answer was lost');
  assert.equal(await asking((client) =>
    value(client, 'select count(*)::int from outbox.dead_letters')), 0, 'no event is blamed');
});

test('the same with poison: each bad event is one dead letter, and arrives once redriven', {
  timeout: TIMEOUT_MS,
}, async () => {
  const isPoison = (/** @type {number} */ jobId) => jobId % POISON_EVERY === 0;
  const isBad = (/** @type {any} */ message) =>
    eventsOf(message).some(({ ids }) => isPoison(ids?.job_id));
  sink.answerWith(losing(refusing(isBad)));
  writers = startWriters(cluster, random, WRITERS);
  const redrive = () => asking((client) => client.query('select outbox.redrive(max_events => 3)'));
  const tale = await crashAll(redrive);
  const ledger = await settle();
  const [good, bad] = [false, true].map((wanted) =>
    ledger.filter(({ job_id }) => isPoison(job_id) === wanted));

  await asking(async (client) => {
    const retries = () => value(client, 'select count(*)::int from _private.retries');
    await waitUntil(retries, 'all retries to end', { accept: (count) => count === 0, ...RECOVERY });
    audit(good, sink.events());
    const dead = await column(client, `select org_id || ' ' || event_type || ' ' || (ids->>'job_id')
      from outbox.dead_letters order by 1`);
    assert.deepEqual(dead, bad.map(({ key }) => key).sort());
    assert.ok(bad.length > 0, 'nothing was poisoned');

    sink.answerWith(losing(() => ACCEPTED));
    assert.equal(await value(client, 'select outbox.redrive()::int'), bad.length);
    await waitUntil(retries, 'what was redriven', { accept: (count) => count === 0, ...RECOVERY });
    assert.deepEqual(await column(client, 'select event_id from outbox.dead_letters'), []);
  });
  const { events, repeated } = audit(ledger, sink.events(), isPoison);
  console.log(`${tale.join(', ')}: ${events} events, ${bad.length} of them bad, ${repeated} again`);
});
