// @ts-check
/**
 * A sink that fails costs time and nothing else.
 *
 *  1. Whatever way it fails, no event is blamed: none is a dead letter, none has used up a try.
 *  2. outbox.status says why, and when it is tried again.
 *  3. When it works again everything arrives, in the order of each organisation, under the ids
 *     under which it was captured; nobody follows a redirect.
 *  4. Other sinks go on meanwhile.
 *  5. A sink that is down is asked now and then, by one request at a time.
 *  6. An answer that is lost means sending again, under the same id.
 *
 * What would break silently: an event that is taken for delivered because somebody answered 200.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { setInterval } from 'node:timers/promises';
import { startCluster } from '../harness/cluster.mjs';
import { waitUntil } from '../harness/wait.mjs';
import {
  BATCH_TOO_LARGE, HANG, NOT_HTTP, cut, drip, garbage, inTurn, redirect, refusal,
} from './support/answers.mjs';
import { startAuthority } from './support/certificates.mjs';
import { connect } from './support/database.mjs';
import { delivered } from './support/delivery.mjs';
import {
  SCHEMA, addJobs, capturedIds, deadLetters, expectedJobs, jobsByOrganisation, nameSink,
  newOrganisations, retriesOf, statusOf,
} from './support/failures.mjs';
import { randomFrom, seedOfThisRun } from './support/random.mjs';
import { startSink } from './support/sink.mjs';

/** Short, so that a silence is noticed soon; long for an answer on a machine that is busy. */
const TIMEOUT_MS = 1_000;

/** @typedef {import('./support/sink.mjs').Sink} Sink */
/** @typedef {import('./support/answers.mjs').Given} Given */

/** @type {import('../harness/cluster.mjs').Cluster} */
let cluster;
/** @type {import('pg').Client} */
let client;
/** The one that fails, and one beside it that never does. @type {Sink} */
let sick;
/** @type {Sink} */
let well;
/** Where redirects lead. @type {Sink} */
let elsewhere;
before(async () => {
  cluster = await startCluster();
  [sick, well, elsewhere] = await Promise.all([startSink(), startSink(), startSink()]);
  client = await connect(cluster);
  await client.query(SCHEMA);
  await nameSink(client, 'sick', sick.url, { timeout_ms: TIMEOUT_MS });
  await nameSink(client, 'well', well.url);
});
after(async () => {
  await client?.end();
  await Promise.all([sick, well, elsewhere].map((sink) => sink?.stop()));
  await cluster?.stop();
});

/** @param {Sink} sink @param {string[]} organisations */
const eventsFor = (sink, organisations) =>
  sink.events().filter(({ org_id }) => organisations.includes(org_id));

/** Waits until the sink is known to fail, with this word. @param {RegExp} word */
const failing = (word) => waitUntil(() => statusOf(client, 'sick'), `the sink to fail: ${word}`, {
  // Between two tries: while one is under way nobody knows when the next one will be.
  accept: ({ state, last_error, retry_at }) =>
    state === 'waiting' && word.test(last_error ?? '') && retry_at !== null,
});

/**
 * Breaks the sink, changes rows, looks at what is said, mends it, and audits.
 *
 * @param {() => unknown} breakIt
 * @param {RegExp} word that last_error begins with
 * @param {() => unknown} mendIt
 */
async function survive(breakIt, word, mendIt) {
  const organisations = newOrganisations(3);
  await breakIt();
  try {
    const jobs = await addJobs(client, organisations, 12);
    await endure(organisations, word);
    await mendIt();
    await delivered(client, 60);
    await audit(organisations, jobs);
  } catch (error) {
    // What failed here must not fail the next one.
    await mendIt();
    await delivered(client).catch(() => {});
    throw error;
  }
}

/** What holds while it is down. @param {string[]} organisations @param {RegExp} word */
async function endure(organisations, word) {
  const row = await failing(word);
  assert.ok(row.retry_at > row.last_error_at, 'the next try is after the last error');
  assert.equal(Number(row.lag_events), 12);
  await waitUntil(() => jobsByOrganisation(eventsFor(well, organisations)), 'the other sink', {
    accept: (found) => Object.values(found).flat().length === 12,
  });
  await waitUntil(() => statusOf(client, 'sick'), 'two failures in a row', {
    accept: ({ attempts }) => attempts >= 2,
  });
  assert.equal(await retriesOf(client, 'sick'), 0, 'no event is blamed');
  assert.deepEqual(eventsFor(sick, organisations), []);
}

/** What holds after. @param {string[]} organisations @param {number[]} jobs */
async function audit(organisations, jobs) {
  const captured = await capturedIds(client, organisations);
  for (const sink of [sick, well]) {
    const events = eventsFor(sink, organisations);
    assert.deepEqual(jobsByOrganisation(events), expectedJobs(organisations, jobs));
    for (const { event_id, ids } of events) assert.equal(event_id, captured.get(ids.job_id));
  }
  assert.deepEqual(await deadLetters(client, organisations), []);
  await waitUntil(() => statusOf(client, 'sick'), 'the sink to run', {
    accept: ({ state, retry_at }) => state === 'running' && retry_at === null,
  });
}

