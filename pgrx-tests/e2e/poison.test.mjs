// @ts-check
/**
 * A sink that refuses an event, and keeps none of the others from arriving.
 *
 *  1. The bad event is found, whether the sink names it or says only that the batch is refused; all
 *     others are delivered before it is given up, in the order of each organisation.
 *  2. It has as many retries as the sink's option says, with waits between them, and is then a dead
 *     letter with kind, text, status, attempts and times; cured before, it arrives.
 *  3. Relaxed, later events of its organisation go on; strict, they wait, and other organisations
 *     do not.
 *  4. A dead letter is that of one sink: others have the event.
 *  5. A restart of the relay forgets neither retries nor whom they hold back.
 *  6. Dead letters that are redriven keep their event_id, get all their retries again and are
 *     counted; those that are discarded are gone. Filters take exactly what they name.
 *
 * What would break silently: an event that is good, and was thrown away with the bad one.
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import { ACCEPTED, eventsOf, refusal, refusing } from './support/answers.mjs';
import { connect, value } from './support/database.mjs';
import { delivered, relayOf } from './support/delivery.mjs';
import {
  SCHEMA, addJobs, capturedIds, deadLetters, expectedJobs, jobsByOrganisation, nameSink,
  newOrganisations, retriesOf, statusOf, waitForDeadLetters,
} from './support/failures.mjs';
import { startSink } from './support/sink.mjs';

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let client;
/** @type {import('./support/sink.mjs').Sink} */
let picky;
/** @type {import('./support/sink.mjs').Sink} */
let well;
/** Jobs of which the picky sink takes no event. @type {Set<number>} */
const bad = new Set();
const isBad = (/** @type {any} */ message) =>
  eventsOf(message).some(({ ids }) => bad.has(ids.job_id));

before(async () => {
  cluster = await startCluster();
  [picky, well] = await Promise.all([startSink(), startSink()]);
  client = await connect(cluster);
  await client.query(SCHEMA);
  await nameSink(client, 'picky', picky.url);
  await nameSink(client, 'well', well.url);
});
after(async () => {
  await client?.end();
  await Promise.all([picky, well].map((sink) => sink?.stop()));
  await cluster?.stop();
});
beforeEach(async () => {
  bad.clear();
  picky.answerWith(refusing(isBad));
  await nameSink(client, 'picky', picky.url);
  await client.query('select outbox.discard()');
});

/** @param {string[]} organisations */
const arrived = (organisations) =>
  jobsByOrganisation(picky.events().filter(({ org_id }) => organisations.includes(org_id)));

/** Waits until exactly these have arrived, in this order for each organisation.
 * @param {string[]} organisations @param {Record<string, number[]>} expected */
async function waitForArrival(organisations, expected) {
  const total = Object.values(expected).flat().length;
  await waitUntil(() => arrived(organisations), `${total} events`, {
    accept: (found) => Object.values(found).flat().length >= total,
  });
  assert.deepEqual(arrived(organisations), expected);
}

/** @param {Record<string, number[]>} jobs @param {(job: number) => boolean} keep */
const only = (jobs, keep) => Object.fromEntries(Object.entries(jobs)
  .map(([org, list]) => [org, list.filter(keep)]).filter(([, list]) => list.length > 0));

/** Requests that carried this job. @param {number} job */
const requestsWith = (job) => picky.requests.filter(({ messages }) =>
  messages.some((message) => eventsOf(message).some(({ ids }) => ids.job_id === job)));

/** @type {[string, { names?: boolean, status?: 400 | 413 | 422 }, string][]} */
const REFUSALS = [
  ['422 that names it', {}, 'invalid'],
  ['422 that does not', { names: false }, 'invalid'],
  ['400', { status: 400 }, 'invalid'],
  ['413', { status: 413 }, 'too_large'],
];

