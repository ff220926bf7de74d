// @ts-check
/**
 * The ways in which a sink answers, well and badly: what `startSink({ answer })` may return in
 * place of a status.
 *
 * An answer is data. What it says of the events is apart from how it is sent: `takes` is whether
 * the sink keeps the messages, which it may do and yet never be heard.
 */

/**
 * @typedef {object} Answer
 * @property {number} status
 * @property {Record<string, string>} [headers]
 * @property {string | Buffer} [body]
 * @property {boolean} [takes] whether the messages count as received; those of a 2xx do
 * @property {'whole' | 'never' | 'dripHead' | 'dripBody' | 'raw'} [manner] `never`: nothing is
 *   sent, and the connection stays open; `dripHead`, `dripBody`: byte by byte from there on, for
 *   ever; `raw`: the body is all that is sent, in place of HTTP
 * @property {'silence' | 'head' | 'body'} [cutAfter] the connection is reset after no byte at all,
 *   after the head, or in the middle of the body
 *
 * @typedef {import('./sink.mjs').Request} Request
 * @typedef {number | Answer} Given
 * @typedef {(request: Request) => Given | Promise<Given>} Answerer
 */

const JSON_TYPE = { 'content-type': 'application/json; charset=utf-8' };
const PAGE_TYPE = { 'content-type': 'text/html; charset=utf-8' };

/** @type {Answer} */
export const ACCEPTED = Object.freeze({ status: 202 });

/** Nothing comes back, and the connection stays open. @type {Answer} */
export const HANG = Object.freeze({ status: 0, manner: 'never' });

/**
 * An answer that goes on byte by byte and has no end.
 *
 * @param {'head' | 'body'} part that drips
 * @returns {Answer}
 */
export const drip = (part) =>
  ({ status: 202, manner: part === 'head' ? 'dripHead' : 'dripBody', takes: false });

/**
 * The connection ends with a reset.
 *
 * @param {'silence' | 'head' | 'body'} after how much of the answer
 * @param {{ takes?: boolean }} [options] whether the sink had kept the messages by then
 * @returns {Answer}
 */
export const cut = (after, { takes = false } = {}) =>
  ({ status: 202, cutAfter: after, body: '{"ok":true}', headers: JSON_TYPE, takes });

/**
 * A status of success with a page in place of an answer, as a captive portal gives it.
 *
 * @param {number} [status]
 * @param {number} [paddingBytes]
 * @returns {Answer}
 */
export const garbage = (status = 200, paddingBytes = 0) => ({
  status, headers: PAGE_TYPE, takes: false,
  body: `<html><body>Welcome, please sign in${' '.repeat(paddingBytes)}</body></html>`,
});

/** Bytes that are no HTTP. @type {Answer} */
export const NOT_HTTP = Object.freeze({
  status: 0, manner: 'raw', body: Buffer.from('SSH-2.0-OpenSSH_9.2\r\n\x00\xff\xfe', 'latin1'),
});

/**
 * @param {301 | 302 | 303 | 307 | 308} status
 * @param {string} location
 * @returns {Answer}
 */
export const redirect = (status, location) => ({ status, headers: { location } });

/** What Realtime, or the gateway in front of it, says with each status. */
const WORDS = {
  400: { page: 'Bad Request' },
  401: { json: { message: 'Unauthorized' } },
  403: { json: { message: 'Tenant is suspended' } },
  404: { page: 'Not Found' },
  405: { page: 'Method Not Allowed' },
  413: { page: 'Request Entity Too Large' },
  422: { json: { errors: { messages: ["can't be blank"] } } },
  429: { json: { message: 'You have exceeded your rate limit' } },
  500: { json: 'Internal Server Error' },
  502: { json: { message: 'An invalid response was received from the upstream server' } },
  503: { json: { message: 'name resolution failed' } },
  504: { json: { message: 'The upstream server is timing out' } },
};

/**
 * A refusal with Realtime's own words.
 *
 * @param {keyof typeof WORDS} status
 * @returns {Answer}
 */
export function refusal(status) {
  const { json, page } = /** @type {{ json?: unknown, page?: string }} */ (WORDS[status]);
  if (page !== undefined) return { status, headers: PAGE_TYPE, body: page };
  return { status, headers: JSON_TYPE, body: JSON.stringify(json) };
}

/** A batch that is larger than what the tenant's rate leaves. @type {Answer} */
export const BATCH_TOO_LARGE = Object.freeze({
  status: 429,
  headers: JSON_TYPE,
  body: '{"message":"Too many messages to broadcast, please reduce the batch size"}',
});

/**
 * Refuses a batch as Realtime does when one of its messages is bad: all of it, with an entry for
 * each message, empty for the good ones. A batch without a bad one is taken.
 *
 * @param {(message: any) => boolean} isBad
 * @param {{ names?: boolean, status?: 400 | 413 | 422 }} [options] `names: false` keeps to itself
 *   which one it is, as gateways do
 * @returns {Answerer}
 */
export function refusing(isBad, { names = true, status = 422 } = {}) {
  return ({ messages }) => {
    const found = messages.map(isBad);
    if (!found.includes(true)) return ACCEPTED;
    if (!names || status !== 422) {
      return status === 422 ? { ...refusal(422), body: '{"message":"refused"}' } : refusal(status);
    }
    const complaints = found.map((bad) => (bad ? { payload: ['is invalid'] } : {}));
    const body = JSON.stringify({ errors: { messages: complaints } });
    return { status, headers: JSON_TYPE, body };
  };
}

/**
 * Answers so whenever one of these organisations is in the request, else well.
 *
 * @param {string[]} organisations
 * @param {Given | Answerer} answer
 * @param {Given | Answerer} [otherwise]
 * @returns {Answerer}
 */
export function forOrganisations(organisations, answer, otherwise = ACCEPTED) {
  return (request) => {
    const concerned = organisationsOf(request).some((org) => organisations.includes(org));
    return give(concerned ? answer : otherwise, request);
  };
}

/**
 * Answers the first requests with these in turn, all later ones with the last. Requests that carry
 * no message do not count.
 *
 * @param {...(Given | Answerer)} answers
 * @returns {Answerer}
 */
export function inTurn(...answers) {
  let turn = 0;
  return (request) => {
    const answer = answers[Math.min(turn, answers.length - 1)];
    if (request.messages.length > 0) turn += 1;
    return give(answer, request);
  };
}

/** @param {Request} request */
export const organisationsOf = ({ messages }) => [
  ...new Set(messages.map(({ payload }) => payload?.org_id)),
];

/** The events that a message lists. @param {any} message @returns {any[]} */
export const eventsOf = ({ payload }) => payload?.events ?? [];

/**
 * @param {Given | Answerer} answer
 * @param {Request} request
 */
function give(answer, request) {
  return typeof answer === 'function' ? answer(request) : answer;
}
