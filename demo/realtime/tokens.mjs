// @ts-check
/**
 * JSON Web Tokens under one shared secret: HS256, HS384 and HS512, as a Supabase project signs
 * them.
 *
 * Why a token was refused is said by kind, because the HTTP routes, the handshake and the channels
 * each have their own words for it.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';

/** @type {Record<string, string>} */
const DIGESTS = { HS256: 'sha256', HS384: 'sha384', HS512: 'sha512' };
const LIFETIME_S = 3600;

/**
 * @typedef {Record<string, any> & { role: string, exp: number, sub?: string }} Claims
 *
 * @typedef {'malformed' | 'unsignable' | 'forged' | 'expired' | 'incomplete' | 'invalid'} Flaw
 *   `unsignable`: an algorithm that a shared secret has nothing to do with
 *
 * @typedef {{ claims: Claims, flaw?: undefined, expiredForS?: undefined }
 *   | { claims?: undefined, flaw: Flaw, expiredForS?: number }} Reading
 */

/**
 * Mints a token. It is good for an hour unless `exp` says otherwise; `exp: undefined` leaves it
 * out.
 *
 * @param {Record<string, unknown>} claims
 * @param {string} secret
 * @param {{ algorithm?: 'HS256' | 'HS384' | 'HS512' }} [options]
 */
export function signToken(claims, secret, { algorithm = 'HS256' } = {}) {
  const iat = nowS();
  const content = { iat, exp: iat + LIFETIME_S, ...claims };
  const signed = `${encode({ alg: algorithm, typ: 'JWT' })}.${encode(content)}`;
  return `${signed}.${sign(algorithm, signed, secret).toString('base64url')}`;
}

/**
 * The claims of a token that may be used now; null for any other.
 *
 * @param {string} token
 * @param {string} secret
 */
export function verifyToken(token, secret) {
  return readToken(token, secret).claims ?? null;
}

/**
 * @param {unknown} token
 * @param {string} secret
 * @returns {Reading}
 */
export function readToken(token, secret) {
  const parts = typeof token === 'string' ? token.split('.') : [];
  const header = decode(parts[0]);
  const claims = decode(parts[1]);
  if (parts.length !== 3 || !header || !claims) return { flaw: 'malformed' };
  if (!Object.hasOwn(DIGESTS, header.alg)) return { flaw: 'unsignable' };

  const expected = sign(header.alg, `${parts[0]}.${parts[1]}`, secret);
  const signature = Buffer.from(parts[2], 'base64url');
  const isGenuine = signature.length === expected.length && timingSafeEqual(signature, expected);
  if (!isGenuine) return { flaw: 'forged' };
  return judge(claims);
}

/**
 * @param {Record<string, any>} claims
 * @returns {Reading}
 */
function judge(claims) {
  const { exp, iat, role } = claims;
  if (iat !== undefined && typeof iat !== 'number') return { flaw: 'invalid' };
  if (typeof exp === 'number' && exp <= nowS()) {
    return { flaw: 'expired', expiredForS: Math.floor(nowS() - exp) };
  }
  if (exp === undefined || role === undefined) return { flaw: 'incomplete' };
  if (!Number.isInteger(exp)) return { flaw: 'invalid' };
  return { claims: /** @type {Claims} */ (claims) };
}

const nowS = () => Math.floor(Date.now() / 1000);

const encode = (/** @type {unknown} */ value) =>
  Buffer.from(JSON.stringify(value)).toString('base64url');

/**
 * @param {string | undefined} part
 * @returns {Record<string, any> | null}
 */
function decode(part) {
  try {
    const value = JSON.parse(Buffer.from(part ?? '', 'base64url').toString('utf8'));
    return value !== null && typeof value === 'object' && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

/**
 * @param {string} algorithm
 * @param {string} content
 * @param {string} secret
 */
const sign = (algorithm, content, secret) =>
  createHmac(DIGESTS[algorithm], secret).update(content).digest();
