// @ts-check
/**
 * The contract of tokens:
 *
 * 1. what signToken makes, readToken takes, under the three algorithms of a shared secret;
 * 2. each kind of bad token is told apart by its flaw;
 * 3. every one of them is 401 on the HTTP routes, with one body;
 * 4. Authorization is preferred to apikey, and only its scheme `bearer` counts.
 */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { readToken, signToken, verifyToken } from '../tokens.mjs';
import { ANON, SECRET, message, nowS, post, start } from './support/stage.mjs';

const good = { role: 'authenticated', sub: 'x' };
const [header, content, signature] = signToken(good, SECRET).split('.');
const encode = (/** @type {unknown} */ value) =>
  Buffer.from(JSON.stringify(value)).toString('base64url');

/** @type {[string, string, import('../tokens.mjs').Flaw][]} */
const BAD = [
  ['no token at all', 'word', 'malformed'],
  ['a new style key', 'sb_secret_abcdefghijklmnop', 'malformed'],
  ['claims that are no object', `${header}.${encode([1])}.${signature}`, 'malformed'],
  ['another secret', signToken(good, 'another secret'), 'forged'],
  ['changed claims', `${header}.${encode({ ...good, role: 'service_role' })}.${signature}`,
    'forged'],
  ['no signature', `${header}.${content}.`, 'forged'],
  ['the algorithm none', `${encode({ alg: 'none' })}.${content}.`, 'unsignable'],
  ['a key pair', `${encode({ alg: 'RS256' })}.${content}.${signature}`, 'unsignable'],
  ['an expired one', signToken({ ...good, exp: nowS() - 5 }, SECRET), 'expired'],
  ['no exp', signToken({ ...good, exp: undefined }, SECRET), 'incomplete'],
  ['no role', signToken({ sub: 'x' }, SECRET), 'incomplete'],
  ['an iat that is no number', signToken({ ...good, iat: 'now' }, SECRET), 'invalid'],
  ['an exp that is no number', signToken({ ...good, exp: 'never' }, SECRET), 'invalid'],
];

describe('tokens', () => {
  for (const algorithm of /** @type {const} */ (['HS256', 'HS384', 'HS512'])) {
    test(`${algorithm} goes both ways`, () => {
      const token = signToken(good, SECRET, { algorithm });
      const { claims } = readToken(token, SECRET);
      assert.equal(claims?.role, 'authenticated');
      assert.equal(claims?.sub, 'x');
      assert.ok(Number(claims?.exp) > nowS() + 3500);
      assert.equal(verifyToken(token, 'another secret'), null);
    });
  }

  for (const [name, token, flaw] of BAD) {
    test(`${name} is ${flaw}`, () => assert.equal(readToken(token, SECRET).flaw, flaw));
  }

  test('an expired token says for how long', () => {
    const token = signToken({ ...good, exp: nowS() - 5 }, SECRET);
    const { expiredForS } = readToken(token, SECRET);
    assert.ok(expiredForS === 5 || expiredForS === 6, `${expiredForS}`);
  });
});

describe('tokens on the HTTP routes', () => {
  /** @type {import('./support/stage.mjs').Realtime} */
  let realtime;
  before(async () => (realtime = await start()));
  after(() => realtime?.stop());
  const batch = { messages: [message('room')] };

  for (const [name, token] of BAD) {
    test(`${name} is 401`, async () => {
      const { status, body } = await post(realtime, batch, { token });
      assert.deepEqual([status, body], [401, { message: 'Unauthorized' }]);
    });
  }

  /** @type {[string, Record<string, string | undefined>, number][]} */
  const HEADERS = [
    ['no header', { authorization: undefined }, 401],
    ['apikey alone', { authorization: undefined, apikey: ANON }, 202],
    ['bearer in small letters', { authorization: `bearer ${ANON}` }, 202],
    ['a bad bearer beside a good apikey', { authorization: 'Bearer x', apikey: ANON }, 401],
    ['a good bearer beside a bad apikey', { authorization: `Bearer ${ANON}`, apikey: 'x' }, 202],
    ['another scheme beside a good apikey', { authorization: 'Basic x', apikey: ANON }, 202],
    ['another scheme alone', { authorization: `Basic ${ANON}` }, 401],
  ];
  for (const [name, headers, expected] of HEADERS) {
    test(`${name} is ${expected}`, async () => {
      assert.equal((await post(realtime, batch, { headers })).status, expected);
    });
  }

  for (const authorization of [ANON, `Bearer  ${ANON}`, `Bearer ${ANON} more`]) {
    test(`an Authorization of ${authorization.split(' ').length} words is 500`, async () => {
      const { status, body } = await post(realtime, batch, { headers: { authorization } });
      assert.deepEqual([status, body], [500, 'Internal Server Error']);
    });
  }
});
