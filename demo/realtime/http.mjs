// @ts-check
/**
 * The HTTP side: addresses, bodies and what every request must pass before a route sees it.
 *
 * The order is Realtime's: body (413, 400), address (404), Accept (406), tenant (401), requests a
 * second (429), and for the broadcast routes the token (401) and a suspended tenant (403). The
 * routes live in broadcast.mjs.
 */
import { randomUUID } from 'node:crypto';
import { broadcastBatch, broadcastSingle } from './broadcast.mjs';
import { readToken } from './tokens.mjs';

/** Kong strips this prefix, and calls the socket's address by a shorter name. */
const GATEWAY_PREFIX = '/realtime/v1';
const BODY_BYTES_MAX = 8_000_000;
/** The documented 4096 is not exact: 4,200 bytes passed there and 8,000 did not. */
const HEADER_VALUE_BYTES_MAX = 4_500;

/**
 * @typedef {object} Answer
 * @property {number} status
 * @property {unknown} [json]
 * @property {string} [html]
 * @property {string} [text]
 * @property {Record<string, string | number>} [headers]
 *
 * @typedef {object} Call what a route is given
 * @property {any} params the parsed body, and beside it nothing
 * @property {Buffer} body
 * @property {string} contentType without its parameters; empty when there is none
 * @property {URL} url
 * @property {string[]} parts what the groups of the route's pattern matched, decoded
 * @property {Record<string, unknown>} headers
 * @property {import('./tokens.mjs').Claims} claims
 *
 * @typedef {import('./socket.mjs').Services} Services
 *
 * @typedef {object} Route
 * @property {string} method
 * @property {RegExp} path
 * @property {'open' | 'tenant' | 'token'} guard
 * @property {(call: Call, services: Services) => Answer | Promise<Answer>} run
 */

/** @type {Route[]} */
const ROUTES = [
  {
    method: 'GET',
    path: /^\/healthcheck$/,
    guard: 'open',
    run: () => ({ status: 200, text: 'ok' }),
  },
  {
    method: 'GET',
    path: /^\/api\/ping$/,
    guard: 'tenant',
    run: () => ({ status: 200, json: { message: 'Success' } }),
  },
  { method: 'POST', path: /^\/api\/broadcast$/, guard: 'token', run: broadcastBatch },
  {
    method: 'POST',
    path: /^\/api\/broadcast\/([^/]+)\/events\/([^/]+)$/,
    guard: 'token',
    run: broadcastSingle,
  },
];

const BAD_REQUEST = { status: 400, html: 'Bad Request' };
const NOT_FOUND = { status: 404, html: 'Not Found' };
const NOT_ACCEPTABLE = { status: 406, html: 'Not Acceptable' };
const TOO_LARGE = { status: 413, html: 'Request Entity Too Large' };
const UNAUTHORIZED = { status: 401, json: { message: 'Unauthorized' } };
const BROKEN = { status: 500, json: 'Internal Server Error' };

/**
 * @param {Services} services
 * @returns {(request: import('node:http').IncomingMessage,
 *   response: import('node:http').ServerResponse) => Promise<void>}
 */
export function createHandler(services) {
  const { outage, tenant, options, state } = services;
  return async (request, response) => {
    await outage.over();
    tenant.totals.requests += 1;
    /** @type {Record<string, string | number>} */
    const headers = { server: 'Cowboy', 'x-request-id': randomUUID() };
    let answer;
    try {
      answer = outage.status ? { status: outage.status } : await handle(request, services, headers);
    } catch (error) {
      options.log(`request failed: ${/** @type {Error} */ (error).stack}`);
      answer = BROKEN;
    }
    await outage.over();
    if (state.stopping) headers.connection = 'close';
    if (answer.status >= 400) tenant.totals.refusals += 1;
    send(response, answer, headers);
  };
}

/**
 * The address as Realtime itself knows it, whether or not a gateway is in front.
 *
 * @param {import('node:http').IncomingMessage} request
 */
export function readUrl(request) {
  const url = new URL(`http://host${request.url}`);
  const isThroughGateway = url.pathname.startsWith(`${GATEWAY_PREFIX}/`);
  if (isThroughGateway) {
    const rest = url.pathname.slice(GATEWAY_PREFIX.length);
    url.pathname = rest === '/websocket' ? '/socket/websocket' : rest;
  }
  return { url, isThroughGateway };
}

/**
 * @param {import('node:http').IncomingMessage} request
 * @param {Services} services
 * @param {Record<string, string | number>} headers of the answer, whatever it will be
 * @returns {Promise<Answer>}
 */
async function handle(request, services, headers) {
  const { url, isThroughGateway } = readUrl(request);
  if (isThroughGateway && request.method === 'OPTIONS') return answerPreflight(request, headers);
  if (hasLongHeader(request)) return { status: 431 };

  const body = await readBody(request);
  if (!body) {
    headers.connection = 'close';
    return TOO_LARGE;
  }
  const contentType = (request.headers['content-type'] ?? '').split(';', 1)[0].trim().toLowerCase();
  const params = parseBody(body, contentType);
  if (params === undefined) return BAD_REQUEST;

  const route = ROUTES.find(
    ({ method, path }) => method === request.method && path.test(url.pathname),
  );
  if (!route) return NOT_FOUND;
  const groups = /** @type {RegExpExecArray} */ (route.path.exec(url.pathname)).slice(1);
  const parts = decodeAll(groups);
  if (!parts) return BAD_REQUEST;
  const reading = route.guard === 'open' ? {} : admit(request, services, route, headers);
  if (reading.refusal) return reading.refusal;
  const claims = /** @type {import('./tokens.mjs').Claims} */ (reading.claims);
  const call = { params, body, contentType, url, parts, headers: request.headers, claims };
  return route.run(call, services);
}