describe('one bad event', () => {
  for (const [name, how, kind] of REFUSALS) {
    test(`among 300 of ten organisations, refused by ${name}`, async () => {
      picky.answerWith(refusing(isBad, how));
      const organisations = newOrganisations(10);
      picky.clear();
      const jobs = await addJobs(client, organisations, 300, (ids) => bad.add(ids[150]));

      const good = only(expectedJobs(organisations, jobs), (job) => !bad.has(job));
      await waitForArrival(organisations, good);
      const [letter] = await waitForDeadLetters(client, organisations, 1);
      const ids = await capturedIds(client, organisations);
      const expected = {
        sink: 'picky', event_id: ids.get(jobs[150]), event_type: 'job.created',
        topic: 'cataloging', org_id: organisations[0], ids: { job_id: jobs[150] },
        error_kind: kind, status: how.status ?? 422, attempts: 4, redrives: 0,
      };
      assert.deepEqual({ ...letter, ...expected }, letter);
      assert.ok(letter.error.length > 20, letter.error);
      assert.ok(letter.first_failed_at < letter.last_failed_at);
      assert.equal(await retriesOf(client, 'picky'), 0);
      // Halving 300 events of 10 organisations, and three retries.
      const { length } = requestsWith(jobs[150]);
      const times = picky.requests.filter(({ isTaken }) => isTaken).map(({ at }) => at);
      const tookMs = Math.max(...times) - picky.requests[0].at;
      console.log(`${length} requests with it, ${picky.requests.length} in all; ` +
        `the others in ${tookMs} ms`);
      assert.ok(length <= 20, `${length} requests`);
      assert.equal((await statusOf(client, 'picky')).state, 'running');
      assert.deepEqual(arrived(organisations), good);
    });
  }

  test('among a hundred of one organisation', async () => {
    const organisations = newOrganisations(1);
    const jobs = await addJobs(client, organisations, 100, (ids) => bad.add(ids[37]));
    await waitForArrival(organisations,
      only(expectedJobs(organisations, jobs), (job) => !bad.has(job)));
    await waitForDeadLetters(client, organisations, 1);
  });

  test('is had by other sinks', async () => {
    const organisations = newOrganisations(1);
    const [job] = await addJobs(client, organisations, 1, ([id]) => bad.add(id));
    const [{ event_id }] = await waitForDeadLetters(client, organisations, 1);
    const there = await waitUntil(
      () => well.events().find(({ ids }) => ids.job_id === job), 'the other sink');
    assert.equal(there.event_id, event_id);
    const { rows: [{ state, sinks }] } = await client.query(
      'select state, sinks from outbox.events where event_id = $1', [event_id]);
    assert.deepEqual([state, sinks], ['dead', { picky: 'dead', well: 'delivered' }]);
  });

  test('that is cured while it has retries arrives, and is no dead letter', async () => {
    const organisations = newOrganisations(1);
    const [job, next] = await addJobs(client, organisations, 2, ([id]) => bad.add(id));
    await waitUntil(() => retriesOf(client, 'picky'), 'the event to be retried');
    bad.clear();
    await waitUntil(() => arrived(organisations)[organisations[0]]?.length === 2, 'both');
    assert.deepEqual(new Set(arrived(organisations)[organisations[0]]), new Set([job, next]));
    const ids = await capturedIds(client, organisations);
    for (const { event_id, ids: { job_id } } of picky.events()) {
      if (job_id === job) assert.equal(event_id, ids.get(job));
    }
    await waitUntil(async () => await retriesOf(client, 'picky') === 0, 'its row to be gone');
    assert.deepEqual(await deadLetters(client, organisations), []);
  });

  test('of many: exactly the bad ones are dead', async () => {
    const organisations = newOrganisations(7);
    const jobs = await addJobs(client, organisations, 500, (ids) =>
      ids.filter((_, place) => place % 20 === 3).forEach((id) => bad.add(id)));
    const letters = await waitForDeadLetters(client, organisations, bad.size,
      { timeoutMs: 30_000 });
    assert.deepEqual(new Set(letters.map(({ ids }) => ids.job_id)), bad);
    await waitForArrival(organisations,
      only(expectedJobs(organisations, jobs), (job) => !bad.has(job)));
  });

  for (const retries of [0, 1]) {
    test(`with ${retries} retries`, async () => {
      await nameSink(client, 'picky', picky.url, { retries });
      const organisations = newOrganisations(1);
      await addJobs(client, organisations, 1, ([id]) => bad.add(id));
      const [{ attempts }] = await waitForDeadLetters(client, organisations, 1);
      assert.equal(attempts, retries + 1);
    });
  }

  test('does not wait for an outage: its tries are counted, the outage is not', async () => {
    const organisations = newOrganisations(1);
    await addJobs(client, organisations, 1, ([id]) => bad.add(id));
    await waitUntil(() => retriesOf(client, 'picky'), 'the event to be retried');
    picky.answerWith(() => refusal(503));
    await waitUntil(() => statusOf(client, 'picky'), 'three failures', {
      accept: ({ attempts }) => attempts >= 3,
    });
    const before_ = await value(client,
      "select attempts from _private.retries where sink = 'picky'");
    assert.ok(before_ <= 3, `${before_} attempts`);
    picky.answerWith(refusing(isBad));
    const [{ attempts }] = await waitForDeadLetters(client, organisations, 1,
      { timeoutMs: 30_000 });
    assert.equal(attempts, 4);
  });
});

