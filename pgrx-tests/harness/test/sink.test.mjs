// @ts-check
/**
 * The contract of the sink that the tests of failures stand on:
 *   1. it keeps what it was sent, in order, with what it answered; of tokens only a hash;
 *   2. it fails in each way that answers.mjs names, by request and by organisation, and what it
 *      had taken is told apart from what it was offered;
 *   3. connections can be refused, held, cut, and given each kind of bad certificate;
 *   4. it goes at once, whoever still waits for an answer.
 * Were 2 wrong, a test of the relay would pass because nothing had failed.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Agent, request as requestHttp } from 'node:http';
import { request as requestHttps } from 'node:https';
import { after, before, describe, test } from 'node:test';
import {
  BATCH_TOO_LARGE, HANG, NOT_HTTP, cut, drip, forOrganisations, garbage, inTurn, redirect, refusal,
  refusing,
} from '../../e2e/support/answers.mjs';
import { startAuthority } from '../../e2e/support/certificates.mjs';
import { hashToken, startSink } from '../../e2e/support/sink.mjs';
import { waitUntil } from '../wait.mjs';

const message = (/** @type {string} */ org_id, n = 1) =>
  ({ topic: `notifications:org_${org_id}`, payload: { org_id, events: [{ event_id: n }] } });

/**
 * Posts messages on a connection of its own: status and body, or the code of the error.
 *
 * @param {string} url
 * @param {any[]} messages
 * @param {{ agent?: Agent, ca?: Buffer, timeoutMs?: number, headers?: Record<string, string> }}
 *   [options]
 * @returns {Promise<{ status?: number, body?: string, headers?: any, error?: string }>}
 */
function post(url, messages, { agent, ca, timeoutMs = 5_000, headers } = {}) {
  const ask = url.startsWith('https') ? requestHttps : requestHttp;
  return new Promise((resolve) => {
    const fail = (/** @type {any} */ error) => resolve({ error: error.code ?? error.message });
    const options = { method: 'POST', agent: agent ?? /** @type {const} */ (false), ca, headers };
    const outgoing = ask(`${url}/api/broadcast`, options, (response) => {
      /** @type {Buffer[]} */
      const parts = [];
      response.on('data', (part) => parts.push(part)).on('error', fail);
      response.on('end', () => {
        const { statusCode: status, headers: given } = response;
        resolve({ status, body: Buffer.concat(parts).toString(), headers: given });
      });
    });
    outgoing.on('error', fail);
    // The whole of it, also of an answer that has begun.
    setTimeout(() => outgoing.destroy(new Error('deadline')), timeoutMs).unref();
    outgoing.end(JSON.stringify({ messages }));
  });
}

/** @type {import('../../e2e/support/sink.mjs').Sink} */
let sink;
before(async () => (sink = await startSink()));
after(() => sink?.stop());

/**
 * @param {import('../../e2e/support/answers.mjs').Answerer} answer
 * @param {Parameters<typeof post>[2]} [options]
 * @param {any[]} [messages]
 */
async function answered(answer, options, messages = [message('a')]) {
  sink.clear();
  sink.answerWith(answer);
  return post(sink.url, messages, options);
}

describe('what is kept', () => {
  test('requests with their answers, and the events that were taken, in order', async () => {
    await answered(inTurn(202, 503, 202), {}, [message('a', 1), message('b', 2)]);
    await post(sink.url, [message('a', 3)]);
    await post(sink.url, [message('a', 3)]);
    assert.deepEqual(sink.requests.map(({ status, isTaken }) => [status, isTaken]),
      [[202, true], [503, false], [202, true]]);
    assert.deepEqual(sink.events(), [
      { org_id: 'a', event_id: 1 }, { org_id: 'b', event_id: 2 }, { org_id: 'a', event_id: 3 },
    ]);
    assert.deepEqual(sink.offeredEvents().map(({ event_id }) => event_id), [1, 2, 3, 3]);
    for (const { at, answeredAt, path, method, bytes } of sink.requests) {
      assert.deepEqual([path, method], ['/api/broadcast', 'POST']);
      assert.ok(answeredAt !== null && answeredAt >= at && bytes > 0);
    }
  });

  test('of a token a hash', async () => {
    await answered(() => 202, { headers: { authorization: 'Bearer secret', apikey: 'secret' } });
    const [{ headers }] = sink.requests;
    assert.equal(headers.authorization, hashToken('secret'));
    assert.equal(headers.apikey, headers.authorization);
    assert.ok(!JSON.stringify(sink.requests).includes('secret'));
  });

  test('one connection for many requests', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const before_ = sink.connections;
    for (let n = 0; n < 3; n += 1) await post(sink.url, [message('a')], { agent });
    assert.equal(sink.connections, before_ + 1);
    agent.destroy();
  });
});