/**
 * What stands between a request and its route.
 *
 * @param {import('node:http').IncomingMessage} request
 * @param {Services} services
 * @param {Route} route
 * @param {Record<string, string | number>} headers
 * @returns {{ refusal?: Answer, claims?: import('./tokens.mjs').Claims }}
 */
function admit(request, { tenant, options }, { guard }, headers) {
  if (!acceptsJson(request.headers.accept)) return { refusal: NOT_ACCEPTABLE };
  if (guard === 'token' && request.headers.origin) headers['access-control-allow-origin'] = '*';
  if (!tenant.isNamedBy(request.headers.host)) {
    return { refusal: { status: 401, json: { message: 'Tenant not found in database' } } };
  }
  if (!countRequest(tenant, headers)) {
    return { refusal: { status: 429, json: { message: 'Too many requests' } } };
  }
  if (guard === 'tenant') return {};

  const { authorization, apikey } = request.headers;
  const words = authorization ? authorization.split(' ') : [];
  if (authorization && words.length !== 2) return { refusal: BROKEN };
  const isBearer = words[0]?.toLowerCase() === 'bearer' && words[1] !== '';
  const { claims } = readToken(isBearer ? words[1] : apikey, options.jwtSecret);
  if (!claims) return { refusal: UNAUTHORIZED };
  if (tenant.suspended) {
    return { refusal: { status: 403, json: { message: 'Tenant is suspended' } } };
  }
  return { claims };
}

/**
 * Requests a second, whatever they carry, against the limit of events.
 *
 * @param {import('./tenant.mjs').Tenant} tenant
 * @param {Record<string, string | number>} headers
 */
function countRequest({ limits, counters }, headers) {
  counters.requests.add();
  const rolling = Math.trunc(counters.requests.average);
  const { eventsPerSecond: limit } = limits;
  headers['x-rate-rolling'] = rolling;
  if (limit === null) return true;
  headers['x-rate-limit'] = limit;
  headers['x-rate-limit-remaining'] = limit - rolling;
  return rolling < limit;
}

/**
 * Preflights are the gateway's business: Realtime itself has no route for them.
 *
 * @param {import('node:http').IncomingMessage} request
 * @param {Record<string, string | number>} headers
 */
function answerPreflight(request, headers) {
  headers['access-control-allow-origin'] = '*';
  headers['access-control-allow-methods'] = 'GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS';
  headers['access-control-allow-headers'] =
    request.headers['access-control-request-headers'] ?? '*';
  return { status: 204 };
}

/** @param {import('node:http').IncomingMessage} request */
const hasLongHeader = (request) =>
  request.rawHeaders.some((value) => value.length > HEADER_VALUE_BYTES_MAX);

/** @param {string | undefined} accept */
function acceptsJson(accept) {
  if (!accept) return true;
  const types = accept.split(',').map((range) => range.split(';', 1)[0].trim().toLowerCase());
  return types.some((type) => type === '*/*' || type === 'application/*' || isJson(type));
}

const isJson = (/** @type {string} */ type) => /^application\/(.+\+)?json$/.test(type);

/**
 * @param {import('node:http').IncomingMessage} request
 * @returns {Promise<Buffer | null>} null when it is larger than is read
 */
async function readBody(request) {
  /** @type {Buffer[]} */
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    // The rest is read and thrown away, or the client would never come to see the answer.
    if (bytes <= BODY_BYTES_MAX) chunks.push(chunk);
  }
  return bytes <= BODY_BYTES_MAX ? Buffer.concat(chunks) : null;
}

/**
 * Any other type than JSON is left unparsed, as if nothing had been sent.
 *
 * @param {Buffer} body
 * @param {string} contentType
 * @returns {any} undefined when it is not valid
 */
function parseBody(body, contentType) {
  if (!isJson(contentType) || body.length === 0) return {};
  try {
    const value = JSON.parse(body.toString('utf8'));
    const isObject = value !== null && typeof value === 'object' && !Array.isArray(value);
    return isObject ? value : { _json: value };
  } catch {
    return undefined;
  }
}

/** @param {string[]} parts */
function decodeAll(parts) {
  try {
    return parts.map(decodeURIComponent);
  } catch {
    return null;
  }
}

/**
 * @param {import('node:http').ServerResponse} response
 * @param {Answer} answer
 * @param {Record<string, string | number>} headers
 */
function send(response, { status, json, html, text }, headers) {
  if (json !== undefined) headers['content-type'] = 'application/json; charset=utf-8';
  else if (html !== undefined) headers['content-type'] = 'text/html; charset=utf-8';
  else if (text !== undefined) headers['content-type'] = 'text/plain; charset=utf-8';
  const body = json === undefined ? (html ?? text ?? '') : JSON.stringify(json);
  headers['content-length'] = Buffer.byteLength(body);
  response.writeHead(status, headers).end(body);
}