describe('an outage blames no event', () => {
  /** @type {[string, () => Given, RegExp][]} */
  const ANSWERS = [
    ['no answer', () => HANG, /^timed_out/],
    ['a head that drips', () => drip('head'), /^timed_out/],
    ['a 202 whose body drips', () => drip('body'), /^timed_out/],
    ['an end before the answer', () => cut('silence'), /^answer_lost/],
    ['an end after the head of a 202', () => cut('head'), /^answer_lost/],
    ['an end within the body of a 202', () => cut('body'), /^answer_lost/],
    ['a page with 200', () => garbage(200), /^unexpected_status/],
    ['a page with 202', () => garbage(202), /^unexpected_status/],
    ['a page with 200 that is longer than is read', () => garbage(200, 1_000_000),
      /^unexpected_status/],
    ['what is no HTTP', () => NOT_HTTP, /^(answer_lost|unexpected_status)/],
    ['301', () => redirect(301, elsewhere.url), /^wrong_address/],
    ['307', () => redirect(307, elsewhere.url), /^wrong_address/],
    ['401', () => refusal(401), /^unauthorized/],
    ['403', () => refusal(403), /^forbidden/],
    ['404', () => refusal(404), /^wrong_address/],
    ['405', () => refusal(405), /^wrong_address/],
    ['422 of the body as a whole', () => refusal(422), /^unexpected_status/],
    ['429', () => refusal(429), /^rate_limited/],
    ['429 for the size of the batch', () => BATCH_TOO_LARGE, /^rate_limited/],
    ['500', () => refusal(500), /^server_error/],
    ['502', () => refusal(502), /^server_error/],
    ['503', () => refusal(503), /^server_error/],
    ['504', () => refusal(504), /^server_error/],
  ];
  for (const [name, answer, word] of ANSWERS) {
    test(name, () => survive(
      () => sick.answerWith(answer), word, () => sick.answerWith(() => 202)));
  }

  test('nobody listens', () => survive(() => sick.stop(), /^unreachable/, () => sick.start()));

  test('connections that nobody reads', () => survive(
    () => (sick.holdConnections(), sick.cutConnections()), /^timed_out/,
    () => sick.releaseConnections()));

  test('redirects were followed nowhere', () => assert.deepEqual(elsewhere.requests, []));

  for (const kind of /** @type {const} */ (['stranger', 'elsewhere', 'expired', 'alone'])) {
    test(`a certificate that is not to be trusted: ${kind}`, async () => {
      const authority = await startAuthority();
      const bad = await startSink({ tls: await authority.issue(kind) });
      const good = await startSink({ tls: await authority.issue('good') });
      const options = { timeout_ms: TIMEOUT_MS, ca_file: authority.caFile };
      const pointAt = (/** @type {Sink} */ { url }) => nameSink(client, 'sick', url, options);
      const plain = sick;
      try {
        sick = good;
        await survive(() => pointAt(bad), /^tls/, () => pointAt(good));
        assert.deepEqual(bad.requests, [], 'it was told nothing');
      } finally {
        sick = plain;
        await nameSink(client, 'sick', plain.url, { timeout_ms: TIMEOUT_MS });
        await Promise.all([bad.stop(), good.stop(), authority.close()]);
      }
    });
  }
});

describe('a sink that is down', () => {
  test('seconds of 503, 429 and 401 cost no try, no dead letter, and few requests', async () => {
    const organisations = newOrganisations(20);
    sick.clear();
    const began = performance.now();
    /** @type {number[]} */
    const jobs = [];
    const phases = /** @type {const} */ ([[3_000, 503], [6_000, 429], [9_000, 401]]);
    for (const [until, status] of phases) {
      sick.answerWith(() => refusal(status));
      // Few enough that no message needs a refresh, which lists nothing.
      for await (const _ of setInterval(100)) {
        jobs.push(...await addJobs(client, organisations, 20));
        if (performance.now() - began >= until) break;
      }
    }
    const { length } = sick.requests;
    console.log(`${length} requests in ${Math.round(performance.now() - began)} ms`);
    assert.ok(length > 0 && length < 120, `${length} requests`);
    assert.equal(await retriesOf(client, 'sick'), 0);
    sick.answerWith(() => 202);
    await delivered(client, 60);
    await audit(organisations, jobs);
  });

  test('is asked by one request at a time', async () => {
    const organisations = newOrganisations(50);
    sick.clear();
    sick.answerWith(() => HANG);
    await addJobs(client, organisations, 50);
    await failing(/^timed_out/);
    const first = sick.requests.length;
    const { attempts } = await statusOf(client, 'sick');
    const { attempts: later } = await waitUntil(() => statusOf(client, 'sick'), 'two more tries',
      { accept: (row) => row.attempts >= attempts + 2 });
    assert.ok(sick.requests.length - first <= later - attempts + 1,
      `${sick.requests.length - first} requests for ${later - attempts} failures`);
    sick.answerWith(() => 202);
    await delivered(client, 60);
  });
});

describe('an answer that is lost', () => {
  test('means sending again, under the same id', async () => {
    const organisations = newOrganisations(2);
    sick.clear();
    sick.answerWith(inTurn(cut('silence', { takes: true }), cut('body', { takes: true }), 202));
    const jobs = await addJobs(client, organisations, 10);
    await delivered(client, 60);
    const { length } = eventsFor(sick, organisations);
    assert.ok(length > jobs.length, `${length} arrivals of ${jobs.length} events`);
    await audit(organisations, jobs);
  });

  test('one in fifty, for many organisations: all arrive, in order', async () => {
    const random = randomFrom(seedOfThisRun());
    const organisations = newOrganisations(30);
    sick.clear();
    sick.answerWith(() => {
      if (!random.chance(2)) return 202;
      return cut(random.pick(/** @type {const} */ (['silence', 'head', 'body'])), { takes: true });
    });
    /** @type {number[]} */
    const jobs = [];
    for (let turn = 0; turn < 100; turn += 1) {
      jobs.push(...await addJobs(client, organisations, organisations.length));
    }
    await delivered(client, 60);
    const lost = sick.requests.filter(({ answer }) => answer?.cutAfter).length;
    console.log(`${lost} of ${sick.requests.length} answers lost`);
    await audit(organisations, jobs);
    sick.answerWith(() => 202);
  });
});