describe('answers', () => {
  const statuses = /** @type {const} */ (
    [400, 401, 403, 404, 405, 413, 422, 429, 500, 502, 503, 504]);
  for (const status of statuses) {
    test(`${status} in the words of Realtime or its gateway`, async () => {
      const { status: seen, body } = await answered(() => refusal(status));
      assert.equal(seen, status);
      assert.ok(body);
      assert.deepEqual(sink.events(), []);
    });
  }

  test('a bad message is named, and the batch is refused as a whole', async () => {
    const isBad = (/** @type {any} */ { payload }) => payload.org_id === 'bad';
    const batch = [message('a'), message('bad'), message('b')];
    const named = await answered(refusing(isBad), {}, batch);
    assert.deepEqual([named.status, JSON.parse(named.body ?? '')],
      [422, { errors: { messages: [{}, { payload: ['is invalid'] }, {}] } }]);
    assert.deepEqual(sink.events(), []);
    const silent = await answered(refusing(isBad, { names: false }), {}, batch);
    assert.deepEqual([silent.status, silent.body], [422, '{"message":"refused"}']);
    assert.equal((await answered(refusing(isBad, { status: 413 }), {}, batch)).status, 413);
    assert.equal((await answered(refusing(isBad), {}, [message('a')])).status, 202);
    assert.equal(sink.events().length, 1);
  });

  test('a batch that is too large for the rate', async () => {
    const { status, body } = await answered(() => BATCH_TOO_LARGE);
    assert.equal(status, 429);
    assert.match(body ?? '', /reduce the batch size/);
  });

  test('silence, and drips, last beyond the deadline', async () => {
    for (const answer of [HANG, drip('head'), drip('body')]) {
      assert.deepEqual(await answered(() => answer, { timeoutMs: 300 }), { error: 'deadline' });
      assert.deepEqual([sink.requests.length, sink.events()], [1, []]);
      assert.equal(sink.requests[0].answeredAt, null);
    }
  });

  for (const after_ of /** @type {const} */ (['silence', 'head', 'body'])) {
    test(`a connection that ends after ${after_} leaves the question open`, async () => {
      for (const takes of [false, true]) {
        const { error } = await answered(() => cut(after_, { takes }));
        assert.match(error ?? '', /^(ECONNRESET|aborted)$/);
        assert.equal(sink.events().length, takes ? 1 : 0);
      }
    });
  }

  test('a page with a status of success, and what is no HTTP', async () => {
    for (const status of [200, 202]) {
      const { status: seen, body } = await answered(() => garbage(status, 100_000));
      assert.equal(seen, status);
      assert.match(body ?? '', /^<html>.{100000}/);
    }
    const { error } = await answered(() => NOT_HTTP);
    assert.match(error ?? '', /^HPE_/);
    assert.deepEqual(sink.events(), []);
  });

  for (const status of /** @type {const} */ ([301, 302, 303, 307, 308])) {
    test(`a redirect with ${status}`, async () => {
      const answer = await answered(() => redirect(status, 'http://127.0.0.1:1/elsewhere'));
      assert.deepEqual([answer.status, answer.headers.location],
        [status, 'http://127.0.0.1:1/elsewhere']);
    });
  }

  test('by organisation, also within one batch', async () => {
    const answer = forOrganisations(['bad'], refusal(503));
    assert.equal((await answered(answer, {}, [message('a'), message('b')])).status, 202);
    assert.equal((await answered(answer, {}, [message('a'), message('bad')])).status, 503);
  });

  test('in turn, where a request without messages does not count', async () => {
    const answer = inTurn(500, 202);
    assert.equal((await answered(answer, {}, [])).status, 500);
    assert.equal((await post(sink.url, [message('a')])).status, 500);
    assert.equal((await post(sink.url, [message('a')])).status, 202);
    assert.equal((await post(sink.url, [message('a')])).status, 202);
  });
});

describe('connections', () => {
  test('are refused while it is stopped, and taken after', async () => {
    await sink.stop();
    assert.deepEqual(await answered(() => 202), { error: 'ECONNREFUSED' });
    await sink.start();
    assert.equal((await answered(() => 202)).status, 202);
  });

  test('that are held are read when they are released, also those given up', async () => {
    sink.clear();
    sink.answerWith(() => 202);
    sink.holdConnections();
    const count = sink.connections;
    const given = await post(sink.url, [message('a')], { timeoutMs: 300 });
    assert.deepEqual([given, sink.requests], [{ error: 'deadline' }, []]);
    const waiting = post(sink.url, [message('b')]);
    await waitUntil(() => sink.connections === count + 2, 'the second connection');
    sink.releaseConnections();
    assert.equal((await waiting).status, 202);
    await waitUntil(() => sink.requests.length === 2, 'the one that nobody waits for');
    assert.deepEqual(sink.events().map(({ org_id }) => org_id).sort(), ['a', 'b']);
  });

  test('are cut with requests on the way, and it goes on listening', async () => {
    sink.clear();
    sink.answerWith(() => HANG);
    const lost = post(sink.url, [message('a')]);
    await waitUntil(() => sink.requests.length === 1, 'the request to arrive');
    sink.cutConnections();
    assert.deepEqual(await lost, { error: 'ECONNRESET' });
    assert.equal((await answered(() => 202)).status, 202);
  });

  test('have a certificate, of each kind', async () => {
    const authority = await startAuthority();
    const ca = readFileSync(authority.caFile);
    /** @type {[import('../../e2e/support/certificates.mjs').CertificateKind, string | number][]} */
    const kinds = [
      ['good', 202], ['stranger', 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'],
      ['elsewhere', 'ERR_TLS_CERT_ALTNAME_INVALID'], ['expired', 'CERT_HAS_EXPIRED'],
      ['alone', 'DEPTH_ZERO_SELF_SIGNED_CERT'],
    ];
    for (const [kind, expected] of kinds) {
      const guarded = await startSink({ tls: await authority.issue(kind) });
      const { status, error } = await post(guarded.url, [message('a')], { ca });
      assert.equal(status ?? error, expected, kind);
      assert.equal(guarded.requests.length, kind === 'good' ? 1 : 0, kind);
      await guarded.stop();
    }
    await authority.close();
  });

  test('end with the sink, whoever still waits', async () => {
    const silent = await startSink({ answer: () => HANG });
    const lost = post(silent.url, [message('a')]);
    await waitUntil(() => silent.requests.length === 1, 'the request to arrive');
    await silent.stop();
    assert.deepEqual(await lost, { error: 'ECONNRESET' });
  });
});