describe('order', () => {
  test('relaxed: later events of the organisation go on, and the bad one comes after', async () => {
    await nameSink(client, 'picky', picky.url, { retries: 50 });
    const [org] = newOrganisations(1);
    const [job] = await addJobs(client, [org], 1, ([id]) => bad.add(id));
    await waitUntil(() => retriesOf(client, 'picky'), 'the event to be retried');
    const later = await addJobs(client, [org], 5);
    await waitForArrival([org], { [org]: later });
    bad.clear();
    await waitForArrival([org], { [org]: [...later, job] });
  });

  test('strict: they wait, other organisations do not, and they follow in order', async () => {
    await nameSink(client, 'picky', picky.url, { order: 'strict', retries: 50 });
    const [org, other] = newOrganisations(2);
    const [first, , ...rest] = await addJobs(client, [org], 10, ([, id]) => bad.add(id));
    await waitUntil(() => retriesOf(client, 'picky'), 'the event to be retried');
    const later = await addJobs(client, [org], 5);
    const elsewhere = await addJobs(client, [other], 5);
    await waitForArrival([other], { [other]: elsewhere });
    assert.deepEqual(arrived([org]), { [org]: [first] });
    // Fewer retries than it has had by now: the next refusal is the last.
    await nameSink(client, 'picky', picky.url, { order: 'strict', retries: 0 });
    await waitForDeadLetters(client, [org], 1);
    await waitForArrival([org], { [org]: [first, ...rest, ...later] });
  });

  test('strict: one that is cured arrives before those that waited for it', async () => {
    await nameSink(client, 'picky', picky.url, { order: 'strict', retries: 20 });
    const [org] = newOrganisations(1);
    const jobs = await addJobs(client, [org], 4, ([, id]) => bad.add(id));
    await waitUntil(() => retriesOf(client, 'picky'), 'the event to be retried');
    const later = await addJobs(client, [org], 4);
    bad.clear();
    await waitForArrival([org], { [org]: [...jobs, ...later] });
  });

  test('strict: a relay that is new holds back whom the old one held', async () => {
    await nameSink(client, 'picky', picky.url, { order: 'strict', retries: 50 });
    const [org, other] = newOrganisations(2);
    const [job, ...rest] = await addJobs(client, [org], 3, ([id]) => bad.add(id));
    await waitUntil(() => retriesOf(client, 'picky'), 'the event to be retried');
    const { pid } = await relayOf(client, 'postgres');
    await client.query('select pg_terminate_backend($1)', [pid]);
    await waitUntil(() => relayOf(client, 'postgres'), 'another relay', {
      accept: (relay) => relay && relay.pid !== pid,
    });
    const later = await addJobs(client, [org], 3);
    const elsewhere = await addJobs(client, [other], 1);
    await waitForArrival([other], { [other]: elsewhere });
    assert.deepEqual(arrived([org]), {});
    bad.clear();
    await waitForArrival([org], { [org]: [job, ...rest, ...later] });
  });
});

describe('dead letters', () => {
  /** So many for each organisation, as dead letters. @param {number} orgs @param {number} each */
  async function makeDead(orgs, each) {
    await nameSink(client, 'picky', picky.url, { retries: 0 });
    const organisations = newOrganisations(orgs);
    const jobs = await addJobs(client, organisations, orgs * each, (ids) =>
      ids.forEach((id) => bad.add(id)));
    const letters = await waitForDeadLetters(client, organisations, jobs.length,
      { timeoutMs: 30_000 });
    return { organisations, jobs, letters };
  }
  const redrive = (/** @type {string} */ filter) =>
    value(client, `select outbox.redrive(${filter})::int`);

  test('that are redriven arrive under their ids, and are gone', async () => {
    const { organisations, jobs, letters } = await makeDead(2, 5);
    bad.clear();
    assert.equal(await redrive(`org_id => '${organisations[0]}'`), 5);
    await waitForArrival(organisations,
      only(expectedJobs(organisations, jobs), (job) => jobs.indexOf(job) % 2 === 0));
    const left = await deadLetters(client, organisations);
    assert.deepEqual(new Set(left.map(({ org_id }) => org_id)), new Set([organisations[1]]));
    const ids = new Map(letters.map((letter) => [letter.ids.job_id, letter.event_id]));
    for (const { event_id, ids: { job_id } } of picky.events()) {
      if (ids.has(job_id)) assert.equal(event_id, ids.get(job_id));
    }
  });

  test('that are still bad come back, with all their tries again, and are counted', async () => {
    const { organisations: [org], letters: [before_] } = await makeDead(1, 1);
    for (const redrives of [1, 2]) {
      await nameSink(client, 'picky', picky.url, { retries: 2 });
      assert.equal(await redrive(`event_id => '${before_.event_id}'`), 1);
      const [letter] = await waitForDeadLetters(client, [org], 1, { timeoutMs: 20_000 });
      assert.deepEqual([letter.event_id, letter.attempts, letter.redrives],
        [before_.event_id, 3, redrives]);
      assert.deepEqual(letter.first_failed_at, before_.first_failed_at);
      assert.ok(letter.last_failed_at > before_.last_failed_at);
    }
  });

  test('are taken by each filter alone, and together', async () => {
    const { organisations: [a, b], letters } = await makeDead(2, 6);
    const [third] = letters.slice(2);
    const at = (/** @type {any} */ { created_at }) => `'${created_at.toISOString()}'`;
    const flag = await value(client, `insert into flag values (1, '${a}') returning id`);
    assert.equal(flag, 1);
    await delivered(client);
    /** @type {[string, number][]} */
    const cases = [
      [`sink => 'well'`, 0], [`event_type => 'job.deleted'`, 0], [`org_id => 'nobody'`, 0],
      [`since => now()`, 0], [`until => ${at(letters[0])}::timestamptz - interval '1 s'`, 0],
      [`event_id => '${third.event_id}'`, 1],
      [`org_id => '${a}', max_events => 2`, 2],
      [`org_id => '${b}', event_type => 'job.created', sink => 'picky'`, letters.filter(
        ({ org_id, event_id }) => org_id === b && event_id !== third.event_id).length],
      [`org_id => '${a}', since => ${at(letters[0])}, until => now()`, letters.filter(
        ({ org_id, event_id }) => org_id === a && event_id !== third.event_id).length - 2],
    ];
    for (const [filter, count] of cases) {
      assert.equal(await value(client, `select outbox.discard(${filter})::int`), count, filter);
    }
    assert.deepEqual(await deadLetters(client, [a, b]), []);
  });

  test('that are discarded are neither sent nor kept', async () => {
    const { organisations } = await makeDead(1, 3);
    bad.clear();
    assert.equal(
      await value(client, `select outbox.discard(org_id => '${organisations[0]}')::int`), 3);
    assert.equal(await redrive(`org_id => '${organisations[0]}'`), 0);
    const next = await addJobs(client, organisations, 1);
    await waitForArrival(organisations, { [organisations[0]]: next });
  });

  test('go beside what is new: a redrive of hundreds delays nobody', async () => {
    const { organisations, jobs } = await makeDead(3, 200);
    bad.clear();
    picky.answerWith(async () => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      return ACCEPTED;
    });
    picky.clear();
    assert.equal(await redrive(`sink => 'picky'`), 600);
    const [org] = newOrganisations(1);
    const [job] = await addJobs(client, [org], 1);
    await waitForArrival([org], { [org]: [job] });
    await waitUntil(() => Object.values(arrived(organisations)).flat().length, 'all of them', {
      accept: (count) => count === jobs.length, timeoutMs: 30_000,
    });
    assert.deepEqual(arrived(organisations), expectedJobs(organisations, jobs), 'in order');
  });
});
